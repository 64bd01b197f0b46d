"""What worker_child.testing promises to whoever writes handlers. Each test is what a user would write."""

import asyncio
import dataclasses
import datetime as dt
import sys
import threading
import time
from typing import Any

import msgspec
import pytest
import structlog

from worker_child import Context, JobCancelled, NonRetryableError, RetryableError
from worker_child.actions import Registry
from worker_child.testing import NothingToWaitForError, run_job, run_job_here

actions = Registry()


class Resize(msgspec.Struct):
    url: str
    width: int = 640


class Resized(msgspec.Struct):
    width: int


@dataclasses.dataclass
class Asked:
    url: str


@actions.action("image.resize", timeout="2m")
async def resize(params: Resize, ctx: Context) -> Resized:
    ctx.log.info("resizing", url=params.url)
    await asyncio.sleep(params.width / 10)
    return Resized(params.width)


@actions.action("sum")
def add(params: list[int]) -> int:
    return sum(params)


def run(handler: Any, parameters: Any = None, **options: Any) -> Any:
    return run_job(handler, parameters, actions=actions, **options)


def register(handler: Any, **options: Any) -> Any:
    only = Registry()
    only.action("work", **options)(handler)
    return only


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [resize, "image.resize"])
@pytest.mark.parametrize("parameters", [{"url": "u"}, Resize("u"), Asked("u")])
def test_a_handler_gets_its_type_and_gives_what_is_reported(handler: Any, parameters: Any) -> None:
    job = run(handler, parameters)
    assert (job.status, job.result, job.error_type) == ("completed", {"width": 640}, None)
    assert job.completed() == {"width": 640}


def test_what_is_no_object_is_reported_as_output() -> None:
    assert run(add, [1, 2]).completed() == {"output": 3}


def test_wrong_parameters_name_the_field_and_are_not_tried_again() -> None:
    job = run(resize, {"url": "u", "width": "wide"}, max_attempts=5)
    assert (job.status, job.error_type) == ("failed", "ValidationError")
    assert job.error_message == "parameters.width: Expected `int`, got `str`"
    assert len(job.attempts) == 1
    with pytest.raises(AssertionError, match=r"the job failed in attempt 1 ValidationError: parameters\.width"):
        job.completed()


def test_a_result_is_checked() -> None:
    async def broken() -> Resized:
        return Resized("wide")  # type: ignore[arg-type]

    assert run_job(broken, actions=register(broken)).error_message == "result.width: Expected `int`, got `str`"


def test_an_unknown_action_is_the_tests_mistake() -> None:
    with pytest.raises(LookupError, match=r"no action 'image\.crop'"):
        run("image.crop")
    with pytest.raises(LookupError, match=r"lambda.* is no action: decorate it"):
        run(lambda: None)


# --- what a handler sees ----------------------------------------------------------------------------------------------


def test_the_context_is_that_of_a_job() -> None:
    seen: dict[str, Any] = {}

    async def look(ctx: Context) -> None:
        seen.update(job=ctx.job_id, run=ctx.run_id, attempt=ctx.attempt, queue=ctx.queue, key=ctx.idempotency_key)
        seen["left"] = ctx.deadline - dt.datetime.now(dt.UTC) if ctx.deadline else None

    run_job(look, actions=register(look, timeout=60), id="job_7", run_id="run_7", queue="fast").completed()
    left = seen.pop("left")
    assert seen == {"job": "job_7", "run": "run_7", "attempt": 1, "queue": "fast", "key": "job_7"}
    assert dt.timedelta(seconds=50) < left <= dt.timedelta(seconds=60)


def test_the_log_is_kept_and_written_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    (entry,) = run(resize, {"url": "u"}).log
    assert (entry["event"], entry["level"], entry["url"], entry["job_id"]) == ("resizing", "info", "u", "job_test")
    assert capsys.readouterr().out == ""
    assert structlog.get_config() == before


# --- failures and retries ---------------------------------------------------------------------------------------------


def test_failures_are_tried_again_after_the_delay_and_all_attempts_are_shown() -> None:
    async def flaky(ctx: Context) -> int:
        await asyncio.sleep(1)
        if ctx.attempt < 3:
            raise RetryableError(f"not yet, {ctx.idempotency_key}")
        return ctx.attempt

    job = run_job(flaky, actions=register(flaky), max_attempts=5, retry_delay="10s")
    assert job.completed() == {"output": 3}
    assert [(one.number, one.status, one.began, one.seconds) for one in job.attempts] == [
        (1, "failed", 0.0, 1.0),
        (2, "failed", 11.0, 1.0),
        (3, "completed", 22.0, 1.0),
    ]
    assert {one.error_message for one in job.attempts[:2]} == {"not yet, job_test"}
    assert job.seconds == 23.0


def test_attempts_come_to_an_end() -> None:
    async def never() -> None:
        raise ValueError("no")

    job = run_job(never, actions=register(never), max_attempts=3)
    assert [one.error_type for one in job.attempts] == ["ValueError"] * 3
    assert (job.status, job.error_message) == ("failed", "no")


def test_a_verdict_ends_them() -> None:
    class BrokeError(NonRetryableError):
        pass

    async def verdict() -> None:
        raise BrokeError("no money")

    job = run_job(verdict, actions=register(verdict), max_attempts=3)
    assert (len(job.attempts), job.error_type, job.error_message) == (1, "NonRetryableError", "BrokeError: no money")


@pytest.mark.parametrize("kind", ["coroutine", "function"])
def test_what_was_raised_is_there_with_its_traceback(kind: str) -> None:
    async def coroutine() -> None:
        {}["key"]  # type: ignore[index]

    def function() -> None:
        {}["key"]  # type: ignore[index]

    handler = coroutine if kind == "coroutine" else function
    job = run_job(handler, actions=register(handler))
    assert isinstance(job.attempts[0].exception, KeyError)
    with pytest.raises(AssertionError, match="attempt 1 KeyError: 'key'") as caught:
        job.completed()
    assert caught.value.__cause__ is job.attempts[0].exception
    assert caught.value.__cause__.__traceback__ is not None


# --- time, timeouts, cancels ------------------------------------------------------------------------------------------


def test_waiting_takes_no_time() -> None:
    began = time.monotonic()
    job = run(resize, {"url": "u", "width": 100})
    assert job.seconds == 10.0
    assert time.monotonic() - began < 10.0


def test_a_timeout_is_exact() -> None:
    job = run(resize, {"url": "u", "width": 5000})
    assert (job.status, job.error_type, job.seconds) == ("failed", "TimeoutError", 120.0)


def test_a_cancel_reaches_a_coroutine_where_it_waits() -> None:
    cleaned = []

    async def patient(ctx: Context) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.append(ctx.cancelled.is_set())

    job = run_job(patient, actions=register(patient), cancel_after="5m", max_attempts=3)
    assert (job.status, job.seconds, len(job.attempts), cleaned) == ("cancelled", 300.0, 1, [True])
    with pytest.raises(AssertionError, match="the job cancelled in attempt 1"):
        job.completed()


def test_a_cancel_and_a_timeout_reach_a_thread_in_virtual_time_too() -> None:
    def patient(ctx: Context) -> int:
        for _ in range(1000):
            ctx.raise_if_cancelled()
            ctx.cancelled.wait_in_thread(60)
        return 1000

    began = time.monotonic()
    job = run_job(patient, actions=register(patient), cancel_after=90)
    assert (job.status, job.seconds) == ("cancelled", 90.0)
    assert isinstance(job.attempts[0].exception, JobCancelled)
    job = run_job(patient, actions=register(patient, timeout="2h"))
    assert (job.error_type, job.seconds) == ("TimeoutError", 7200.0)
    assert run_job(patient, actions=register(patient)).completed() == {"output": 1000}
    assert time.monotonic() - began < 20


def test_a_lost_lease_stops_what_is_not_idempotent() -> None:
    async def patient(ctx: Context) -> bool:
        await asyncio.sleep(10)
        return ctx.lease_lost

    job = run_job(patient, actions=register(patient), lose_lease_after=1)
    assert (job.status, job.seconds) == ("cancelled", 1.0)
    job = run_job(patient, actions=register(patient, idempotent=True), lose_lease_after=1)
    assert (job.completed(), job.seconds) == ({"output": True}, 10.0)


def test_what_does_not_stop_is_said() -> None:
    cancels = 0

    async def stubborn() -> None:
        nonlocal cancels
        while cancels < 3:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                cancels += 1

    job = run_job(stubborn, actions=register(stubborn), cancel_after=5)
    assert (job.status, job.attempts[0].runs_on, job.seconds) == ("cancelled", True, 15.0)
    release = threading.Event()

    def in_thread() -> None:
        release.wait(60)

    job = run_job(in_thread, actions=register(in_thread, timeout=1))
    release.set()
    assert (job.error_type, job.attempts[0].runs_on, job.seconds) == ("TimeoutError", True, 11.0)


def test_a_handler_that_waits_for_ever_is_said() -> None:
    async def forgotten() -> None:
        await asyncio.Event().wait()

    def in_thread(ctx: Context) -> None:
        ctx.cancelled.wait_in_thread()

    with pytest.raises(NothingToWaitForError, match="something that nobody will bring about"):
        run_job(forgotten, actions=register(forgotten))
    with pytest.raises(NothingToWaitForError):
        run_job(in_thread, actions=register(in_thread))
    assert run_job(in_thread, actions=register(in_thread), cancel_after="1h").seconds == 3600.0


def test_threads_that_still_wait_end_with_the_test() -> None:
    ended = threading.Event()

    def deaf(ctx: Context) -> None:
        try:
            while True:
                ctx.cancelled.wait_in_thread()
                ctx.cancelled.clear()
        finally:
            ended.set()

    with pytest.raises(NothingToWaitForError):
        run_job(deaf, actions=register(deaf))
    assert ended.wait(20)


def test_what_works_outside_has_real_time() -> None:
    """Threads, sockets and processes are waited for, and no timer goes off because nothing else happens here."""

    async def outside() -> dict[str, Any]:
        slept = await asyncio.to_thread(lambda: time.sleep(0.1) or "slept")
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(0.1)")
        code = await process.wait()
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            heard = await reader.read()
            writer.close()
        return {"slept": slept, "code": code, "heard": heard.decode()}

    job = run_job(outside, actions=register(outside, timeout="1h"))
    assert job.completed() == {"slept": "slept", "code": 0, "heard": ""}
    assert 0.1 <= job.seconds < 60


def test_the_same_test_gives_the_same_times_and_order() -> None:
    def once() -> Any:
        order: list[str] = []

        async def several() -> list[str]:
            async def one(name: str, seconds: float) -> None:
                await asyncio.sleep(seconds)
                order.append(name)

            await asyncio.gather(one("c", 3), one("a", 1), one("b", 2))
            return order

        job = run_job(several, actions=register(several))
        return job.completed(), job.seconds

    assert once() == once() == ({"output": ["a", "b", "c"]}, 3.0)


def test_what_a_handler_leaves_in_the_loop_ends_with_it() -> None:
    ended = []

    async def behind() -> None:
        async def background() -> None:
            try:
                await asyncio.sleep(10**6)
            finally:
                ended.append(True)

        behind.task = asyncio.ensure_future(background())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    assert run_job(behind, actions=register(behind)).seconds == 0.0
    assert ended == [True]


@pytest.mark.parametrize("wrong", [-1, "soon", float("inf"), float("nan")])
def test_wrong_times_are_said(wrong: Any) -> None:
    with pytest.raises(ValueError, match="cancel_after is seconds or a duration"):
        run(add, [1], cancel_after=wrong)


def test_a_process_is_not_forked_here() -> None:
    threads = []

    def isolated() -> None:
        threads.append(threading.current_thread() is threading.main_thread())

    run_job(isolated, actions=register(isolated, isolation="process")).completed()
    assert threads == [False]


# --- beside an event loop of the test's own ---------------------------------------------------------------------------


async def test_in_a_loop_of_its_own_a_test_awaits() -> None:
    opened = asyncio.Event()

    async def waits_for_the_test(ctx: Context) -> int:
        await opened.wait()
        return ctx.attempt

    only = register(waits_for_the_test)
    with pytest.raises(TypeError, match="use `await run_job_here"):
        run_job(waits_for_the_test, actions=only)
    running = asyncio.ensure_future(run_job_here(waits_for_the_test, actions=only))
    opened.set()
    assert (await running).completed() == {"output": 1}
    opened.clear()
    assert (await run_job_here(waits_for_the_test, actions=only, cancel_after="10ms")).status == "cancelled"
