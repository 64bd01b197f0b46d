"""One decision's dealings with the tables: facts are loaded, and the changes that were decided are written.

A Unit lives within one command. It knows which integer keys belong to the ids that it has loaded or made.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import apsw
from msgspec.structs import replace

from control_plane.domain import automations, specs
from control_plane.domain.automations import check_startable
from control_plane.domain.changes import (
    AnyChange,
    AttemptFailed,
    CancelAnnounced,
    EventAppended,
    JobChanged,
    JobCreated,
    RunCreated,
    RunUpdated,
    StepAttempted,
    StepCreated,
    StepUpdated,
)
from control_plane.domain.enqueue import Alike
from control_plane.domain.jobs import Reported
from control_plane.domain.model import TERMINAL_JOB, TERMINAL_RUN, Automation, Job, JobStatus, Run
from control_plane.domain.queues import LimitScope
from control_plane.domain.recording import Open, Published, Running
from control_plane.domain.runs import Engine, queue_of
from control_plane.domain.store import JobEnded, LeaseTerms, RunChanged
from control_plane.domain.transitions import JOB, follow
from control_plane.errors import Conflict, FenceBrokenError, NotFound
from control_plane.keys import Identifiers
from control_plane.store import rows
from control_plane.store.announced import cancel_requested, claimable, claimable_row
from control_plane.store.lanes import KnownRules, Lane, Lanes
from control_plane.store.sqlite_waits import Waits
from control_plane.store.sqlite_writer import Writing

_MOST_PLANS = 512
_MOST_LEASED = 10_000


class NewJobs:
    """Jobs that are alike, stored by the transaction that runs, with keys that follow each other from `first` on.
    `taken`: so many of them, the first ones, were claimed before they were ever pending."""

    def __init__(self, alike: Alike, first: int, lane_id: int) -> None:
        self.alike = alike
        self.first = first
        self.lane_id = lane_id
        self.taken = 0

    def waiting(self) -> Iterator[tuple[int, Job, str]]:
        """Key, job without its spec, and that as JSON text, of each that is not taken."""
        alike = self.alike
        for place in range(self.taken, len(alike.ids)):
            external_id = alike.handed_in[place].external_id
            job = replace(alike.job, id=alike.ids[place], spec={}, external_id=external_id)
            yield self.first + place, job, alike.specs[place]


class Known:
    """What the writer keeps between transactions."""

    def __init__(self, statements: dict[str, str], terms: LeaseTerms) -> None:
        fields = rows.pending_job_fields(statements["job_body"], statements["pending_state"])
        pending_jobs = statements["pending_jobs"].replace("NULL /* pending_job_fields */", fields)
        self.sql = {**statements, "pending_jobs": pending_jobs}
        self.terms = terms
        self.identifiers = Identifiers()
        self.lanes = Lanes(statements)
        self.rules = KnownRules(statements)
        self.watched: set[str] = set()
        self.plans: dict[str, specs.Plan] = {}
        self.new: list[NewJobs] = []
        """Stored by this transaction, and to be written down as pending before anybody looks there."""
        self.leased: dict[str, tuple[int, Job]] = {}
        """Jobs by id, with their keys, as this process has leased them, for as long as nothing happens to them: most
        reports are the next thing that does, and then nothing need be read."""

    def forget(self) -> None:
        """Something was rolled back."""
        self.lanes.forget()
        self.rules.forget()
        self.new.clear()
        self.leased.clear()

    def keep_leased(self, seq: int, job: Job) -> None:
        """The job was leased just now."""
        if len(self.leased) >= _MOST_LEASED:
            del self.leased[next(iter(self.leased))]
        self.leased[job.id] = (seq, job)


class Unit(Waits):
    """Facts and changes of one command for one project."""

    def __init__(self, known: Known, writing: Writing) -> None:
        self.now = writing.now
        self._known = known
        self._sql = known.sql
        self._writing = writing
        self._execute = writing.execute
        self._job_keys: dict[str, tuple[int, int | None, int | None]] = {}
        self._run_seqs: dict[str, int] = {}
        self._run_projects: dict[str, str] = {}
        self._step_seqs: dict[str, int] = {}
        self._sequences: dict[int, int] = {}
        self._freed: dict[str, dict[LimitScope, int]] = {}
        """Slots under limits that got free, by project."""
        self._events: list[rows.Row] = []
        self._new: dict[str, NewJobs] = {}
        self._leased: list[tuple[int, Job]] = []
        self._finished: list[tuple[int, bytes, rows.Row]] = []
        self._project_id = ""

    def new_id(self, prefix: str) -> str:
        """A fresh identifier."""
        return self._known.identifiers.new(prefix, self.now)

    def engine(self, project_id: str) -> Engine:
        """A decision to be made with this unit's facts."""
        self._project_id = project_id
        return Engine(self, self.new_id, self.now, self._known.terms.pending_deadline)

    # --- facts

    def one(self, name: str, *bindings: Any) -> Any:
        """The first row of a named statement, or None."""
        return next(iter(self._execute(self._sql[name], bindings)), None)

    def job(self, project_id: str, job_id: str) -> Job | None:
        """The job, in whatever state, without its spec."""
        found = self.one("find_job", job_id, project_id)
        if found is None:
            return None
        for statement in ("claimed_job", "pending_job", "finished_job"):
            job = self.job_at(statement, found[0])
            if job is not None:
                return job
        raise FenceBrokenError(f"{job_id} has no state")

    def known_job(self, project_id: str, job_id: str) -> Job:
        """As `job`. Raises NotFound."""
        job = self.job(project_id, job_id)
        if job is None:
            raise NotFound(f"no job {job_id} in this project")
        return job

    def only_once(self, job: Job) -> bool:
        """Whether the job's action is recorded as one that must not be run twice."""
        row = self.one("only_once", job.project_id, job.action_name)
        return row is not None and bool(row[0])

    def job_at(self, statement: str, seq: int, spec: dict[str, Any] | None = None) -> Job | None:
        """The job of this seq, if it is in the state of the statement (pending_job, claimed_job, finished_job)."""
        row = self.one(statement, seq)
        if row is None:
            return None
        job = rows.job(row, spec if spec is not None else {})
        self._job_keys[job.id] = row[: rows.JOB_KEYS]
        if job.run_id is not None:
            self._run_seqs[job.run_id] = row[1]
            self._run_projects[job.run_id] = job.project_id
        return job

    def pending_jobs(self, seqs: Sequence[int]) -> Iterator[tuple[Job, str]]:
        """Those of them that are pending, in this order, each without its spec and with that as JSON text."""
        if not seqs:
            return
        ((text,),) = self._execute(self._known.sql["pending_jobs"], (apsw.carray(array("q", seqs)),))
        found = {pending.seq: pending for pending in rows.pending_jobs(text)}
        for seq in seqs:
            pending = found.get(seq)
            if pending is None:
                continue
            job: Job = pending.job
            if pending.reported_token_hash:
                job = replace(job, reported_token_hash=bytes.fromhex(pending.reported_token_hash))
            self._job_keys[job.id] = (seq, pending.run_seq, pending.step_seq)
            if job.run_id is not None and pending.run_seq is not None:
                self._run_seqs[job.run_id] = pending.run_seq
                self._run_projects[job.run_id] = job.project_id
            yield job, pending.spec if pending.spec is not None else self.one("spec_of_job", seq)[0]

    def new_jobs(self, lanes: Sequence[Lane]) -> Iterator[tuple[Job, str]]:
        """As `pending_jobs`, of those in these lanes (the highest priority first) that are not pending yet."""
        priorities = {lane.id: lane.priority for lane in lanes}
        admitted = [new for new in self._known.new if new.lane_id in priorities]
        for new in sorted(admitted, key=lambda new: (-priorities[new.lane_id], new.alike.job.available_at)):
            for seq, job, text in new.waiting():
                self._job_keys[job.id] = (seq, None, None)
                self._new[job.id] = new
                yield job, text

    def running(self, job: Job) -> Running | None:
        """The run and step that wait for the job."""
        _, run_seq, step_seq = self._job_keys[job.id]
        if run_seq is None:
            return None
        run = self._run(self.one("run_by_seq", run_seq))
        step = rows.step(self.one("step", run_seq, step_seq))
        if run.status in TERMINAL_RUN:
            return Running(run=run, step=step, plan=specs.Plan(steps=(), inputs={}))
        automation = rows.automation(self.one("automation_by_id", run.automation_id))
        return Running(run=run, step=step, plan=self._plan(run.version_id), queue=queue_of(automation.settings))

    def run(self, project_id: str, run_id: str) -> Run:
        """Raises NotFound."""
        return self._run(self.run_row(project_id, run_id))

    def run_of_external_id(self, automation_id: str, external_id: str) -> Run | None:
        """The run that was started with it, ended or not."""
        row = self.one("run_by_external_id", automation_id, external_id)
        return None if row is None else self._run(row)

    def run_row(self, project_id: str, run_id: str) -> rows.Row:
        """The columns of the run. Raises NotFound."""
        row: rows.Row | None = self.one("run_by_id", run_id, project_id)
        if row is None:
            raise NotFound(f"no run {run_id} in this project")
        return row

    def opened(self, row: rows.Row) -> Open:
        """The run of these columns, with what it waits for; also when its version is not valid here any more."""
        run = self._run(row)
        if run.status in TERMINAL_RUN:
            return Open(run=run, plan=self._plan_or_less(run.version_id))
        found = self.one("open_step", self._run_seqs[run.id])
        step = None if found is None else rows.step(found)
        job = self.job(run.project_id, step.job_id) if step is not None and step.job_id is not None else None
        automation = rows.automation(self.one("automation_by_id", run.automation_id))
        plan = self._plan_or_less(run.version_id)
        return Open(run=run, plan=plan, queue=queue_of(automation.settings), step=step, job=job)

    def automation(self, project_id: str, handle: str) -> Automation:
        """Raises NotFound."""
        row = self.one("automation_by_handle", project_id, handle)
        if row is None:
            raise NotFound(f"no automation {handle} in this project")
        return rows.automation(row)

    def published(self, handle: str) -> Published:
        """See domain.recording.Facts: what can be started now. Raises NotFound, Conflict."""
        automation = self.automation(self._project_id, handle)
        version = rows.version(self.one("version", automation.id, check_startable(automation)))
        return Published(automation=automation, version=version, plan=self._plan(version.id))

    def saved(self, run_id: str, step_key: str) -> Any:
        """See domain.recording.Facts: the result of a completed step."""
        row = self.one("step_result", self._run_seqs.get(run_id), step_key)
        return None if row is None else rows.from_json(row[0])

    def kept_bytes(self, run_id: str) -> int:
        """See domain.recording.Facts."""
        return int(self.one("kept_bytes", self._run_seqs.get(run_id))[0])

    def _run(self, row: rows.Row) -> Run:
        run = rows.run(row)
        self._run_seqs[run.id] = row[0]
        self._run_projects[run.id] = run.project_id
        return run

    def _plan(self, version_id: str) -> specs.Plan:
        plan = self._known.plans.get(version_id)
        if plan is None:
            version = rows.version(self.one("version_by_id", version_id))
            plan, errors = specs.read(version.spec)
            if plan is None:
                raise automations.not_valid_here(errors)
            if len(self._known.plans) >= _MOST_PLANS:
                self._known.plans.clear()
            self._known.plans[version_id] = plan
        return plan

    def _plan_or_less(self, version_id: str) -> specs.Plan:
        try:
            return self._plan(version_id)
        except Conflict:
            return specs.unreadable(rows.version(self.one("version_by_id", version_id)).spec)

    # --- changes

    def apply(self, changes: list[AnyChange]) -> None:
        """Write what was decided, in order."""
        touched: dict[str, int] = {}
        for change in changes:
            if isinstance(change, EventAppended):
                touched[change.run_id] = self._append(change)
            else:
                self._APPLY[type(change)](self, change)
        self.flush()
        for run_id, last_sequence in touched.items():
            project_id = self._run_projects[run_id]
            self._writing.facts.append(RunChanged(project_id=project_id, run_id=run_id, last_sequence=last_sequence))

    def _append(self, change: EventAppended) -> int:
        run_seq = self._run_seqs[change.run_id]
        last = self._sequences.get(run_seq)
        if last is None:
            last = self.one("last_sequence", run_seq)[0] or 0
        sequence = self._sequences[run_seq] = last + 1
        event = (run_seq, sequence, self.new_id("evt"), change.event_type, self.now, change.step_id, change.step_key)
        self._events.append((*event, rows.to_json(change.payload)))
        return sequence

    def _create_run(self, change: RunCreated) -> None:
        self._execute(self._sql["insert_run"], rows.run_row(change.run))
        self._run_seqs[change.run.id] = self._writing.connection.last_insert_rowid()
        self._run_projects[change.run.id] = change.run.project_id
        self._sequences[self._run_seqs[change.run.id]] = 0
        self._execute(self._sql["automation_ran"], (self.now, change.run.automation_id))

    def _update_run(self, change: RunUpdated) -> None:
        run = change.run
        bindings = (run.status, run.updated_at, run.completed_at, run.error_type, run.error_message)
        self._execute(self._sql["update_run"], (*bindings, self._run_seqs[run.id]))

    def _create_step(self, change: StepCreated) -> None:
        step = change.step
        self._step_seqs[step.id] = step.seq
        self._execute(self._sql["insert_step"], (self._run_seqs[step.run_id], step.seq, *rows.step_row(step)))

    def _update_step(self, change: StepUpdated) -> None:
        step = change.step
        bindings = (step.status, step.updated_at, step.completed_at, step.error_type, step.error_message)
        key = (self._run_seqs[step.run_id], step.seq)
        self._execute(self._sql["update_step"], (*bindings, rows.to_json(step.result), *key))

    def _attempt_step(self, change: StepAttempted) -> None:
        _, run_seq, step_seq = self._job_keys[change.job.id]
        self._execute(self._sql["step_attempted"], (change.job.claim_attempt, self.now, run_seq, step_seq))

    def _create_job(self, change: JobCreated) -> None:
        job = change.job
        lane_id = self._known.lanes.lane_of(self._execute, job.project_id, job)
        run_seq = step_seq = None
        if job.run_id is not None:
            run_seq = self._run_seqs[job.run_id]
            step_seq = self._step_seqs[job.step_id or ""]
        self._execute(self._sql["insert_job"], body_row(job, lane_id, run_seq, step_seq))
        seq = self._writing.connection.last_insert_rowid()
        self._job_keys[job.id] = (seq, run_seq, step_seq)
        self._enter_pending(job)

    def _change_job(self, change: JobChanged) -> None:
        before, after = change.before, change.after
        seq = self._job_keys[before.id][0]
        if after.status == before.status:
            self._rewrite(before, after, seq)
            return
        if before.status == "pending" and after.status == "claimed":
            self.lease(after)
        elif before.status == "claimed" and after.status in TERMINAL_JOB:
            self.finish(before, after, seq)
        else:
            if before.status == "pending":
                self._fenced("leave_pending", seq)
            elif before.status in TERMINAL_JOB:
                self._fenced("leave_finished", seq)
            else:
                self._left_claimed(before)
                self._fenced("leave_claimed", seq, before.lease_token_hash)
            if after.status == "pending":
                self._enter_pending(after)
            else:
                self._execute(self._sql["insert_finished"], _finished_row(after, seq))
                self._saw_finished(after, seq)

    def lease(self, after: Job) -> None:
        """A pending job is claimed, or a new one; written by `flush`."""
        self._leased.append((self._job_keys[after.id][0], after))

    def finish(self, before: Job, after: Job, seq: int) -> None:
        """A claimed job ends; written by `flush`."""
        if after.status not in TERMINAL_JOB or before.lease_token_hash is None:
            raise FenceBrokenError(f"{after.id} is not terminal")
        self._left_claimed(before)
        self._finished.append((seq, before.lease_token_hash, _finished_row(after, seq)))
        self._saw_finished(after, seq)

    def complete(self, job: Job, report: Reported, seq: int) -> None:
        """As `finish`, of a job without a run that the report completes."""
        if job.lease_token_hash is None:
            raise FenceBrokenError(f"{job.id} is not claimed")
        self._left_claimed(job)
        status = follow(JOB, job.status, "completed")
        row = _ended_row(job, seq, status, report.token_hash, self.now, (None, None, rows.to_json(report.result)))
        self._finished.append((seq, job.lease_token_hash, row))
        self._saw_finished(job, seq)

    def flush(self) -> None:
        """Write what is written for many at once."""
        if self._leased:
            leased, self._leased = self._leased, []
            if pending := [seq for seq, job in leased if job.id not in self._new]:
                self._move("leave_all_pending", pending)
            self._writing.insert(self._sql["insert_claimed"], [_claimed_row(job, seq) for seq, job in leased])
            for seq, job in leased:
                self._known.keep_leased(seq, job)
                if job.id in self._new:
                    self._take(self._new[job.id], seq)
        if self._finished:
            finished, self._finished = self._finished, []
            # A token is one claim's alone: a row whose seq and token are both among these is the pair that was meant.
            tokens = apsw.carray(tuple([token for _, token, _ in finished]))
            self._move("leave_all_claimed", [seq for seq, _, _ in finished], tokens)
            self._writing.insert(self._sql["insert_finished"], [row for _, _, row in finished])
        if self._freed:
            freed, self._freed = self._freed, {}
            for project_id, scopes in freed.items():
                self.announce_lanes(project_id, scopes)
        if self._events:
            events, self._events = self._events, []
            self._writing.insert(self._sql["insert_event"], events)

    def _take(self, new: NewJobs, seq: int) -> None:
        if seq != new.first + new.taken:
            raise FenceBrokenError("a new job was claimed before its turn")
        new.taken += 1
        if new.taken == len(new.alike.ids):
            self._known.new.remove(new)

    def _move(self, statement: str, seqs: list[int], *bindings: Any) -> None:
        self._execute(self._sql[statement], (apsw.carray(array("q", seqs)), *bindings))
        if self._writing.connection.changes() != len(seqs):
            raise FenceBrokenError(f"{statement} found other rows")

    def _forget_lease(self, job: Job) -> None:
        self._known.leased.pop(job.id, None)

    def _left_claimed(self, job: Job) -> None:
        """Where its queue or action has a limit, another job may run."""
        self._forget_lease(job)
        rules = self._known.rules.of(self._execute, job.project_id)
        if rules is not None:
            for scope in rules.scopes(job):
                freed = self._freed.setdefault(job.project_id, {})
                freed[scope] = freed.get(scope, 0) + 1

    def announce_lanes(self, project_id: str, scopes: Mapping[LimitScope, int]) -> None:
        """Say of so many jobs of each scope, in each lane, that they can be claimed."""
        for lane in self._known.lanes.of_project(self._execute, project_id):
            most = max(scopes.get(("queue", lane.queue), 0), scopes.get(("action", lane.action_name or ""), 0))
            if most:
                heads = list(self._execute(self._sql["heads_of_lanes"], (lane.id, self.now, most)))
                self._writing.facts += [
                    claimable_row((available_at, *self.one("claimable_job", seq))) for seq, available_at in heads
                ]

    def _saw_finished(self, job: Job, seq: int) -> None:
        if job.id in self._known.watched:
            self._writing.facts.append(JobEnded(job_id=job.id))
        if job.session_id is not None:
            self._writing.seen_jobs[job.session_id] = seq

    def _keep_attempt(self, change: AttemptFailed) -> None:
        key = self._job_keys[change.job.id][0]
        self._execute(self._sql["insert_attempt"], (key, *rows.attempt_row(change.attempt)))

    def _rewrite(self, before: Job, after: Job, seq: int) -> None:
        if after.status == "claimed":
            self._forget_lease(before)
            bindings = (after.cancel_requested_at, after.cancel_reason, after.updated_at)
            self._fenced("request_cancel", *bindings, seq, before.lease_token_hash)
            return
        deadlines = (after.pending_deadline_at, rows.deadline_at(after))
        self._fenced("update_pending", *deadlines, after.reported_token_hash, after.updated_at, seq)
        if after.pending_deadline_at != before.pending_deadline_at:
            self._announce(after)

    def _enter_pending(self, job: Job) -> None:
        lane_id = self._known.lanes.lane_of(self._execute, job.project_id, job)
        self._execute(self._sql["insert_pending"], pending_row(job, self._job_keys[job.id][0], lane_id))
        self._known.lanes.job_came(lane_id, job.available_at)
        self._announce(job)

    def _fenced(self, statement: str, *bindings: Any) -> None:
        self._execute(self._sql[statement], bindings)
        if self._writing.connection.changes() != 1:
            raise FenceBrokenError(f"{statement} found no row")

    def _announce(self, job: Job) -> None:
        self._writing.facts.append(claimable(job))

    def _announce_cancel(self, change: CancelAnnounced) -> None:
        self._writing.facts.append(cancel_requested(change))

    _APPLY: ClassVar[dict[type, Any]] = {
        RunCreated: _create_run,
        RunUpdated: _update_run,
        StepCreated: _create_step,
        StepUpdated: _update_step,
        StepAttempted: _attempt_step,
        JobCreated: _create_job,
        JobChanged: _change_job,
        AttemptFailed: _keep_attempt,
        CancelAnnounced: _announce_cancel,
        **Waits.APPLY,
    }


def body_row(job: Job, lane_id: int, run_seq: int | None, step_seq: int | None) -> rows.Row:
    """For insert_job."""
    return (
        job.id, job.project_id, lane_id, job.kind, job.origin, job.queue, job.action_name, job.provider, job.model,
        job.environment_id, run_seq, step_seq, job.run_id, job.step_id, job.step_key, job.max_attempts,
        job.retry_delay, rows.to_json(job.non_retryable), job.execution_timeout, job.priority, job.retry_backoff,
        job.retry_max_delay, job.external_id, job.created_at, rows.to_json(job.spec),
    )  # fmt: skip


def pending_row(job: Job, seq: int, lane_id: int) -> rows.Row:
    """For insert_pending."""
    return (
        seq, lane_id, job.available_at, job.pending_deadline_at, rows.deadline_at(job), job.execution_deadline_at,
        job.claim_attempt, job.attempts_charged, job.hand_backs, job.lease_token_hash, job.reported_token_hash,
        job.session_id, job.worker_instance_id, job.claimed_at, job.updated_at,
    )  # fmt: skip


def _claimed_row(job: Job, seq: int) -> rows.Row:
    """For insert_claimed."""
    return (
        seq, job.available_at, job.execution_deadline_at, job.claim_attempt, job.attempts_charged, job.hand_backs,
        job.lease_token_hash, job.reported_token_hash, job.lease_expires_at, job.session_id, job.worker_instance_id,
        job.claimed_at, job.heartbeat_at, job.cancel_requested_at, job.cancel_reason, job.updated_at,
    )  # fmt: skip


def _finished_row(job: Job, seq: int) -> rows.Row:
    """For insert_finished."""
    said = (job.error_type, job.error_message, rows.to_json(job.result))
    return _ended_row(job, seq, job.status, job.reported_token_hash, job.completed_at, said)


def _ended_row(
    job: Job, seq: int, status: JobStatus, reported: bytes | None, ended_at: int | None, said: rows.Row
) -> rows.Row:
    return (
        seq, status, job.available_at, job.execution_deadline_at, job.claim_attempt, job.attempts_charged,
        job.hand_backs, job.lease_token_hash, reported, job.session_id, job.worker_instance_id, job.claimed_at,
        job.heartbeat_at, job.cancel_requested_at, job.cancel_reason, ended_at, *said,
    )  # fmt: skip
