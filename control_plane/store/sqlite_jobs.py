"""Commands on jobs and runs: each is one transaction of the writer, in the shape load, decide, apply."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import structlog

from control_plane.domain import jobs
from control_plane.domain.model import Job, Run
from control_plane.domain.runs import Engine, already_started
from control_plane.domain.store import ClaimOrder, HeartbeatOutcome, Lease, Reaped, ReportOutcome
from control_plane.domain.times import to_microseconds
from control_plane.keys import hash_secret, same_hash
from control_plane.store import rows, sqlite_queues
from control_plane.store.lanes import Lane
from control_plane.store.sqlite_enqueue import settle
from control_plane.store.sqlite_unit import Known, Unit
from control_plane.store.sqlite_writer import FAULTS, Writing

REPORTS_A_COMMAND = 8
"""So many count as one command in a transaction of the writer."""

_OUTCOMES = {verdict: ReportOutcome(verdict=verdict) for verdict in get_args(jobs.Verdict)}

_log = structlog.get_logger("control_plane.store")


def claim(known: Known, order: ClaimOrder) -> Callable[[Writing], list[Lease]]:
    """See Store.claim."""

    def command(writing: Writing) -> list[Lease]:
        unit = Unit(known, writing)
        engine = unit.engine(order.project_id)
        duration = known.terms.lease_duration
        leases: list[Lease] = []
        size = 0
        for before, text in _candidates(known, unit, writing, order):
            if before.id in order.excluded:
                continue
            size += jobs.frame_size(before, text)
            if leases and size > order.byte_limit:
                break
            token = order.lease_tokens[len(leases)]
            claimant = jobs.Claimant(
                session_id=order.session_id,
                worker_instance_id=order.worker_instance_id,
                token_hash=hash_secret(token),
            )
            after = jobs.claimed(before, claimant, duration, writing.now)
            if after is None:
                continue
            if after.run_id is None:
                unit.lease(after)
            else:
                engine.claimed(before, after)
            leases.append(Lease(job=after, spec=text, lease_token=token))
            if len(leases) == order.limit:
                break
        unit.apply(engine.changes)
        return leases

    return command


def _candidates(known: Known, unit: Unit, writing: Writing, order: ClaimOrder) -> Iterator[tuple[Job, str]]:
    """Jobs that the order may take, a few more than it can: see Unit.pending_jobs."""
    rules = known.rules.of(writing.execute, order.project_id)
    if rules is not None:
        settle(known, writing.connection)
        return unit.pending_jobs(sqlite_queues.candidates(known, writing, order, rules))
    lanes = known.lanes.admitted(writing.execute, order.project_id, order.selector)
    if known.new and not order.excluded and _only_new(known, writing, lanes):
        return unit.new_jobs(lanes)
    settle(known, writing.connection)
    return unit.pending_jobs(_waiting(known, writing, order, lanes))


def _only_new(known: Known, writing: Writing, lanes: Sequence[Lane]) -> bool:
    """Whether all that can be claimed now in these lanes is what this transaction has stored."""
    return all(known.lanes.quiet(lane.id, writing.now) for lane in lanes) and all(
        new.alike.job.available_at <= writing.now for new in known.new
    )


def _waiting(known: Known, writing: Writing, order: ClaimOrder, lanes: Sequence[Lane]) -> list[int]:
    """The seqs of available jobs in these lanes: those of the highest priority first, of one priority the oldest."""
    wanted = order.limit + len(order.excluded)
    candidates: list[int] = []
    heads: list[tuple[int, int]] = []
    priority = None
    for lane in lanes:
        if lane.priority != priority:
            candidates += [seq for _, seq in sorted(heads)]
            if len(candidates) >= wanted:
                return candidates[:wanted]
            priority, heads = lane.priority, []
        if known.lanes.quiet(lane.id, writing.now):
            continue
        ((text,),) = writing.execute(known.sql["lane_head"], (lane.id, writing.now, wanted))
        head = rows.places(text)
        heads += head
        if not head:
            ((following,),) = writing.execute(known.sql["lane_next"], (lane.id,))
            known.lanes.set_quiet(lane.id, following)
    candidates += [seq for _, seq in sorted(heads)]
    return candidates[:wanted]


def heartbeat(known: Known, project_id: str, job_id: str, lease_token: str) -> Callable[[Writing], HeartbeatOutcome]:
    """See Store.heartbeat."""
    token_hash = hash_secret(lease_token)

    def command(writing: Writing) -> HeartbeatOutcome:
        row = next(iter(writing.execute(known.sql["claimed_by_id"], (job_id, project_id))), None)
        if row is None or not same_hash(row[1], token_hash):
            return HeartbeatOutcome(lost=True)
        known.leased.pop(job_id, None)
        seq, stored_hash, cancel_requested_at, cancel_reason = row
        expires_at = writing.now + to_microseconds(known.terms.lease_duration)
        writing.execute(known.sql["extend_lease"], (expires_at, writing.now, seq, stored_hash))
        return HeartbeatOutcome(
            lost=False,
            cancel_requested=cancel_requested_at is not None,
            cancel_reason=cancel_reason,
            cancel_requested_at=cancel_requested_at,
        )

    return command


def reports(
    known: Known, project_id: str, read: Sequence[tuple[str, jobs.Reported]]
) -> Callable[[Writing], list[ReportOutcome]]:
    """See Store.reports; `read` are job ids with what is said of them."""

    def command(writing: Writing) -> list[ReportOutcome]:
        unit = Unit(known, writing)
        outcomes: list[ReportOutcome] = []
        for job_id, reported in read:
            outcome = _complete(known, unit, project_id, job_id, reported)
            if outcome is None:
                unit.flush()
                outcome = _report(known, unit, project_id, job_id, reported)
            outcomes.append(outcome)
        unit.flush()
        return outcomes

    return command


def _complete(known: Known, unit: Unit, project_id: str, job_id: str, reported: jobs.Reported) -> ReportOutcome | None:
    """The usual report: a job without a run that this process has leased is completed. None: it is another."""
    seq, job = known.leased.get(job_id, (0, None))
    if job is None or job.run_id is not None or job.project_id != project_id or not jobs.completes(job, reported):
        return None
    unit.complete(job, reported, seq)
    return _OUTCOMES["accepted"]


def _report(known: Known, unit: Unit, project_id: str, job_id: str, reported: jobs.Reported) -> ReportOutcome:
    job = unit.job(project_id, job_id)
    if job is None:
        return ReportOutcome(verdict="unknown")
    only_once = jobs.tells_of_loss(reported) and unit.only_once(job)
    outcome = jobs.reported(job, reported, known.terms.pending_deadline, unit.now, only_once=only_once)
    if outcome.after is not None:
        engine = unit.engine(project_id)
        engine.job_moved(job, outcome, unit.running(job))
        unit.apply(engine.changes)
    return _OUTCOMES[outcome.verdict]


def reap(known: Known, limit: int, *, leases_lapse_from: int) -> Callable[[Writing], Reaped]:
    """See Store.reap; before `leases_lapse_from` no lease lapses."""

    def command(writing: Writing) -> Reaped:
        now = writing.now
        timed_out = lapsed = renewed = 0
        for seq in _seqs(writing, known.sql["overrun_claims"], now, limit):
            timed_out += _isolated(known, writing, _time_out, "claimed_job", seq)
        if now >= leases_lapse_from:
            for seq in _seqs(writing, known.sql["lapsed_leases"], now, limit):
                lapsed += _isolated(known, writing, _lapse, "claimed_job", seq)
        for seq, execution_deadline_at in list(writing.execute(known.sql["lapsed_pending"], (now, limit))):
            if execution_deadline_at is not None and execution_deadline_at <= now:
                timed_out += _isolated(known, writing, _time_out, "pending_job", seq)
            else:
                renewed += _isolated(known, writing, _renew, "pending_job", seq)
        return Reaped(leases_lapsed=lapsed, executions_timed_out=timed_out, pending_renewed=renewed)

    return command


def _seqs(writing: Writing, statement: str, *bindings: Any) -> list[int]:
    return [row[0] for row in writing.execute(statement, bindings)]


def _isolated(
    known: Known, writing: Writing, decide: Callable[[Known, Unit, Job], Engine], statement: str, seq: int
) -> int:
    """Decide about one job in a savepoint of its own: one that cannot be decided must not hold up all the others."""
    unit = Unit(known, writing)
    job = unit.job_at(statement, seq)
    if job is None:
        return 0
    facts = len(writing.facts)
    writing.execute("SAVEPOINT job")
    try:
        unit.apply(decide(known, unit, job).changes)
    except FAULTS:
        raise
    except Exception:  # noqa: BLE001 - the last resort of one job
        _log.exception("a job could not be swept", job_id=job.id)
        writing.execute("ROLLBACK TO job")
        writing.execute("RELEASE job")
        del writing.facts[facts:]
        known.forget()
        return 0
    writing.execute("RELEASE job")
    return 1


def _time_out(known: Known, unit: Unit, job: Job) -> Engine:
    del known
    engine = unit.engine(job.project_id)
    engine.timed_out(job, unit.running(job))
    return engine


def _lapse(known: Known, unit: Unit, job: Job) -> Engine:
    engine = unit.engine(job.project_id)
    outcome = jobs.lapsed(job, known.terms.pending_deadline, unit.now, only_once=unit.only_once(job))
    engine.job_moved(job, outcome, unit.running(job))
    return engine


def _renew(known: Known, unit: Unit, job: Job) -> Engine:
    del known
    engine = unit.engine(job.project_id)
    engine.renewed(job)
    return engine


def start_run(
    known: Known,
    project_id: str,
    handle: str,
    inputs: dict[str, Any] | None,
    source: dict[str, Any] | None,
    external_id: str | None,
) -> Callable[[Writing], Run]:
    """See Store.start_run."""

    def command(writing: Writing) -> Run:
        unit = Unit(known, writing)
        engine = unit.engine(project_id)
        if external_id is not None:
            earlier = unit.run_of_external_id(unit.automation(project_id, handle).id, external_id)
            if earlier is not None:
                return already_started(earlier)
        run = engine.start(unit.published(handle), inputs, source=source, external_id=external_id)
        unit.apply(engine.changes)
        return run

    return command


def cancel_job(known: Known, project_id: str, job_id: str, reason: str | None) -> Callable[[Writing], Job]:
    """See Store.cancel_job."""

    def command(writing: Writing) -> Job:
        unit = Unit(known, writing)
        job = unit.known_job(project_id, job_id)
        engine = unit.engine(project_id)
        after = engine.cancel_job(job, unit.running(job), reason)
        unit.apply(engine.changes)
        return after

    return command


def retry_job(known: Known, project_id: str, job_id: str) -> Callable[[Writing], Job]:
    """See Store.retry_job."""

    def command(writing: Writing) -> Job:
        unit = Unit(known, writing)
        engine = unit.engine(project_id)
        after = engine.put_back(unit.known_job(project_id, job_id))
        unit.apply(engine.changes)
        return after

    return command


def cancel_run(known: Known, project_id: str, run_id: str, reason: str | None) -> Callable[[Writing], Run]:
    """See Store.cancel_run."""

    def command(writing: Writing) -> Run:
        unit = Unit(known, writing)
        engine = unit.engine(project_id)
        run = engine.cancel(unit.opened(unit.run_row(project_id, run_id)), reason)
        unit.apply(engine.changes)
        return run

    return command
