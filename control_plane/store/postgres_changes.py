"""What many decisions changed, as one statement with one JSON document for each of its parts, or arrays for one.

The statement is joined from the blocks of sql/postgresql/changes.sql that have rows; which ones these are varies
little, so that PostgreSQL soon has all of them prepared.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from control_plane.domain.changes import (
    AnyChange,
    AttemptFailed,
    CancelAnnounced,
    EventAppended,
    JobChanged,
    JobCreated,
    JobsCreated,
    RunCreated,
    RunUpdated,
    StepAttempted,
    StepCreated,
    StepUpdated,
)
from control_plane.domain.enqueue import Alike, each_job
from control_plane.domain.model import TERMINAL_JOB, Job, Run, Step
from control_plane.domain.store import Committed, JobClaimable, JobEnded, RunChanged
from control_plane.errors import FenceBrokenError
from control_plane.store import postgres_waits, rows
from control_plane.store.announced import cancel_requested, claimable
from control_plane.store.postgres_connections import FAULTS, Connection
from control_plane.store.postgres_facts import Facts

_encoder = msgspec.json.Encoder()

PARTS = (
    "insert_runs", "update_runs", "insert_steps", "update_steps", "attempt_steps", "insert_jobs", "insert_new",
    "find_handed_in", "insert_handed_in", "insert_waiting", "leave_pending", "find_leased", "leave_leased",
    "insert_leased", "leave_claimed", "leave_finished", "insert_pending", "insert_claimed", "insert_finished",
    "update_pending", "request_cancel", "insert_attempts", "insert_events", *postgres_waits.PARTS,
)  # fmt: skip

BESIDE = {
    "leave_leased": "find_leased",
    "insert_leased": "find_leased",
    "insert_handed_in": "find_handed_in",
    "insert_waiting": "find_handed_in",
}
"""Parts that take their rows from another part of the same statement."""

UNCOUNTED = postgres_waits.UNCOUNTED | {
    "find_handed_in", "insert_runs", "insert_steps", "insert_jobs", "insert_new", "insert_handed_in", "insert_waiting",
    "insert_pending", "insert_claimed", "insert_finished", "insert_attempts", "insert_events",
}  # fmt: skip
"""Parts that find what they need whatever others do: their rows come with the statement, and a key that is taken is an
error of its own."""

_PARAMETER = re.compile(r"\$(\d+)")

# What holds a lock on a row of these takes it in the order of their keys.
_IN_ORDER = postgres_waits.IN_ORDER | {
    "leave_pending", "leave_claimed", "leave_finished", "update_pending", "request_cancel", "update_runs",
}  # fmt: skip


async def commit(connection: Connection) -> None:
    """Raises FenceBrokenError when PostgreSQL has undone the transaction instead, which it answers without an error."""
    status = await connection.execute("COMMIT")
    if status != "COMMIT":
        raise FenceBrokenError(f"COMMIT was answered with {status}")


class Statements:
    """The statement that writes a given set of parts, joined once."""

    def __init__(self, statements: dict[str, str]) -> None:
        self.new_keys = statements["new_keys"]
        self.new_keys_ahead = statements["new_keys_ahead"]
        self._sql = statements
        self._joined: dict[tuple[str, ...], str] = {}

    def of(self, parts: tuple[str, ...]) -> str:
        """It answers the transaction's id, and how many rows each part has written that is counted."""
        text = self._joined.get(parts)
        if text is None:
            text = self._joined[parts] = self._join(parts)
        return text

    def _join(self, parts: tuple[str, ...]) -> str:
        blocks = []
        last = 0
        for part in parts:
            text = _numbered_after(last, self._sql[part])
            silent = "RETURNING" in text or part in BESIDE.values() or part in UNCOUNTED
            counted = "" if silent else "RETURNING 1"
            blocks.append(f"{part} AS (\n{text}\n{counted})")
            last += len({*_PARAMETER.findall(text)})
        head = "WITH " + ", ".join(blocks) + "\n"
        counts = "".join(f", (SELECT count(*) FROM {part})" for part in _counted(parts))  # noqa: S608 - names of ours
        return f"{head}SELECT pg_current_xact_id()::text{counts}"


class Writing:
    """The changes of one transaction. `add` them decision by decision, then `write` them once."""

    def __init__(
        self, statements: Statements, facts: Facts, new_id: Callable[[str, int], str], watched: set[str]
    ) -> None:
        self._statements = statements
        self._facts = facts
        self._new_id = new_id
        self._watched = watched
        self._parts: dict[str, list[Any]] = {name: [] for name in PARTS}
        self._kinds: dict[tuple[Any, ...], int] = {}
        self._claims: dict[tuple[Any, ...], int] = {}
        """Whose leases there are, and from when to when: its number, which is counted from one."""
        self._runs_created: dict[str, Run] = {}
        self._steps_created: dict[str, Step] = {}
        self._jobs_created: dict[str, Job] = {}
        self.handed_in_keys: list[tuple[Alike, list[int]]] = []
        """Jobs that are handed in and wait, with their keys; known when it is written."""
        self._handed_in: list[tuple[Alike, list[Committed]]] = []
        """With the facts of the decision to take them."""
        self._moves: list[tuple[Job, Job]] = []
        self._events: list[tuple[EventAppended, int, int, str]] = []
        self._updated_runs: dict[str, Run] = {}
        self._updated_steps: dict[str, Step] = {}
        self._waits = postgres_waits.Waits()
        self.finished: dict[str, str] = {}
        """The last job that each session has finished here, by session id."""
        self.is_sent = False
        """Whether the statement has been handed to the server."""
        self._keys: asyncio.Future[Any] | None = None
        """Which were asked for ahead."""

    @property
    def queued(self) -> list[Job]:
        """The jobs that wait in a lane from now on."""
        moved = (after for before, after in self._moves if after.status == "pending" and before.status != "pending")
        created = (job for job in self._jobs_created.values() if job.status == "pending")
        return [*created, *(alike.job for alike, _ in self._handed_in), *moved]

    def take_apart(self) -> list[Job]:
        """The new jobs of no run that wait, each of which can be claimed from now on."""
        for alike, facts in self._handed_in:
            facts[:] = [fact for fact in facts if not (isinstance(fact, JobClaimable) and fact.job_id == alike.job.id)]
            for job in each_job([alike]):
                self._jobs_created[job.id] = job
                facts.append(claimable(job))
        self._handed_in = []
        return [job for job in self._jobs_created.values() if job.status == "pending" and job.run_id is None]

    @property
    def new_job(self) -> str | None:
        """The id of one of the jobs that it stores."""
        return next(iter((*self._jobs_created, *(alike.ids[0] for alike, _ in self._handed_in))), None)

    @property
    def left_claimed(self) -> list[Job]:
        """The jobs that are not claimed any more."""
        return [before for before, after in self._moves if before.status == "claimed" != after.status]

    async def ask_for_keys(self, connection: Connection, jobs: int) -> None:
        """Ask for the keys of so many new jobs of no run, which the server gives while they are decided about. Nothing
        else can be asked of the connection before `keys_are_given`."""
        self._keys = asyncio.ensure_future(connection.fetchrow(self._statements.new_keys_ahead, 0, jobs))
        await asyncio.sleep(0)  # the question is on its way

    async def keys_are_given(self) -> None:
        """Waits for the keys that were asked for ahead, of which it raises no error: whoever needs them will."""
        if self._keys is not None:
            with contextlib.suppress(*FAULTS):
                await self._keys

    def add(self, changes: Iterable[AnyChange], now: int) -> list[Committed]:
        """Take up the changes of one decision; returns what they make true."""
        facts: list[Committed] = []
        touched: dict[str, int] = {}
        for change in changes:
            if isinstance(change, EventAppended):
                touched[change.run_id] = self._append(change, now)
            else:
                self._ADD[type(change)](self, change, facts, now)
        for run_id, last_sequence in touched.items():
            project_id = self._facts.project_of_run[run_id]
            facts.append(RunChanged(project_id=project_id, run_id=run_id, last_sequence=last_sequence))
        return facts

    async def write(self, connection: Connection, lane_of: Callable[[Job], int]) -> str | None:
        """Write everything; returns the transaction's id, None when there is nothing. Raises FenceBrokenError."""
        await self._make_keys(connection)
        self._fill(lane_of)
        used = tuple(name for name in PARTS if self._parts[BESIDE.get(name, name)])
        if not used:
            return None
        for name in _IN_ORDER.intersection(used):
            self._parts[name].sort(key=lambda row: row[0])
        counted = _counted(used)
        if counted and not connection.is_in_transaction():
            raise RuntimeError(f"{', '.join(counted)}: outside of a transaction nothing could be undone")
        parameters = [parameter for name in used for parameter in self._parameters(name, lane_of)]
        self.is_sent = True
        row = await connection.fetchrow(self._statements.of(used), *parameters)
        for name, count in zip(counted, row[1:], strict=True):
            asked = len(self._parts[BESIDE.get(name, name)])
            if count != asked:
                raise FenceBrokenError(f"{name}: {count} rows of {asked}")
        return str(row[0])

    # --- taking up

    def _append(self, change: EventAppended, now: int) -> int:
        sequence = self._facts.next_sequence(change.run_id)
        self._events.append((change, sequence, now, self._new_id("evt", now)))
        return sequence

    def _create_run(self, change: RunCreated, _facts: list[Committed], _now: int) -> None:
        self._runs_created[change.run.id] = change.run
        self._facts.project_of_run[change.run.id] = change.run.project_id

    def _update_run(self, change: RunUpdated, _facts: list[Committed], _now: int) -> None:
        runs = self._runs_created if change.run.id in self._runs_created else self._updated_runs
        runs[change.run.id] = change.run

    def _create_step(self, change: StepCreated, _facts: list[Committed], _now: int) -> None:
        self._steps_created[change.step.id] = change.step

    def _update_step(self, change: StepUpdated, _facts: list[Committed], _now: int) -> None:
        steps = self._steps_created if change.step.id in self._steps_created else self._updated_steps
        steps[change.step.id] = change.step

    def _attempt_step(self, change: StepAttempted, _facts: list[Committed], now: int) -> None:
        _, run_seq, step_seq = self._facts.job_keys[change.job.id]
        self._parts["attempt_steps"].append((run_seq, step_seq, change.job.claim_attempt, now))

    def _create_job(self, change: JobCreated, facts: list[Committed], _now: int) -> None:
        self._jobs_created[change.job.id] = change.job
        facts.append(claimable(change.job))

    def _hand_in(self, change: JobsCreated, facts: list[Committed], _now: int) -> None:
        facts.append(replace(claimable(change.alike.job), count=len(change.alike.ids)))
        self._handed_in.append((change.alike, facts))

    def _change_job(self, change: JobChanged, facts: list[Committed], _now: int) -> None:
        before, after = change.before, change.after
        if before.id in self._jobs_created:
            self._jobs_created[before.id] = replace(after, spec=self._jobs_created[before.id].spec)
        else:
            self._moves.append((before, after))
        queued = after.status == "pending" and before.status != "pending"
        if queued or (after.status == "pending" and after.pending_deadline_at != before.pending_deadline_at):
            facts.append(claimable(after))
        if after.status in TERMINAL_JOB:
            if after.session_id is not None:
                self.finished[after.session_id] = after.id
            if after.id in self._watched:
                facts.append(JobEnded(job_id=after.id))

    def _keep_attempt(self, change: AttemptFailed, _facts: list[Committed], _now: int) -> None:
        key = self._facts.job_keys[change.job.id][0]
        self._put("insert_attempts", key, *rows.attempt_row(change.attempt))

    def _announce_cancel(self, change: CancelAnnounced, facts: list[Committed], _now: int) -> None:
        facts.append(cancel_requested(change))

    def _wait(self, change: postgres_waits.AnyWait, facts: list[Committed], now: int) -> None:
        self._waits.add(change, facts, now)

    _ADD: ClassVar[dict[type, Any]] = {
        RunCreated: _create_run,
        RunUpdated: _update_run,
        StepCreated: _create_step,
        StepUpdated: _update_step,
        StepAttempted: _attempt_step,
        JobCreated: _create_job,
        JobsCreated: _hand_in,
        JobChanged: _change_job,
        AttemptFailed: _keep_attempt,
        CancelAnnounced: _announce_cancel,
        **dict.fromkeys(postgres_waits.CHANGES, _wait),
    }

    # --- rows

    async def _make_keys(self, connection: Connection) -> None:
        handed_in = sum(len(alike.ids) for alike, _ in self._handed_in)
        if not (self._runs_created or self._jobs_created or handed_in):
            return
        counts = (len(self._runs_created), len(self._jobs_created) + handed_in)
        asked = self._keys or connection.fetchrow(self._statements.new_keys, *counts)
        run_seqs, job_seqs = await asked
        self._facts.run_seqs.update(zip(self._runs_created, run_seqs, strict=True))
        seqs = iter(job_seqs)
        for job, seq in zip(self._jobs_created.values(), seqs, strict=False):
            step = self._steps_created.get(job.step_id or "")
            run_seq = self._facts.run_seqs[job.run_id] if job.run_id is not None else None
            self._facts.job_keys[job.id] = (seq, run_seq, step.seq if step is not None else None)

        for number, (alike, _) in enumerate(self._handed_in, 1):
            own = list(islice(seqs, len(alike.ids)))
            names = [each.external_id for each in alike.handed_in]
            self._parts["find_handed_in"] += zip(repeat(number), own, alike.ids, alike.specs, names, strict=False)
            self.handed_in_keys.append((alike, own))

    def _fill(self, lane_of: Callable[[Job], int]) -> None:
        run_seqs = self._facts.run_seqs
        for run in self._runs_created.values():
            self._put("insert_runs", run_seqs[run.id], *rows.run_row(run))
        for run in self._updated_runs.values():
            times = (run.updated_at, run.completed_at)
            self._put("update_runs", run_seqs[run.id], run.status, *times, run.error_type, run.error_message)
        for step in self._steps_created.values():
            self._put("insert_steps", run_seqs[step.run_id], step.seq, *rows.step_row(step))
        for step in self._updated_steps.values():
            times = (step.updated_at, step.completed_at)
            ended = (step.status, *times, step.error_type, step.error_message, rows.to_json(step.result))
            self._put("update_steps", run_seqs[step.run_id], step.seq, *ended)
        for job in self._jobs_created.values():
            self._create(job, lane_of)
        for before, after in self._moves:
            self._move(before, after, lane_of)
        self._waits.fill(self._parts, run_seqs)
        for change, sequence, now, event_id in self._events:
            head = (run_seqs[change.run_id], sequence, event_id, change.event_type, now)
            self._put("insert_events", *head, change.step_id, change.step_key, rows.to_json(change.payload))

    def _parameters(self, part: str, lane_of: Callable[[Job], int]) -> Sequence[Any]:
        rows = self._parts[part]
        if part == "find_leased":
            return (*columns(rows), *columns(self._claims))
        if part == "find_handed_in":
            return (as_json([_kind(alike.job, lane_of) for alike, _ in self._handed_in]), *columns(rows))
        if part == "leave_leased":
            return ([row[0] for row in self._parts["find_leased"]],)
        if part in BESIDE:
            return ()
        return (as_json([list(self._kinds), rows] if part == "insert_jobs" else rows),)

    def _put(self, part: str, *row: Any) -> None:
        self._parts[part].append(row)

    def _create(self, job: Job, lane_of: Callable[[Job], int]) -> None:
        seq, run_seq, step_seq = self._facts.job_keys[job.id]
        lane_id = lane_of(job)
        kind = _kind(job, lane_of)[:-2]
        row: tuple[Any, ...] = (self._kinds.setdefault(kind, len(self._kinds)), seq, job.id, rows.to_json(job.spec))
        if job.run_id is not None or job.external_id is not None:
            row = (*row, run_seq, step_seq, job.run_id, job.step_id, job.step_key, job.external_id)
        self._put("insert_jobs", *row)
        if job.status == "pending" and job.execution_deadline_at is None and job.claim_attempt == 0:
            times = (job.available_at, job.pending_deadline_at, job.updated_at)
            self._put("insert_new", seq, lane_id, run_seq, *times)
        else:
            self._enter(job, lane_of)

    def _move(self, before: Job, after: Job, lane_of: Callable[[Job], int]) -> None:
        seq = self._facts.job_keys[before.id][0]
        if after.status != before.status:
            if before.status == "pending":
                if after.status == "claimed" and _waited(before) == _waited(after):
                    self._lease(seq, after)
                    return
                self._put("leave_pending", seq)
            elif before.status in TERMINAL_JOB:
                self._put("leave_finished", seq)
            else:
                self._put("leave_claimed", seq, as_bytea(before.lease_token_hash))
            self._enter(after, lane_of)
        elif after.status == "claimed":
            asked = (after.cancel_requested_at, after.cancel_reason, after.updated_at)
            self._put("request_cancel", seq, as_bytea(before.lease_token_hash), *asked)
        else:
            deadlines = (after.pending_deadline_at, rows.deadline_at(after))
            self._put("update_pending", seq, *deadlines, as_bytea(after.reported_token_hash), after.updated_at)

    def _lease(self, seq: int, job: Job) -> None:
        claim = (job.session_id, job.worker_instance_id, job.claimed_at, job.lease_expires_at)
        number = self._claims.setdefault(claim, len(self._claims) + 1)
        place = self._facts.places[seq]
        self._put("find_leased", place, number, job.execution_deadline_at, job.claim_attempt, job.lease_token_hash)

    def _enter(self, job: Job, lane_of: Callable[[Job], int]) -> None:
        seq, run_seq, _ = self._facts.job_keys[job.id]
        lease, reported = as_bytea(job.lease_token_hash), as_bytea(job.reported_token_hash)
        if job.status == "pending":
            self._put(
                "insert_pending", seq, lane_of(job), run_seq, job.available_at, job.pending_deadline_at,
                rows.deadline_at(job), job.execution_deadline_at, job.claim_attempt, job.attempts_charged,
                job.hand_backs, lease, reported, job.session_id, job.worker_instance_id, job.claimed_at,
                job.updated_at,
            )  # fmt: skip
        elif job.status == "claimed":
            self._put(
                "insert_claimed", seq, job.available_at, job.execution_deadline_at, job.claim_attempt,
                job.attempts_charged, job.hand_backs, lease, reported,
                job.lease_expires_at, job.session_id, job.worker_instance_id, job.claimed_at, job.heartbeat_at,
                job.cancel_requested_at, job.cancel_reason, job.updated_at,
            )  # fmt: skip
        else:
            self._put(
                "insert_finished", seq, job.status, job.available_at, job.execution_deadline_at, job.claim_attempt,
                job.attempts_charged, job.hand_backs, lease, reported, job.session_id,
                job.worker_instance_id, job.claimed_at, job.heartbeat_at, job.cancel_requested_at, job.cancel_reason,
                job.completed_at, job.error_type, job.error_message, rows.to_json(job.result),
            )  # fmt: skip


def _kind(job: Job, lane_of: Callable[[Job], int]) -> tuple[Any, ...]:
    """What new jobs have in common that are alike; the last two are of their rows in jobs_pending."""
    return (
        job.project_id, lane_of(job), job.kind, job.origin, job.queue, job.action_name, job.provider, job.model,
        job.environment_id, job.max_attempts, job.retry_delay, rows.to_json(job.non_retryable),
        job.execution_timeout, job.priority, job.retry_backoff, job.retry_max_delay, job.created_at,
        job.available_at, job.pending_deadline_at,
    )  # fmt: skip


def _counted(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if part not in UNCOUNTED]


def _numbered_after(last: int, text: str) -> str:
    return _PARAMETER.sub(lambda found: f"${last + int(found[1])}", text)


def columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Rows for a statement that takes an array of each column."""
    return [list(column) for column in zip(*rows, strict=True)]


def as_json(rows: Sequence[Sequence[Any]]) -> str:
    """Rows for a statement that takes them as one document."""
    return _encoder.encode(rows).decode()


def as_bytea(value: bytes | None) -> str | None:
    """Bytes in such a row."""
    return None if value is None else f"\\x{value.hex()}"


def _waited(job: Job) -> tuple[Any, ...]:
    """What insert_leased takes over as it was, and what it leaves empty."""
    kept = (job.available_at, job.attempts_charged, job.hand_backs, job.reported_token_hash)
    return (*kept, job.cancel_requested_at, job.cancel_reason)
