"""What the supervisor, a mold and a child say to each other: MessagePack, one message a datagram.

The pipes are SOCK_SEQPACKET socket pairs: the kernel keeps message boundaries, and the end of a process is the end
of its stream. Every message of a slot names its incarnation, so that a dead child's late beat cannot touch its
successor. Nothing of a single job crosses them, unless its action asks for a process of its own; that has its own pipe.
"""

import signal
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from wire.tls import TlsFiles

MAX_MESSAGE = 128 * 1024
"""Bytes. Below the kernel's default send buffer, so that a datagram always fits."""

MOLD_FD = 3
"""File descriptor of the mold's end of its pipe (the mold is started by exec)."""

STACKS_FD = 4
"""File descriptor of the pipe that takes the stacks of a process that is started by exec."""

PIPE_FD_VARIABLE = "MOBIUS_SUPERVISOR_FD"
"""Environment variable that names the pipe's file descriptor to an embedded control plane."""

ENTRY_POINT_GROUP = "mobius.actions"
"""Under which installed packages offer modules with handlers."""

ENTRY_POINT_SOURCE = f"{ENTRY_POINT_GROUP}:"
"""How an entry point begins among the sources of handlers; its name follows."""

STACKS_SIGNAL = int(signal.SIGRTMAX) - 2
"""A process that catches this signal answers with the Python stacks of all its threads. A real-time signal, because
handlers' libraries have uses of their own for SIGUSR1 and SIGUSR2."""

DURATION_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds, in seconds, by which the durations of jobs are counted; what took longer has one place more."""

MOST_ACTIONS = 64
"""Actions that a beat tells apart; jobs of any further one are counted as OTHER_ACTIONS."""

OTHER_ACTIONS = "other"

SessionState = Literal["starting", "connecting", "registering", "registered", "draining", "ended"]


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every message."""


class PreviousEnd(Message, frozen=True):
    """How the slot's last incarnation ended: what its successor may say of the jobs that were in hand.

    `cause` is a word of supervisor.facts.EndCause ("signal", "exit", "hung", ...), `detail` a sentence without secrets,
    `self_made` true when the death was the child's own doing (its exit code, SEGV/ABRT/BUS, out of memory).
    """

    incarnation: int
    cause: str
    detail: str
    self_made: bool


class ModelProvider(Message, frozen=True):
    """A model server. `silence` is seconds: the longest wait for the next piece of an answer.

    Its key is in `api_key_file`, read by the child, and read again when the server refuses it.
    """

    name: str
    api: Literal["ollama", "openai", "anthropic"]
    base_url: str
    api_key_file: str | None = None
    silence: float = 300.0


class ChildSettings(Message, frozen=True):
    """All that one child needs to run. Durations are seconds.

    The API key is either `api_key_file` (read by the child, and read again after a 401) or `api_key` (from the parent's
    environment or credential store); this message is the only way by which a key reaches a child.
    """

    worker_instance_id: str
    api_url: str
    project: str
    api_key_file: str | None = None
    api_key: str | None = None
    tls: TlsFiles = TlsFiles()
    name: str | None = None
    version: str | None = None
    environment_id: str | None = None
    concurrency: int = 1
    queues: list[str] = msgspec.field(default_factory=lambda: ["default"])
    actions: list[str] = msgspec.field(default_factory=list)
    models: list[str] = msgspec.field(default_factory=list)
    """`provider/model` or `provider/*`; empty: every one."""
    providers: list[ModelProvider] = msgspec.field(default_factory=list)
    modules: list[str] = msgspec.field(default_factory=list)
    """Modules that the mold did not import and the child must."""
    journal: Literal["fsync", "write", "off"] = "write"
    journal_path: str = ""
    drain_grace: float = 30.0
    hang_limit: float = 45.0
    """`kill_after` of the pool: past it (plus the grace) a stuck interpreter ends itself."""
    identity_conflict: float = 180.0
    """How long worker_instance_conflict is retried before the child gives up (contract, "Identity")."""
    log_level: str = "info"
    log_format: Literal["console", "json"] = "console"
    log_mark: str = ""
    """What the lines of the child's own log end with, so that nothing that a handler prints passes for one."""
    previous_end: PreviousEnd | None = None


# --- supervisor -> mold ---------------------------------------------------------------------------------------------


class MoldSettings(Message, frozen=True, tag="mold.settings"):
    """First message to a mold: what to import before the first fork, and the actions that it must bring.

    `modules` are sources of handlers: names of modules, absolute paths of `.py` files, and ENTRY_POINT_SOURCE with the
    name of an entry point, or `*` for all of them.
    """

    pool: str
    modules: list[str]
    module_path: list[str]
    preload: bool
    stock_actions: bool
    environment_actions: bool
    actions: list[str] = msgspec.field(default_factory=list)
    workspace: str = ""
    """Where environment actions work; an absolute path."""
    model_servers: bool = False
    """The children will talk to model servers: what that needs is imported before the fork."""
    log_level: str = "info"
    log_format: Literal["console", "json"] = "console"


class Spawn(Message, frozen=True, tag="mold.spawn"):
    """Fork one child. Four file descriptors ride along (SCM_RIGHTS): the child's pipe end, its output pipe, the pipe
    that takes its Python stacks at STACKS_SIGNAL, and its end of the pipe for processes of jobs."""

    slot: str
    incarnation: int
    supervisor_pid: int
    settings: ChildSettings


class SpawnJob(Message, frozen=True, tag="mold.spawn_job"):
    """Fork a process for one job of a child. Three file descriptors ride along: those of the child's JobFork."""

    slot: str
    incarnation: int
    number: int
    supervisor_pid: int


# --- mold -> supervisor ---------------------------------------------------------------------------------------------


class MoldReady(Message, frozen=True, tag="mold.ready"):
    """Imports are done. `late_modules` left threads behind and are imported in each child instead."""

    build: str
    actions: list[str]
    late_modules: list[str] = msgspec.field(default_factory=list)


class MoldFailed(Message, frozen=True, tag="mold.failed"):
    """The pool's modules cannot be imported; `message` is one sentence, `traceback` the rest."""

    message: str
    traceback: str = ""


class Spawned(Message, frozen=True, tag="mold.spawned"):
    """The child exists and is the supervisor's own child by now."""

    slot: str
    incarnation: int
    pid: int


class SpawnFailed(Message, frozen=True, tag="mold.spawn_failed"):
    """The fork did not happen."""

    slot: str
    incarnation: int
    message: str


class JobSpawned(Message, frozen=True, tag="mold.job_spawned"):
    """The job's process exists and is the supervisor's own child by now."""

    slot: str
    incarnation: int
    number: int
    pid: int


class JobSpawnFailed(Message, frozen=True, tag="mold.job_spawn_failed"):
    """The fork did not happen."""

    slot: str
    incarnation: int
    number: int
    message: str


# --- child (or control plane) -> supervisor -------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="child.hello"):
    """First words of a process: it runs our code, of this build."""

    slot: str
    incarnation: int
    pid: int
    build: str


class Registered(Message, frozen=True, tag="child.registered"):
    """The control plane has accepted the session."""

    slot: str
    incarnation: int


class Ready(Message, frozen=True, tag="child.ready"):
    """The child claims work (a control plane: it listens)."""

    slot: str
    incarnation: int


class ActionCounts(Message, frozen=True):
    """What came of one action's jobs. `durations` has one count for each of DURATION_BUCKETS and one for what is above,
    not cumulated; `seconds` is the sum of them all, from claim to outcome."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    seconds: float = 0.0
    durations: list[int] = msgspec.field(default_factory=list)


class Beat(Message, frozen=True, tag="child.beat"):
    """Once a second, from both ticks. Counters are cumulative over the incarnation; ages are seconds.

    `stalled_for`: how long this end has owed a step that it does not make (whatever the other end owes has a deadline
    here, after which this end moves again). `overdue` counts handlers that run on long after they were told to stop:
    nothing but the process's end ends them. `journal_degraded`: the disk refuses the journal, and reports that are not
    acknowledged are in memory alone.
    """

    slot: str
    incarnation: int
    source: Literal["loop", "thread"]
    session: SessionState = "starting"
    jobs_in_hand: int = 0
    oldest_job_age: float = 0.0
    last_acknowledgement_age: float = 0.0
    stalled_for: float = 0.0
    loop_lag: float = 0.0
    reports_waiting: int = 0
    reconnects: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    handed_back: int = 0
    overdue: int = 0
    journal_degraded: bool = False
    actions: dict[str, ActionCounts] = msgspec.field(default_factory=dict)


class Bye(Message, frozen=True, tag="child.bye"):
    """Last words. `refused` when the control plane ended this worker for good (401, 403, 404, invalid_actor,
    worker_instance_conflict that lasted): a restart at once would change nothing. The numbers are of jobs since it was
    asked to drain."""

    slot: str
    incarnation: int
    reason: str
    refused: bool = False
    finished: int = 0
    handed_back: int = 0
    cut_off: int = 0


# --- supervisor -> child --------------------------------------------------------------------------------------------


class Drain(Message, frozen=True, tag="child.drain"):
    """Claim no more, finish within `grace` seconds, exit 0. A second one may shorten the grace."""

    grace: float


# --- child <-> supervisor, on a pipe of its own: processes of jobs ----------------------------------------------------


class JobFork(Message, frozen=True, tag="job.fork"):
    """Child to supervisor: have the mold fork a process for job `job_id`. `number` names it from now on.

    Three file descriptors ride along: the process's end of its conversation with the child, the reading end of its life
    line (a pipe whose other end only the child has), and the writing end of its output pipe.
    Answered by JobForkFailed, or by JobEnded in the end. How many there are is bounded by the child's concurrency.
    """

    number: int
    job_id: str
    action: str


class JobStop(Message, frozen=True, tag="job.stop"):
    """Child to supervisor: end the process. SIGTERM, and after `grace` seconds, with evidence, SIGKILL to its group."""

    number: int
    grace: float


class JobForkFailed(Message, frozen=True, tag="job.fork_failed"):
    """Supervisor to child: there is no process for this job, and there will be none."""

    number: int
    message: str


class JobEnded(Message, frozen=True, tag="job.ended"):
    """Supervisor to child: the process is gone and reaped, and its group with it: an exit code or a signal.

    `killed`: by the supervisor, after its grace. `out_of_memory`: by the kernel for want of memory; None where that
    cannot be told.
    """

    number: int
    exit_code: int | None
    signal: int | None
    killed: bool = False
    out_of_memory: bool | None = False


ToMold = MoldSettings | Spawn | SpawnJob
FromMold = MoldReady | MoldFailed | Spawned | SpawnFailed | JobSpawned | JobSpawnFailed
FromChild = Hello | Registered | Ready | Beat | Bye
ToChild = Drain
JobOrder = JobFork | JobStop
JobNews = JobForkFailed | JobEnded

MessageT = TypeVar("MessageT")

_encoder = msgspec.msgpack.Encoder()
_to_mold: "msgspec.msgpack.Decoder[ToMold]" = msgspec.msgpack.Decoder(ToMold)
_from_mold: "msgspec.msgpack.Decoder[FromMold]" = msgspec.msgpack.Decoder(FromMold)
_from_child: "msgspec.msgpack.Decoder[FromChild]" = msgspec.msgpack.Decoder(FromChild)
_to_child: "msgspec.msgpack.Decoder[ToChild]" = msgspec.msgpack.Decoder(ToChild)
_job_order: "msgspec.msgpack.Decoder[JobOrder]" = msgspec.msgpack.Decoder(JobOrder)
_job_news: "msgspec.msgpack.Decoder[JobNews]" = msgspec.msgpack.Decoder(JobNews)


class PipeMessageError(ValueError):
    """The other end of a pipe sent what is no message of its side."""


def encode(message: Message) -> bytes:
    """One datagram. Raises PipeMessageError when it would not fit into MAX_MESSAGE bytes."""
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE:
        raise PipeMessageError(f"{type(message).__name__} of {len(data)} bytes does not fit into {MAX_MESSAGE}")
    return data


def decode_to_mold(data: bytes) -> ToMold:
    """What a supervisor said to its mold. Raises PipeMessageError."""
    return _decode(_to_mold, data)


def decode_from_mold(data: bytes) -> FromMold:
    """What a mold said. Raises PipeMessageError."""
    return _decode(_from_mold, data)


def decode_from_child(data: bytes) -> FromChild:
    """What a child said. Raises PipeMessageError."""
    return _decode(_from_child, data)


def decode_to_child(data: bytes) -> ToChild:
    """What a supervisor said to its child. Raises PipeMessageError."""
    return _decode(_to_child, data)


def decode_job_order(data: bytes) -> JobOrder:
    """What a child said about the process of a job. Raises PipeMessageError."""
    return _decode(_job_order, data)


def decode_job_news(data: bytes) -> JobNews:
    """What a supervisor said about one. Raises PipeMessageError."""
    return _decode(_job_news, data)


def _decode(decoder: "msgspec.msgpack.Decoder[MessageT]", data: bytes) -> MessageT:
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:  # also text that is no UTF-8, which is no MsgspecError
        raise PipeMessageError(str(error)) from error
