import asyncio
import datetime as dt
import uuid
from typing import Any

import pytest

from tests.support.session_driver import claimed_job
from worker_child.actions import Context, registry
from worker_child.errors import NonRetryableError, RetryableError, ValidationError
from worker_child.stock import basic


def run(name: str, **parameters: Any) -> Any:
    action = registry.get(name)
    given = {"parameters": action.convert(parameters), "context": Context(claimed_job(1, action=name), "rig-1")}
    return asyncio.run(action.handler(*(given[argument] for argument in action.arguments)))


def test_the_five_are_registered() -> None:
    assert {"print", "fail", "json", "time", "random"} <= set(registry.names())


def test_print_returns_what_it_prints() -> None:
    assert run("print", message="count", args=[1, {"a": None}, "end"]) == 'count 1 {"a":null} end'
    assert run("print") == ""


def test_fail_fails_retryably_with_its_message() -> None:
    with pytest.raises(RetryableError, match=r"^on purpose$"):
        run("fail", message="on purpose")


def test_time_is_now_in_utc_or_local() -> None:
    before = dt.datetime.now(dt.UTC)
    said = run("time")
    assert said["time"].endswith("Z")
    assert before <= dt.datetime.fromisoformat(said["time"]) <= dt.datetime.now(dt.UTC)
    assert said["timezone"] == "UTC"
    assert dt.datetime.fromisoformat(run("time", utc=False)["time"]).tzinfo is not None


DOCUMENT = {"items": [{"name": "first"}, {"name": "second", "tags": ["a", "b"]}], "n": 1}


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("n", 1),
        ("items[1].name", "second"),
        ("items[1].tags[0]", "a"),
        ("items[-1].name", "second"),
        ("$.n", 1),
        ("", DOCUMENT),
    ],
)
def test_json_query_follows_a_dotted_path(query: str, value: Any) -> None:
    assert run("json", operation="query", data=DOCUMENT, query=query) == value


@pytest.mark.parametrize("query", ["missing", "items[5]", "items.name", "n.deep", "items[x]"])
def test_json_query_says_where_there_is_nothing(query: str) -> None:
    with pytest.raises(NonRetryableError, match=r"parameters.query: nothing at"):
        run("json", operation="query", data=DOCUMENT, query=query)


def test_json_parses_prints_and_merges() -> None:
    assert run("json", operation="parse", data='{"a": [1]}') == {"a": [1]}
    assert run("json", operation="stringify", data={"a": [1]}) == '{"a":[1]}'
    merged = run("json", operation="merge", data={"a": {"x": 1, "y": 1}, "b": 1}, merge_with={"a": {"y": 2}, "c": 3})
    assert merged == {"a": {"x": 1, "y": 2}, "b": 1, "c": 3}


def test_json_validate_says_whether_it_parses() -> None:
    assert run("json", operation="validate", data="[1]") == {"valid": True}
    said = run("json", operation="validate", data="[1")
    assert said["valid"] is False
    assert "not JSON" in said["error"]


def test_json_refuses_what_makes_no_sense() -> None:
    with pytest.raises(NonRetryableError, match=r"parameters.data: not JSON"):
        run("json", operation="parse", data="{")
    with pytest.raises(NonRetryableError, match=r"must both be objects"):
        run("json", operation="merge", data=[1], merge_with={})
    with pytest.raises(ValidationError, match=r"parameters.operation"):
        run("json", operation="explode")


@pytest.mark.parametrize("kind", ["uuid", "number", "float", "string", "boolean", "alphanumeric", "hex", "choice"])
def test_random_repeats_itself_with_a_seed_only(kind: str) -> None:
    given = {"type": kind, "choices": list(range(1000)), "count": 50}
    assert run("random", seed=7, **given) == run("random", seed=7, **given)
    assert run("random", seed=7, **given) != run("random", seed=8, **given)
    assert run("random", **given) != run("random", **given)


def test_random_values_are_of_their_kind() -> None:
    assert uuid.UUID(run("random", type="uuid")).version == 4
    assert set(run("random", type="number", min=1, max=3, count=200)) == {1, 2, 3}
    assert all(0.5 <= value <= 0.6 for value in run("random", type="float", min=0.5, max=0.6, count=50))
    assert set(run("random", type="string", charset="ab", length=200)) == {"a", "b"}
    assert len(run("random", type="hex", length=9)) == 9
    assert int(run("random", type="hex", length=9), 16) >= 0
    assert run("random", type="alphanumeric", length=300).isalnum()
    assert run("random", type="choice", choices=[{"a": 1}]) == {"a": 1}
    assert run("random", type="boolean") in (True, False)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"min": 5, "max": 1}, "parameters.max"),
        ({"type": "choice"}, "parameters.choices"),
        ({"type": "string", "charset": ""}, "parameters.charset"),
        ({"count": 0}, "parameters.count"),
        ({"count": basic.MAX_VALUES + 1}, "parameters.count"),
        ({"length": basic.MAX_LENGTH + 1}, "parameters.length"),
        ({"type": "string", "count": 1000, "length": 60000}, "parameters.count"),
        ({"type": "choice", "count": 10_000, "choices": ["a", "x" * 100_000]}, "parameters.count"),
        ({"type": "nope"}, "parameters.type"),
    ],
)
def test_random_refuses_what_makes_no_sense(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NonRetryableError, match=sentence):
        run("random", **parameters)
