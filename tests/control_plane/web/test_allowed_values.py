"""An error that says which values there are."""

import msgspec
import pytest

from control_plane.web import job_shapes, key_api, shapes
from control_plane.web.allowed_values import with_allowed


def refused(value: object, shape: type[msgspec.Struct]) -> str:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(value, shape, strict=False)
    return with_allowed(caught.value, shape)


def test_the_values_are_told_wherever_they_are() -> None:
    told = refused({"status": "gone"}, shapes.AutomationsQuery)
    assert told == "Invalid enum value 'gone' - at `$.status`: expected one of active, all, archived, draft, paused"
    told = refused({"jobs": [{}, {"kind": "job"}]}, job_shapes.EnqueueJobsRequest)
    assert told == "Invalid enum value 'job' - at `$.jobs[1].kind`: expected one of action_execution, llm_generation"
    told = refused({"name": "k", "scopes": ["root"]}, key_api.CreateKeyRequest)
    assert told == "Invalid enum value 'root' - at `$.scopes[0]`: expected one of operator, reader, worker"


def test_what_was_sent_is_not_sent_back_whole() -> None:
    told = refused({"status": "x" * 100_000}, shapes.AutomationsQuery)
    assert len(told) < 500
    assert told.startswith("Invalid enum value 'xxx")
    assert told.endswith("xxx' - at `$.status`: expected one of active, all, archived, draft, paused")


def test_a_text_that_does_not_match_is_told_in_words() -> None:
    told = refused({"handle": "My Pipeline", "name": "x"}, shapes.CreateAutomationRequest)
    assert told == "Expected lower-case letters and digits, in words joined by single `.`, `_` or `-` - at `$.handle`"
    told = refused({"jobs": [{"action_name": "a"}, {"action_name": "a", "queue": "-"}]}, job_shapes.EnqueueJobsRequest)
    assert told.startswith("Expected letters, digits, `.`, `_`, `:`, `@` and `-`, beginning with")
    assert told.endswith(" - at `$.jobs[1].queue`")


def test_other_errors_stay_as_they_are() -> None:
    assert refused({"limit": "x"}, shapes.AutomationsQuery) == "Expected `int`, got `str` - at `$.limit`"
    quoted = "Invalid enum value 'x' - at `$.nowhere.to[0].be`"
    assert with_allowed(msgspec.ValidationError(quoted), shapes.AutomationsQuery) == quoted
