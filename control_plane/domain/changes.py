"""What a decision asks the store to write, in order and in one transaction. Every store applies the same changes."""

from typing import Any

from msgspec import Struct, field

from control_plane.domain.enqueue import Alike
from control_plane.domain.model import Attempt, Job, Run, Step, Timer, TimerKind


class Change(Struct, frozen=True, kw_only=True):
    """Base of every change."""


class RunCreated(Change, frozen=True):
    """A new run, as it stands when the transaction ends."""

    run: Run


class RunUpdated(Change, frozen=True):
    """Status, error and times of a run are now these."""

    run: Run


class StepCreated(Change, frozen=True):
    """A new step, as it stands when the transaction ends."""

    step: Step


class StepUpdated(Change, frozen=True):
    """Status, attempt, result, error and times of a step are now these."""

    step: Step


class StepAttempted(Change, frozen=True):
    """The attempt of the job's step is the job's claim_attempt now."""

    job: Job


class JobCreated(Change, frozen=True):
    """A new pending job."""

    job: Job


class JobsCreated(Change, frozen=True):
    """New pending jobs of no run that are alike."""

    alike: Alike


class JobChanged(Change, frozen=True):
    """The job moves from `before` to `after`, fenced by the status and lease token of `before`."""

    before: Job
    after: Job


class AttemptFailed(Change, frozen=True):
    """What an attempt of the job died of is kept."""

    job: Job
    attempt: Attempt


class CancelAnnounced(Change, frozen=True):
    """The session that holds (or held) the job is told to cancel it."""

    job: Job
    session_id: str
    reason: str | None
    requested_at: int


class EventAppended(Change, frozen=True):
    """The next event of the run's stream; the store gives it its sequence."""

    run_id: str
    event_type: str
    payload: dict[str, Any] = field(default_factory=dict)
    step_id: str | None = None
    step_key: str | None = None


class RunBegun(Change, frozen=True):
    """A run that was queued has started; status, error and all times are now these."""

    run: Run


class TimerSet(Change, frozen=True):
    """The run's timer of this kind is now this one."""

    timer: Timer


class TimerCleared(Change, frozen=True):
    """The run has no timer of this kind, if it had one."""

    run_id: str
    kind: TimerKind


class SignalKept(Change, frozen=True):
    """A signal waits for the step that it is for."""

    run_id: str
    step_key: str
    result: dict[str, Any]


class SignalTaken(Change, frozen=True):
    """The signal that was kept for the step has come to it."""

    run_id: str
    step_key: str


class TurnAwaited(Change, frozen=True):
    """The run stands in its automation's line."""

    run_id: str
    automation_id: str


class TurnTaken(Change, frozen=True):
    """The run is the one of its automation that goes on."""

    run_id: str
    automation_id: str


class TurnLeft(Change, frozen=True):
    """The run has neither its automation's turn nor a place in the line."""

    run_id: str


AnyChange = (
    RunCreated
    | RunUpdated
    | StepCreated
    | StepUpdated
    | StepAttempted
    | JobCreated
    | JobsCreated
    | JobChanged
    | AttemptFailed
    | CancelAnnounced
    | EventAppended
    | RunBegun
    | TimerSet
    | TimerCleared
    | SignalKept
    | SignalTaken
    | TurnAwaited
    | TurnTaken
    | TurnLeft
)
