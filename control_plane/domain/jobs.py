"""What becomes of one job: claims, heartbeats, reports, lapsed leases, deadlines, cancellation. Pure decisions.

Every function takes the job as it is stored and gives the job as it shall be; the store moves the row, fenced by the
status and lease token that the decision was made on. Times are the store's microseconds. What a job's end means for its
step and run is decided in runs.py.
"""

from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from control_plane.domain import retries
from control_plane.domain.model import TERMINAL_JOB, Attempt, Job
from control_plane.domain.store import JobReport
from control_plane.domain.times import to_microseconds
from control_plane.domain.transitions import JOB, JobEvent, follow
from control_plane.errors import Conflict
from control_plane.keys import hash_secret, same_hash
from wire.verdicts import WORKER_SHUTDOWN

MAX_ERROR_TYPE = 256
MAX_ERROR_MESSAGE = 16_384
"""Characters; the rest of a longer one is cut off."""

FRAME_OVERHEAD = 1024
"""Bytes that a claimed job takes in its frame beside its spec and its names."""

Verdict = Literal["accepted", "duplicate", "superseded", "handed_back"]


class Outcome(Struct, frozen=True, kw_only=True):
    """`after` None: nothing changes. `event` is what happened to the job, None when only its bookkeeping changed."""

    verdict: Verdict
    after: Job | None = None
    event: JobEvent | None = None


class Claimant(Struct, frozen=True, kw_only=True):
    """Who claims."""

    session_id: str
    worker_instance_id: str
    token_hash: bytes


class Reported(Struct, frozen=True, kw_only=True):
    """A report, without its frame. `status` is completed, failed or cancelled."""

    token_hash: bytes
    status: str
    result: dict[str, Any] | None = None
    error_type: str | None = None
    error_message: str | None = None


def read_report(report: JobReport) -> Reported:
    """What counts of it."""
    return Reported(
        token_hash=hash_secret(report.lease_token),
        status=report.status,
        result=report.result,
        error_type=report.error_type,
        error_message=report.error_message,
    )


def frame_size(job: Job, spec_text: str) -> int:
    """Bytes that the job takes in the frame of a claim at the most: JSON may write a character as six bytes."""
    names = len(job.queue) + len(job.action_name or "") + len(job.environment_id or "")
    return FRAME_OVERHEAD + (len(spec_text) if spec_text.isascii() else len(spec_text.encode())) + 6 * names


def claimed(job: Job, claimant: Claimant, lease_duration: float, now: int) -> Job | None:
    """The job in the claimant's hands; None when its execution deadline has passed."""
    deadline = job.execution_deadline_at
    if deadline is not None and deadline <= now:
        return None
    return replace(
        job,
        status=follow(JOB, job.status, "claimed"),
        claim_attempt=job.claim_attempt + 1,
        execution_deadline_at=deadline if deadline is not None else now + to_microseconds(job.execution_timeout),
        pending_deadline_at=None,
        lease_token_hash=claimant.token_hash,
        lease_expires_at=now + to_microseconds(lease_duration),
        session_id=claimant.session_id,
        worker_instance_id=claimant.worker_instance_id,
        claimed_at=now,
        heartbeat_at=None,
        updated_at=now,
    )


def tells_of_loss(report: Reported) -> bool:
    """Whether the worker was lost, or stops by itself: then it counts for the outcome what is recorded of the job's
    action."""
    return report.status == "cancelled" or (report.status == "failed" and retries.may_have_run(report.error_type or ""))


def holds(job: Job, token_hash: bytes) -> bool:
    """Whether this lease is the job's."""
    return job.status == "claimed" and same_hash(job.lease_token_hash, token_hash)


def completes(job: Job, report: Reported) -> bool:
    """Whether `reported` would give the job completed with the report's result, and leave everything else as it is:
    what nearly every report does."""
    return (
        report.status == "completed"
        and holds(job, report.token_hash)
        and not same_hash(job.reported_token_hash, report.token_hash)
    )


def reported(job: Job, report: Reported, pending_deadline: float, now: int, *, only_once: bool = False) -> Outcome:
    """A worker's report (contract, "Words on the wire"). `only_once`: see retries.after_failure."""
    if same_hash(job.reported_token_hash, report.token_hash):
        return Outcome(verdict="duplicate")
    if job.status in TERMINAL_JOB or not same_hash(job.lease_token_hash, report.token_hash):
        return Outcome(verdict="superseded")
    if report.status == "completed":
        return _ended(job, "completed", now, result=report.result, reported_token_hash=report.token_hash)
    job = replace(job, reported_token_hash=report.token_hash)
    error_message = _kept(report.error_message, MAX_ERROR_MESSAGE)
    error_type = _kept(report.error_type, MAX_ERROR_TYPE)
    if report.status == "cancelled":
        if job.cancel_requested_at is not None:
            return _ended(job, "cancelled", now, error_type=error_type, error_message=error_message)
        # Unasked: a public client that stops. The claim was started, so that the attempt keeps its number.
        if only_once:
            message = error_message or f"worker {job.worker_instance_id} stopped in the middle of it"
            return _failed_attempt(job, WORKER_SHUTDOWN, message, pending_deadline, now, only_once=True)
        return _put_back(job, pending_deadline, now, started=True)
    return _failed_attempt(job, error_type or "Error", error_message or "", pending_deadline, now, only_once=only_once)


def untakable(report: Reported) -> Reported:
    """What is taken instead of a report that our own code cannot take: its job ends."""
    return replace(
        report,
        status="failed",
        result=None,
        error_type="NonRetryableError",
        error_message="the control plane could not take the report: see its log",
    )


def lapsed(job: Job, pending_deadline: float, now: int, *, only_once: bool = False) -> Outcome:
    """The lease of a claimed job is over and nobody extended it. `only_once`: see retries.after_failure."""
    if job.cancel_requested_at is not None:
        return _ended(job, "cancelled", now, error_message=job.cancel_reason)
    message = f"the lease lapsed: worker {job.worker_instance_id} was not heard of in time"
    return _failed_attempt(job, retries.LEASE_LAPSED, message, pending_deadline, now, only_once=only_once)


def timed_out(job: Job, now: int) -> Outcome:
    """The execution deadline has passed, in a worker's hands or between two attempts."""
    return _ended(
        job,
        "failed",
        now,
        error_type=retries.EXECUTION_DEADLINE_EXCEEDED,
        error_message=f"not finished within {job.execution_timeout:g} s of its first claim",
    )


def renewed(job: Job, pending_deadline: float, now: int) -> Job:
    """Nobody claimed the job for so long that it goes back to the queue: it never fails by waiting."""
    return replace(
        job,
        status=follow(JOB, job.status, "renewed"),
        pending_deadline_at=now + to_microseconds(pending_deadline),
        updated_at=now,
    )


def cancelled(job: Job, reason: str | None, now: int) -> Outcome:
    """The run does not want the job any more: a pending one ends, the holder of a claimed one is asked to stop."""
    if job.status in TERMINAL_JOB or job.cancel_requested_at is not None:
        return Outcome(verdict="accepted")
    if job.status == "pending":
        return _ended(job, "cancelled", now, error_message=reason)
    asked = replace(
        job,
        status=follow(JOB, job.status, "cancel_requested"),
        cancel_requested_at=now,
        cancel_reason=reason,
        updated_at=now,
    )
    return Outcome(verdict="accepted", after=asked, event="cancel_requested")


def put_back(job: Job, pending_deadline: float, now: int) -> Job:
    """A failed job gets all its attempts and all its time anew. Raises Conflict("job_not_failed", "job_of_a_run")."""
    if job.run_id is not None:
        sentence = f"{job.id} belongs to run {job.run_id}, whose outcome stands: start its automation again instead"
        raise Conflict("job_of_a_run", sentence, {"run_id": job.run_id, "status": job.status})
    if job.status != "failed":
        sentence = f"{job.id} is {job.status}: only a job that failed can be put back"
        raise Conflict("job_not_failed", sentence, {"status": job.status})
    job = replace(job, attempts_charged=0, execution_deadline_at=None, cancel_requested_at=None, cancel_reason=None)
    job = _queued(job, "put_back", 0.0, pending_deadline, now)
    return replace(job, result=None, error_type=None, error_message=None, completed_at=None)


def failed_attempt(before: Job, outcome: Outcome, now: int) -> Attempt | None:
    """What is kept of the attempt that the outcome ended; None when none failed: a job that is not claimed is between
    two attempts, and what the last one died of is kept already."""
    after = outcome.after
    if after is None or before.status != "claimed" or outcome.event not in ("retried", "failed"):
        return None
    return Attempt(
        attempt=before.claim_attempt,
        error_type=after.error_type or "Error",
        error_message=after.error_message or "",
        started_at=before.claimed_at if before.claimed_at is not None else now,
        ended_at=now,
        session_id=before.session_id,
        worker_instance_id=before.worker_instance_id,
    )


def _kept(text: str | None, limit: int) -> str | None:
    """What is kept of a worker's words: not every database can store a NUL."""
    return None if text is None else text[:limit].replace("\0", "\ufffd")


def _failed_attempt(
    job: Job, error_type: str, message: str, pending_deadline: float, now: int, *, only_once: bool
) -> Outcome:
    # The lapse of this very lease has charged the attempt and queued the next one.
    late = job.status == "pending"
    following = retries.after_failure(job, error_type, already_charged=late, only_once=only_once)
    if late and following != "fail":
        return Outcome(verdict="accepted", after=job)
    if following == "hand_back":
        return _put_back(job, pending_deadline, now, started=False)
    if not late:
        job = replace(job, attempts_charged=job.attempts_charged + 1)
    if following == "withhold":
        message = f"{message}; action {job.action_name} is recorded as not idempotent, so it was not run again"
        return _ended(job, "failed", now, error_type=error_type, error_message=message)
    if following == "fail":
        return _ended(job, "failed", now, error_type=error_type, error_message=message)
    delay = retries.delay_before_next(job) if following == "retry" else 0.0
    after = _queued(job, "retried", delay, pending_deadline, now)
    if error_type == retries.LEASE_LAPSED:
        # A late report of this lease is accepted as long as nobody has claimed the job anew.
        after = replace(after, lease_token_hash=job.lease_token_hash)
    return Outcome(
        verdict="accepted", after=replace(after, error_type=error_type, error_message=message), event="retried"
    )


def _put_back(job: Job, pending_deadline: float, now: int, *, started: bool) -> Outcome:
    if job.status == "pending":
        return Outcome(verdict="accepted", after=job)
    if job.cancel_requested_at is not None:
        return _ended(job, "cancelled", now, error_message=job.cancel_reason)
    after = _queued(job, "handed_back", 0.0, pending_deadline, now)
    after = replace(
        after,
        hand_backs=job.hand_backs + 1,
        claim_attempt=job.claim_attempt if started else job.claim_attempt - 1,
    )
    return Outcome(verdict="handed_back", after=after, event="handed_back")


def _queued(job: Job, event: JobEvent, delay: float, pending_deadline: float, now: int) -> Job:
    available_at = now + to_microseconds(delay)
    return replace(
        job,
        status=follow(JOB, job.status, event),
        available_at=available_at,
        pending_deadline_at=available_at + to_microseconds(pending_deadline),
        lease_token_hash=None,
        lease_expires_at=None,
        updated_at=now,
    )


def _ended(
    job: Job,
    event: Literal["completed", "failed", "cancelled"],
    now: int,
    *,
    result: dict[str, Any] | None = None,
    error_type: str | None = None,
    error_message: str | None = None,
    reported_token_hash: bytes | None = None,
) -> Outcome:
    after = replace(
        job,
        status=follow(JOB, job.status, event),
        reported_token_hash=reported_token_hash or job.reported_token_hash,
        result=result,
        error_type=error_type,
        error_message=error_message,
        completed_at=now,
        updated_at=now,
    )
    return Outcome(verdict="accepted", after=after, event=event)
