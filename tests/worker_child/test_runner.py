import asyncio
import dataclasses
import io
import json
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypedDict

import msgspec
import pytest
import structlog

from tests.support.session_driver import claimed_job
from wire.depth import MAX_DEPTH
from worker_child import log
from worker_child import runner as runner_module
from worker_child.actions import Context, Registry
from worker_child.decisions import Outcome
from worker_child.errors import JobCancelled, NonRetryableError, RetryableError
from worker_child.runner import Runner


class QuotaExceeded(NonRetryableError):  # noqa: N818 - what a user would write
    pass


class WithoutWordsError(Exception):
    def __str__(self) -> str:
        raise SystemExit("no words")


class Unshowable:
    def __repr__(self) -> str:
        raise ValueError("there are no words for it")


class Bench:
    """A runner whose outcomes can be awaited."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.outcomes: dict[int, Outcome] = {}
        self.came_back: list[int] = []
        self.returned: dict[int, bool] = {}
        self._changed = asyncio.Condition()
        self._wakers: set[asyncio.Task[None]] = set()
        self.runner = Runner(self.registry, "rig-1", threads=2, finished=self._finished, came_back=self._came_back)

    def _finished(self, execution: int, outcome: Outcome, returned: bool) -> None:
        assert execution not in self.outcomes, "two outcomes for one execution"
        self.outcomes[execution], self.returned[execution] = outcome, returned
        self._wake()

    def _came_back(self, execution: int) -> None:
        self.came_back.append(execution)
        self._wake()

    def _wake(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.ensure_future(notify())
        self._wakers.add(task)
        task.add_done_callback(self._wakers.discard)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(condition)

    def start(self, handler: Any = None, parameters: Any = None, execution: int = 1, **options: Any) -> None:
        if handler is not None:
            self.registry.action("work", **options)(handler)
        spec = {} if parameters is None else {"parameters": parameters}
        self.runner.start(execution, msgspec.structs.replace(claimed_job(execution), spec=spec))
        self.runner.begin()

    async def outcome(self, execution: int = 1) -> Outcome:
        await self.until(lambda: execution in self.outcomes)
        return self.outcomes[execution]

    async def run(self, handler: Any, parameters: Any = None, **options: Any) -> Outcome:
        self.start(handler, parameters, **options)
        return await self.outcome()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.runner.stop()


def decoded(outcome: Outcome) -> Any:
    return msgspec.json.decode(outcome.result)


# --- results ----------------------------------------------------------------------------------------------------------


class Size(msgspec.Struct):
    width: int


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ({"a": 1}, {"a": 1}),
        (Size(3), {"width": 3}),
        ({}, {}),
        (None, {"output": None}),
        (5, {"output": 5}),
        ("text", {"output": "text"}),
        ([{"a": 1}], {"output": [{"a": 1}]}),
        (b"\x00", {"output": "AA=="}),
    ],
)
async def test_an_object_is_the_result_and_anything_else_is_its_output(bench: Bench, value: Any, result: Any) -> None:
    async def handler() -> Any:
        return value

    outcome = await bench.run(handler)
    assert (outcome.status, decoded(outcome)) == ("completed", result)


@pytest.mark.parametrize(
    "result",
    [
        object(),
        {"a": 10**5000},
        10**5000,
        {"a": "\ud800"},
        msgspec.Raw(b"{garbage"),
        msgspec.Raw(b'{}, "status":"failed"'),
        [msgspec.Raw(b'"\xff"')],
    ],
    ids=type,
)
async def test_a_result_that_cannot_be_json_is_final(bench: Bench, result: Any) -> None:
    outcome = await bench.run(lambda: result)
    assert (outcome.status, outcome.error_type) == ("failed", "NonRetryableError")
    assert "cannot be sent as JSON" in str(outcome.error_message)


async def test_a_result_larger_than_a_frame_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "MAX_RESULT", 100)
    outcome = await bench.run(lambda: "x" * 100)
    assert (outcome.status, outcome.error_type) == ("failed", "ResultTooLarge")
    assert "limit of 100" in str(outcome.error_message)


async def test_a_result_with_too_much_in_it_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "MAX_ELEMENTS", 200)
    outcome = await bench.run(lambda: [[]] * 100)
    assert (outcome.status, outcome.error_type) == ("failed", "ResultTooLarge")
    assert "limit of 100 values" in str(outcome.error_message)


class Resized(msgspec.Struct):
    path: str
    size: Size


@dataclasses.dataclass
class Placed:
    x: int
    label: str | None = None


class Named(TypedDict):
    name: str


@pytest.mark.parametrize(
    ("hint", "value", "result"),
    [
        (Resized, Resized("a", Size(1)), {"path": "a", "size": {"width": 1}}),
        (Resized, {"path": "a", "size": Size(1)}, {"path": "a", "size": {"width": 1}}),
        (Placed, Placed(1), {"x": 1, "label": None}),
        (Named, {"name": "n"}, {"name": "n"}),
        (list[Size], [Size(1)], {"output": [{"width": 1}]}),
        (float, 1, {"output": 1}),
        (dict[str, object], {"a": Size(1)}, {"a": {"width": 1}}),
        (Iterable[int], (1, 2), {"output": [1, 2]}),
        (None, None, {"output": None}),
        (threading.Thread, {"a": 1}, {"a": 1}),
        (Size | Resized, Size(1), {"width": 1}),
    ],
)
async def test_a_result_is_what_the_handler_declares(bench: Bench, hint: Any, value: Any, result: Any) -> None:
    async def handler() -> Any:
        return value

    handler.__annotations__["return"] = hint
    outcome = await bench.run(handler)
    assert (outcome.status, outcome.error_message, decoded(outcome)) == ("completed", None, result)


@pytest.mark.parametrize(
    ("hint", "value", "sentence"),
    [
        (Resized, {"path": "a"}, "result: Object missing required field `size`"),
        (Resized, Resized("a", Size("wide")), "result.size.width: Expected `int`, got `str`"),  # type: ignore[arg-type]
        (Named, {"nam": "n"}, "result: Object missing required field `name`"),
        (list[Placed], [Placed(1), Placed("x")], "result[1].x: Expected `int`, got `str`"),  # type: ignore[arg-type]
        (int, "5", "result: Expected `int`, got `str`"),
        (float, float("nan"), "result: Expected `float`, got `null`"),
    ],
)
async def test_a_result_that_is_not_what_the_handler_declares_names_the_field(
    bench: Bench, hint: Any, value: Any, sentence: str
) -> None:
    async def handler() -> Any:
        return value

    handler.__annotations__["return"] = hint
    outcome = await bench.run(handler)
    assert (outcome.status, outcome.error_type, outcome.error_message) == ("failed", "ValidationError", sentence)


# --- handlers ---------------------------------------------------------------------------------------------------------


async def test_a_synchronous_handler_runs_in_a_thread_with_parameters_and_context(bench: Bench) -> None:
    def handler(size: Size, ctx: Context) -> dict[str, Any]:
        return {"thread": threading.current_thread() is threading.main_thread(), "w": size.width, "job": ctx.job_id}

    assert decoded(await bench.run(handler, {"width": 4})) == {"thread": False, "w": 4, "job": "job-1"}


async def test_every_line_of_a_job_carries_the_job(bench: Bench) -> None:
    stream = io.StringIO()
    log.configure(level="info", log_format="json", stream=stream)

    def handler(ctx: Context) -> None:
        ctx.log.info("mine", step=1)
        logging.getLogger("library").info("of a library")
        structlog.get_logger().info("of nobody")

    await bench.run(handler)
    structlog.get_logger().info("outside")
    lines = {line["event"]: line for line in map(json.loads, stream.getvalue().splitlines())}
    for event in ("mine", "of a library", "of nobody"):
        assert (lines[event]["job_id"], lines[event]["action"], lines[event]["attempt"]) == ("job-1", "work", 1)
    assert "job_id" not in lines["outside"]


async def test_absent_parameters_are_an_empty_object(bench: Bench) -> None:
    async def handler(params):  # type: ignore[no-untyped-def]
        return params

    assert decoded(await bench.run(handler)) == {}


async def test_jobs_run_side_by_side(bench: Bench) -> None:
    barrier = asyncio.Barrier(2)

    async def handler() -> None:
        await barrier.wait()

    bench.start(handler, execution=1)
    bench.start(execution=2)
    assert (await bench.outcome(1)).status == (await bench.outcome(2)).status == "completed"


# --- failures ---------------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[], None]:
    async def handler() -> None:
        raise error

    return handler  # type: ignore[return-value]


def foreign_validation_error() -> Exception:
    return msgspec.ValidationError("upstream sent nonsense")


@pytest.mark.parametrize(
    ("error", "error_type", "message"),
    [
        (ValueError("no"), "ValueError", "no"),
        (ValueError(), "ValueError", "ValueError"),
        (RetryableError("later"), "RetryableError", "later"),
        (NonRetryableError("never"), "NonRetryableError", "never"),
        (QuotaExceeded("empty"), "NonRetryableError", "QuotaExceeded: empty"),
        (QuotaExceeded(), "NonRetryableError", "QuotaExceeded"),
        (foreign_validation_error(), "msgspec.ValidationError", "upstream sent nonsense"),
        (SystemExit(3), "SystemExit", "3"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt"),
        (StopIteration(), "RuntimeError", "coroutine raised StopIteration"),
        (asyncio.CancelledError(), "CancelledError", "CancelledError"),
        (ValueError("lone \ud800 surrogate"), "ValueError", "lone ? surrogate"),
        (WithoutWordsError(), "WithoutWordsError", "WithoutWordsError"),
    ],
)
async def test_whatever_a_handler_raises_is_its_outcome(
    bench: Bench, error: BaseException, error_type: str, message: str
) -> None:
    outcome = await bench.run(raising(error))
    assert (outcome.status, outcome.error_type, outcome.error_message) == ("failed", error_type, message)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), StopIteration("x")])
async def test_whatever_a_thread_raises_is_its_outcome(bench: Bench, error: BaseException) -> None:
    def handler() -> None:
        raise error

    outcome = await bench.run(handler)
    # Python makes a RuntimeError of a StopIteration that leaves a coroutine, be it the handler itself or our own.
    expected = "RuntimeError" if isinstance(error, StopIteration) else type(error).__name__
    assert (outcome.status, outcome.error_type) == ("failed", expected)


async def test_an_exception_without_a_module_is_an_outcome_too(bench: Bench) -> None:
    nameless = type("ValidationError", (Exception,), {"__module__": None})
    outcome = await bench.run(raising(nameless("no")))
    assert (outcome.status, outcome.error_type, outcome.error_message) == ("failed", "None.ValidationError", "no")


async def test_what_a_handler_has_bound_to_the_log_does_not_keep_its_job(bench: Bench) -> None:
    log.configure(level="info", log_format="json", stream=io.StringIO())

    async def handler() -> None:
        structlog.contextvars.bind_contextvars(value=Unshowable())
        raise ValueError("no")

    outcome = await bench.run(handler)
    assert (outcome.status, outcome.error_type, outcome.error_message) == ("failed", "ValueError", "no")


async def test_a_long_message_is_cut(bench: Bench) -> None:
    outcome = await bench.run(raising(ValueError("x" * 100_000)))
    assert len(str(outcome.error_message)) == runner_module.MAX_MESSAGE


async def test_parameters_that_do_not_fit_are_a_validation_error(bench: Bench) -> None:
    async def handler(size: Size) -> None: ...

    outcome = await bench.run(handler, {"width": "wide"})
    assert (outcome.status, outcome.error_type) == ("failed", "ValidationError")
    assert outcome.error_message == "parameters.width: Expected `int`, got `str`"


async def test_an_action_that_is_not_there_is_unknown(bench: Bench) -> None:
    bench.start()
    outcome = await bench.outcome()
    assert (outcome.error_type, outcome.error_message) == ("UnknownAction", "this worker has no action 'work'")


async def test_a_generation_is_unknown(bench: Bench) -> None:
    job = msgspec.structs.replace(claimed_job(1), kind="llm_generation", provider="p", model="m")
    bench.runner.start(1, job)
    bench.runner.begin()
    outcome = await bench.outcome()
    assert outcome.error_type == "UnknownAction"
    assert "p/m" in str(outcome.error_message)


async def test_a_kind_of_job_that_nobody_knows_yet_is_unknown(bench: Bench) -> None:
    bench.runner.start(1, msgspec.structs.replace(claimed_job(1), kind="dream_execution"))
    bench.runner.begin()
    outcome = await bench.outcome()
    assert (outcome.status, outcome.error_type) == ("failed", "UnknownAction")
    assert "'dream_execution'" in str(outcome.error_message)


# --- cancellation and timeouts ----------------------------------------------------------------------------------------


async def test_a_cancel_reaches_a_coroutine(bench: Bench) -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    async def handler(ctx: Context) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            assert ctx.cancelled.is_set()
            cleaned.set()

    bench.start(handler)
    await started.wait()
    bench.runner.cancel(1, "operator")
    assert await bench.outcome() == Outcome(status="cancelled")
    assert cleaned.is_set()


async def test_a_cancel_before_the_first_step_is_an_outcome_too(bench: Bench) -> None:
    async def handler() -> None:
        raise AssertionError("must not run")

    bench.start(handler)
    bench.runner.cancel(1, "operator")
    assert await bench.outcome() == Outcome(status="cancelled")


async def test_a_cancel_reaches_a_thread_by_its_context(bench: Bench) -> None:
    started = threading.Event()

    def handler(ctx: Context) -> str:
        started.set()
        return "stopped" if ctx.cancelled.wait_in_thread(20) else "never"

    bench.start(handler)
    await asyncio.to_thread(started.wait, 20)
    bench.runner.cancel(1, "operator")
    outcome = await bench.outcome()
    assert (outcome.status, decoded(outcome)) == ("completed", {"output": "stopped"}), "it says what it did"


async def test_an_error_after_a_cancel_is_a_cancellation(bench: Bench) -> None:
    started = asyncio.Event()

    async def handler() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("half done") from None

    bench.start(handler)
    await started.wait()
    bench.runner.cancel(1, "operator")
    outcome = await bench.outcome()
    assert (outcome.status, outcome.error_type, outcome.error_message) == ("cancelled", "ValueError", "half done")


async def test_a_lost_lease_shows_in_the_context(bench: Bench) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def handler(ctx: Context) -> bool:
        started.set()
        await go.wait()
        return ctx.lease_lost

    bench.start(handler)
    await started.wait()
    bench.runner.lose_lease(1)
    go.set()
    assert decoded(await bench.outcome()) == {"output": True}


async def test_a_coroutine_past_its_timeout_is_stopped_and_failed(bench: Bench) -> None:
    async def handler(ctx: Context) -> None:
        assert ctx.deadline is not None
        await asyncio.Event().wait()

    outcome = await bench.run(handler, timeout=0.02)
    assert (outcome.status, outcome.error_type) == ("failed", "TimeoutError")
    assert "within its timeout of 0.02 s" in str(outcome.error_message)
    assert bench.returned == {1: True}


async def test_code_that_ignores_its_timeout_is_reported_without_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "STOP_GRACE", 0.02)
    release = threading.Event()
    bench.start(lambda: release.wait(20), timeout=0.02)
    outcome = await bench.outcome()
    assert outcome.error_type == "TimeoutError"
    assert bench.returned == {1: False}
    assert bench.came_back == []
    now = time.monotonic()
    assert bench.runner.overdue(now) == 0
    assert bench.runner.overdue(now + runner_module.OVERDUE_AFTER) == 1
    release.set()
    await bench.until(lambda: bench.came_back == [1])
    assert bench.runner.overdue(now + runner_module.OVERDUE_AFTER) == 0


async def test_code_that_ignores_its_cancel_is_reported_without_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "STOP_GRACE", 0.02)
    started, release = threading.Event(), threading.Event()

    def handler() -> None:
        started.set()
        release.wait(20)

    bench.start(handler, timeout=60)
    await asyncio.to_thread(started.wait, 20)
    bench.runner.cancel(1, "operator")
    outcome = await bench.outcome()
    assert outcome.status == "cancelled"
    assert "did not stop within 0.02 s" in str(outcome.error_message)
    assert bench.returned == {1: False}
    release.set()
    await bench.until(lambda: bench.came_back == [1])


async def test_a_synchronous_handler_stops_in_its_loop_when_it_is_told_to(bench: Bench) -> None:
    started = threading.Event()

    def handler(ctx: Context) -> None:
        started.set()
        while True:
            ctx.raise_if_cancelled()
            ctx.cancelled.wait_in_thread(20)

    bench.start(handler)
    await asyncio.to_thread(started.wait, 20)
    bench.runner.cancel(1, "operator")
    assert await bench.outcome() == Outcome(status="cancelled")


async def test_a_handler_that_says_cancelled_and_was_not_has_failed(bench: Bench) -> None:
    def handler() -> None:
        raise JobCancelled("I do not feel like it")

    outcome = await bench.run(handler)
    assert (outcome.status, outcome.error_type) == ("failed", "JobCancelled")


async def test_a_result_within_the_timeout_cancels_it(bench: Bench) -> None:
    async def handler() -> int:
        return 1

    assert (await bench.run(handler, timeout=60)).status == "completed"
    assert not bench.runner._executions


def test_the_verdicts_of_a_stack_deep_result_do_not_end_the_process() -> None:
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit() * 100):
        deep = [deep]
    with pytest.raises(NonRetryableError, match="cannot be sent as JSON"):
        runner_module._completed(deep)


def test_a_result_that_nobody_could_wrap_and_write_again_is_refused() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deep = {"a": deep}
    assert runner_module._completed(deep).status == "completed"
    assert runner_module._completed([1]).status == "completed"
    with pytest.raises(NonRetryableError, match="nested more deeply than the limit of 200 levels"):
        runner_module._completed([{"a": deep}])
