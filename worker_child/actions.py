"""The handler API: `@action`, the registry behind it, and the `Context` that a handler is given."""

import asyncio
import contextlib
import datetime as dt
import inspect
import threading
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
import structlog

from wire.duration import seconds_of
from wire.frames import ClaimedJob
from worker_child.errors import ActionDefinitionError, UnknownAction, ValidationError

Handler = TypeVar("Handler", bound=Callable[..., Any])

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
    """

    __slots__ = (
        "_cancel_asked",
        "_cancelled",
        "_job",
        "_log",
        "_times_out_at",
        "action",
        "lease_lost",
        "worker_instance_id",
    )

    def __init__(self, job: ClaimedJob, worker_instance_id: str, times_out_at: dt.datetime | None = None) -> None:
        self._job = job
        self._cancel_asked = False
        self._cancelled: Cancelled | None = None
        self._log: Any = None
        self._times_out_at = times_out_at
        self.action = job.action_name or ""
        self.lease_lost = False
        self.worker_instance_id = worker_instance_id

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
        deadlines = [] if self._times_out_at is None else [self._times_out_at]
        with contextlib.suppress(ValueError):
            deadlines.append(dt.datetime.fromisoformat(self._extension("deadline_at")).astimezone(dt.UTC))
        return min(deadlines, default=None)

    @property
    def cancelled(self) -> Cancelled:
        """Set when the job should stop; a coroutine is cancelled besides."""
        if self._cancelled is None:
            self._cancelled = Cancelled()
            # A thread may make the event while the loop cancels: whoever comes second sees what the other did.
            if self._cancel_asked:
                self._cancelled.set()
        return self._cancelled

    def cancel(self) -> None:
        """Sets `cancelled`. For whoever runs the handler, on the event loop's thread."""
        self._cancel_asked = True
        if self._cancelled is not None:
            self._cancelled.set()

    @property
    def log(self) -> Any:
        """A structlog logger that carries the job, its action and its attempt."""
        if self._log is None:
            self._log = structlog.get_logger().bind(
                job_id=self.job_id, action=self.action, attempt=self.attempt, run_id=self.run_id
            )
        return self._log

    def _extension(self, key: str) -> str:
        """What our own control plane says beyond the contract's fields, else an empty string."""
        extension = self._job.spec.get("mobius")
        value = extension.get(key) if isinstance(extension, dict) else None
        return value if isinstance(value, str) else ""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """A registered handler. `timeout` is in seconds; `concurrency` bounds this action within one worker."""

    name: str
    handler: Callable[..., Any]
    asynchronous: bool
    parameters_type: Any
    arguments: tuple[str, ...]
    """How it is called: "parameters" and "context", in the handler's order."""
    concurrency: int | None
    timeout: float | None
    idempotent: bool

    def convert(self, parameters: Any) -> Any:
        """The job's `spec.parameters` as the handler's type. Raises ValidationError, which names the field."""
        if self.parameters_type is None:
            return parameters
        try:
            return msgspec.convert(parameters, self.parameters_type)
        except msgspec.ValidationError as error:
            sentence, _, path = str(error).partition(" - at `$")
            raise ValidationError(f"parameters{path.rstrip('`')}: {sentence}") from error


class Registry:
    """The actions of one process, by name."""

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}

    def action(
        self, name: str, *, concurrency: int | None = None, timeout: float | str | None = None, idempotent: bool = False
    ) -> Callable[[Handler], Handler]:
        """Registers the decorated function, sync or async, under `name`, and returns it unchanged.

        It takes at most one parameters object (its annotation is the type; none means a dict) and at most one
        `Context`. `timeout` is seconds or a duration such as "2m"; `idempotent` lets a job run on when its lease was
        lost.
        Raises ActionDefinitionError.
        """
        # At once: `@action` without a name is given the handler here, and would never come to register it.
        if not isinstance(name, str) or not 1 <= len(name) <= 256:
            given = getattr(name, "__qualname__", None) or repr(name)
            raise ActionDefinitionError(
                f'@action: expected a name of 1 to 256 characters, got {given}; write for example @action("my.action")'
            )

        def register(handler: Handler) -> Handler:
            if concurrency is not None and (not isinstance(concurrency, int) or concurrency < 1):
                raise ActionDefinitionError(f"@action({name!r}): concurrency is a number from 1, got {concurrency!r}")
            arguments, parameters_type = _signature(name, handler)
            self._add(
                Action(
                    name=name,
                    handler=handler,
                    asynchronous=inspect.iscoroutinefunction(handler),
                    parameters_type=parameters_type,
                    arguments=arguments,
                    concurrency=concurrency,
                    timeout=_seconds(name, timeout),
                    idempotent=idempotent,
                )
            )
            return handler

        return register

    def _add(self, action: Action) -> None:
        known = self._actions.get(action.name)
        if known is not None and _origin(known.handler) != _origin(action.handler):
            first, second = _origin(known.handler), _origin(action.handler)
            remedy = ", or set stock_actions = false" if "worker_child.stock" in first else ""
            raise ActionDefinitionError(
                f"action {action.name!r} is defined twice, by {first} and by {second}: rename one{remedy}"
            )
        self._actions[action.name] = action

    def get(self, name: str) -> Action:
        """Raises UnknownAction."""
        try:
            return self._actions[name]
        except KeyError:
            raise UnknownAction(f"this worker has no action {name!r}") from None

    def names(self) -> list[str]:
        """Sorted names of all registered actions."""
        return sorted(self._actions)

    def restricted(self, names: Iterable[str]) -> "Registry":
        """Only the actions in `names`. Raises ActionDefinitionError that names what is missing."""
        chosen = Registry()
        for name in names:
            if name not in self._actions:
                known = ", ".join(self.names()) or "none"
                raise ActionDefinitionError(f"actions: no handler is registered for {name!r} (registered: {known})")
            chosen._actions[name] = self._actions[name]
        return chosen


def _signature(name: str, handler: Callable[..., Any]) -> tuple[tuple[str, ...], Any]:
    """How to call `handler`, and the type of its parameters object (None: as it comes)."""
    try:
        parameters = inspect.signature(handler).parameters.values()
        hints = typing.get_type_hints(handler, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise ActionDefinitionError(f"@action({name!r}): the signature cannot be read: {error}") from error
    arguments: list[str] = []
    parameters_type: Any = None
    for parameter in parameters:
        hint = hints.get(parameter.name)
        required = parameter.default is inspect.Parameter.empty
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            if required and parameter.kind is parameter.KEYWORD_ONLY:
                raise ActionDefinitionError(f"@action({name!r}): {parameter.name} is keyword-only and has no default")
        elif _bare(hint) is Context or (hint is None and parameter.name in ("ctx", "context")):
            arguments.append("context")
        else:
            arguments.append("parameters")
            parameters_type = dict[str, Any] if hint is None else None if hint is Any else hint
    if arguments.count("parameters") > 1 or arguments.count("context") > 1:
        raise ActionDefinitionError(
            f"@action({name!r}): a handler takes at most one parameters object and at most one Context"
        )
    try:
        # What cannot be converted to at all is the handler's fault and not its jobs': say it before there are any.
        msgspec.json.Decoder(Any if parameters_type is None else parameters_type)
    except (TypeError, NameError) as error:
        raise ActionDefinitionError(f"@action({name!r}): parameters cannot be read as their type: {error}") from error
    return tuple(arguments), parameters_type


def _bare(hint: Any) -> Any:
    """The type itself of `Annotated[type, ...]`, whose bounds are for parameters."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _seconds(name: str, timeout: float | str | None) -> float | None:
    if isinstance(timeout, str):
        seconds = seconds_of(timeout) or 0.0
    elif timeout is None:
        return None
    else:
        seconds = float(timeout) if isinstance(timeout, int | float) else 0.0
    # Written so that not-a-number is refused too.
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise ActionDefinitionError(
            f'@action({name!r}): timeout is seconds or a duration such as "2m", of at most a year, got {timeout!r}'
        )
    return seconds


def _origin(handler: Callable[..., Any]) -> str:
    return f"{handler.__module__}.{handler.__qualname__}"


registry = Registry()
"""What `@action` fills when a process imports its modules."""

action = registry.action
