"""The worker's end of the socket: frames, ends of jobs and the passing of time in, decisions out.

Nothing here reads a clock, draws a random number or does any I/O: `now` is monotonic seconds, handed in. Section names
in comments are those of the worker-socket contract.
"""

import enum
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from wire import frames, pipe
from wire.codec import UnreadableJob
from wire.pipe import DURATION_BUCKETS
from wire.verdicts import OVER_CAPACITY
from worker_child.backoff import Backoff
from worker_child.decisions import (
    Announce,
    CancelJob,
    ClearSuspect,
    Connect,
    DeadLetter,
    Decision,
    DropConnection,
    End,
    JournalClaimed,
    JournalReported,
    JournalSettled,
    LoseLease,
    Note,
    Outcome,
    Ping,
    Send,
    StartJob,
)
from worker_child.deltas import DeltaStream, DeltaTraffic, Sent
from worker_child.solitude import Solitude
from worker_child.suspicion import POISON_JOB

CONNECT_DEADLINE = 30.0
"""Above the connection's own: it passes only when whoever should connect has lost the order."""
REGISTER_DEADLINE = 30.0
CLAIM_DEADLINE_FLOOR = 30.0
REPORT_AGAIN = 10.0
PING_AFTER = 15.0
READ_DEADLINE = 40.0
DRAIN_ANSWER = 2.0
"""How long a drained worker waits for the answer to an open claim: it may carry jobs that must be handed back."""
UNREADABLE_JOB = "UnreadableJob"
"""`error_type` of a job that is none. Another worker may be able to read it: it may be retried."""
GARBAGE_LIMIT = 10
"""Frames of one connection that are none, before the connection is dropped."""
GARBAGE_WITHIN = 60.0
"""Seconds in which they must come: what is rare is told, and worked on with."""
_NEVER = math.inf
_NO_SLOT = -math.inf


class State(enum.StrEnum):
    """States of the connection."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    REGISTERING = "registering"
    REGISTERED = "registered"
    DRAINING = "draining"
    ENDED = "ended"


class Event(enum.StrEnum):
    """What can happen to the connection."""

    RETRY = "retry"
    OPENED = "opened"
    ACCEPTED = "accepted"
    DRAIN = "drain"
    LOST = "lost"
    END = "end"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.WAITING, Event.RETRY): State.CONNECTING,
    (State.WAITING, Event.DRAIN): State.WAITING,
    (State.WAITING, Event.END): State.ENDED,
    (State.CONNECTING, Event.OPENED): State.REGISTERING,
    (State.CONNECTING, Event.DRAIN): State.CONNECTING,
    (State.CONNECTING, Event.LOST): State.WAITING,
    (State.CONNECTING, Event.END): State.ENDED,
    (State.REGISTERING, Event.ACCEPTED): State.REGISTERED,
    (State.REGISTERING, Event.DRAIN): State.REGISTERING,
    (State.REGISTERING, Event.LOST): State.WAITING,
    (State.REGISTERING, Event.END): State.ENDED,
    (State.REGISTERED, Event.ACCEPTED): State.REGISTERED,
    (State.REGISTERED, Event.DRAIN): State.DRAINING,
    (State.REGISTERED, Event.LOST): State.WAITING,
    (State.REGISTERED, Event.END): State.ENDED,
    (State.DRAINING, Event.ACCEPTED): State.DRAINING,
    (State.DRAINING, Event.DRAIN): State.DRAINING,
    (State.DRAINING, Event.LOST): State.WAITING,
    (State.DRAINING, Event.END): State.ENDED,
}
"""Everything else is refused with SessionError: a fault of the shell, never of the server."""

_LIVE = frozenset({State.REGISTERING, State.REGISTERED, State.DRAINING})
_REPORTING = frozenset({State.REGISTERED, State.DRAINING})
_CLAIMING = frozenset({State.REGISTERED})
"""Where every job passes, a state is looked for in such a set: naming a member of an Enum takes CPython 3.11 0.3 us."""


class SessionError(Exception):
    """The shell told the session something that cannot happen in its state."""


class ActionTerms(Struct, frozen=True, kw_only=True):
    """What the session must know of an action: how many at once, and whether it runs on without its lease."""

    concurrency: int | None = None
    idempotent: bool = False


class SessionSettings(Struct, frozen=True, kw_only=True):
    """One worker's settings. `id_prefix` makes message ids unique to the process; `identity_conflict` is seconds;
    `address` is where the control plane is, for people who read the log."""

    worker_instance_id: str
    concurrency: int
    queues: list[str]
    actions: dict[str, ActionTerms]
    id_prefix: str
    models: tuple[frames.ModelCapability, ...] = ()
    name: str | None = None
    version: str | None = None
    environment_id: str | None = None
    identity_conflict: float = 180.0
    address: str = ""
    key_file: bool = False
    """Whether the key is from a file, which may have another one by now."""


class _Job(Struct, eq=False):
    """A job in hand."""

    execution: int
    id: str
    action: str
    token: str
    claimed_at: float
    cadence: float
    lease_duration: float
    heartbeat_at: float
    lease_until: float
    lease_lost: bool = False
    cancel_asked: bool = False
    stream: DeltaStream | None = None

    def lease(self, job: frames.ClaimedJob, now: float) -> None:
        """The terms of a (new) claim of this job."""
        self.lease_lost = False
        self.token = job.lease_token
        self.cadence = job.heartbeat_cadence_seconds
        self.lease_duration = job.lease_duration_seconds
        self.heartbeat_at = now + self.cadence
        self.lease_until = now + self.lease_duration


class _Tally:
    """What came of the jobs of one action."""

    __slots__ = ("_durations", "_outcomes", "_seconds")

    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._durations = [0] * (len(DURATION_BUCKETS) + 1)
        self._seconds = 0.0

    def add(self, status: str, seconds: float) -> None:
        self._outcomes[status] += 1
        self._durations[bisect_left(DURATION_BUCKETS, seconds)] += 1
        self._seconds += seconds

    def counts(self) -> pipe.ActionCounts:
        return pipe.ActionCounts(
            completed=self._outcomes["completed"],
            failed=self._outcomes["failed"],
            cancelled=self._outcomes["cancelled"],
            seconds=self._seconds,
            durations=list(self._durations),
        )


class _Kept(Struct, eq=False):
    """A report that is kept until it is settled. It holds its job's slot until `slot_until`, or (_NO_SLOT) none.

    `stream` has the deltas of a generation, which come before its report on every connection.
    """

    frame: frames.Report
    again_at: float
    slot_until: float
    stream: DeltaStream | None = None


class Session:
    """One worker's session with the control plane, across all of its connections.

    `leftover` are reports of an earlier process of this slot; they are sent before the first claim. Every method that
    takes an event returns the decisions that follow from it, in the order in which they must be carried out.
    """

    def __init__(
        self, settings: SessionSettings, backoff: Backoff, now: float, leftover: Iterable[frames.Report] = ()
    ) -> None:
        self.settings = settings
        self.state = State.WAITING
        self.counts: Counter[str] = Counter()
        self._counts_before_drain: Counter[str] = Counter()
        self._tallies: dict[str, _Tally] = {}
        self.last_read = now
        """Set by the shell whenever bytes arrive; every read has a rolling deadline."""
        self._backoff = backoff
        self._token: str | None = None
        self._id_prefix, self._concurrency = settings.id_prefix, settings.concurrency
        self._ids = 0
        self._executions = 0
        self._cadence = 20.0
        self._lease_duration = 60.0
        self._jobs: dict[int, _Job] = {}
        self._by_id: dict[str, _Job] = {}
        self._stuck: dict[int, str] = {}
        self.solitude = Solitude()
        """Its `suspects` are set by the shell before jobs arrive."""
        self._kept: dict[str, _Kept] = {}
        self._kept_by_job: dict[str, str] = {}
        self._slots_kept = 0
        self._running: Counter[str] = Counter()
        self._limits = {name: terms.concurrency for name, terms in settings.actions.items() if terms.concurrency}
        self._all_actions = sorted(settings.actions)
        self._models = list(settings.models)
        self._had_models = bool(self._models)
        self._tallied = {*settings.actions, *_names(settings.models)}
        self._register_id = ""
        self._claim_id: str | None = None
        self._claim_deadline = _NEVER
        self._claim_pause = _NEVER
        """When an empty claim may be followed by the next; _NEVER: there is no pause."""
        self._claim_wanted = False
        """Something in this event may have made a claim possible; it is made when the event is over."""
        self._hinted = False
        self._ready_announced = False
        self._retry_at = now
        self._connect_deadline = self._register_deadline = self._ended_at = _NEVER
        self._read_check_at = _NEVER
        self._old_at = _NEVER
        """When the connection has served its time; it is exchanged as soon as no claim is open."""
        self._scan_at = _NEVER
        """No job and no report needs anything before this; a lower bound, made exact by every scan."""
        self._registered_at: float | None = None
        self._is_old = False
        self._last_acknowledgement = now
        self._deltas = DeltaTraffic()
        self._conflict_since: float | None = None
        self._refused_once = self._disowned = False
        self._garbage = 0
        self._garbage_since = now
        self._drain_asked = self._drain_is_ours = self._drain_is_ordered = False
        self._drain_reason = ""
        self._drain_acknowledged = False
        self._cut_off_at = self._drain_settles_at = self._drain_ends_at = _NEVER
        self._on_frame: dict[type, Callable[[Any, float], list[Decision]]] = {
            frames.Claimed: self._on_claimed,
            frames.ReportAck: self._on_report_ack,
            frames.HeartbeatAck: self._on_heartbeat_ack,
            frames.GenerationDeltaAck: self._on_delta_ack,
            frames.WorkAvailable: self._on_work_available,
            frames.Registered: self._on_registered,
            frames.Keepalive: self._on_keepalive,
            frames.JobCancel: self._on_job_cancel,
            frames.Drain: self._on_drain,
            frames.DrainingAck: self._on_draining_ack,
            frames.Error: self._on_error,
        }
        for report in leftover:
            outcome = Outcome(
                status=report.status,
                result=report.any_result,
                error_type=report.error_type,
                error_message=report.error_message,
            )
            self._keep(report.job_id, report.lease_token, outcome, now)

    # --- what the shell may ask -------------------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        """Slots that no job, no unsettled report and no stuck execution holds; none beside a suspect."""
        solitude = self.solitude
        if solitude.alone is not None or solitude.waiting:
            return 0
        return max(0, self._concurrency - len(self._jobs) - self._slots_kept - len(self._stuck))

    def outstanding(self) -> tuple[list[JournalClaimed], list[frames.Report]]:
        """All that a journal must hold now: the jobs in hand and the reports that are not settled."""
        begun = (job for job in self._jobs.values() if job.execution not in self.solitude.waiting)
        claimed = [JournalClaimed(job.id, job.token, job.action) for job in begun]
        return claimed, [kept.frame for kept in self._kept.values()]

    def beat(self, now: float) -> pipe.Beat:
        """The session's part of a beat to the supervisor."""
        words: dict[State, pipe.SessionState] = {
            State.WAITING: "connecting",
            State.CONNECTING: "connecting",
            State.REGISTERING: "registering",
            State.REGISTERED: "registered",
            State.DRAINING: "draining",
            State.ENDED: "ended",
        }
        return pipe.Beat(
            slot="",
            incarnation=0,
            source="loop",
            session=words[self.state],
            jobs_in_hand=len(self._jobs),
            oldest_job_age=now - next(iter(self._jobs.values())).claimed_at if self._jobs else 0.0,
            last_acknowledgement_age=now - self._last_acknowledgement,
            stalled_for=self.stalled_for(now),
            reports_waiting=len(self._kept),
            reconnects=max(0, self.counts["registered"] - 1),
            completed=self.counts["completed"],
            failed=self.counts["failed"],
            cancelled=self.counts["cancelled"],
            handed_back=self.counts["handed_back"],
            actions={action: tally.counts() for action, tally in self._tallies.items()},
        )

    def next_deadline(self) -> float:
        """When `tick` must be called, at the latest; infinity: an event must come first."""
        return min(
            self._retry_at,
            self._connect_deadline,
            self._register_deadline,
            self._claim_deadline,
            self._claim_pause,
            self._read_check_at,
            self._old_at,
            self._scan_at,
            self._deltas.next_at,
            self.solitude.patience_ends_at,
            self._cut_off_at,
            self._drain_settles_at,
            self._drain_ends_at,
        )

    def stalled_for(self, now: float) -> float:
        """Seconds for which this end owes a step that it does not make; 0 while everything is in time.

        A deadline of its own that nobody served, a claim that could be made, or an end that does not come. Whatever the
        control plane owes has a deadline here, after which this end moves: however long it is silent, this stays 0.
        """
        if self.state is State.ENDED:
            owed_since = self._ended_at
        elif self._may_claim and self._room()[0] > 0:
            owed_since = min(self.next_deadline(), self._last_acknowledgement)
        else:
            owed_since = self.next_deadline()
        return max(0.0, now - owed_since)

    # --- events of the connection -----------------------------------------------------------------------------------

    def connected(self, now: float) -> list[Decision]:
        """The upgrade succeeded: register, with honest slots, and the token when this process had one."""
        self._move(Event.OPENED)
        self.last_read = now
        self._garbage = 0
        self._read_check_at = now + PING_AFTER
        self._connect_deadline = _NEVER
        self._register_deadline = now + REGISTER_DEADLINE
        self._register_id = self._message_id()
        settings = self.settings
        return [
            Send(
                frames.Register(
                    message_id=self._register_id,
                    worker_instance_id=settings.worker_instance_id,
                    worker_session_token=self._token,
                    concurrency_limit=settings.concurrency,
                    available_slots=0 if self._drain_asked or not self._offers_anything else self.free_slots,
                    name=settings.name,
                    version=settings.version,
                    environment_id=settings.environment_id,
                    queues=settings.queues,
                    action_names=self._all_actions,
                    models=self._models or None,
                )
            )
        ]

    def connection_lost(self, reason: str, now: float, *, going_away: bool = False) -> list[Decision]:
        """The connection ended, or could not be opened: wait, then try again.

        `going_away`: the server closed it to restart; another one, or itself, takes us at once.
        """
        if self.state is State.ENDED:
            return []
        healthy_for = 0.0 if self._registered_at is None else now - self._registered_at
        return self._lost(reason, now, self._backoff.delay(healthy_for, going_away=going_away))

    def upgrade_refused(self, reason: str, now: float, *, key_changed: bool) -> list[Decision]:
        """401, 403 or 404 on the upgrade: final, unless reading the key file again gave a key not yet tried."""
        if self.state is State.ENDED:
            return []
        if key_changed and not self._refused_once:
            self._refused_once = True
            self._disowned = False
            return self._lost(f"{reason}; the key file has a new key", now, 0.0)
        return self._end(reason, now, refused=True)

    def suspended(self, now: float) -> list[Decision]:
        """The machine or this process was asleep: the connection cannot be trusted, and nobody is to blame."""
        if self.state in _LIVE or self.state is State.CONNECTING:
            return [DropConnection("suspended"), *self._lost("this process was suspended", now, 0.0)]
        return []

    def garbage_received(self, message: str, message_id: str | None, now: float) -> list[Decision]:
        """The server sent what is no frame: it is reported, and ends at most this conversation."""
        if self.state not in _LIVE:
            return []
        if now - self._garbage_since > GARBAGE_WITHIN:
            self._garbage_since, self._garbage = now, 0
        self._garbage += 1
        decisions: list[Decision] = [Note("warning", "session.bad_frame", {"error": message})]
        if self._garbage >= GARBAGE_LIMIT:
            return decisions + self._drop(f"{GARBAGE_LIMIT} frames that are none", now)
        if message_id is not None and message_id == self._claim_id:
            self._claim_answered()
            self._pause_claims(now)
        return decisions

    def frames_received(self, received: Iterable[frames.FromServer], now: float) -> list[Decision]:
        """Frames of the server that arrived together; one claim is made for all the slots that they free."""
        decisions: list[Decision] = []
        for frame in received:
            if self.state in _LIVE:
                decisions += self._on_frame[type(frame)](frame, now)
        return self._concluded(decisions, now)

    def claimed_in_part(
        self, claimed: frames.Claimed, unreadable: Iterable[UnreadableJob], now: float
    ) -> list[Decision]:
        """Jobs of which some cannot be read: these are reported failed where they say what they are, the others run."""
        if self.state not in _LIVE:
            return []
        decisions = self._on_claimed(claimed, now)
        for one in unreadable:
            decisions.append(Note("error", "session.unreadable_job", {"job_id": one.job_id, "error": one.reason}))
            known = one.job_id in self._by_id or one.job_id in self._kept_by_job
            if one.job_id is None or one.lease_token is None or known:
                # Nobody can be told; or it is in hand under an earlier lease. Its lease lapses.
                continue
            message = f"the worker cannot read the job: {one.reason}"
            outcome = Outcome(status="failed", error_type=UNREADABLE_JOB, error_message=message)
            frame = self._keep(one.job_id, one.lease_token, outcome, now)
            self.counts["failed"] += 1
            decisions += [JournalReported(frame), *self._send_report(frame)]
            # The answer was not empty.
            self._claim_pause = _NEVER
        return self._concluded(decisions, now)

    # --- events of jobs ---------------------------------------------------------------------------------------------

    def job_abandoned(self, execution: int, outcome: Outcome, now: float) -> list[Decision]:
        """A job has its outcome, but its code runs on regardless: it keeps its slot until `code_returned`."""
        job = self._jobs.get(execution)
        if job is None:
            return []
        self._stuck[execution] = job.action
        self._count_running(job.action, 1)
        # It has not returned: that its process lives says nothing for it yet.
        self.solitude.forget(execution)
        return self.job_finished(execution, outcome, now)

    def jobs_finished(self, finished: Iterable[tuple[int, Outcome, bool]], now: float) -> list[Decision]:
        """Jobs that got their outcomes in one turn of the loop; the last of each three is whether its code returned."""
        decisions: list[Decision] = []
        for execution, outcome, returned in finished:
            event = self.job_finished if returned else self.job_abandoned
            decisions += event(execution, outcome, now)
        return decisions

    def job_finished(self, execution: int, outcome: Outcome, now: float) -> list[Decision]:
        """A job has its outcome."""
        job = self._jobs.get(execution)
        if job is None:
            return []
        was_alone = self.solitude.alone == execution
        self._forget(job)
        if outcome.error_type == OVER_CAPACITY:
            self.counts["handed_back"] += 1
        else:
            self.counts[outcome.status] += 1
            self._tally(job.action, outcome.status, now - job.claimed_at)
        frame = self._keep(job.id, job.token, outcome, now, slot_until=now + job.lease_duration)
        decisions: list[Decision] = [JournalReported(frame)]
        reporting = self.state in _REPORTING
        if job.stream is not None:
            self._kept[str(frame.message_id)].stream = job.stream
            if reporting:
                # The last deltas wait for nothing: what the report completes comes before it.
                decisions += _as_frames(job.id, job.token, self._deltas.flush(job.stream, now))
        if reporting:
            decisions.append(Send(frame))
        if was_alone:
            decisions.append(ClearSuspect(job.id))
        if self.solitude.waiting:
            decisions += self._start_suspect(now)
        return decisions

    # --- deltas of generations --------------------------------------------------------------------------------------

    def delta_produced(self, execution: int, delta: dict[str, Any], now: float) -> list[Decision]:
        """A generation has produced a piece of its answer."""
        job = self._jobs.get(execution)
        if job is None:
            return []
        if job.stream is None:
            job.stream = DeltaStream()
        skipped = job.stream.skipped
        job.stream.add(delta)
        note = Note("warning", "session.deltas_skipped", {"job_id": job.id})
        return [*([note] if job.stream.skipped > skipped else []), *self._release_deltas(job, now)]

    @property
    def awaits_written(self) -> bool:
        """Whether `written` is to be called once no bytes wait to be sent any more."""
        return self._deltas.awaits_written

    def written(self, now: float) -> list[Decision]:
        """All that was handed over to be sent has left."""
        self._deltas.written()
        return [decision for job in self._jobs.values() for decision in self._release_deltas(job, now)]

    def _release_due_deltas(self, now: float) -> list[Decision]:
        if now < self._deltas.next_at:
            return []
        self._deltas.next_at = _NEVER
        return [decision for job in self._jobs.values() for decision in self._release_deltas(job, now)]

    def _release_deltas(self, job: _Job, now: float) -> list[Decision]:
        if job.stream is None or self.state not in _REPORTING:
            return []
        return _as_frames(job.id, job.token, self._deltas.release(job.stream, now))

    def _on_delta_ack(self, frame: frames.GenerationDeltaAck, now: float) -> list[Decision]:
        self._last_acknowledgement = now
        job = self._by_id.get(frame.job_id)
        if job is not None:
            self._deltas.acknowledged(job.stream, frame.received_sequence)
            return self._release_deltas(job, now)
        kept = self._kept.get(self._kept_by_job.get(frame.job_id, ""))
        self._deltas.acknowledged(kept.stream if kept is not None else None, frame.received_sequence)
        return []

    # --- models -----------------------------------------------------------------------------------------------------

    def models_changed(self, models: Sequence[frames.ModelCapability], now: float) -> list[Decision]:
        """The models that this worker can generate with are now these."""
        if list(models) == self._models:
            return []
        self._models = list(models)
        self._had_models = True
        self._tallied.update(_names(models))
        if self.state is not State.REGISTERED:
            return []
        if not self._offers_anything:
            # Two empty lists would mean "everything" (contract, "Obligations of a worker").
            return [Send(frames.Ready(message_id=self._message_id(), available_slots=0))]
        ready = frames.Ready(
            message_id=self._message_id(),
            available_slots=self.free_slots,
            queues=self.settings.queues,
            action_names=self._all_actions,
            models=self._models,
        )
        self._claim_pause = _NEVER
        self._claim_wanted = True
        return self._concluded([Send(ready)], now)

    @property
    def _offers_anything(self) -> bool:
        return bool(self._all_actions or self._models)

    def _tally(self, action: str, status: str, seconds: float) -> None:
        """By names that we registered, never by what a server might call a job: they become labels of metrics."""
        tally = self._tallies.get(action)
        if tally is None:
            if action not in self._tallied or len(self._tallies) >= pipe.MOST_ACTIONS - 1:
                action = pipe.OTHER_ACTIONS
            tally = self._tallies.setdefault(action, _Tally())
        tally.add(status, seconds)

    def code_returned(self, execution: int, now: float) -> list[Decision]:
        """Code that ran on past its outcome has returned at last."""
        action = self._stuck.pop(execution, None)
        if action is None:
            return []
        self._count_running(action, -1)
        self._slot_freed()
        return self._concluded([], now)

    # --- orders and time --------------------------------------------------------------------------------------------

    @property
    def counts_of_drain(self) -> Counter[str]:
        """What became of jobs since the supervisor asked to drain."""
        return self.counts - self._counts_before_drain

    def drain(self, grace: float, reason: str, now: float, *, ordered: bool = True) -> list[Decision]:
        """Claim no more, finish within `grace` seconds, then end. A later order can only shorten the grace.

        `ordered` false: a signal, which comes along with an order and must not overrule the order's grace.
        """
        if self.state is State.ENDED or (self._drain_is_ours and not ordered):
            return []
        self._drain_ends_at = min(self._drain_ends_at, now + grace) if self._drain_is_ordered else now + grace
        self._drain_is_ordered = ordered
        # What is cut off must be reported before the supervisor's patience ends with the grace.
        self._cut_off_at = self._drain_ends_at - min(2.0, grace * 0.2)
        if self._drain_is_ours:
            return []
        self._drain_is_ours = True
        self._counts_before_drain = self.counts.copy()
        self._drain_reason = reason
        self._drain_settles_at = now + DRAIN_ANSWER
        return [
            Note("info", "session.drain", {"reason": reason, "grace": grace, "jobs_in_hand": len(self._jobs)}),
            *self._begin_drain(now),
            *self._end_if_drained(now),
        ]

    def tick(self, now: float) -> list[Decision]:
        """Does what is due at `now`."""
        # The end of a drain comes first: it makes everything else pointless.
        decisions = self._get_done(now)
        if now >= self._retry_at:
            self._retry_at = _NEVER
            self._connect_deadline = now + CONNECT_DEADLINE
            self._move(Event.RETRY)
            decisions.append(Connect())
        if now >= self._connect_deadline:
            decisions += self._drop(f"not connected within {CONNECT_DEADLINE:g} s", now)
        if now >= self._register_deadline:
            decisions += self._drop(f"no answer to worker.register within {REGISTER_DEADLINE:g} s", now)
        if now >= self._claim_deadline:
            # Contract, "Obligations of a worker": one lost frame must not strand the worker for good.
            decisions += self._drop("the claim was not answered in time", now)
        if now >= self._read_check_at:
            decisions += self._check_reading(now)
        if now >= self._old_at:
            self._old_at, self._is_old = _NEVER, True
            decisions += self._exchange_if_old(now)
        if now >= self._scan_at:
            decisions += self._scan(now)
        if now >= self.solitude.patience_ends_at:
            self.solitude.give_up(now)
            decisions += self._return_suspects(now)
        decisions += self._release_due_deltas(now)
        if now >= self._claim_pause:
            self._claim_pause = _NEVER
            self._claim_wanted = True
        return self._concluded(decisions, now)

    def _get_done(self, now: float) -> list[Decision]:
        """The deadlines of a drain."""
        decisions: list[Decision] = []
        if now >= self._cut_off_at:
            decisions += self._cut_off(now)
        if now >= self._drain_settles_at:
            self._drain_settles_at = _NEVER
            decisions += self._end_if_drained(now)
        if now >= self._drain_ends_at:
            decisions += self._end(f"{self._drain_reason}: the grace is over", now)
        return decisions

    # --- frames -----------------------------------------------------------------------------------------------------

    def _on_registered(self, frame: frames.Registered, now: float) -> list[Decision]:
        self._move(Event.ACCEPTED)
        self._token = frame.worker_session_token
        self._cadence = float(frame.lease.heartbeat_cadence_seconds)
        self._lease_duration = float(frame.lease.lease_duration_seconds)
        self._register_deadline = _NEVER
        self._registered_at = now
        self._old_at, self._is_old = now + self._backoff.age(), False
        self._conflict_since = None
        self._refused_once = False
        self._last_acknowledgement = now
        self.counts["registered"] += 1
        decisions: list[Decision] = [
            Announce("registered"),
            Note(
                "info",
                "session.registered",
                {"address": self.settings.address, "reports": len(self._kept), "jobs_in_hand": len(self._jobs)},
            ),
        ]
        # Contract, "Obligations of a worker": reports are sent again after every register, and before the next claim.
        for kept in self._kept.values():
            if kept.stream is not None:
                repeated = self._deltas.repeat(kept.stream, now)
                decisions += _as_frames(kept.frame.job_id, kept.frame.lease_token, repeated)
            decisions.append(Send(kept.frame))
            self._wake(kept, now)
        decisions += [self._heartbeat(job, now) for job in self._jobs.values() if job.heartbeat_at < _NEVER]
        for job in self._jobs.values():
            if job.stream is not None:
                decisions += _as_frames(job.id, job.token, self._deltas.repeat(job.stream, now))
        if self._drain_asked:
            decisions += self._begin_drain(now)
        self._claim_wanted = True
        return decisions

    def _on_claimed(self, frame: frames.Claimed, now: float) -> list[Decision]:
        answered = frame.message_id is None or frame.message_id == self._claim_id
        self._last_acknowledgement = now
        self._claim_wanted = True
        decisions: list[Decision] = []
        started = len(self._jobs)
        for job in frame.jobs:
            decisions += self._take(job, now)
        if answered:
            self._claim_answered()
            if len(self._jobs) == started and not self._hinted:
                self._pause_claims(now)
            self._hinted = False
        return decisions

    def _on_work_available(self, _frame: frames.WorkAvailable, _now: float) -> list[Decision]:
        self._claim_pause = _NEVER
        # A hint that crosses an open claim counts for the claim after it, should that one come back empty.
        self._hinted = self._claim_id is not None
        self._claim_wanted = True
        return []

    def _on_heartbeat_ack(self, frame: frames.HeartbeatAck, now: float) -> list[Decision]:
        self._last_acknowledgement = now
        job = self._by_id.get(frame.job_id)
        if job is None:
            return []
        job.lease_until = now + job.lease_duration
        if frame.cancel is not None:
            return self._cancel(job, frame.cancel.reason, now)
        return []

    def _on_job_cancel(self, frame: frames.JobCancel, now: float) -> list[Decision]:
        job = self._by_id.get(frame.job_id)
        return [] if job is None else self._cancel(job, frame.reason, now)

    def _on_report_ack(self, frame: frames.ReportAck, now: float) -> list[Decision]:
        self._last_acknowledgement = now
        key = frame.message_id
        if key is None or key not in self._kept:
            # `message_id` is optional everywhere (contract, "Frames").
            key = self._kept_by_job.get(frame.job_id) if key is None else None
            if key is None:
                return []
        kept = self._kept[key]
        self._settled(key, kept)
        return [JournalSettled(kept.frame.lease_token)]

    def _on_keepalive(self, frame: frames.Keepalive, _now: float) -> list[Decision]:
        return [Send(frames.Keepalive(message_id=frame.message_id))]

    def _on_drain(self, _frame: frames.Drain, now: float) -> list[Decision]:
        note: list[Decision] = []
        if not self._drain_asked:
            note.append(Note("info", "session.drain", {"reason": "the control plane asked for it"}))
        return note + self._begin_drain(now)

    def _on_draining_ack(self, _frame: frames.DrainingAck, now: float) -> list[Decision]:
        self._drain_acknowledged = True
        self._last_acknowledgement = now
        return []

    def _on_error(self, frame: frames.Error, now: float) -> list[Decision]:
        code, message = frame.error.code, frame.error.message
        decisions: list[Decision] = [Note("warning", "session.error", {"code": code, "message": message})]
        if code == frames.INVALID_ACTOR and self.settings.key_file and not self._disowned:
            # The upgrade with the same key is refused, and then the file is read: with a new key the jobs go on.
            self._disowned = True
            reason = f"the API key has ended: {message}"
            return [*decisions, DropConnection(reason), *self._lost(reason, now, 0.0)]
        if code == frames.INVALID_ACTOR:
            return decisions + self._end(f"the control plane revoked the credential: {message}", now, refused=True)
        if code == frames.WORKER_INSTANCE_CONFLICT:
            return decisions + self._conflict(message, now)
        if frame.message_id is None:
            return decisions
        if frame.message_id == self._claim_id:
            self._claim_answered()
            self._pause_claims(now)
            return decisions
        if frame.message_id == self._register_id and self.state is State.REGISTERING:
            return decisions + self._drop(f"worker.register was refused: {code}: {message}", now)
        kept = self._kept.get(frame.message_id)
        if kept is not None:
            decisions.append(DeadLetter(kept.frame, code, message))
            self._settled(frame.message_id, kept)
        return decisions

    # --- claims and jobs --------------------------------------------------------------------------------------------

    def _claim(self, now: float) -> list[Decision]:
        """One claim, when one may be made and something could come of it."""
        if self._is_old:
            return self._exchange_if_old(now)
        if not self._may_claim or len(self._jobs) + self._slots_kept >= self._concurrency:
            return []
        slots, actions = self._room()
        if slots <= 0:
            return self._announce_ready() if not (self._ready_announced or self._offers_anything) else []
        self._claim_id = self._message_id()
        self._claim_deadline = now + max(2 * self._cadence, CLAIM_DEADLINE_FLOOR)
        claim = Send(
            frames.Claim(
                message_id=self._claim_id,
                available_slots=slots,
                queues=self.settings.queues,
                action_names=actions,
                models=self._models if self._had_models else None,
            )
        )
        return [claim, *self._announce_ready()]

    def _room(self) -> tuple[int, list[str]]:
        """How many jobs there is room for, and of which actions."""
        slots = self.free_slots
        if not slots:
            return 0, []
        actions = self._all_actions
        if self._limits:
            # Saturated actions leave the claim, and none that is left may be claimed beyond its own room.
            actions = [name for name in actions if self._has_room(name)]
            slots = min(
                [slots, *(self._limits[name] - self._running[name] for name in actions if name in self._limits)]
            )
        # Two empty lists would mean "everything" (contract, "Obligations of a worker").
        return (slots, actions) if actions or self._models else (0, [])

    @property
    def _may_claim(self) -> bool:
        return self._claim_id is None and self._claim_pause == _NEVER and self.state in _CLAIMING

    def _announce_ready(self) -> list[Decision]:
        """Once: the worker claims, or is held back by others than itself."""
        if self._ready_announced:
            return []
        self._ready_announced = True
        return [Announce("ready")]

    def _has_room(self, action: str) -> bool:
        limit = self._limits.get(action)
        return limit is None or self._running[action] < limit

    def _claim_answered(self) -> None:
        self._claim_id = None
        self._claim_deadline = _NEVER

    def _pause_claims(self, now: float) -> None:
        self._claim_pause = now + self._cadence

    def _slot_freed(self) -> None:
        self._claim_pause = _NEVER
        self._claim_wanted = True

    def _concluded(self, decisions: list[Decision], now: float) -> list[Decision]:
        """What the whole of an event makes possible: the next claim, or the end of a drain."""
        if self.solitude.waiting:
            decisions += self._start_suspect(now)
        if self._claim_wanted:
            self._claim_wanted = False
            decisions += self._claim(now)
        if self._drain_is_ours:
            decisions += self._end_if_drained(now)
        return decisions

    def _take(self, job: frames.ClaimedJob, now: float) -> list[Decision]:
        """One claimed job: started, handed back, or known already."""
        job_id = job.id
        if job_id in self._by_id:
            return self._adopt(self._by_id[job_id], job, now)
        if job_id in self._kept_by_job:
            done = self._kept[self._kept_by_job[job_id]].frame
            if done.lease_token == job.lease_token:
                return []
            if done.status == "completed":
                return self._report_again(done, job, now)
        suspects = self.solitude.suspects
        is_suspect = job_id in suspects
        if is_suspect and (why := suspects[job_id]) is not None:
            return self._refuse_poison(job, why, now)
        if self._drain_asked or not self.free_slots or (self._limits and not self._has_room(job.action_name or "")):
            return self._hand_back(job_id, job.lease_token, now)
        if is_suspect and (self._jobs or self._stuck) and not self.solitude.is_patient(now):
            return self._hand_back(job_id, job.lease_token, now)
        execution = self._executions = self._executions + 1
        action, token = job.work, job.lease_token
        cadence, duration = job.heartbeat_cadence_seconds, job.lease_duration_seconds
        heartbeat_at, lease_until = now + cadence, now + duration
        self._jobs[execution] = self._by_id[job_id] = _Job(
            execution, job_id, action, token, now, cadence, duration, heartbeat_at, lease_until
        )
        if self._limits:
            self._count_running(action, 1)
        self._scan_at = min(self._scan_at, heartbeat_at, lease_until)
        if is_suspect:
            self.solitude.wait(execution, job, now)
            return [Note("warning", "session.suspect_waits", {"job_id": job_id, "jobs_in_hand": len(self._jobs) - 1})]
        return [JournalClaimed(job_id, token, action), StartJob(execution, job)]

    def _adopt(self, known: _Job, job: frames.ClaimedJob, now: float) -> list[Decision]:
        """A job that is in hand here was leased to us once more: the work goes on, under the newer lease."""
        if known.token == job.lease_token:
            return []
        old = known.token
        known.lease(job, now)
        self._scan_at = min(self._scan_at, known.heartbeat_at)
        if known.execution in self.solitude.waiting:
            self.solitude.wait(known.execution, job, now)
            return []
        return [
            JournalClaimed(job.id, job.lease_token, known.action),
            JournalSettled(old),
            Note("warning", "session.lease_renewed_by_claim", {"job_id": job.id, "attempt": job.claim_attempt}),
        ]

    def _report_again(self, done: frames.Report, job: frames.ClaimedJob, now: float) -> list[Decision]:
        """A job that is done here was leased to us once more: its report was not accepted, and it is not done twice."""
        outcome = Outcome(status=done.status, result=done.any_result)
        frame = self._keep(job.id, job.lease_token, outcome, now)
        return [
            JournalReported(frame),
            Note("warning", "session.report_renewed_by_claim", {"job_id": job.id, "attempt": job.claim_attempt}),
            *self._send_report(frame),
        ]

    def _hand_back(self, job_id: str, lease_token: str, now: float) -> list[Decision]:
        self.counts["handed_back"] += 1
        outcome = Outcome(
            status="failed",
            error_type=OVER_CAPACITY,
            error_message="the worker drains" if self._drain_asked else "the worker has no free slot for the job",
        )
        frame = self._keep(job_id, lease_token, outcome, now)
        return [JournalReported(frame), *self._send_report(frame)]

    # --- suspects of having ended a process: each runs alone --------------------------------------------------------

    def _start_suspect(self, now: float) -> list[Decision]:
        """The next suspect, if nothing else runs here."""
        if self._stuck or len(self._jobs) > len(self.solitude.waiting) or (begun := self.solitude.begin(now)) is None:
            return []
        execution, job = begun
        taken = self._jobs[execution]
        return [JournalClaimed(taken.id, taken.token, taken.action), StartJob(execution, job)]

    def _return_suspects(self, now: float) -> list[Decision]:
        """Suspects that were not started: another worker may have room for them."""
        decisions: list[Decision] = []
        for execution in list(self.solitude.waiting):
            job = self._jobs[execution]
            self._forget(job)
            decisions += self._hand_back(job.id, job.token, now)
        return decisions

    def _refuse_poison(self, job: frames.ClaimedJob, why: str, now: float) -> list[Decision]:
        self.counts["failed"] += 1
        self._tally(job.work, "failed", 0.0)
        frame = self._keep(
            job.id, job.lease_token, Outcome(status="failed", error_type=POISON_JOB, error_message=why), now
        )
        note = Note("error", "session.poison_job", {"job_id": job.id, "reason": why})
        return [note, JournalReported(frame), *self._send_report(frame)]

    def _cancel(self, job: _Job, reason: str | None, now: float) -> list[Decision]:
        if reason == frames.LEASE_LOST:
            job.heartbeat_at = job.lease_until = _NEVER
            return self._lose_lease(job)
        if job.execution in self.solitude.waiting:
            self._forget(job)
            frame = self._keep(job.id, job.token, Outcome(status="cancelled"), now)
            return [JournalReported(frame), *self._send_report(frame)]
        if job.cancel_asked:
            return []
        job.cancel_asked = True
        return [CancelJob(job.execution, reason or "cancelled")]

    def _lose_lease(self, job: _Job) -> list[Decision]:
        if job.lease_lost:
            return []
        job.lease_lost = True
        if job.execution in self.solitude.waiting:
            # Nothing of it has begun, and nobody waits for its report.
            self._forget(job)
            return [Note("warning", "session.lease_lost", {"job_id": job.id, "action": job.action})]
        terms = self.settings.actions.get(job.action)
        decisions: list[Decision] = [
            LoseLease(job.execution),
            Note("warning", "session.lease_lost", {"job_id": job.id, "action": job.action}),
        ]
        if terms is None or not terms.idempotent:
            decisions.append(CancelJob(job.execution, frames.LEASE_LOST))
        return decisions

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.execution]
        del self._by_id[job.id]
        if self.solitude.forget(job.execution):
            self._claim_wanted = True
        if self._limits:
            self._count_running(job.action, -1)

    def _count_running(self, action: str, change: int) -> None:
        if action in self._limits:
            self._running[action] += change

    # --- reports ----------------------------------------------------------------------------------------------------

    def _keep(
        self, job_id: str, lease_token: str, outcome: Outcome, now: float, *, slot_until: float = _NO_SLOT
    ) -> frames.Report:
        """Keeps a report until it is settled. Its id stays the same each time that it is sent."""
        message_id = self._message_id()
        frame = frames.Report(
            message_id=message_id,
            job_id=job_id,
            lease_token=lease_token,
            status=outcome.status,
            result=outcome.result,
            error_type=outcome.error_type,
            error_message=outcome.error_message,
        )
        again_at = now + REPORT_AGAIN
        self._kept[message_id] = _Kept(frame, again_at, slot_until)
        self._kept_by_job[job_id] = message_id
        if slot_until != _NO_SLOT:
            self._slots_kept += 1
            again_at = min(again_at, slot_until)
        self._scan_at = min(self._scan_at, again_at)
        return frame

    def _wake(self, kept: _Kept, now: float) -> None:
        kept.again_at = now + REPORT_AGAIN
        self._scan_at = min(self._scan_at, kept.again_at)

    def _send_report(self, frame: frames.Report) -> list[Decision]:
        return [Send(frame)] if self.state in _REPORTING else []

    def _settled(self, message_id: str, kept: _Kept) -> None:
        of_several_leases = len(self._kept) > len(self._kept_by_job)
        del self._kept[message_id]
        job_id = kept.frame.job_id
        if self._kept_by_job.get(job_id) == message_id:
            del self._kept_by_job[job_id]
            if of_several_leases:
                # An acknowledgement that names the job alone must find the report of an earlier lease too.
                for key, other in self._kept.items():
                    if other.frame.job_id == job_id:
                        self._kept_by_job[job_id] = key
        if kept.slot_until != _NO_SLOT:
            self._slots_kept -= 1
            self._slot_freed()

    # --- time -------------------------------------------------------------------------------------------------------

    def _scan(self, now: float) -> list[Decision]:
        """Heartbeats, lapsed leases, reports to send again and slots to free: whatever is due, and when the next is."""
        decisions: list[Decision] = []
        reporting = self.state in _REPORTING
        due = _NEVER
        for job in list(self._jobs.values()):
            if now >= job.lease_until:
                # Contract, "Obligations of a worker": no heartbeat was answered for a lease duration.
                job.lease_until = _NEVER
                decisions += self._lose_lease(job)
                if job.execution not in self._jobs:
                    continue
            if now >= job.heartbeat_at:
                heartbeat = self._heartbeat(job, now)
                if reporting:
                    decisions.append(heartbeat)
            due = min(due, job.heartbeat_at, job.lease_until)
        for kept in self._kept.values():
            if now >= kept.again_at:
                kept.again_at = now + REPORT_AGAIN
                if reporting:
                    decisions.append(Send(kept.frame, repeated=True))
            due = min(due, kept.again_at)
            if kept.slot_until != _NO_SLOT:
                if now >= kept.slot_until:
                    kept.slot_until = _NO_SLOT
                    self._slots_kept -= 1
                    self._slot_freed()
                else:
                    due = min(due, kept.slot_until)
        self._scan_at = due
        return decisions

    def _heartbeat(self, job: _Job, now: float) -> Send:
        job.heartbeat_at = now + job.cadence
        self._scan_at = min(self._scan_at, job.heartbeat_at)
        return Send(frames.Heartbeat(job_id=job.id, lease_token=job.token))

    def _check_reading(self, now: float) -> list[Decision]:
        # In sums, as the deadlines are: a difference may be rounded to just below what has passed.
        if now >= self.last_read + READ_DEADLINE:
            return self._drop(f"nothing was read for {READ_DEADLINE:g} s", now)
        if now >= self.last_read + PING_AFTER:
            self._read_check_at = self.last_read + READ_DEADLINE
            return [Ping()]
        self._read_check_at = self.last_read + PING_AFTER
        return []

    # --- the connection, drains and ends ----------------------------------------------------------------------------

    def _move(self, event: Event) -> None:
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise SessionError(f"{event} cannot happen while {self.state}") from None

    def _drop(self, reason: str, now: float) -> list[Decision]:
        return [DropConnection(reason), *self.connection_lost(reason, now)]

    def _lost(self, reason: str, now: float, delay: float) -> list[Decision]:
        self._move(Event.LOST)
        self._claim_answered()
        self._claim_pause = _NEVER
        self._hinted = False
        self._deltas.disconnected()
        self._connect_deadline = self._register_deadline = self._read_check_at = self._old_at = _NEVER
        self._registered_at, self._is_old = None, False
        self._drain_acknowledged = False
        # The server says again what it asked for, if that still stands (contract, "Obligations of a server").
        self._drain_asked = self._drain_is_ours
        self._retry_at = now + delay
        told = {"address": self.settings.address, "reason": reason, "retry_in": round(delay, 3)}
        note = Note("warning", "session.disconnected", told)
        return [note, *self._end_if_drained(now)]

    def _exchange_if_old(self, now: float) -> list[Decision]:
        """A connection that has served its time goes between two claims: the answer to one would be lost with it."""
        if self._claim_id is not None or self.state not in _REPORTING:
            return []
        reason = "the connection has served its time"
        return [DropConnection(reason), *self._lost(reason, now, 0.0)]

    def _conflict(self, message: str, now: float) -> list[Decision]:
        """Another session owns our identity: perhaps our own, of a process or a box that died ("Identity")."""
        limit = self.settings.identity_conflict
        if self._conflict_since is None:
            self._conflict_since = now
        if now - self._conflict_since >= limit:
            return self._end(
                f"worker_instance_id {self.settings.worker_instance_id!r} is in use by another live worker "
                f"({message}); it stayed so for {limit:g} s: give each worker an id of its own",
                now,
                refused=True,
            )
        decisions = self._drop("worker_instance_conflict", now)
        if self.state is State.WAITING:
            self._retry_at = min(self._retry_at, self._conflict_since + limit)
        return decisions

    def _begin_drain(self, now: float) -> list[Decision]:
        self._drain_asked = True
        self._claim_pause = _NEVER
        self._move(Event.DRAIN)
        returned = self._return_suspects(now)
        if self.state is not State.DRAINING:
            return returned
        return [Send(frames.Draining(message_id=self._message_id())), *returned, *self._announce_ready()]

    def _cut_off(self, now: float) -> list[Decision]:
        """The grace is as good as over: what still runs is stopped, and goes back like a lapsed lease, only sooner."""
        self._cut_off_at = _NEVER
        decisions = self._return_suspects(now)
        for job in list(self._jobs.values()):
            self._forget(job)
            self.counts["cut_off"] += 1
            decisions.append(CancelJob(job.execution, "shutdown"))
            outcome = Outcome(
                status="failed", error_type="WorkerShutdown", error_message="the worker stopped before the job ended"
            )
            frame = self._keep(job.id, job.token, outcome, now)
            decisions += [JournalReported(frame), *self._send_report(frame)]
        return decisions + self._end_if_drained(now)

    def _end_if_drained(self, now: float) -> list[Decision]:
        if not self._drain_is_ours or self._jobs or self._kept or self.state is State.ENDED:
            return []
        awaits_claim = self.state in _REPORTING and self._claim_id is not None and not self._drain_acknowledged
        if awaits_claim and now < self._drain_settles_at < _NEVER:
            return []
        return self._end(self._drain_reason, now)

    def _end(self, reason: str, now: float, *, refused: bool = False) -> list[Decision]:
        if self.state is State.ENDED:
            return []
        self._move(Event.END)
        self._ended_at = now
        self._claim_answered()
        self._retry_at = self._connect_deadline = self._register_deadline = self._claim_pause = self._read_check_at = (
            self._scan_at
        ) = _NEVER
        self._old_at, self._is_old = _NEVER, False
        self._cut_off_at = self._drain_settles_at = self._drain_ends_at = self._deltas.next_at = _NEVER
        self.solitude.patience_ends_at = _NEVER
        return [End(reason, refused)]

    def _message_id(self) -> str:
        self._ids += 1
        return f"{self._id_prefix}-{self._ids}"


def _as_frames(job_id: str, lease_token: str, deltas: Iterable[Sent]) -> list[Decision]:
    return [
        Send(frames.GenerationDelta(job_id=job_id, lease_token=lease_token, sequence=sent.sequence, delta=sent.delta))
        for sent in deltas
    ]


def _names(models: Iterable[frames.ModelCapability]) -> list[str]:
    return [f"{model.provider}/{model.model}" for model in models]
