import asyncio
import dataclasses
import datetime as dt
import functools
import threading
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import pytest

from tests.support.session_driver import claimed_job
from worker_child.actions import Context, Registry
from worker_child.errors import ActionDefinitionError, UnknownAction, ValidationError


class Resize(msgspec.Struct):
    url: str
    width: int = 640


class Other(msgspec.Struct):
    path: str


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Named(TypedDict):
    name: str


class Tree(msgspec.Struct):
    children: list["Tree"]
    where: Path


def context(**spec: Any) -> Context:
    job = msgspec.structs.replace(claimed_job(7, claim_attempt=2, run_id="run", step_id="step"), spec=spec)
    return Context(job, "rig-1")


def test_a_registered_handler_is_returned_unchanged_and_described() -> None:
    registry = Registry()

    async def handler(params: Resize, ctx: Context) -> None: ...

    assert registry.action("image.resize", concurrency=2, timeout="2m", idempotent=True)(handler) is handler
    action = registry.get("image.resize")
    assert (action.concurrency, action.timeout, action.idempotent, action.asynchronous) == (2, 120.0, True, True)
    assert action.arguments == ("parameters", "context")
    assert registry.names() == ["image.resize"]


def test_a_context_is_found_by_its_type_or_its_name_in_any_place() -> None:
    registry = Registry()

    @registry.action("first")
    def first(where: Context, params: Resize) -> None: ...

    @registry.action("second")
    def second(ctx) -> None: ...  # type: ignore[no-untyped-def]

    @registry.action("third")
    def third() -> None: ...

    assert [registry.get(name).arguments for name in ("first", "second", "third")] == [
        ("context", "parameters"),
        ("context",),
        (),
    ]


@pytest.mark.parametrize(
    ("hint", "given", "expected"),
    [
        (Resize, {"url": "u"}, Resize(url="u", width=640)),
        (Point, {"x": 1}, Point(1, 0)),
        (Named, {"name": "n"}, {"name": "n"}),
        (int, 5, 5),
        (list[str], ["a"], ["a"]),
        (None, {"any": 1}, {"any": 1}),
        (Any, "as it comes", "as it comes"),
    ],
)
def test_parameters_become_what_the_handler_declares(hint: Any, given: Any, expected: Any) -> None:
    registry = Registry()

    def handler(params): ...  # type: ignore[no-untyped-def]

    if hint is not None:
        handler.__annotations__["params"] = hint
    registry.action("work")(handler)
    assert registry.get("work").convert(given) == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "parameters: Object missing required field `url`"),
        ({"url": "u", "width": "wide"}, "parameters.width: Expected `int`, got `str`"),
        ([], "parameters: Expected `object`, got `array`"),
    ],
)
def test_parameters_that_do_not_fit_name_the_field(given: Any, sentence: str) -> None:
    registry = Registry()

    @registry.action("work")
    def handler(params: Resize) -> None: ...

    with pytest.raises(ValidationError, match=f"^{sentence}$".replace("`", "`")):
        registry.get("work").convert(given)


def test_bounds_of_the_declared_type_itself_are_checked() -> None:
    registry = Registry()

    @registry.action("work")
    def handler(params: dict[str, Annotated[int, msgspec.Meta(ge=3)]], where: Annotated[Context, "noted"]) -> None: ...

    assert registry.get("work").arguments == ("parameters", "context")
    assert registry.get("work").convert({"a": 3}) == {"a": 3}
    with pytest.raises(ValidationError, match=r"^parameters.*: Expected `int` >= 3"):
        registry.get("work").convert({"a": 1})


def test_one_name_for_two_handlers_is_refused_with_both_places() -> None:
    registry = Registry()

    @registry.action("work")
    def one() -> None: ...

    def two() -> None: ...

    sentence = (
        r"'work' is defined twice, by .*one \(test_actions.py, line \d+\) and by .*two \(test_actions.py, line \d+\)"
    )
    with pytest.raises(ActionDefinitionError, match=sentence + ": rename one"):
        registry.action("work")(two)
    registry.action("work")(one)


def test_two_functions_of_one_name_are_still_two() -> None:
    registry = Registry()

    @registry.action("work")
    def handler() -> None: ...

    with pytest.raises(ActionDefinitionError, match="is defined twice"):

        @registry.action("work")
        def handler() -> None: ...


def test_a_clash_with_a_stock_action_names_the_way_out() -> None:
    registry = Registry()

    def stock() -> None: ...

    stock.__module__ = "worker_child.stock.basic"
    registry.action("print")(stock)

    def mine() -> None: ...

    with pytest.raises(ActionDefinitionError, match="stock_actions = false"):
        registry.action("print")(mine)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": ""}, "1 to 256 printable characters"),
        ({"name": "a\nb"}, "1 to 256 printable characters"),
        ({"name": "a", "timeout": 10**400}, "too large"),
        ({"name": "a", "concurrency": 0}, "concurrency is a number from 1, got 0"),
        ({"name": "a", "timeout": "soon"}, "timeout is seconds or a duration"),
        ({"name": "a", "timeout": -1}, "timeout is seconds or a duration"),
        ({"name": "a", "timeout": float("nan")}, "timeout is seconds or a duration"),
        ({"name": "a", "timeout": float("inf")}, "of at most a year"),
        ({"name": "a", "timeout": "9999999999h"}, "of at most a year"),
        ({"name": "a", "timeout": []}, "timeout is seconds or a duration"),
        ({"name": "a", "isolation": "room"}, 'isolation is "task"'),
        ({"name": "a", "isolation": "task"}, "would hold up all other jobs"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ActionDefinitionError, match=sentence):
        Registry().action(**options)(lambda: None)


class Resizer:
    def __init__(self, factor: int) -> None:
        pass


def test_handlers_that_cannot_be_called_are_refused() -> None:
    def two(a: int, b: int) -> None: ...

    def keyword(*, needed: int) -> None: ...

    def unknown(params: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    def untagged(params: Resize | Other) -> None: ...

    def foreign(params: dict[str, threading.Thread]) -> None: ...

    def recursive(params: "Tree") -> None: ...

    def generator() -> Any:
        yield 1

    async def streaming() -> Any:
        yield 1

    for handler, sentence in (
        (two, "at most one"),
        (keyword, "keyword-only"),
        (unknown, "Nowhere"),
        (untagged, "must be tagged"),
        (foreign, "cannot be read as Thread: use a msgspec.Struct, a dataclass"),
        (recursive, "cannot be read as Path"),
        (generator, "has a `yield`"),
        (streaming, "has a `yield`"),
    ):
        with pytest.raises(
            ActionDefinitionError, match=rf"@action\('work'\) of .*\(test_actions.py, line \d+\): .*{sentence}"
        ):
            Registry().action("work")(handler)


def test_idempotent_is_true_or_false() -> None:
    given: Any = "no"
    with pytest.raises(ActionDefinitionError, match="idempotent is True or False, got 'no'"):
        Registry().action("work", idempotent=given)(lambda: None)


@pytest.mark.parametrize("handler", [Resizer, functools.partial(Resizer, 2)])
def test_a_class_is_no_handler(handler: Any) -> None:
    with pytest.raises(ActionDefinitionError, match=r"@action\('work'\) of .*Resizer.*: it is a class, whose instance"):
        Registry().action("work")(handler)


def test_partials_and_objects_can_be_handlers() -> None:
    async def resize(factor: int, params: Resize) -> int:
        return factor * params.width

    class Resizer:
        async def __call__(self, params: Resize, ctx: Context) -> None: ...

    registry = Registry()
    registry.action("partial")(functools.partial(resize, 2))
    registry.action("object")(Resizer())
    for name, arguments in (("partial", ("parameters",)), ("object", ("parameters", "context"))):
        action = registry.get(name)
        assert (action.arguments, action.asynchronous, action.isolation) == (arguments, True, "task")
        assert action.convert({"url": "u"}) == Resize("u")


def test_isolation_follows_from_the_kind_of_function_unless_it_is_said() -> None:
    registry = Registry()

    async def coroutine() -> None: ...

    registry.action("a")(coroutine)
    registry.action("b")(lambda: None)
    assert (registry.get("a").isolation, registry.get("b").isolation) == ("task", "thread")
    with pytest.raises(ActionDefinitionError, match='isolation="thread" is for `def`'):
        registry.action("c", isolation="thread")(coroutine)


def test_a_decorator_without_a_name_is_refused_at_once() -> None:
    registry = Registry()

    def resize() -> None: ...

    with pytest.raises(ActionDefinitionError, match=r'expected a name .*got .*resize; write for example @action\("'):
        registry.action(resize)  # type: ignore[arg-type]


def test_a_restriction_keeps_what_it_names_and_refuses_what_is_not_there() -> None:
    registry = Registry()
    for name in ("a", "b"):
        registry.action(name)(lambda: None)
    assert registry.restricted(["b"]).names() == ["b"]
    with pytest.raises(ActionDefinitionError, match=r"actions: no handler is registered for 'c' \(registered: a, b\)"):
        registry.restricted(["c"])
    with pytest.raises(UnknownAction, match="'a'"):
        registry.restricted(["b"]).get("a")


def test_a_context_says_what_the_job_is() -> None:
    given = context()
    assert (given.job_id, given.run_id, given.step_id, given.queue) == ("job-7", "run", "step", "default")
    assert (given.attempt, given.action, given.worker_instance_id, given.lease_lost) == (2, "work", "rig-1", False)
    assert given.idempotency_key == "job-7"
    assert given.deadline is None


def test_a_context_uses_what_our_control_plane_adds() -> None:
    given = context(mobius={"idempotency_key": "key", "deadline_at": "2030-01-01T01:00:00+01:00"})
    assert given.idempotency_key == "key"
    assert given.deadline == dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize("extension", ["text", {"idempotency_key": 5, "deadline_at": "soon"}, None])
def test_a_context_bears_an_extension_that_makes_no_sense(extension: Any) -> None:
    given = context(mobius=extension)
    assert given.idempotency_key == "job-7"
    assert given.deadline is None


async def test_cancelled_wakes_coroutines_and_threads() -> None:
    given = context()
    woken = threading.Event()

    def in_thread() -> None:
        if given.cancelled.wait_in_thread(10):
            woken.set()

    thread = threading.Thread(target=in_thread)
    thread.start()
    waiting = asyncio.ensure_future(given.cancelled.wait())
    await asyncio.sleep(0)
    assert not given.cancelled.is_set()
    given.cancel()
    assert await asyncio.wait_for(waiting, 10)
    await asyncio.to_thread(thread.join, 10)
    assert woken.is_set()


async def test_cancelled_is_set_for_whoever_looks_at_it_later() -> None:
    given = context()
    given.cancel()
    assert given.cancelled.is_set()
    assert given.cancelled.wait_in_thread(0)


def test_only_a_task_that_awaits_nothing_makes_do_with_its_first_step() -> None:
    async def plain() -> None:
        return None

    def threaded() -> None:
        return None

    registry = Registry()
    for name, handler, isolation in (("a", plain, "task"), ("b", plain, "process"), ("c", threaded, "thread")):
        registry.action(name, isolation=isolation)(handler)  # type: ignore[arg-type]
    assert [registry.get(name).suspends for name in ("a", "b", "c")] == [False, True, True]
