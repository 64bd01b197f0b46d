"""The handler API: `@action`, the registry behind it, and the `Context` that a handler is given."""

import asyncio
import contextlib
import datetime as dt
import threading
import typing
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import msgspec

from wire.duration import seconds_of
from wire.frames import ClaimedJob
from worker_child import signatures
from worker_child.errors import ActionDefinitionError, JobCancelled, UnknownAction

Handler = TypeVar("Handler", bound=Callable[..., Any])
Isolation = Literal["task", "thread", "process"]

_LONGEST_SECONDS = 366 * 86400.0


class Cancelled(asyncio.Event):
    """Set when the job should stop. `is_set()` works in every thread; `wait()` is for coroutines."""

    def __init__(self) -> None:
        super().__init__()
        self._for_threads = threading.Event()

    def set(self) -> None:
        """Wakes coroutines and threads. Called on the event loop's thread."""
        self._for_threads.set()
        super().set()

    def wait_in_thread(self, timeout: float | None = None) -> bool:
        """Waits in a synchronous handler for at most `timeout` seconds; true when the job should stop."""
        return self._for_threads.wait(timeout)


class Context:
    """What a handler may know of its job, and how it learns that it should stop.

    `deadline` is a UTC time or None. `idempotency_key` is the same for every attempt at the same job: hand it to
    whatever must not be done twice. `lease_lost` says that the control plane may have given the job to another worker.
    `times_out_at` is the action's own timeout, in seconds since the epoch.
    """

    __slots__ = (
        "_cancel_asked",
        "_cancelled",
        "_job",
        "_log",
        "lease_lost",
        "times_out_at",
        "worker_instance_id",
    )

    def __init__(self, job: ClaimedJob, worker_instance_id: str, times_out_at: float | None = None) -> None:
        self._job = job
        self._cancel_asked = False
        self._cancelled: Cancelled | None = None
        self._log: Any = None
        self.times_out_at = times_out_at
        self.lease_lost = False
        self.worker_instance_id = worker_instance_id

    @property
    def action(self) -> str:
        """The action's name; of a generation `provider/model`."""
        return self._job.work

    @property
    def job_id(self) -> str:
        """Identity of the job; the same for every attempt."""
        return self._job.id

    @property
    def run_id(self) -> str | None:
        """The run that the job belongs to, where the control plane says so."""
        return self._job.run_id

    @property
    def step_id(self) -> str | None:
        """The step that waits for the job, where the control plane says so."""
        return self._job.step_id

    @property
    def queue(self) -> str:
        """The queue that the job was claimed from."""
        return self._job.queue

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self._job.claim_attempt

    @property
    def idempotency_key(self) -> str:
        """The control plane's key for the job, else the job's id."""
        return self._extension("idempotency_key") or self._job.id

    @property
    def deadline(self) -> dt.datetime | None:
        """When the job is out of time (UTC): the action's timeout or the step's deadline, whichever is first."""
        at = self.times_out_at
        deadlines = [] if at is None else [dt.datetime.fromtimestamp(at, dt.UTC)]
        with contextlib.suppress(ValueError):
            deadlines.append(dt.datetime.fromisoformat(self._extension("deadline_at")).astimezone(dt.UTC))
        return min(deadlines, default=None)

    @property
    def cancelled(self) -> Cancelled:
        """Set when the job should stop; a coroutine is cancelled besides."""
        if self._cancelled is None:
            self._cancelled = self._event()
            # A thread may make the event while the loop cancels: whoever comes second sees what the other did.
            if self._cancel_asked:
                self._cancelled.set()
        return self._cancelled

    def _event(self) -> Cancelled:
        return Cancelled()

    def cancel(self) -> None:
        """Sets `cancelled`. For whoever runs the handler, on the event loop's thread."""
        self._cancel_asked = True
        if self._cancelled is not None:
            self._cancelled.set()

    def raise_if_cancelled(self) -> None:
        """Raises JobCancelled when the job should stop: for a loop in a synchronous handler."""
        if self._cancel_asked:
            raise JobCancelled("the job was told to stop")

    @property
    def log(self) -> Any:
        """A structlog logger that carries the job, its action, its attempt and its run."""
        if self._log is None:
            # Here, as whoever writes handlers imports this module: see wire.structlog_alone.
            import structlog  # noqa: PLC0415

            self._log = structlog.get_logger().bind(**self.log_fields())
        return self._log

    def log_fields(self) -> dict[str, Any]:
        """What every line of this job carries."""
        fields = {"job_id": self.job_id, "action": self.action, "attempt": self.attempt, "run_id": self.run_id}
        return {key: value for key, value in fields.items() if value is not None}

    def _extension(self, key: str) -> str:
        """What our own control plane says beyond the contract's fields, else an empty string."""
        extension = self._job.spec.get("mobius")
        value = extension.get(key) if isinstance(extension, dict) else None
        return value if isinstance(value, str) else ""


current: ContextVar[Context] = ContextVar("mobius_job")
"""The job whose code runs here, for the log: a library's lines, too, say which job they belong to."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """A registered handler. `timeout` is in seconds; `concurrency` bounds this action within one worker."""

    name: str
    handler: Callable[..., Any]
    asynchronous: bool
    parameters_holder: type[msgspec.Struct] | None
    result_decoder: Any
    arguments: tuple[str, ...]
    """How it is called: "parameters" and "context", in the handler's order."""
    concurrency: int | None
    timeout: float | None
    idempotent: bool
    isolation: Isolation
    suspends: bool = True
    """Whether the job may wait for something; false only for a coroutine that awaits nothing and runs as a task."""

    def convert(self, parameters: Any) -> Any:
        """The job's `spec.parameters` as the handler's type. Raises ValidationError, which names the field."""
        if self.parameters_holder is None:
            return parameters
        return signatures.convert(parameters, self.parameters_holder)


class Registry:
    """The actions of one process, by name."""

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}

    def action(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        timeout: float | str | None = None,
        idempotent: bool = False,
        isolation: Isolation | None = None,
    ) -> Callable[[Handler], Handler]:
        """Registers the decorated function, sync or async, under `name`, and returns it unchanged.

        It takes at most one parameters object (its annotation is the type; none means a dict) and at most one
        `Context`. `timeout` is seconds or a duration such as "2m"; `idempotent` lets a job run on when its lease was
        lost. `isolation` is "task" for `async def` and "thread" for `def` unless it says "process": then each job has
        a process of its own, which may crash, leak and be killed.
        Raises ActionDefinitionError.
        """
        # At once: `@action` without a name is given the handler here, and would never come to register it.
        if not isinstance(name, str) or not 1 <= len(name) <= 256 or not name.isprintable():
            given = getattr(name, "__qualname__", None) or repr(name)
            raise ActionDefinitionError(
                f"@action: expected a name of 1 to 256 printable characters, got {given}; "
                'write for example @action("my.action")'
            )

        def register(handler: Handler) -> Handler:
            try:
                signature = signatures.read(handler, Context)
                isolated = _isolation(isolation, asynchronous=signature.asynchronous)
                self.add(
                    Action(
                        name=name,
                        handler=handler,
                        asynchronous=signature.asynchronous,
                        parameters_holder=signature.parameters_holder,
                        result_decoder=signature.result_decoder,
                        arguments=signature.arguments,
                        concurrency=_concurrency(concurrency),
                        timeout=timeout_seconds(timeout),
                        idempotent=_idempotent(idempotent),
                        isolation=isolated,
                        suspends=signature.suspends or isolated != "task",
                    )
                )
            except (TypeError, ValueError, OverflowError) as error:
                where = signatures.described(handler)
                raise ActionDefinitionError(f"@action({name!r}) of {where}: {error}") from error
            return handler

        return register

    def add(self, action: Action) -> None:
        """Raises ActionDefinitionError when another handler has the name already."""
        known = self._actions.get(action.name)
        if known is not None and not signatures.same(known.handler, action.handler):
            first, second = signatures.described(known.handler), signatures.described(action.handler)
            remedy = ", or set stock_actions = false" if "worker_child.stock" in first else ""
            raise ActionDefinitionError(
                f"action {action.name!r} is defined twice, by {first} and by {second}: rename one{remedy}"
            )
        self._actions[action.name] = action

    def find(self, name: str | None) -> Action | None:
        """The action of that name, if there is one."""
        return self._actions.get(name)  # type: ignore[arg-type]

    def get(self, name: str) -> Action:
        """Raises UnknownAction."""
        try:
            return self._actions[name]
        except KeyError:
            raise UnknownAction(f"this worker has no action {name!r}") from None

    def action_of(self, handler: Callable[..., Any]) -> Action:
        """The first action that is this very function. Raises UnknownAction."""
        for found in self._actions.values():
            if found.handler is handler:
                return found
        raise UnknownAction(f"{signatures.described(handler)} is no action: decorate it with @action(name)")

    def names(self) -> list[str]:
        """Sorted names of all registered actions."""
        return sorted(self._actions)

    def in_process(self, name: str) -> "Registry":
        """What a process for one job of this action needs: the action alone, without bounds that its worker keeps."""
        chosen = Registry()
        if name in self._actions:
            action = self._actions[name]
            isolation: Isolation = "task" if action.asynchronous else "thread"
            chosen._actions[name] = msgspec.structs.replace(action, isolation=isolation, timeout=None)
        return chosen

    def restricted(self, names: Iterable[str]) -> "Registry":
        """Only the actions in `names`. Raises ActionDefinitionError that names what is missing."""
        chosen = Registry()
        for name in names:
            if name not in self._actions:
                known = ", ".join(self.names()) or "none"
                raise ActionDefinitionError(f"actions: no handler is registered for {name!r} (registered: {known})")
            chosen._actions[name] = self._actions[name]
        return chosen


def _idempotent(idempotent: object) -> bool:
    if not isinstance(idempotent, bool):
        raise TypeError(f"idempotent is True or False, got {idempotent!r}")
    return idempotent


def _concurrency(concurrency: int | None) -> int | None:
    if concurrency is not None and (not isinstance(concurrency, int) or concurrency < 1):
        raise ValueError(f"concurrency is a number from 1, got {concurrency!r}")
    return concurrency


def _isolation(isolation: Isolation | None, *, asynchronous: bool) -> Isolation:
    if isolation is None:
        return "task" if asynchronous else "thread"
    if isolation not in typing.get_args(Isolation):
        raise ValueError(f'isolation is "task", "thread" or "process", got {isolation!r}')
    if isolation == "task" and not asynchronous:
        raise ValueError('isolation="task" is for `async def`: a plain function would hold up all other jobs')
    if isolation == "thread" and asynchronous:
        raise ValueError('isolation="thread" is for `def`: a coroutine runs as a task, or in a process')
    return isolation


def timeout_seconds(timeout: float | str | None) -> float | None:
    """A decorator's `timeout` in seconds. Raises ValueError."""
    if isinstance(timeout, str):
        seconds = seconds_of(timeout) or 0.0
    elif timeout is None:
        return None
    else:
        seconds = float(timeout) if isinstance(timeout, int | float) else 0.0
    # Written so that not-a-number is refused too.
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise ValueError(f'timeout is seconds or a duration such as "2m", of at most a year, got {timeout!r}')
    return seconds


registry = Registry()
"""What `@action` fills when a process imports its modules."""

action = registry.action
