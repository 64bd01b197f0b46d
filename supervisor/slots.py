"""One slot: a table of state x event -> next state + effects. Decides only; time and chance are arguments.

A slot is the place of one process: a child, a pool's mold, or the embedded control plane. It survives its processes;
each of them is an incarnation, and an event of any other incarnation than the present one is refused.
"""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal

from msgspec import Struct

from supervisor.config import Limits, Restart
from supervisor.facts import (
    ChildBooted,
    ChildBye,
    ChildDied,
    ChildHeardAgain,
    ChildHung,
    ChildMovesAgain,
    ChildReady,
    ChildRegistered,
    ChildSilent,
    ChildSpawned,
    ChildStalled,
    ChildStuck,
    CrashLoop,
    CrashLoopOver,
    EndCause,
    EventRefused,
    Fact,
    RestartScheduled,
)
from supervisor.faults import SAME_FAULT_LIMIT, fingerprint, says
from wire.pipe import Beat, Bye, PreviousEnd, SessionState

LEAVE_PATIENCE = 10.0
"""Seconds from a child's last words to its end."""

EVIDENCE_PATIENCE = 2.0
"""Seconds in which evidence of a condemned process is gathered, before it is killed with or without."""

KILL_PATIENCE = 10.0
"""Seconds from SIGKILL to the exit, after which the process is called stuck."""

STUCK_RETRY = 60.0
"""Seconds between two SIGKILLs of a stuck process."""

DRAIN_MARGIN = 2.0
"""Seconds that a drained child has beyond its grace to write its last words, before it is killed."""

HEARD = 3.0
"""Seconds since a tick's last beat within which it counts as running (it beats once a second)."""

STALLED_BEATS = 3
"""Beats in a row that must say that a session stands still: one may, of a machine that was paused."""

_NAMED_FAULTS = ("refused", "hung", "boot_timeout", "spawn_failed")
_SELF_MADE_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV"}

_SIGKILL = 9

Kind = Literal["child", "mold", "control_plane"]


class State(StrEnum):
    """Where a slot stands."""

    EMPTY = "empty"
    SPAWNING = "spawning"
    BOOTING = "booting"
    CONNECTING = "connecting"
    CONNECTING_SILENT = "connecting_silent"
    READY = "ready"
    READY_SILENT = "ready_silent"
    LEAVING = "leaving"
    DRAINING = "draining"
    CONDEMNED = "condemned"
    OVERDUE = "overdue"
    KILLED = "killed"
    ENDING = "ending"
    STUCK = "stuck"
    BACKOFF = "backoff"


# --- events ------------------------------------------------------------------------------------------------------


class Event(Struct, frozen=True, kw_only=True):
    """Base: what a process did, by the name of its slot and its incarnation."""

    slot: str
    incarnation: int


class Spawned(Event, frozen=True):
    """The process exists."""

    pid: int


class SpawnFailed(Event, frozen=True):
    """The process could not be made. `jitter` is a random number in [0, 1)."""

    message: str
    jitter: float


class Booted(Event, frozen=True):
    """The process said its first words."""

    build: str


class Registered(Event, frozen=True):
    """The child's session is accepted."""


class BecameReady(Event, frozen=True):
    """The process does its work."""


class LoopBeat(Event, frozen=True):
    """A beat from the event loop: the process is alive where it matters."""

    beat: Beat


class ThreadBeat(Event, frozen=True):
    """A beat from a thread: the interpreter runs."""

    beat: Beat


class MemorySampled(Event, frozen=True):
    """Bytes: what its end would give back, and that with its share of what it has in common with others (PSS)."""

    private: int
    shared_fairly: int


class SaidBye(Event, frozen=True):
    """The process's last words."""

    bye: Bye


class Examined(Event, frozen=True):
    """What could be learned of a process that is silent; it may have been heard meanwhile."""

    silent: ChildSilent


class Stalled(Event, frozen=True):
    """Order: the process does not get on with its task, and nothing that it holds would be lost.

    A child's beat says for how long. `unanswered_since`: monotonic seconds at which a mold was asked for a child.
    """

    unanswered_since: float | None = None


class EvidenceKept(Event, frozen=True):
    """What could be learned of a condemned process is known: nothing keeps it from being killed."""

    hung: ChildHung


class Died(Event, frozen=True):
    """The process is reaped: an exit code or a signal. `jitter` is a random number in [0, 1).

    `out_of_memory`: the kernel killed it for want of memory; None where that cannot be told. `noticed_at`: monotonic
    seconds at which the loop was woken for it.
    """

    exit_code: int | None
    signal: int | None
    jitter: float
    output: list[str]
    out_of_memory: bool | None = False
    noticed_at: float | None = None


class Start(Event, frozen=True):
    """Order: fill the slot, with a process that holds so many jobs at most."""

    concurrency: int = 1


class Drain(Event, frozen=True):
    """Order: let the process finish within `grace` seconds, and leave the slot empty."""

    grace: float


class Kill(Event, frozen=True):
    """Order: end the process now, and leave the slot empty."""


class DeadlinePassed(Event, frozen=True):
    """The state's own deadline is over."""


EVENTS: tuple[type[Event], ...] = (
    Spawned,
    SpawnFailed,
    Booted,
    Registered,
    BecameReady,
    LoopBeat,
    ThreadBeat,
    MemorySampled,
    SaidBye,
    Examined,
    EvidenceKept,
    Died,
    Start,
    Drain,
    Kill,
    Stalled,
    DeadlinePassed,
)


# --- actions -----------------------------------------------------------------------------------------------------


class Action(Struct, frozen=True, kw_only=True):
    """Base: what is to be done for one incarnation of one slot."""

    slot: str
    incarnation: int


class SpawnProcess(Action, frozen=True):
    """Make the process. Answered by Spawned or SpawnFailed."""

    previous_end: PreviousEnd | None


class AskToDrain(Action, frozen=True):
    """Say Drain over the pipe, then SIGTERM and SIGCONT."""

    grace: float


class KillProcess(Action, frozen=True):
    """SIGKILL to the process and its group."""


class AbandonSpawn(Action, frozen=True):
    """The process that was asked for at `asked_at` was never announced: close what was made for it."""

    asked_at: float


class Examine(Action, frozen=True):
    """Complete the fact with what can be learned of a silent process. Answered by Examined."""

    silent: ChildSilent


class KeepEvidence(Action, frozen=True):
    """Before a kill: complete the fact with what can be learned of the process. Answered by EvidenceKept."""

    hung: ChildHung


Step = Action | Fact


class Totals(Struct, frozen=True, kw_only=True):
    """Cumulative counters of a slot over its incarnations."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    handed_back: int = 0
    reconnects: int = 0

    def plus(self, beat: Beat) -> "Totals":
        """These totals and what one incarnation's last beat says."""
        return Totals(
            completed=self.completed + beat.completed,
            failed=self.failed + beat.failed,
            cancelled=self.cancelled + beat.cancelled,
            handed_back=self.handed_back + beat.handed_back,
            reconnects=self.reconnects + beat.reconnects,
        )


class Slot:
    """One slot's state. `step` is the only way to change it (and `forgive`, which moves its clocks)."""

    def __init__(self, name: str, pool: str, kind: Kind, limits: Limits, restart: Restart) -> None:
        self.name = name
        self.pool = pool
        self.kind = kind
        self.limits = limits
        self.restart = restart
        self.state = State.EMPTY
        self.incarnation = 0
        self.failures = 0
        self.crash_loop: CrashLoop | None = None
        self.private_memory: int | None = None
        self.shared_memory: int | None = None
        self.last_end: PreviousEnd | None = None
        self.pid: int | None = None
        self.beat: Beat | None = None
        self.bye: Bye | None = None
        self.ready_at: float | None = None
        self.session: SessionState = "starting"
        self.was_ever_ready = False
        self.killed_in_stop = False
        self.concurrency = 1
        """Jobs that the present incarnation holds at most, as it was told when it was started."""
        self._stop_asked = False
        self._totals = Totals()
        self._asked_at = 0.0
        self._entered_at = 0.0
        self._loop_beat_at = 0.0
        self._thread_beat_at = 0.0
        self._drain_by = 0.0
        self._drain_began = math.inf
        self._retry_at = 0.0
        self._kill_cause: EndCause | None = None
        self._hung: ChildHung | None = None
        self.suspicion: ChildSilent | None = None
        self._stalled_beats = 0
        self._fault = ""
        self._same_fault = 0

    # --- what others may ask -------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """Monotonic seconds at which DeadlinePassed is due; infinity for none."""
        deadline = DEADLINES[self.state]
        if deadline is None:
            return math.inf
        limit = deadline.limit
        seconds: float = getattr(self.limits, limit) if isinstance(limit, str) else limit
        since: float = getattr(self, f"_{deadline.since}")
        return since + seconds

    @property
    def is_working(self) -> bool:
        """Ready, and (as far as its last beat says) connected."""
        return self.state is State.READY and (self.kind != "child" or self.session == "registered")

    @property
    def is_over(self) -> bool:
        """No process that could still be waited for."""
        return self.state in (State.EMPTY, State.BACKOFF, State.STUCK)

    @property
    def jobs_in_hand(self) -> int:
        """Of the present incarnation, by its last beat."""
        return self.beat.jobs_in_hand if self.beat is not None else 0

    @property
    def jobs_done(self) -> int:
        """Of the present incarnation, whatever came of them."""
        return self.beat.completed + self.beat.failed + self.beat.cancelled if self.beat is not None else 0

    @property
    def is_starting(self) -> bool:
        """Made, and not yet at work: what a process costs its machine most for."""
        return self.state in (State.SPAWNING, State.BOOTING)

    @property
    def totals(self) -> Totals:
        """Over all incarnations, the present one included."""
        return self._totals if self.beat is None else self._totals.plus(self.beat)

    @property
    def is_stalled(self) -> bool:
        """For `kill_after` its session has owed a step. Never with jobs in hand: they may be done all the same."""
        beat = self.beat
        return (
            self.state in (State.CONNECTING, State.READY)
            and self._stalled_beats >= STALLED_BEATS
            and beat is not None
            and beat.stalled_for >= self.limits.kill_after
            and not beat.jobs_in_hand
        )

    @property
    def health(self) -> str:
        """In a word what is known of the process: "ok", or what is wrong with it; empty without a process."""
        if self.pid is None:
            return ""
        if self.suspicion is not None:
            return self.suspicion.hang or "silent"
        if self._hung is not None:
            return self._hung.hang or self._hung.why
        return "not_progressing" if self._stalled_beats >= STALLED_BEATS else "ok"

    def beat_age(self, now: float) -> float | None:
        """Seconds since the last beat of the event loop; None while no process is expected to beat."""
        if self.state in (State.CONNECTING, State.CONNECTING_SILENT, State.READY, State.READY_SILENT):
            return now - self._loop_beat_at
        return None

    def backoff_left(self, now: float) -> float:
        """Seconds until the slot is filled again; 0 outside of a back-off."""
        return max(0.0, self._retry_at - now) if self.state is State.BACKOFF else 0.0

    # --- what changes it -----------------------------------------------------------------------------------------

    def step(self, event: Event, now: float) -> list[Step]:
        """The next state, and what is to be done and told. An event without a cell changes nothing."""
        cell = TABLE.get((self.state, type(event)))
        if cell is None or event.incarnation != self.incarnation:
            return [self._fact(EventRefused, state=self.state.value, refused=type(event).__name__)]
        before = self.state
        if cell.next_state is not before:
            self.state, self._entered_at = cell.next_state, now
        steps: list[Step] = []
        for effect in cell.effects:
            steps += effect(self, event, now)
        return steps

    def forgive(self, seconds: float) -> None:
        """Time in which the supervisor itself did not run counts against nobody."""
        self._asked_at += seconds
        self._entered_at += seconds
        self._loop_beat_at += seconds
        self._thread_beat_at += seconds
        if self.state is State.DRAINING:
            self._drain_by += seconds

    # --- effects: named by the table -----------------------------------------------------------------------------

    def spawn(self, event: Start, now: float) -> list[Step]:
        """A new incarnation with a clean record."""
        self.incarnation += 1
        self.concurrency = event.concurrency
        self.pid = self.beat = self.bye = self.ready_at = self._kill_cause = self._hung = self.suspicion = None
        self.private_memory = self.shared_memory = None
        self._stalled_beats = 0
        self.session = "starting"
        self.killed_in_stop = self._stop_asked = False
        self._drain_began = math.inf
        self._asked_at = self._entered_at = self._loop_beat_at = self._thread_beat_at = now
        return [SpawnProcess(slot=self.name, incarnation=self.incarnation, previous_end=self.last_end)]

    def note_pid(self, event: Spawned, _now: float) -> list[Step]:
        """The process has a number, for people to read."""
        self.pid = event.pid
        return [self._fact(ChildSpawned, pid=event.pid)]

    def note_boot(self, event: Booted, now: float) -> list[Step]:
        """First words: from here on the process must beat."""
        self._loop_beat_at = self._thread_beat_at = now
        return [self._fact(ChildBooted, build=event.build, seconds=now - self._asked_at)]

    def note_registered(self, _event: Registered, now: float) -> list[Step]:
        """A message of the event loop is as good as a beat."""
        self._loop_beat_at = now
        self.session = "registered"
        return [self._fact(ChildRegistered)]

    def note_ready(self, _event: BecameReady, now: float) -> list[Step]:
        """The life that a restart policy judges begins with the first of these."""
        self._loop_beat_at = now
        self.session = "registered"
        if self.ready_at is not None:
            return []
        self.ready_at = now
        self.was_ever_ready = True
        return [self._fact(ChildReady, seconds=now - self._asked_at)]

    def note_beat(self, event: LoopBeat, now: float) -> list[Step]:
        """Alive."""
        self._loop_beat_at = now
        self.beat = event.beat
        self.session = event.beat.session
        steps = self._note_stall(event.beat)
        return steps + (self._end_crash_loop() if self._same_fault and self._is_healthy(now) else [])

    def _note_stall(self, beat: Beat) -> list[Step]:
        """What the parent's own clock cannot tell: the loop turns, and nothing comes of it."""
        if beat.stalled_for >= self.limits.silence:
            self._stalled_beats += 1
            told = ChildStalled, {"stalled_for": beat.stalled_for, "session": beat.session}
            due = self._stalled_beats == STALLED_BEATS
            return [self._fact(told[0], **told[1], jobs_in_hand=beat.jobs_in_hand)] if due else []
        was_stalled, self._stalled_beats = self._stalled_beats >= STALLED_BEATS, 0
        return [self._fact(ChildMovesAgain)] if was_stalled else []

    def note_thread_beat(self, event: ThreadBeat, now: float) -> list[Step]:
        """Only the interpreter runs; its counters are as true as the loop's."""
        self._thread_beat_at = now
        self.beat = event.beat
        return []

    def note_memory(self, event: MemorySampled, _now: float) -> list[Step]:
        """As of some seconds ago."""
        self.private_memory, self.shared_memory = event.private, event.shared_fairly
        return []

    def note_heard_again(self, _event: Event, now: float) -> list[Step]:
        """Silence is over."""
        self.suspicion = None
        return [self._fact(ChildHeardAgain, silent_for=now - self._loop_beat_at)]

    def examine(self, _event: DeadlinePassed, now: float) -> list[Step]:
        """Silent for a while: look at it while it hangs, do nothing yet."""
        self.suspicion = self._fact(ChildSilent, **self._as_seen(now), loop_silent=True)
        return [Examine(slot=self.name, incarnation=self.incarnation, silent=self.suspicion)]

    def note_examined(self, event: Examined, _now: float) -> list[Step]:
        """It is told also if the process was heard, or asked to go, meanwhile."""
        if self.suspicion is not None:
            self.suspicion = event.silent
        return [event.silent]

    def note_bye(self, event: SaidBye, _now: float) -> list[Step]:
        """Last words are kept until the end is known."""
        bye = self.bye = event.bye
        return [
            self._fact(
                ChildBye,
                reason=bye.reason,
                refused=bye.refused,
                finished=bye.finished,
                handed_back=bye.handed_back,
                cut_off=bye.cut_off,
            )
        ]

    def note_stuck(self, _event: DeadlinePassed, now: float) -> list[Step]:
        """SIGKILL had no effect: a process in the D state. The loop does not wait for it."""
        self._entered_at = now
        return [self._fact(ChildStuck, jobs_in_hand=self.jobs_in_hand)]

    def drain(self, event: Drain, now: float) -> list[Step]:
        """Ask; a second, shorter grace wins over the first, a longer one does not."""
        drain_by = now + event.grace + DRAIN_MARGIN
        self._drain_began = self._drain_began if self._stop_asked else now
        self._drain_by = min(self._drain_by, drain_by) if self._stop_asked else drain_by
        self._stop_asked = True
        return [AskToDrain(slot=self.name, incarnation=self.incarnation, grace=event.grace)]

    def remind(self, _event: Spawned, now: float) -> list[Step]:
        """Announced while it is already to be drained: the message waits in its pipe, the signal could not be sent."""
        grace = max(0.0, self._drain_by - DRAIN_MARGIN - now)
        return [AskToDrain(slot=self.name, incarnation=self.incarnation, grace=grace)]

    def kill(self, _event: Event, _now: float) -> list[Step]:
        """End it."""
        return [KillProcess(slot=self.name, incarnation=self.incarnation)]

    def mark_killed_in_stop(self, _event: Event, _now: float) -> list[Step]:
        """A drain that ended by force is no clean one."""
        self.killed_in_stop = self._stop_asked = True
        return []

    def condemn_as_hung(self, _event: DeadlinePassed, now: float) -> list[Step]:
        """Evidence first."""
        return self._condemn("hung", now, lasted=now - self._loop_beat_at, loop_silent=True)

    def condemn_as_stalled(self, event: Stalled, now: float) -> list[Step]:
        """Evidence first."""
        if event.unanswered_since is not None:
            lasted = now - event.unanswered_since
            return self._condemn("hung", now, lasted=lasted, detail="it was asked for a worker and did not answer")
        stalled_for = self.beat.stalled_for if self.beat is not None else 0.0
        detail = f"its event loop runs, and for {stalled_for:.0f} s its session owed a step that it did not make"
        return self._condemn("hung", now, lasted=stalled_for, detail=detail)

    def condemn_as_lingering(self, _event: DeadlinePassed, now: float) -> list[Step]:
        """Evidence first."""
        return self._condemn("hung", now, lasted=LEAVE_PATIENCE, detail="it said its last words and did not go")

    def condemn_as_not_booted(self, _event: DeadlinePassed, now: float) -> list[Step]:
        """Evidence first."""
        return self._condemn("boot_timeout", now, lasted=now - self._asked_at)

    def condemn_as_overdue(self, _event: DeadlinePassed, now: float) -> list[Step]:
        """It had its grace, and its last words never came: evidence first, here too."""
        return self._condemn("killed", now, lasted=now - self._drain_began, loop_silent=self._is_mute(now))

    def condemn_as_ordered(self, _event: Kill, now: float) -> list[Step]:
        """Who orders a kill has a reason, which is in the evidence; it is gathered in no time, or not waited for."""
        return self._condemn("killed", now, lasted=0.0, loop_silent=self._is_mute(now), ordered=True)

    def tell_evidence(self, event: EvidenceKept, _now: float) -> list[Step]:
        """Why it is killed, with everything that is known."""
        self._hung = None
        return [event.hung]

    def tell_without_evidence(self, _event: Event, _now: float) -> list[Step]:
        """It is killed, or died, before evidence was there: what the slot itself knows must do."""
        hung, self._hung = self._hung, None
        return [hung] if hung is not None else []

    def abandon(self, _event: DeadlinePassed, now: float) -> list[Step]:
        """The spawn was never answered: whoever should have forked is stuck."""
        asked_at, self._asked_at = self._asked_at, now
        return [AbandonSpawn(slot=self.name, incarnation=self.incarnation, asked_at=asked_at)]

    def bury_unborn(self, event: SpawnFailed, now: float) -> list[Step]:
        """There was no process."""
        return self._bury("spawn_failed", event.message, event, now)

    def bury(self, event: Died, now: float) -> list[Step]:
        """The process ended, asked or not."""
        cause, detail = self._cause_of(event)
        return self._bury(cause, detail, event, now)

    def reschedule(self, event: Died | SpawnFailed, now: float) -> list[Step]:
        """When the slot is filled again. Follows `bury`."""
        delay = self._restart_delay(event.jitter, now)
        self._retry_at = now + delay
        return [self._fact(RestartScheduled, delay=delay, failures=self.failures)]

    # --- how an end is judged ------------------------------------------------------------------------------------

    def _is_mute(self, now: float) -> bool:
        return self.beat is not None and now - self._loop_beat_at >= HEARD

    def _as_seen(self, now: float) -> dict[str, Any]:
        return {
            "silent_for": now - self._loop_beat_at,
            "thread_silent_for": now - self._thread_beat_at,
            "jobs_in_hand": self.jobs_in_hand,
            "session": self.session,
        }

    def _condemn(self, cause: EndCause, now: float, *, loop_silent: bool = False, **told: Any) -> list[Step]:
        self._kill_cause = None if cause == "killed" else cause
        self._hung = self._fact(ChildHung, **self._as_seen(now), **told, why=cause, loop_silent=loop_silent)
        return [KeepEvidence(slot=self.name, incarnation=self.incarnation, hung=self._hung)]

    def _cause_of(self, event: Died) -> tuple[EndCause, str]:
        how = f"exit code {event.exit_code}" if event.signal is None else f"signal {event.signal}"
        if self._kill_cause is not None:
            return self._kill_cause, f"killed by the supervisor ({self._kill_cause}), {how}"
        if self.bye is not None and self.bye.refused:
            return "refused", self.bye.reason
        if event.out_of_memory:
            return "out_of_memory", "killed by the kernel for want of memory (signal 9)"
        if self._stop_asked:
            return ("killed" if self.killed_in_stop else "drained"), how
        if event.signal == _SIGKILL and event.out_of_memory is None:
            how += ", by whom is unknown (the kernel's counter of out-of-memory kills cannot tell)"
        return ("exit" if event.signal is None else "signal"), how

    def _bury(self, cause: EndCause, detail: str, event: Died | SpawnFailed, now: float) -> list[Step]:
        exit_code, signal = (event.exit_code, event.signal) if isinstance(event, Died) else (None, None)
        # An exit with last words and code 0 was somebody's request; any other exit is the child's own doing.
        own_exit = cause == "exit" and not (exit_code == 0 and self.bye is not None)
        self_made = own_exit or cause == "out_of_memory" or (cause == "signal" and signal in _SELF_MADE_SIGNALS)
        self.last_end = PreviousEnd(incarnation=self.incarnation, cause=cause, detail=detail, self_made=self_made)
        died = self._fact(
            ChildDied,
            cause=cause,
            detail=detail,
            exit_code=exit_code,
            signal=signal,
            self_made=self_made,
            asked=cause in ("drained", "killed"),
            lived=now - self._asked_at,
            jobs_in_hand=self.jobs_in_hand,
            output=event.output if isinstance(event, Died) else [],
            pid=self.pid,
            session=self.session,
            beat=self.beat,
            drained_for=now - self._drain_began if self._drain_began < math.inf else None,
            detected_in=_since(event.noticed_at, now) if isinstance(event, Died) else None,
        )
        self._totals = self.totals
        self.beat = self.pid = self.private_memory = self.shared_memory = None
        return [died, *self._compare(died)]

    def _compare(self, died: ChildDied) -> list[Step]:
        """The same fault so many times in a row is no accident: say so, with what it says."""
        if died.asked or not (died.self_made or died.cause in _NAMED_FAULTS):
            return []
        sentence = says(died.output, self.bye.reason if self.bye is not None else "") or died.detail
        how = died.cause if died.cause in _NAMED_FAULTS else died.detail
        # What a process that hangs wrote last has nothing to do with why it hangs.
        fault = how if died.cause in ("hung", "boot_timeout") else fingerprint(how, sentence)
        steps: list[Step] = []
        if fault != self._fault:
            steps = self._end_crash_loop()
            self._fault = fault
        self._same_fault += 1
        if self._same_fault >= SAME_FAULT_LIMIT:
            self.crash_loop = self._fact(CrashLoop, times=self._same_fault, how=how, says=sentence)
            if self._same_fault % SAME_FAULT_LIMIT == 0:
                steps.append(self.crash_loop)
        return steps

    def _end_crash_loop(self) -> list[Step]:
        times, self._same_fault, self._fault = self._same_fault, 0, ""
        if self.crash_loop is None:
            return []
        self.crash_loop = None
        return [self._fact(CrashLoopOver, times=times)]

    def _restart_delay(self, jitter: float, now: float) -> float:
        """Seconds until the next try: exponential with full jitter over the failures in a row."""
        end, policy = self.last_end, self.restart
        was_ready = self.ready_at is not None
        healthy = self._is_healthy(now)
        if healthy:
            self.failures = 0
        if end is not None and end.cause == "refused":
            self.failures += 1
            return policy.backoff_max
        own_fault = end is not None and (end.self_made or end.cause in ("hung", "boot_timeout"))
        if was_ready and (healthy or not own_fault):
            return 0.0
        self.failures += 1
        if was_ready and self.failures == 1:
            return 0.0
        ceiling: float = policy.backoff_min * 2.0 ** min(self.failures - 1, 64)
        return jitter * min(policy.backoff_max, ceiling)

    def _is_healthy(self, now: float) -> bool:
        return self.ready_at is not None and now - self.ready_at >= self.restart.healthy_after

    def _fact(self, fact: Callable[..., Any], **fields: Any) -> Any:
        return fact(pool=self.pool, slot=self.name, incarnation=self.incarnation, **fields)


def _since(then: float | None, now: float) -> float | None:
    return None if then is None else max(0.0, now - then)


# --- the table ---------------------------------------------------------------------------------------------------


class Deadline(Struct, frozen=True):
    """When DeadlinePassed is due: seconds, or what a key of Limits says, after a moment of the slot."""

    since: Literal["asked_at", "entered_at", "loop_beat_at", "drain_by", "retry_at"]
    limit: float | Literal["boot", "silence", "kill_after"] = 0.0


DEADLINES: dict[State, Deadline | None] = {
    State.EMPTY: None,
    # What it waits for is one fork of a mold that has booted.
    State.SPAWNING: Deadline("asked_at", "kill_after"),
    State.BOOTING: Deadline("asked_at", "boot"),
    State.CONNECTING: Deadline("loop_beat_at", "silence"),
    State.CONNECTING_SILENT: Deadline("loop_beat_at", "kill_after"),
    State.READY: Deadline("loop_beat_at", "silence"),
    State.READY_SILENT: Deadline("loop_beat_at", "kill_after"),
    State.LEAVING: Deadline("entered_at", LEAVE_PATIENCE),
    State.DRAINING: Deadline("drain_by"),
    State.CONDEMNED: Deadline("entered_at", EVIDENCE_PATIENCE),
    State.OVERDUE: Deadline("entered_at", EVIDENCE_PATIENCE),
    State.KILLED: Deadline("entered_at", KILL_PATIENCE),
    State.ENDING: Deadline("entered_at", KILL_PATIENCE),
    State.STUCK: Deadline("entered_at", STUCK_RETRY),
    State.BACKOFF: Deadline("retry_at"),
}
"""Every state that has a process or a plan has one; only an empty slot waits for an order without end."""


class Cell(Struct, frozen=True):
    """What one event does in one state: the next state, and the effects in order."""

    next_state: State
    effects: tuple[Callable[[Slot, Any, float], list[Step]], ...] = ()


_DIES_UNASKED = Cell(State.BACKOFF, (Slot.bury, Slot.reschedule))
_DIES_ASKED = Cell(State.EMPTY, (Slot.bury,))
_DRAINS = Cell(State.DRAINING, (Slot.drain,))
_ENDS = Cell(State.OVERDUE, (Slot.mark_killed_in_stop, Slot.condemn_as_ordered))
_ENDS_AT_ONCE = Cell(State.ENDING, (Slot.mark_killed_in_stop, Slot.kill))


def _orders() -> dict[type[Event], Cell]:
    """What every state with a process answers to an order, and to its end."""
    return {Died: _DIES_UNASKED, Drain: _DRAINS, Kill: _ENDS}


def _row_of_life(state: State, silent: State, awake: State, after_ready: State) -> dict[type[Event], Cell]:
    """The rows of a process that has booted: connecting and ready, each heard or silent."""
    again = (Slot.note_heard_again,) if state is silent else ()
    late = Cell(State.CONDEMNED, (Slot.condemn_as_hung,)) if state is silent else Cell(silent, (Slot.examine,))
    return {
        **_orders(),
        Registered: Cell(awake, (*again, Slot.note_registered)),
        BecameReady: Cell(after_ready, (*again, Slot.note_ready)),
        LoopBeat: Cell(awake, (*again, Slot.note_beat)),
        ThreadBeat: Cell(state, (Slot.note_thread_beat,)),
        MemorySampled: Cell(state, (Slot.note_memory,)),
        Examined: Cell(state, (Slot.note_examined,)),
        SaidBye: Cell(State.LEAVING, (Slot.note_bye,)),
        DeadlinePassed: late,
        # Silence is the worse of the two, and has a deadline that runs.
        **({} if state is silent else {Stalled: Cell(State.CONDEMNED, (Slot.condemn_as_stalled,))}),
    }


def _row_of_stopping(state: State) -> dict[type[Event], Cell]:
    """Whatever a process still says while it is being ended is heard, and changes nothing."""
    return {
        Booted: Cell(state, (Slot.note_boot,)),
        Registered: Cell(state, (Slot.note_registered,)),
        BecameReady: Cell(state, (Slot.note_ready,)),
        LoopBeat: Cell(state, (Slot.note_beat,)),
        ThreadBeat: Cell(state, (Slot.note_thread_beat,)),
        MemorySampled: Cell(state, (Slot.note_memory,)),
        Examined: Cell(state, (Slot.note_examined,)),
        SaidBye: Cell(state, (Slot.note_bye,)),
    }


_ROWS: dict[State, dict[type[Event], Cell]] = {
    State.EMPTY: {
        Start: Cell(State.SPAWNING, (Slot.spawn,)),
        Drain: Cell(State.EMPTY),
        Kill: Cell(State.EMPTY),
    },
    State.SPAWNING: {
        Spawned: Cell(State.BOOTING, (Slot.note_pid,)),
        SpawnFailed: Cell(State.BACKOFF, (Slot.bury_unborn, Slot.reschedule)),
        Drain: _DRAINS,
        Kill: _ENDS_AT_ONCE,
        DeadlinePassed: Cell(State.SPAWNING, (Slot.abandon,)),
    },
    State.BOOTING: {
        **_orders(),
        Booted: Cell(State.CONNECTING, (Slot.note_boot,)),
        SaidBye: Cell(State.LEAVING, (Slot.note_bye,)),
        DeadlinePassed: Cell(State.CONDEMNED, (Slot.condemn_as_not_booted,)),
    },
    State.CONNECTING: _row_of_life(State.CONNECTING, State.CONNECTING_SILENT, State.CONNECTING, State.READY),
    State.CONNECTING_SILENT: _row_of_life(
        State.CONNECTING_SILENT, State.CONNECTING_SILENT, State.CONNECTING, State.READY
    ),
    State.READY: _row_of_life(State.READY, State.READY_SILENT, State.READY, State.READY),
    State.READY_SILENT: _row_of_life(State.READY_SILENT, State.READY_SILENT, State.READY, State.READY),
    State.LEAVING: {
        **_orders(),
        LoopBeat: Cell(State.LEAVING, (Slot.note_beat,)),
        ThreadBeat: Cell(State.LEAVING, (Slot.note_thread_beat,)),
        MemorySampled: Cell(State.LEAVING, (Slot.note_memory,)),
        Examined: Cell(State.LEAVING, (Slot.note_examined,)),
        DeadlinePassed: Cell(State.CONDEMNED, (Slot.condemn_as_lingering,)),
    },
    State.DRAINING: {
        **_row_of_stopping(State.DRAINING),
        # The order may come before the announcement of a spawn.
        Spawned: Cell(State.DRAINING, (Slot.note_pid, Slot.remind)),
        SpawnFailed: Cell(State.EMPTY, (Slot.bury_unborn,)),
        Died: _DIES_ASKED,
        Drain: _DRAINS,
        Kill: _ENDS,
        DeadlinePassed: Cell(State.OVERDUE, (Slot.mark_killed_in_stop, Slot.condemn_as_overdue)),
    },
    State.CONDEMNED: {
        **_row_of_stopping(State.CONDEMNED),
        EvidenceKept: Cell(State.KILLED, (Slot.tell_evidence, Slot.kill)),
        Died: Cell(State.BACKOFF, (Slot.tell_without_evidence, Slot.bury, Slot.reschedule)),
        Drain: Cell(State.OVERDUE),
        Kill: Cell(State.OVERDUE, (Slot.mark_killed_in_stop,)),
        DeadlinePassed: Cell(State.KILLED, (Slot.tell_without_evidence, Slot.kill)),
    },
    State.OVERDUE: {
        **_row_of_stopping(State.OVERDUE),
        # An order may overtake the announcement of a spawn by all of its grace.
        Spawned: Cell(State.OVERDUE, (Slot.note_pid,)),
        SpawnFailed: Cell(State.EMPTY, (Slot.tell_without_evidence, Slot.bury_unborn)),
        EvidenceKept: Cell(State.ENDING, (Slot.tell_evidence, Slot.kill)),
        Died: Cell(State.EMPTY, (Slot.tell_without_evidence, Slot.bury)),
        Drain: Cell(State.OVERDUE),
        Kill: Cell(State.ENDING, (Slot.tell_without_evidence, Slot.kill)),
        DeadlinePassed: Cell(State.ENDING, (Slot.tell_without_evidence, Slot.kill)),
    },
    State.KILLED: {
        **_row_of_stopping(State.KILLED),
        Died: _DIES_UNASKED,
        Drain: Cell(State.ENDING),
        Kill: _ENDS_AT_ONCE,
        DeadlinePassed: Cell(State.STUCK, (Slot.note_stuck,)),
    },
    State.ENDING: {
        **_row_of_stopping(State.ENDING),
        Spawned: Cell(State.ENDING, (Slot.note_pid, Slot.kill)),
        SpawnFailed: Cell(State.EMPTY, (Slot.bury_unborn,)),
        Died: _DIES_ASKED,
        Drain: Cell(State.ENDING),
        Kill: Cell(State.ENDING, (Slot.kill,)),
        DeadlinePassed: Cell(State.STUCK, (Slot.note_stuck,)),
    },
    State.STUCK: {
        **_row_of_stopping(State.STUCK),
        Spawned: Cell(State.STUCK, (Slot.note_pid, Slot.kill)),
        SpawnFailed: Cell(State.EMPTY, (Slot.bury_unborn,)),
        Died: _DIES_UNASKED,
        Drain: Cell(State.STUCK),
        Kill: Cell(State.STUCK, (Slot.kill,)),
        DeadlinePassed: Cell(State.STUCK, (Slot.kill, Slot.note_stuck)),
    },
    State.BACKOFF: {
        Drain: Cell(State.EMPTY),
        Kill: Cell(State.EMPTY),
        DeadlinePassed: Cell(State.EMPTY),
    },
}

TABLE: dict[tuple[State, type[Event]], Cell] = {
    (state, event): cell for state, row in _ROWS.items() for event, cell in row.items()
}
"""Every accepted cell. A pair that is not here is refused: it changes nothing and is told as EventRefused."""
