"""Runs jobs: one task each, with its deadline, its cancellation, and exactly one outcome."""

import asyncio
import contextvars
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from wire.codec import MAX_FRAME_TO_SERVER
from wire.depth import MAX_DEPTH, MAX_ELEMENTS, has_more_elements, is_deeper
from wire.frames import ClaimedJob
from wire.verdicts import LOST, NON_RETRYABLE, OVER_CAPACITY
from worker_child import first_steps, signatures
from worker_child.actions import Action, Context, Isolation, Registry, current
from worker_child.catalogue import NOTHING, Catalogue
from worker_child.decisions import Outcome
from worker_child.errors import (
    JobCancelled,
    NonRetryableError,
    ResultTooLarge,
    UnknownAction,
    ValidationError,
    text_of,
)

MAX_RESULT = MAX_FRAME_TO_SERVER - 64 * 1024
"""Bytes of JSON: what a frame holds besides its envelope."""
ELEMENTS_OF_A_FRAME = 100
"""Values and keys of the envelope, with much to spare."""
MAX_MESSAGE = 8 * 1024
"""Characters of an error message."""
STOP_GRACE = 10.0
"""Seconds that code which was told to stop, by a cancel or at its timeout, may take before its job is reported without
it."""
KILL_PATIENCE = 10.0
"""Seconds from the end of the grace of a job's process to its end."""
OVERDUE_AFTER = 30.0
"""Seconds after that at which code that still runs is a reason to replace the whole process."""

VERDICTS: tuple[type[NonRetryableError], ...] = (ValidationError, UnknownAction, ResultTooLarge, NonRetryableError)
"""The most exact first (contract, "Words on the wire")."""

_RESERVED = NON_RETRYABLE | LOST | {OVER_CAPACITY}
_json = msgspec.json.Encoder()
_json_object = msgspec.json.Decoder(dict[str, Any])


class Processes(Protocol):
    """Where actions with a process for each job run."""

    async def run(self, number: int, job: ClaimedJob, context: Context) -> Outcome:
        """The job's outcome, when its process is gone. Not to be cancelled: see `stop`."""

    def stop(self, number: int, grace: float) -> None:
        """SIGTERM, and after `grace` seconds the end."""

    def lose_lease(self, number: int) -> None:
        """Tells the code that its lease is gone."""


class _Execution(msgspec.Struct, eq=False):
    """One run of one job."""

    number: int
    job: ClaimedJob
    times_out_at: float | None
    action: Action | None = None
    context: Context | None = None
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    cancel_reason: str | None = None
    given_up_at: float | None = None
    started: bool = False
    timed_out: bool = False
    done: bool = False

    @property
    def isolation(self) -> Isolation:
        """What it runs in; before that is known it is a task that has not begun."""
        return "task" if self.action is None else self.action.isolation


class Runner:
    """Runs the jobs of one worker.

    `finished(execution, outcome, returned)` is called once for each `start`; when `returned` is false, `came_back` is
    called as soon as the code that ran on has returned. `produced(execution, delta)` is called for every delta of a
    generation, before it has finished. All are called on the event loop's thread.
    """

    def __init__(
        self,
        registry: Registry,
        worker_instance_id: str,
        *,
        threads: int,
        finished: Callable[[int, Outcome, bool], None],
        came_back: Callable[[int], None],
        produced: Callable[[int, dict[str, Any]], None] | None = None,
        catalogue: Catalogue = NOTHING,
    ) -> None:
        self._registry = registry
        self._catalogue = catalogue
        self._produced = produced or (lambda _execution, _delta: None)
        self._worker_instance_id = worker_instance_id
        self._finished = finished
        self._came_back = came_back
        self.processes: Processes | None = None
        """Without them, a job whose action asks for a process fails."""
        self.wall_clock = time.time
        """Seconds since the epoch, for deadlines that handlers see."""
        self.context_type = Context
        """What handlers see."""
        self.gives_up = True
        """Whether a job is reported without its code, should that not stop in time."""
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="job")
        self._executions: dict[int, _Execution] = {}
        self.unbegun: list[_Execution] = []
        """What was started and waits for `begin`."""

    def start(self, number: int, job: ClaimedJob, *, times_out_at: float | None = None) -> None:
        """Takes a job, whose code runs from `begin` on. `times_out_at` (seconds since the epoch) is for the handler to
        see alone."""
        execution = _Execution(number, job, times_out_at)
        self._executions[number] = execution
        self.unbegun.append(execution)

    def begin(self) -> None:
        """Runs the jobs that were started, as a task each. Their first steps are made before this returns, and some
        jobs have their outcomes then, unless this is called by a task: then they come in the loop's next turn."""
        unbegun, self.unbegun = self.unbegun, []
        by_task = asyncio.current_task(self._loop) is not None
        for execution in unbegun:
            if execution.done:
                continue
            if by_task:
                execution.task = self._loop.create_task(self._run(execution))
            elif (action := self._registry.find(execution.job.action_name)) is None or action.suspends:
                execution.task = first_steps.task(self._loop, self._run(execution))
            else:
                first_steps.only(self._run(execution))

    @property
    def idle(self) -> bool:
        """Whether no code of any job runs."""
        return not self._executions

    def cancel(self, number: int, reason: str) -> None:
        """Tells the code to stop: a coroutine by cancellation, a thread by its context alone."""
        execution = self._executions.get(number)
        if execution is None or execution.done or execution.cancel_reason is not None:
            return
        execution.cancel_reason = reason
        if not execution.started:
            del self._executions[number]
            execution.done = True
            # Like every outcome not before this call has returned: whoever cancels is in the middle of something.
            self._loop.call_soon(self._finished, number, Outcome(status="cancelled"), True)  # noqa: FBT003
        elif not execution.timed_out:
            self._give_up_later(execution)
        self._stop(execution)

    def lose_lease(self, number: int) -> None:
        """Tells the code that its lease is gone."""
        execution = self._executions.get(number)
        if execution is None or execution.context is None:
            return
        execution.context.lease_lost = True
        if self.processes is not None and execution.isolation == "process":
            self.processes.lose_lease(number)

    def overdue(self, now: float) -> int:
        """How many executions run on, long after their jobs were reported without them. `now` is monotonic seconds."""
        given_up = [
            execution.given_up_at for execution in self._executions.values() if execution.given_up_at is not None
        ]
        return sum(now - at >= OVERDUE_AFTER for at in given_up)

    def stop(self) -> None:
        """Tells all code to stop, at the end of the process."""
        for number in list(self._executions):
            self.cancel(number, "shutdown")

    async def _run(self, execution: _Execution) -> None:
        execution.started = True
        try:
            action, context = self._prepare(execution)
            arguments = _arguments(action, context, execution.job)
            if action.isolation == "task":
                outcome = _completed(await action.handler(*arguments), action.result_decoder)
            elif action.isolation == "thread":
                outcome = _completed(await self._in_thread(action, arguments), action.result_decoder)
            else:
                # They are made again there: here they show, before anything is forked, that they can be.
                outcome = await self._in_process(execution, context)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises, sys.exit() too, is its job's outcome
            outcome = _failed(execution, error)
        self._executions.pop(execution.number, None)
        if execution.done:
            self._came_back(execution.number)
        else:
            self._finish(execution, outcome)

    def _prepare(self, execution: _Execution) -> tuple[Action, Context]:
        job = execution.job
        if job.kind == "action_execution":
            action = self._registry.get(job.action_name or "")
        elif job.kind == "llm_generation":
            action = self._catalogue.action(job, functools.partial(self._produced, execution.number))
        else:
            raise UnknownAction(f"this worker cannot do jobs of the kind {job.kind!r}")
        execution.action = action
        if action.timeout is not None:
            execution.timer = self._loop.call_later(action.timeout, self._time_out, execution)
            execution.times_out_at = self.wall_clock() + action.timeout
        context = self.context_type(job, self._worker_instance_id, execution.times_out_at)
        execution.context = context
        current.set(context)
        return action, context

    async def _in_process(self, execution: _Execution, context: Context) -> Outcome:
        if self.processes is None:
            raise UnknownAction(f"no process can be made here, as {execution.job.action_name!r} asks for")
        outcome = await self.processes.run(execution.number, execution.job, context)
        if outcome.status == "completed":
            return outcome
        if execution.timed_out:
            return _timed_out(execution)
        return msgspec.structs.replace(outcome, status="cancelled") if execution.cancel_reason else outcome

    async def _in_thread(self, action: Action, arguments: tuple[Any, ...]) -> Any:
        inherited = contextvars.copy_context()

        def call() -> tuple[Any, BaseException | None]:
            # Handed over as a value: not every exception (StopIteration) can cross a future.
            try:
                return inherited.run(action.handler, *arguments), None
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
                return None, error

        value, error = await self._loop.run_in_executor(self._threads, call)
        if isinstance(error, StopIteration):
            # What Python itself makes of one that leaves a coroutine, and native code does not.
            raise RuntimeError("the handler raised StopIteration") from error  # noqa: TRY004 - no check of a type
        if error is not None:
            raise error
        return value

    def _time_out(self, execution: _Execution) -> None:
        if execution.done:
            return
        execution.timed_out = True
        self._give_up_later(execution)
        self._stop(execution)

    def _give_up_later(self, execution: _Execution) -> None:
        if execution.timer is not None:
            execution.timer.cancel()
        if self.gives_up:
            # A process is killed when its grace is over, which takes a while, and then there is an outcome.
            patience = STOP_GRACE + (KILL_PATIENCE if execution.isolation == "process" else 0.0)
            execution.timer = self._loop.call_later(patience, self._give_up, execution)

    def _give_up(self, execution: _Execution) -> None:
        """The code ignores that it was told to stop: its job is reported without it, and it keeps its slot."""
        if execution.done or execution.context is None:
            return
        execution.given_up_at = time.monotonic()
        execution.context.log.error("job.runs_on", reason=execution.cancel_reason or "timeout", grace=STOP_GRACE)
        if execution.timed_out:
            outcome = _timed_out(execution)
        else:
            message = f"its code runs on: it did not stop within {STOP_GRACE:g} s of the request"
            outcome = Outcome(status="cancelled", error_message=message)
        self._finish(execution, outcome, returned=False)

    def _stop(self, execution: _Execution) -> None:
        if execution.context is not None:
            execution.context.cancel()
        if execution.isolation == "process":
            if self.processes is not None:
                self.processes.stop(execution.number, STOP_GRACE)
        elif execution.task is not None and execution.isolation == "task":
            execution.task.cancel()

    def _finish(self, execution: _Execution, outcome: Outcome, *, returned: bool = True) -> None:
        execution.done = True
        if execution.timer is not None:
            execution.timer.cancel()
        self._finished(execution.number, outcome, returned)


def _arguments(action: Action, context: Context, job: ClaimedJob) -> tuple[Any, ...]:
    wanted = action.arguments
    if "parameters" not in wanted:
        return (context,) if wanted else ()
    given = job.spec.get("parameters")
    parameters = action.convert({} if given is None else given)
    if len(wanted) == 1:
        return (parameters,)
    return (parameters, context) if wanted[0] == "parameters" else (context, parameters)


def _completed(value: Any, decoder: Any = None) -> Outcome:
    """An object is sent as it is, anything else as {"output": value} (contract, "Frames").

    `decoder` reads the value's JSON as the type that the handler declares.
    """
    try:
        encoded = _json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise NonRetryableError(f"the result cannot be sent as JSON: {error}") from error
    if decoder is not None:
        signatures.check_result(encoded, decoder)
    if encoded[:1] != b"{":
        encoded = b'{"output":%b}' % encoded
    if len(encoded) > MAX_RESULT:
        raise ResultTooLarge(f"the result has {len(encoded)} bytes as JSON, more than the limit of {MAX_RESULT}")
    if len(encoded) > MAX_DEPTH:
        _check_extent(encoded)
    try:
        # Not all that can be written can be read: a number of 5000 digits, a msgspec.Raw that holds something else.
        _json_object.decode(encoded)
    except (ValueError, msgspec.MsgspecError) as error:
        raise NonRetryableError(f"the result cannot be sent as JSON: {error}") from error
    return Outcome(status="completed", result=msgspec.Raw(encoded))


def _check_extent(encoded: bytes) -> None:
    if has_more_elements(encoded, MAX_ELEMENTS - ELEMENTS_OF_A_FRAME):
        raise ResultTooLarge(
            f"the result has more than the limit of {MAX_ELEMENTS - ELEMENTS_OF_A_FRAME} values and keys"
        )
    if is_deeper(encoded, MAX_DEPTH):
        raise NonRetryableError(f"the result is nested more deeply than the limit of {MAX_DEPTH} levels")


def _failed(execution: _Execution, error: BaseException) -> Outcome:
    if execution.timed_out:
        return _timed_out(execution)
    cancelled = execution.cancel_reason is not None
    if isinstance(error, asyncio.CancelledError | JobCancelled) and cancelled:
        return Outcome(status="cancelled")
    error_type, message = _words(error)
    if execution.context is not None:
        verdict = isinstance(error, NonRetryableError)
        execution.context.log.warning(
            "job.failed", error_type=error_type, error=message, exc_info=None if verdict else error
        )
    status: Any = "cancelled" if cancelled else "failed"
    return Outcome(status=status, error_type=error_type, error_message=message)


def _timed_out(execution: _Execution) -> Outcome:
    seconds = execution.action.timeout if execution.action is not None else 0
    return Outcome(
        status="failed",
        error_type="TimeoutError",
        error_message=f"{execution.job.work!r} did not end within its timeout of {seconds:g} s",
    )


def _words(error: BaseException) -> tuple[str, str]:
    """`error_type` and `error_message` of an exception (contract, "Words on the wire")."""
    name, message = type(error).__name__, text_of(error)
    for verdict in VERDICTS:
        if isinstance(error, verdict):
            message = message if type(error) is verdict else f"{name}: {message}".rstrip(": ")
            return verdict.__name__, _bounded(message or verdict.__name__)
    if name in _RESERVED:
        # Only our own classes give a verdict: a handler that merely meets a foreign ValidationError may be retried.
        module: Any = getattr(type(error), "__module__", None)  # which need not be a text
        name = f"{module}.{name}"
    return name[:256], _bounded(message or name)


def _bounded(message: str) -> str:
    text = message.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"
