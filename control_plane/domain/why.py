"""Why a job, or a run, waits: computed from what is there now, never stored. Pure decisions.

The reasons come in the order in which they would have to be removed: a job of a paused queue is not helped by another
worker. Where no worker is able to run the job, the nearest miss is the one whose terms fail it in the fewest ways; of
those that would take it, one that has died comes before one that leaves.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct

from control_plane.domain.model import TERMINAL_JOB, TERMINAL_RUN, Attempt, Job, Run, Selector, Session, Step
from control_plane.domain.selection import admits
from control_plane.domain.store import Turn
from control_plane.domain.times import MICROSECONDS, rfc3339

State = Literal["waiting", "claimable", "running", "ended"]
Code = Literal[
    "queue_paused", "no_worker", "no_eligible_worker", "workers_full", "limit_reached", "delayed_until", "retry_at"
]
RunCode = Literal["awaiting_turn", "sleeping_until", "awaiting_signal"]
"""What a run waits for beside a job."""

MOST_NAMES = 5
"""Workers, queues or actions that a sentence names."""

MOST_COMPARED = 200
"""Names that a misspelt one is compared with: of names that are alike each costs 0.2 ms."""


class Presence(Struct, frozen=True, kw_only=True):
    """One worker session of the project, and how many jobs it holds now. `is_stale`: nothing is heard of it."""

    session: Session
    busy: int
    is_stale: bool


class Limit(Struct, frozen=True, kw_only=True):
    """At most `most` jobs of `what` ("queue gpu", "action train") run at once, and `running` do now."""

    what: str
    most: int
    running: int


class Reason(Struct, frozen=True, kw_only=True):
    """One thing that keeps the job waiting. `until` (microseconds) where it ends by itself."""

    code: Code | RunCode
    message: str
    remedy: str
    until: int | None = None


class Miss(Struct, frozen=True, kw_only=True):
    """The worker that comes nearest to being able to run the job, and each way in which it is not."""

    worker_instance_id: str
    session_id: str
    differences: list[str]


class Explanation(Struct, frozen=True, kw_only=True):
    """`summary` is one sentence; `reasons` are empty unless the job, or the run, waits."""

    state: State
    summary: str
    reasons: list[Reason]
    nearest_miss: Miss | None = None


def explain(
    job: Job,
    presences: Sequence[Presence],
    *,
    is_paused: bool,
    limits: Sequence[Limit],
    now: int,
    last_attempt: Attempt | None = None,
) -> Explanation:
    """Why `job` is not running now. `limits` are those that count for it; `is_paused`: its queue is; `last_attempt`:
    the last of it that failed."""
    if job.status in TERMINAL_JOB:
        return Explanation(state="ended", summary=_end_of(job), reasons=[])
    if job.status == "claimed":
        return Explanation(state="running", summary=_holder_of(job), reasons=[])
    eligible = [presence for presence in presences if _is_eligible(presence, job)]
    reasons = [
        *_pause(job, is_paused=is_paused),
        *_workers(job, presences, eligible),
        *(_limit(limit) for limit in limits if limit.running >= limit.most),
        *_delay(job, last_attempt, now),
    ]
    if not reasons:
        summary = "nothing keeps it: a worker with a free slot takes it with its next claim"
        return Explanation(state="claimable", summary=summary, reasons=[])
    miss = None if eligible else _nearest_miss(job, presences)
    return Explanation(state="waiting", summary=reasons[0].message, reasons=reasons, nearest_miss=miss)


def explain_run(
    run: Run, step: Step | None, *, turn: Turn | None = None, job: Explanation | None = None, now: int
) -> Explanation:
    """What the run waits for. `step` is the one that it has reached and not ended; `job` says why that step's job, if
    it has one, is not done; `turn`: what its turn waits for."""
    if run.status in TERMINAL_RUN:
        error = f": {run.error_type}: {run.error_message}" if run.error_type else ""
        return Explanation(state="ended", summary=f"it has ended: {run.status}{error}", reasons=[])
    if run.status == "queued":
        return _waiting(_for_its_turn(turn))
    if step is None:
        return Explanation(state="running", summary="it goes on by itself", reasons=[])
    if job is not None:
        cleanup = "cleanup " if step.kind == "cleanup" else ""
        summary = f"{cleanup}step {step.step_key} waits for job {step.job_id}: {job.summary}"
        return Explanation(state=job.state, summary=summary, reasons=job.reasons, nearest_miss=job.nearest_miss)
    if step.kind == "wait_for_event":
        return _waiting(_for_a_signal(run, step))
    return _waiting(_for_a_time(run, step, now))


def _waiting(reason: Reason) -> Explanation:
    return Explanation(state="waiting", summary=reason.message, reasons=[reason])


def _for_its_turn(turn: Turn | None) -> Reason:
    if turn is None or (turn.holder_id is None and not turn.before):
        message = "it is about to be decided whether it is its turn"
        return Reason(code="awaiting_turn", message=message, remedy="wait a moment")
    before = f"{_counted(turn.before, 'run')} before it" if turn.before else ""
    if turn.holder_id is None:
        return Reason(code="awaiting_turn", message=f"it waits for its turn, {before}", remedy="wait")
    behind = f", and {before}" if before else ""
    message = f"its automation runs one at a time: run {turn.holder_id} goes on{behind}"
    return Reason(code="awaiting_turn", message=message, remedy=f"wait, or mobius runs cancel {turn.holder_id}")


def _for_a_signal(run: Run, step: Step) -> Reason:
    event = (step.parameters or {}).get("event_type")
    until = "" if run.wake_at is None else f", and fails without one at {rfc3339(run.wake_at)}"
    message = f"step {step.step_key} waits for a signal ({event}){until}"
    remedy = f"mobius runs signal {run.id} {step.step_key}"
    return Reason(code="awaiting_signal", message=message, remedy=remedy, until=run.wake_at)


def _for_a_time(run: Run, step: Step, now: int) -> Reason:
    due = run.wake_at if run.wake_at is not None else now
    seconds = max(0.0, (due - now) / MICROSECONDS)
    message = f"step {step.step_key} sleeps until {rfc3339(due)}"
    return Reason(code="sleeping_until", message=message, remedy=f"wait {seconds:.0f} s", until=due)


def _end_of(job: Job) -> str:
    error = f": {job.error_type}: {job.error_message}" if job.error_type else ""
    return f"it has ended: {job.status} after {_counted(job.claim_attempt, 'attempt')}{error}"


def _holder_of(job: Job) -> str:
    asked = "; it is asked to cancel it" if job.cancel_requested_at is not None else ""
    since = "" if job.claimed_at is None else f" since {rfc3339(job.claimed_at)}"
    lease = "" if job.lease_expires_at is None else f", under a lease until {rfc3339(job.lease_expires_at)}"
    return f"worker {job.worker_instance_id} has it (attempt {job.claim_attempt}){since}{lease}{asked}"


def _pause(job: Job, *, is_paused: bool) -> Iterator[Reason]:
    if is_paused:
        yield Reason(
            code="queue_paused", message=f"queue {job.queue} is paused", remedy=f"mobius queues resume {job.queue}"
        )


def _workers(job: Job, presences: Sequence[Presence], eligible: Sequence[Presence]) -> Iterator[Reason]:
    live = [presence for presence in presences if not presence.is_stale]
    if not live:
        stale = f"; {_counted(len(presences), 'worker')} stale" if presences else ""
        message = f"no worker of this project is connected{stale}"
        yield Reason(code="no_worker", message=message, remedy=f"start a worker for {_work_of(job)}")
    elif not eligible:
        message = _who_does_not(job, live) + _similar_action(job, presences)
        yield Reason(code="no_eligible_worker", message=message, remedy=_remedy(job, live))
    elif all(presence.busy >= presence.session.concurrency_limit for presence in eligible):
        slots = sum(presence.session.concurrency_limit for presence in eligible)
        names = _named([presence.session.worker_instance_id for presence in eligible])
        message = f"all {_counted(slots, 'slot')} of the workers that can run it are taken ({names})"
        yield Reason(code="workers_full", message=message, remedy="wait, add workers, or raise their concurrency")


def _who_does_not(job: Job, live: Sequence[Presence]) -> str:
    leaving = [presence.session.worker_instance_id for presence in live if admits(presence.session.selector, job)]
    if leaving:
        return f"every worker that takes {_work_of(job)} drains ({_named(leaving)})"
    none = "the only connected worker does not take" if len(live) == 1 else f"none of {len(live)} workers takes"
    return f"{none} {_work_of(job)}"


def _similar_action(job: Job, presences: Sequence[Presence]) -> str:
    """Nobody will ever run an action whose name is misspelt."""
    selectors = [presence.session.selector for presence in presences]
    known = {name for selector in selectors for name in selector.action_names}
    takes_any = any(not selector.action_names and not selector.models for selector in selectors)
    if job.action_name is None or job.action_name in known or takes_any:
        return ""
    similar = difflib.get_close_matches(job.action_name, sorted(known)[:MOST_COMPARED], n=1, cutoff=0.8)
    return f"; no worker knows this action: did you mean {similar[0]}?" if similar else ""


def _limit(limit: Limit) -> Reason:
    message = f"{limit.what} runs {_counted(limit.running, 'job')}, and {limit.most} is its limit"
    return Reason(code="limit_reached", message=message, remedy=f"wait, or raise the limit of {limit.what}")


def _delay(job: Job, last_attempt: Attempt | None, now: int) -> Iterator[Reason]:
    if job.available_at <= now:
        return
    due = rfc3339(job.available_at)
    seconds = (job.available_at - now) / MICROSECONDS
    if job.attempts_charged:
        left = job.max_attempts - job.attempts_charged
        failure = f" ({last_attempt.error_type}: {last_attempt.error_message})" if last_attempt is not None else ""
        message = f"attempt {job.claim_attempt} failed{failure}; the next of at most {left} more is at {due}"
        yield Reason(code="retry_at", message=message, remedy=f"wait {seconds:.0f} s", until=job.available_at)
    else:
        message = f"it is delayed until {due}"
        yield Reason(code="delayed_until", message=message, remedy=f"wait {seconds:.0f} s", until=job.available_at)


def _is_eligible(presence: Presence, job: Job) -> bool:
    return not presence.is_stale and not _is_leaving(presence.session) and admits(presence.session.selector, job)


def _is_leaving(session: Session) -> bool:
    return session.draining or session.drain_requested or session.ended_at is not None


def _nearest_miss(job: Job, presences: Sequence[Presence]) -> Miss | None:
    if not presences:
        return None
    nearest = min(presences, key=lambda presence: _distance(presence, job))
    session, differences = nearest.session, list(_differences(nearest, job))
    return Miss(worker_instance_id=session.worker_instance_id, session_id=session.id, differences=differences)


def _distance(presence: Presence, job: Job) -> tuple[int, bool, bool, int, bool, str]:
    """The smallest is nearest. What a worker takes is somebody's decision, as its drain is; that it is not heard of, or
    full, is neither. Of the dead, the one heard of last."""
    session = presence.session
    return (
        len(list(_mismatches(session.selector, job))),
        _is_leaving(session),
        presence.is_stale,
        -session.last_seen_at if presence.is_stale else 0,
        presence.busy >= session.concurrency_limit,
        session.worker_instance_id,
    )


def _differences(presence: Presence, job: Job) -> Iterator[str]:
    """Every way in which the session cannot run the job; none if it can."""
    session = presence.session
    if presence.is_stale:
        yield f"not heard of since {rfc3339(session.last_seen_at)}"
    if _is_leaving(session):
        yield "it drains"
    yield from _mismatches(session.selector, job)


def _mismatches(selector: Selector, job: Job) -> Iterator[str]:
    if selector.queues and job.queue not in selector.queues:
        yield f"claims from {_named(selector.queues)} and not from queue {job.queue}"
    if job.environment_id != selector.environment_id:
        has = f"environment {selector.environment_id}" if selector.environment_id else "no environment"
        wants = f"pinned to environment {job.environment_id}" if job.environment_id else "not pinned to one"
        yield f"it is in {has}, and the job is {wants}"
    if job.action_name is None:
        if (job.provider, job.model) not in selector.models:
            offered = _named([f"{provider}/{model}" for provider, model in selector.models]) or "no model"
            yield f"offers {offered} and not {job.provider}/{job.model}"
    elif selector.action_names:
        if job.action_name not in selector.action_names:
            yield f"offers {_named(selector.action_names)} and not action {job.action_name}"
    elif selector.models:
        yield "offers models alone, and no action"


def _remedy(job: Job, live: Sequence[Presence]) -> str:
    if all(_is_leaving(presence.session) for presence in live):
        return "all connected workers drain: start a new one"
    return f"start a worker that takes {_work_of(job)}, or change what an existing one takes"


def _work_of(job: Job) -> str:
    what = f"action {job.action_name}" if job.action_name is not None else f"model {job.provider}/{job.model}"
    where = f" in environment {job.environment_id}" if job.environment_id is not None else ""
    return f"{what} from queue {job.queue}{where}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
