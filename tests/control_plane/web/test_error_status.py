import inspect
from typing import Any

import msgspec
import pytest

from control_plane import errors
from control_plane.errors import Conflict, DomainError, Invalid, NotFound, StoreRefused, StoreUnavailable
from control_plane.web.error_status import HttpError, as_http_error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFound("no such run"), 404, "not_found"),
        (Conflict("handle_taken", "taken"), 409, "handle_taken"),
        (Invalid("invalid_inputs", "wrong"), 400, "invalid_inputs"),
        (StoreUnavailable("disk /secret/path is full"), 503, "store_unavailable"),
        (StoreRefused("newer"), 503, "store_unavailable"),
        (TimeoutError(), 503, "timeout"),
        (KeyError("internal detail"), 500, "internal_error"),
        (DomainError("unmapped", "a kind that nobody mapped"), 500, "internal_error"),
        (HttpError(418, "teapot", "short and stout"), 418, "teapot"),
    ],
)
def test_every_error_has_one_status(error: Exception, status: int, code: str) -> None:
    answer = as_http_error(error)
    assert (answer.status, answer.code) == (status, code)
    body: Any = msgspec.json.decode(answer.body())
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}


def test_every_kind_of_domain_error_is_mapped() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DomainError)]
    for kind in set(kinds) - {DomainError}:
        error = kind("a sentence") if kind is NotFound else kind("a_code", "a sentence")
        assert as_http_error(error).status < 500, kind


def test_details_are_shown_and_insides_are_not() -> None:
    conflict = as_http_error(Conflict("external_id_conflict", "used", {"run_id": "run_1"}))
    body: Any = msgspec.json.decode(conflict.body())
    assert body["error"]["details"] == {"run_id": "run_1"}
    assert b"secret" not in as_http_error(StoreUnavailable("disk /secret/path is full")).body()
    assert b"detail" not in as_http_error(KeyError("internal detail")).body()
    assert "retry-after" in as_http_error(StoreUnavailable("x")).headers
