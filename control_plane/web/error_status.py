"""Errors -> HTTP answers, in the one place where they meet."""

from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import UNSET

from control_plane.errors import Conflict, ControlPlaneError, DomainError, Invalid, NotFound, StoreUnavailable
from control_plane.web.shapes import ErrorBody, ErrorResponse

RETRY_AFTER_SECONDS = 2
"""What a 503 asks its caller to wait."""

STATUS: dict[type[ControlPlaneError], int] = {
    NotFound: 404,
    Conflict: 409,
    Invalid: 400,
    StoreUnavailable: 503,
}


class HttpError(Exception):
    """An answer that the HTTP side itself decides on: what the domain is never asked."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: dict[str, str] | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        self.details = details

    def body(self) -> bytes:
        """The error envelope."""
        details = self.details or UNSET
        return msgspec.json.encode(
            ErrorResponse(error=ErrorBody(code=self.code, message=self.message, details=details))
        )


def as_http_error(error: Exception) -> HttpError:
    """Any exception as an answer. What nobody foresaw is a 500 that shows nothing of our insides."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, StoreUnavailable):
        return HttpError(
            STATUS[StoreUnavailable],
            "store_unavailable",
            "the control plane's store cannot serve requests now; try again",
            headers={"retry-after": str(RETRY_AFTER_SECONDS)},
        )
    if isinstance(error, TimeoutError):
        return HttpError(
            503,
            "timeout",
            "the control plane did not finish this request in time; it may still take effect",
            headers={"retry-after": str(RETRY_AFTER_SECONDS)},
        )
    if isinstance(error, DomainError):
        status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
        if status != 500:
            return HttpError(status, error.code, error.message, details=error.details)
    return HttpError(500, "internal_error", "the control plane failed on this request; its log says why")


def of_status(status: int) -> HttpError:
    """An answer that has nothing to say beyond its status."""
    phrase = HTTPStatus(status).phrase
    return HttpError(status, phrase.lower().replace(" ", "_").replace("-", "_"), phrase)
