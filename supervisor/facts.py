"""What happened, as plain data. `log.py` turns facts into lines, `metrics.py` into numbers; nobody else reads them."""

from typing import Literal

from msgspec import Struct

EndCause = Literal["exit", "signal", "hung", "boot_timeout", "refused", "drained", "killed", "spawn_failed"]
"""How an incarnation ended: by its own exit, by a signal of somebody else's, killed because it was hung or did not
boot in time, refused for good by the control plane, drained as asked, killed in a stop, or never started."""

HangClass = Literal["loop_blocked", "interpreter_stuck", "stopped", "uninterruptible"]


class Fact(Struct, frozen=True, kw_only=True):
    """Base of every fact."""


class SlotFact(Fact, frozen=True):
    """A fact about one incarnation of one slot. `pool` is empty for the control plane."""

    pool: str
    slot: str
    incarnation: int


class ChildSpawned(SlotFact, frozen=True):
    """A process fills the slot."""

    pid: int


class ChildBooted(SlotFact, frozen=True):
    """The process said its first words, `seconds` after the slot was to be filled."""

    build: str
    seconds: float


class ChildRegistered(SlotFact, frozen=True):
    """The control plane has accepted the child's session."""


class ChildReady(SlotFact, frozen=True):
    """The child claims work (a mold forks, a control plane listens), `seconds` after the slot was to be filled."""

    seconds: float


class ChildSilent(SlotFact, frozen=True):
    """No beat from the event loop for `silent_for` seconds; `thread_silent_for` is the other tick's silence."""

    silent_for: float
    thread_silent_for: float
    jobs_in_hand: int


class ChildHeardAgain(SlotFact, frozen=True):
    """A silent child beats again."""

    silent_for: float


class ChildHung(SlotFact, frozen=True):
    """A process is killed now because it was silent too long (or did not boot, or did not leave), with the evidence.

    `process_state` is the kernel's letter and `wait_channel` where in the kernel it waits, both empty if unknown.
    """

    why: EndCause
    silent_for: float
    thread_silent_for: float
    jobs_in_hand: int
    session: str
    process_state: str = ""
    wait_channel: str = ""
    hang: HangClass | None = None


class ChildBye(SlotFact, frozen=True):
    """The child's last words."""

    reason: str
    refused: bool
    finished: int
    handed_back: int
    cut_off: int


class ChildDied(SlotFact, frozen=True):
    """The process is gone and reaped. `output` are its last lines."""

    cause: EndCause
    detail: str
    exit_code: int | None
    signal: int | None
    self_made: bool
    asked: bool
    lived: float
    jobs_in_hand: int
    output: list[str]


class RestartScheduled(SlotFact, frozen=True):
    """The slot is filled again in `delay` seconds, after so many `failures` in a row."""

    delay: float
    failures: int


class ChildStuck(SlotFact, frozen=True):
    """SIGKILL was sent and the process is still there (uninterruptible in the kernel)."""

    jobs_in_hand: int


class EventRefused(SlotFact, frozen=True):
    """A message that the slot's state has no use for; it changed nothing."""

    state: str
    event: str


class MessageRefused(SlotFact, frozen=True):
    """A datagram on the slot's pipe that is no message; it changed nothing."""

    problem: str


class BuildSkew(SlotFact, frozen=True):
    """The process runs another build than the supervisor: the package was replaced under it."""

    build: str
    ours: str


class HandlerImportFailed(SlotFact, frozen=True):
    """A mold could not import its pool's modules."""

    message: str
    traceback: str


class OrphanEnded(Fact, frozen=True):
    """A living process that no slot ordered became our child (a handler left it behind) and was killed."""

    pid: int


class DrainStarted(Fact, frozen=True):
    """Stopping began (or was shortened): `grace` seconds for the children that hold jobs."""

    why: str
    grace: float
    children: int
    jobs_in_hand: int


class DrainFinished(Fact, frozen=True):
    """Everything is stopped. `killed` and `stuck` name slots."""

    seconds: float
    finished: int
    handed_back: int
    cut_off: int
    killed: list[str]
    stuck: list[str]


class Overslept(Fact, frozen=True):
    """The supervisor itself did not run for `seconds`; that time counts against no child."""

    seconds: float


class OutputDropped(Fact, frozen=True):
    """So many log lines were dropped because whoever reads the log did not keep up."""

    lines: int


class ActionFailed(SlotFact, frozen=True):
    """Something that the supervisor tried to do with a process went wrong."""

    action: str
    problem: str


class Noted(Fact, frozen=True):
    """A sentence to log once."""

    sentence: str


class IdentityDetected(Fact, frozen=True):
    """Which worker_instance_id (or prefix of them) is used, and where it comes from."""

    instance_id: str
    source: str


class Listening(Fact, frozen=True):
    """The supervisor's HTTP endpoints are served at `address`."""

    address: str
