"""Run a handler in a unit test, without a server: `run_job`.

```python
from worker_child.testing import run_job

def test_it_greets():
    assert run_job(compose, {"name": "Ada"}).completed() == {"text": "Hello, Ada!"}
```

What runs is what a worker runs: parameters are converted and results checked, the timeout counts, a cancel reaches the
code, and failures have the words that the control plane gets. Time is virtual: whoever waits for an hour is done at
once, and `seconds` says so. An action with `isolation="process"` runs in this process here.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import msgspec
import structlog
from msgspec import Struct

from wire.duration import seconds_of
from wire.frames import LEASE_LOST, ClaimedJob
from wire.verdicts import LOST, NON_RETRYABLE
from worker_child.actions import Action, Cancelled, Context, Registry, registry
from worker_child.decisions import Outcome
from worker_child.runner import Runner
from worker_child.virtual_time import NothingToWaitForError, VirtualCancelled, VirtualLoop

__all__ = ["Attempt", "Job", "NothingToWaitForError", "run_job", "run_job_here"]

_EXECUTION = 1
_PATIENCE = 3
ResultT = TypeVar("ResultT")


class Attempt(Struct, frozen=True, kw_only=True):
    """One run of the handler. `result` and the errors are what the control plane would be told.

    `began` and `seconds` are virtual seconds since the job's beginning; `exception` is what the handler raised; `log`
    are the entries of its log, each a dict with `event` and `level`. `runs_on`: it was told to stop and did not.
    """

    number: int
    status: str
    result: Any
    error_type: str | None
    error_message: str | None
    exception: BaseException | None
    began: float
    seconds: float
    log: list[dict[str, Any]]
    runs_on: bool


class Job(Struct, frozen=True, kw_only=True):
    """What became of a job: that of its last attempt."""

    attempts: list[Attempt]

    @property
    def status(self) -> str:
        """completed, failed or cancelled."""
        return self.attempts[-1].status

    @property
    def result(self) -> Any:
        """The JSON object of the report: the handler's own, or `{"output": value}`. None unless it completed."""
        return self.attempts[-1].result

    @property
    def error_type(self) -> str | None:
        """None if it completed."""
        return self.attempts[-1].error_type

    @property
    def error_message(self) -> str | None:
        """None if it completed."""
        return self.attempts[-1].error_message

    @property
    def log(self) -> list[dict[str, Any]]:
        """Of all attempts."""
        return [entry for attempt in self.attempts for entry in attempt.log]

    @property
    def seconds(self) -> float:
        """Virtual seconds from the first attempt's beginning to the last one's end."""
        return self.attempts[-1].began + self.attempts[-1].seconds

    def completed(self) -> Any:
        """The result. Raises AssertionError with what the handler raised, if it did not complete."""
        last = self.attempts[-1]
        if last.status != "completed":
            what = f"{last.error_type}: {last.error_message}" if last.error_type else last.error_message or ""
            raise AssertionError(f"the job {last.status} in attempt {last.number} {what}".rstrip()) from last.exception
        return last.result


def run_job(
    handler: Callable[..., Any] | str,
    parameters: Any = None,
    *,
    max_attempts: int = 1,
    retry_delay: float | str = 0.0,
    cancel_after: float | str | None = None,
    lose_lease_after: float | str | None = None,
    actions: Registry = registry,
    **fields: Any,
) -> Job:
    """Runs an action's handler (or the action of that name) in virtual time, with retries as a step's policy has them.

    `parameters` is anything that is JSON, or a msgspec.Struct or dataclass of it. `retry_delay`, `cancel_after` and
    `lose_lease_after` are seconds or durations such as "5m", counted in each attempt from its beginning. `fields` are
    fields of the claimed job, such as `id`, `run_id` or `queue`.

    Raises NothingToWaitForError when the handler waits for what nobody will ever bring about, LookupError when there is
    no such action. Not to be called where an event loop runs: see `run_job_here`.
    """
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise TypeError("an event loop runs here already: use `await run_job_here(...)`")
    loop = VirtualLoop()
    wishes = _Wishes(
        max_attempts=max_attempts,
        retry_delay=_seconds("retry_delay", retry_delay) or 0.0,
        cancel_after=_seconds("cancel_after", cancel_after),
        lose_lease_after=_seconds("lose_lease_after", lose_lease_after),
    )
    try:
        return _run(loop, _attempts(_action(handler, actions), parameters, wishes, fields, _virtual(loop)))
    finally:
        loop.close()


async def run_job_here(
    handler: Callable[..., Any] | str,
    parameters: Any = None,
    *,
    max_attempts: int = 1,
    retry_delay: float | str = 0.0,
    cancel_after: float | str | None = None,
    lose_lease_after: float | str | None = None,
    actions: Registry = registry,
    **fields: Any,
) -> Job:
    """The same in the event loop that runs, and in real time: for handlers that share a test's servers and clients."""
    wishes = _Wishes(
        max_attempts=max_attempts,
        retry_delay=_seconds("retry_delay", retry_delay) or 0.0,
        cancel_after=_seconds("cancel_after", cancel_after),
        lose_lease_after=_seconds("lose_lease_after", lose_lease_after),
    )
    return await _attempts(_action(handler, actions), parameters, wishes, fields, Context)


class _Wishes(Struct, frozen=True, kw_only=True):
    """What is to happen to the job. Seconds."""

    max_attempts: int
    retry_delay: float
    cancel_after: float | None
    lose_lease_after: float | None


def _action(handler: Callable[..., Any] | str, actions: Registry) -> Action:
    try:
        return actions.get(handler) if isinstance(handler, str) else actions.action_of(handler)
    except Exception as error:
        raise LookupError(str(error)) from error


def _seconds(name: str, given: float | str | None) -> float | None:
    seconds = seconds_of(given) if isinstance(given, str) else given
    if given is not None and (seconds is None or not 0 <= seconds < float("inf")):
        raise ValueError(f'{name} is seconds or a duration such as "5m", got {given!r}')
    return seconds


def _virtual(loop: VirtualLoop) -> type[Context]:
    """A context whose handler lives in the loop's time, in a thread too."""

    class VirtualContext(Context):
        __slots__ = ()

        def _event(self) -> Cancelled:
            return VirtualCancelled(loop)

    return VirtualContext


def _run(loop: VirtualLoop, main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """To the end; and whatever the handler has left running in the loop is ended with it."""
    task = loop.create_task(main)
    try:
        return loop.run_until_complete(task)
    except NothingToWaitForError:
        waiting = (
            "the handler waits for something that nobody will bring about: nothing is under way, and no timer is set"
        )
        raise NothingToWaitForError(waiting) from None
    finally:
        with contextlib.suppress(NothingToWaitForError), _captured():
            loop.run_until_complete(_end(asyncio.all_tasks(loop)))


async def _end(tasks: set["asyncio.Task[Any]"]) -> None:
    """Code that does not stop is not waited for."""
    for _ in range(_PATIENCE):
        for task in tasks:
            task.cancel()
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=1.0)


async def _attempts(
    action: Action, parameters: Any, wishes: _Wishes, fields: dict[str, Any], context_type: type[Context]
) -> Job:
    loop = asyncio.get_running_loop()
    beginning, wall = loop.time(), time.time()
    given = None if parameters is None else msgspec.json.decode(msgspec.json.encode(parameters))
    attempts: list[Attempt] = []
    while True:
        number = len(attempts) + 1
        job = _job(action, given, number, wishes.max_attempts, fields)
        began = loop.time() - beginning
        attempt = await _attempt(action, job, wishes, context_type, lambda: wall + loop.time() - beginning)
        attempts.append(Attempt(number=number, began=began, seconds=loop.time() - beginning - began, **attempt))
        error_type = attempts[-1].error_type
        if attempts[-1].status != "failed" or number >= wishes.max_attempts or error_type in NON_RETRYABLE:
            return Job(attempts=attempts)
        if error_type not in LOST:
            await asyncio.sleep(wishes.retry_delay)


async def _attempt(
    action: Action, job: ClaimedJob, wishes: _Wishes, context_type: type[Context], wall_clock: Callable[[], float]
) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[tuple[Outcome, bool]] = loop.create_future()
    raised: list[BaseException] = []

    def finished(_execution: int, outcome: Outcome, returned: bool) -> None:  # noqa: FBT001 - the runner's word
        if not over.done():
            over.set_result((outcome, returned))

    only = Registry()
    only.add(_watched(action, raised))
    runner = Runner(
        only,
        "test-worker",
        threads=1,
        finished=finished,
        came_back=lambda _execution: None,
    )
    runner.wall_clock = wall_clock
    runner.context_type = context_type
    timers = []
    if wishes.cancel_after is not None:
        timers.append(loop.call_later(wishes.cancel_after, runner.cancel, _EXECUTION, "the test asks for it"))
    if wishes.lose_lease_after is not None:
        timers.append(loop.call_later(wishes.lose_lease_after, _lose_lease, runner, action))
    with _captured() as log:
        runner.start(_EXECUTION, job)
        runner.begin()
        outcome, returned = await over
    for timer in timers:
        timer.cancel()
    runner.stop()
    return {
        "status": outcome.status,
        "result": None if outcome.result is None else msgspec.json.decode(outcome.result),
        "error_type": outcome.error_type,
        "error_message": outcome.error_message,
        "exception": raised[-1] if raised and outcome.status != "completed" else None,
        "log": log,
        "runs_on": not returned,
    }


def _job(action: Action, parameters: Any, number: int, max_attempts: int, fields: dict[str, Any]) -> ClaimedJob:
    spec = {"parameters": parameters} if parameters is not None else {}
    given: dict[str, Any] = {
        "id": "job_test",
        "kind": "action_execution",
        "origin": "automation_action_step",
        "executor_kind": "customer_worker",
        "queue": "default",
        "spec": {**spec, "mobius": {"max_attempts": max_attempts}},
        "lease_token": f"lease-{number}",
        "claim_attempt": number,
        "lease_duration_seconds": 60,
        "heartbeat_cadence_seconds": 20,
        "action_name": action.name,
        "run_id": "run_test",
        "step_id": "step_test",
    }
    return ClaimedJob(**(given | fields))


def _lose_lease(runner: Runner, action: Action) -> None:
    """What a worker does when it learns of it."""
    runner.lose_lease(_EXECUTION)
    if not action.idempotent:
        runner.cancel(_EXECUTION, LEASE_LOST)


def _watched(action: Action, raised: list[BaseException]) -> Action:
    """The same action in this process, and what its handler raises."""
    handler = action.handler

    @functools.wraps(handler)
    async def coroutine(*arguments: Any) -> Any:
        try:
            return await handler(*arguments)
        except BaseException as error:
            raised.append(error)
            raise

    @functools.wraps(handler)
    def function(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except BaseException as error:
            raised.append(error)
            raise

    isolation: Any = "task" if action.asynchronous else "thread"
    watched = coroutine if action.asynchronous else function
    return msgspec.structs.replace(action, handler=watched, isolation=isolation, suspends=True)


@contextlib.contextmanager
def _captured() -> Iterator[list[dict[str, Any]]]:
    """What is logged meanwhile, and is written nowhere."""
    entries: list[dict[str, Any]] = []

    def capture(_logger: Any, method: str, event: Any) -> Any:
        entries.append({"level": method, **event})
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, capture],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=False,
    )
    try:
        yield entries
    finally:
        structlog.configure(**before)
