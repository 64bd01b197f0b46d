"""What happened, as plain data. `log.py` turns facts into lines, `metrics.py` into numbers; nobody else reads them."""

from typing import Literal

from msgspec import Struct

from wire.pipe import Beat

EndCause = Literal[
    "exit",
    "signal",
    "out_of_memory",
    "hung",
    "boot_timeout",
    "refused",
    "drained",
    "killed",
    "spawn_failed",
]
"""How an incarnation ended: by its own exit, by a signal of somebody else's, by the kernel for want of memory, killed
because it was hung or did not boot in time, refused for good by the control plane, drained as asked (or as planned),
killed in a stop, or never started."""

HangClass = Literal["loop_blocked", "interpreter_stuck", "stopped", "uninterruptible", "not_progressing"]
"""Why a process does not do its work: its event loop is blocked while the interpreter runs, the interpreter itself is
stuck (C code that keeps the GIL), it was stopped by a signal, it waits in the kernel and cannot be killed, or it runs
and does not get on with what it was asked for."""


class ProcessEvidence(Struct, frozen=True, kw_only=True):
    """What could be learned of a process before it was killed; empty where nothing could.

    `state` is the kernel's letter, `wait_channel` and `kernel_stack` say where in the kernel it waits, `status` are
    lines of /proc/<pid>/status, `children` the processes below it (number, state and name). `stacks` are the Python
    stacks of all its threads, or `no_stacks` says why there are none.
    """

    state: str = ""
    wait_channel: str = ""
    kernel_stack: list[str] = []
    status: list[str] = []
    children: list[str] = []
    stacks: str = ""
    no_stacks: str = ""


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


class SuspectFact(SlotFact, frozen=True):
    """Base: a process does not do its work, with what could be learned of it.

    `silent_for` and `thread_silent_for` are seconds since the last beat of its event loop and of its thread;
    `loop_silent` that a beat of the loop was due. `hang` is empty until /proc was looked at.
    """

    silent_for: float
    thread_silent_for: float
    loop_silent: bool
    jobs_in_hand: int
    session: str
    hang: HangClass | None = None
    evidence: ProcessEvidence = ProcessEvidence()


class ChildSilent(SuspectFact, frozen=True):
    """No beat from the event loop for as long as the pool allows. Nothing is done yet."""


class ChildHeardAgain(SlotFact, frozen=True):
    """A silent child beats again."""

    silent_for: float


class ChildStalled(SlotFact, frozen=True):
    """The event loop beats, and for `stalled_for` seconds its session owes a step that it does not make."""

    stalled_for: float
    session: str
    jobs_in_hand: int


class ChildMovesAgain(SlotFact, frozen=True):
    """A session that stood still goes on."""


class ChildHung(SuspectFact, frozen=True):
    """A process is killed now, with the evidence: it was silent too long, stood still, did not boot, did not leave.

    `detail` is a sentence where these fields do not say it; `lasted` is seconds from the first sign to this decision.
    `ordered`: it is killed because somebody asked for it, whatever it does.
    """

    why: EndCause = "hung"
    detail: str = ""
    lasted: float = 0.0
    ordered: bool = False


class ChildBye(SlotFact, frozen=True):
    """The child's last words."""

    reason: str
    refused: bool
    finished: int
    handed_back: int
    cut_off: int


class ChildDied(SlotFact, frozen=True):
    """The process is gone and reaped. `output` are its last lines, `beat` is its last beat.

    `drained_for`: seconds since it was first asked to drain; None if it was not. `detected_in`: seconds from the moment
    at which the supervisor was woken for its end.
    """

    cause: EndCause
    detail: str
    exit_code: int | None
    signal: int | None
    self_made: bool
    asked: bool
    lived: float
    jobs_in_hand: int
    output: list[str]
    pid: int | None = None
    session: str = ""
    beat: Beat | None = None
    drained_for: float | None = None
    detected_in: float | None = None


class CrashLoop(SlotFact, frozen=True):
    """The slot's processes ended `times` times in a row of the same fault, and this is what the last one said."""

    times: int
    how: str
    says: str


class CrashLoopOver(SlotFact, frozen=True):
    """A process of the slot lives well again, or fails of something else."""

    times: int


class RestartScheduled(SlotFact, frozen=True):
    """The slot is filled again in `delay` seconds, after so many `failures` in a row."""

    delay: float
    failures: int


class ChildRecycled(SlotFact, frozen=True):
    """A child that works is to be exchanged for a fresh one: it reached a limit, or a handler in it does not stop."""

    reason: str
    jobs_done: int
    age: float
    private_memory: int | None


class ChildStuck(SlotFact, frozen=True):
    """SIGKILL was sent and the process is still there (uninterruptible in the kernel)."""

    jobs_in_hand: int


class EventRefused(SlotFact, frozen=True):
    """A message that the slot's state has no use for; it changed nothing."""

    state: str
    refused: str


class MessageRefused(SlotFact, frozen=True):
    """A datagram on the slot's pipe that is no message; it changed nothing."""

    problem: str


REPLACED = "the package was replaced under a running supervisor: restart the service"


class BuildSkew(SlotFact, frozen=True):
    """The process runs another build than the supervisor, whose package was replaced. Its workers are not used."""

    build: str
    ours: str


class HandlerImportFailed(SlotFact, frozen=True):
    """A mold could not import its pool's modules."""

    message: str
    traceback: str


class JobFact(SlotFact, frozen=True):
    """A fact about the process that one job of a child runs in."""

    job_id: str
    action: str


class JobProcessStarted(JobFact, frozen=True):
    """The process exists."""

    pid: int


class JobProcessKilled(JobFact, frozen=True):
    """It did not stop in its grace and is killed now; its stacks, where it could write them, are in its output."""

    pid: int
    evidence: ProcessEvidence


class JobProcessEnded(JobFact, frozen=True):
    """It is gone and reaped. `cause` is "finished" (exit code 0), "exit", "signal", "out_of_memory" or "killed"."""

    cause: str
    exit_code: int | None
    signal: int | None


class JobProcessRefused(JobFact, frozen=True):
    """It could not be made; its job goes back."""

    problem: str


class OrphanEnded(Fact, frozen=True):
    """A living process that no slot ordered became our child (a handler left it behind) and was killed."""

    pid: int
    name: str = ""


class DrainedSlot(Struct, frozen=True, kw_only=True):
    """How one child stopped: jobs by what became of them, and `end` is "drained", "killed" or "stuck"."""

    finished: int
    handed_back: int
    cut_off: int
    end: str


class DrainStarted(Fact, frozen=True):
    """Stopping began (or was shortened): `grace` seconds for the children that hold jobs."""

    why: str
    grace: float
    children: int
    jobs_in_hand: int


class DrainFinished(Fact, frozen=True):
    """Everything is stopped. `killed` and `stuck` name slots; `slots` has a row for each that had a child."""

    seconds: float
    finished: int
    handed_back: int
    cut_off: int
    killed: list[str]
    stuck: list[str]
    slots: dict[str, DrainedSlot] = {}


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


class ChangeBegan(Fact, frozen=True):
    """New settings are tried out; what is done with each pool and slot when the first new children are ready."""

    actions: list[str]


class ChangeRefused(Fact, frozen=True):
    """New settings were not tried; nothing changed."""

    problems: list[str]


class ChangeAborted(Fact, frozen=True):
    """A new child was not ready: the settings and children from before stay."""

    problem: str


class ChangeAdopted(Fact, frozen=True):
    """The new settings are in force; old children are exchanged one after the other."""


class ControlListening(Fact, frozen=True):
    """Operators' commands are taken at `path`."""

    path: str


class Commanded(Fact, frozen=True):
    """An operator gave a command."""

    command: str
    uid: int
    exit_code: int


class JournalAdopted(Fact, frozen=True):
    """The next child of `slot` sends what is left in the journal of a slot that is gone."""

    slot: str
    journal: str
