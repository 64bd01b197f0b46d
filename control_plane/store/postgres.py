"""The store on a PostgreSQL database that any number of control planes serve at the same time.

Calls on jobs and runs are gathered into transactions (postgres_writer.py), the rest is short statements on a small
pool. What is kept in the process is only what no other replica can change: published versions, and lanes, whose rows
are never deleted. The clock is the database's.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog

from control_plane.domain import api_keys, jobs
from control_plane.domain.api_keys import SCOPES, Grant, Rotation
from control_plane.domain.deltas import DeltaChunk, Position
from control_plane.domain.enqueue import Enqueued, NewJob
from control_plane.domain.model import (
    ApiKey,
    Automation,
    Drain,
    DrainTarget,
    Event,
    Job,
    Project,
    Queue,
    RecordedAction,
    Run,
    Scope,
    Selector,
    Session,
    SessionState,
    Step,
    Version,
)
from control_plane.domain.queues import LimitScope
from control_plane.domain.retention import Going, Retired, Retirement
from control_plane.domain.store import (
    EVERY_RUN,
    Census,
    ClaimOrder,
    CommitObserver,
    Committed,
    DeltaPage,
    Fired,
    HeartbeatOutcome,
    Hold,
    JobClaimable,
    JobFilter,
    JobReport,
    JobView,
    KeyChanged,
    Lease,
    LeaseTerms,
    Listener,
    Load,
    Page,
    QueueView,
    Reaped,
    ReportOutcome,
    RunFilter,
    SessionTaken,
    SessionView,
    Turn,
)
from control_plane.domain.times import to_microseconds
from control_plane.errors import StoreUnavailable
from control_plane.keys import hash_secret
from control_plane.store import (
    postgres_actions,
    postgres_deltas,
    postgres_presence,
    postgres_queues,
    postgres_retention,
)
from control_plane.store.clock import Clock, lead
from control_plane.store.postgres_batch import (
    CancelJob,
    CancelRun,
    Claim,
    Enqueue,
    Finish,
    Heartbeat,
    Ping,
    Report,
    RetryJob,
    Signal,
    StartRun,
)
from control_plane.store.postgres_connections import Connection, Database
from control_plane.store.postgres_decisions import Known
from control_plane.store.postgres_held import HeldReport
from control_plane.store.postgres_keys import Keys
from control_plane.store.postgres_migrations import migrate, require_current
from control_plane.store.postgres_pool import Pool
from control_plane.store.postgres_queries import Queries
from control_plane.store.postgres_registry import Registry
from control_plane.store.postgres_replicas import Replicas
from control_plane.store.postgres_sweep import Sweep
from control_plane.store.postgres_timers import Firing
from control_plane.store.postgres_writer import Writer
from control_plane.store.statements import load_statements

CLOCK_JUMP = 5_000_000
"""Microseconds: what is ahead by more was set, and did not pass."""

ResultT = TypeVar("ResultT")

_ACCEPTED = ReportOutcome(verdict="accepted")

_log = structlog.get_logger("control_plane.store")


class PostgresStore:
    """control_plane.domain.store.Store on the database of `url`, which holds no password; `password_file` may."""

    replicated = True

    def __init__(self, url: str, terms: LeaseTerms, *, password_file: Path | None = None, shared: bool = False) -> None:
        self.terms = terms
        self.database = Database(url, password_file)
        self._shared = shared
        # Zero is far behind any database's clock, which it follows from the first look on.
        self._clock = Clock(wall=lambda: 0)
        self._clock_known = False
        statements = load_statements("postgresql")
        self._sql = statements
        self._known = Known(statements, terms)
        self.watched_jobs = self._known.watched
        self._queries = Queries(statements)
        self._registry = Registry(self._known)
        self._keys = Keys(self._known)
        self._pool = Pool(self.database, self.postpone_lapses)
        self._writer = Writer(
            self.database, self._known, self._pool.run, self.now, self._jobs_finished, self.postpone_lapses
        )
        self._listener: Listener = _ignore
        self._leases_lapse_from = 0
        self._last_jobs: dict[str, str] = {}
        self.replicas = Replicas(
            self.database, self._pool, statements, self._known.lanes, self.now, self._follow_the_clock
        )

    # --- life

    async def open(self, listener: Listener) -> None:
        """See Store.open. StoreRefused when trying again would change nothing."""
        if self._shared:
            await require_current(self.database)
        await migrate(self.database)
        self._listener = listener
        current, latest = await self._pool.run(lambda connection: connection.fetchrow(self._sql["clock"]))
        self._follow_the_clock(max(current, latest))
        if (ahead := lead(latest - current)) is not None:
            _log.warning(ahead)
        self.postpone_lapses()
        if not self._shared:
            await self.replicas.start(listener)
        self._writer.start(self._announce)

    async def close(self) -> None:
        """See Store.close. A second call does nothing."""
        await self._writer.stop()
        try:
            await self._write_last_jobs()
        except StoreUnavailable as error:
            _log.debug("last jobs of sessions not written", error=str(error))
        await self.replicas.stop()
        await self._pool.close()

    def now(self) -> int:
        """See Store.now."""
        return self._clock.now()

    async def ping(self) -> None:
        """See Store.ping."""
        await self._writer.submit(Ping())

    async def load(self) -> Load:
        """See Store.load."""
        return await self._read(self._queries.load)

    def observe_commits(self, observer: CommitObserver) -> None:
        """See Store.observe_commits."""
        self._writer.observe = observer

    async def census(self, *, stale_before: int, now: int | None = None) -> Census:
        """See Store.census."""
        return await self._read(self._queries.census, stale_before, self.now() if now is None else now)

    def _follow_the_clock(self, database_time: int) -> None:
        """Go on from the database's clock when it is ahead; what it said is as old as the answer's way."""
        known = self.now()
        self._clock.keep_above(database_time)
        if self._clock_known and self.now() - known > CLOCK_JUMP:
            _log.warning("the database's clock was set forward", seconds=(self.now() - known) / 1_000_000)
            self.postpone_lapses()
        self._clock_known = True

    async def _read(self, query: Callable[..., Awaitable[ResultT]], *arguments: Any) -> ResultT:
        return await self._pool.run(lambda connection: query(connection, *arguments))

    async def _write(self, command: Callable[..., Awaitable[ResultT]], *arguments: Any, now: int | None) -> ResultT:
        at = now if now is not None else self.now()
        return await self._pool.transact(lambda connection: command(connection, *arguments, now=at))

    def _announce(self, facts: Sequence[Committed]) -> None:
        if facts:
            self.replicas.forward(facts)
            self._listener(facts)

    # --- projects

    async def create_project(self, handle: str, name: str, *, now: int | None = None) -> Project:
        """See Store."""
        return await self._write(self._registry.create_project, handle, name, now=now)

    async def projects(self) -> list[Project]:
        """See Store."""
        return await self._read(self._queries.projects)

    async def project(self, handle: str) -> Project:
        """See Store."""
        return await self._read(self._queries.project, handle)

    # --- API keys

    async def create_key(
        self,
        project_handle: str,
        name: str,
        secret_hash: bytes,
        *,
        scopes: Sequence[Scope] = SCOPES,
        expires_at: int | None = None,
        now: int | None = None,
    ) -> ApiKey:
        """See Store."""
        grant = Grant(name=name, scopes=tuple(scopes), expires_at=expires_at)
        return await self._write(self._keys.create_key, project_handle, grant, secret_hash, now=now)

    async def rotate_key(
        self,
        project_id: str,
        key_id: str,
        secret_hash: bytes,
        *,
        overlap: int,
        expires_at: int | None = None,
        now: int | None = None,
    ) -> Rotation:
        """See Store."""
        until = (overlap, expires_at)
        rotation = await self._write(self._keys.rotate_key, project_id, key_id, secret_hash, until, now=now)
        self._announce_key(rotation.old)
        return rotation

    async def revoke_key(self, project_id: str, key_id: str, *, now: int | None = None) -> ApiKey:
        """See Store."""
        key = await self._write(self._keys.revoke_key, project_id, key_id, now=now)
        self._announce_key(key)
        return key

    def _announce_key(self, key: ApiKey) -> None:
        ends_at = api_keys.ends_at(key)
        if ends_at is not None:
            self._announce([KeyChanged(key_id=key.id, ends_at=ends_at)])

    async def keys(self, project_id: str) -> list[ApiKey]:
        """See Store."""
        return await self._read(self._queries.keys, project_id)

    async def changed_keys(self, since: int) -> list[ApiKey]:
        """See Store."""
        return await self._read(self._queries.changed_keys, since)

    async def keys_used(self, used: dict[str, int]) -> None:
        """See Store."""
        await self._read(self._keys.keys_used, used)

    async def key(self, secret_hash: bytes) -> ApiKey | None:
        """See Store."""
        return await self._read(self._queries.key, secret_hash)

    async def has_keys(self) -> bool:
        """See Store."""
        return await self._read(self._queries.has_keys)

    # --- automations

    async def create_automation(
        self, project_id: str, handle: str, name: str, fields: dict[str, Any], *, now: int | None = None
    ) -> Automation:
        """See Store."""
        return await self._write(self._registry.create_automation, project_id, handle, name, fields, now=now)

    async def automations(self, project_id: str, *, status: str | None, cursor: str | None, limit: int) -> Page:
        """See Store."""
        return await self._read(self._queries.automations, project_id, status, cursor, limit)

    async def automation(self, project_id: str, handle: str) -> Automation:
        """See Store."""
        return await self._read(self._queries.automation, project_id, handle)

    async def update_automation(
        self, project_id: str, handle: str, changes: dict[str, Any], *, now: int | None = None
    ) -> Automation:
        """See Store."""
        return await self._write(self._registry.update_automation, project_id, handle, changes, now=now)

    async def archive_automation(self, project_id: str, handle: str, *, now: int | None = None) -> None:
        """See Store."""
        await self._write(self._registry.update_automation, project_id, handle, {"status": "archived"}, now=now)

    async def create_version(
        self,
        project_id: str,
        handle: str,
        spec: dict[str, Any],
        compiled_plan: dict[str, Any] | None,
        *,
        now: int | None = None,
    ) -> Version:
        """See Store."""
        return await self._write(self._registry.create_version, project_id, handle, spec, compiled_plan, now=now)

    async def versions(self, project_id: str, handle: str, *, cursor: str | None, limit: int) -> Page:
        """See Store."""
        return await self._read(self._queries.versions, project_id, handle, cursor, limit)

    async def publish_version(
        self, project_id: str, handle: str, version: int, *, now: int | None = None
    ) -> Automation:
        """See Store."""
        return await self._write(self._registry.publish_version, project_id, handle, version, now=now)

    # --- runs

    async def start_run(
        self,
        project_id: str,
        handle: str,
        *,
        inputs: dict[str, Any] | None = None,
        source: dict[str, Any] | None = None,
        external_id: str | None = None,
        now: int | None = None,
    ) -> Run:
        """See Store."""
        command = StartRun(project_id=project_id, handle=handle, inputs=inputs, source=source, external_id=external_id)
        run: Run = await self._writer.submit(command, now)
        return run

    async def run(self, project_id: str, run_id: str, *, with_result: bool = False) -> Run:
        """See Store."""
        return await self._read(self._queries.run, project_id, run_id, with_result)

    async def runs(
        self,
        project_id: str,
        *,
        status: str | None,
        automation_id: str | None,
        cursor: str | None,
        limit: int,
        more: RunFilter = EVERY_RUN,
    ) -> Page:
        """See Store."""
        return await self._read(self._queries.runs, project_id, status, automation_id, cursor, limit, more)

    async def cancel_run(self, project_id: str, run_id: str, reason: str | None, *, now: int | None = None) -> Run:
        """See Store."""
        command = CancelRun(project_id=project_id, run_id=run_id, reason=reason)
        run: Run = await self._writer.submit(command, now)
        return run

    async def steps(self, project_id: str, run_id: str) -> list[Step]:
        """See Store."""
        return await self._read(self._queries.steps, project_id, run_id)

    async def turn(self, project_id: str, run_id: str) -> Turn | None:
        """See Store."""
        return await self._read(self._queries.turn, project_id, run_id)

    async def open_step(self, project_id: str, run_id: str) -> Step | None:
        """See Store."""
        return await self._read(self._queries.open_step, project_id, run_id)

    async def events(self, project_id: str, run_id: str, *, since: int, limit: int) -> list[Event]:
        """See Store."""
        return await self._read(self._queries.events, project_id, run_id, since, limit)

    # --- runs that wait

    async def signal_run(
        self, project_id: str, run_id: str, step_key: str, result: dict[str, Any], *, now: int | None = None
    ) -> Run:
        """See Store."""
        command = Signal(project_id=project_id, run_id=run_id, step_key=step_key, result=result)
        run: Run = await self._writer.submit(command, now)
        return run

    async def fire_timers(self, *, limit: int, now: int | None = None) -> Fired:
        """See Store."""
        at = now if now is not None else self.now()

        async def fire(connection: Connection) -> tuple[Fired, list[Committed]]:
            one = Firing(self._known, at, limit)
            return await one.run(connection, self._pool.run, time.monotonic()), one.facts

        fired, facts = await self._pool.transact(fire)
        self._announce(facts)
        return fired

    async def next_timer_at(self) -> int | None:
        """See Store."""
        return await self._read(self._queries.next_timer_at)

    # --- sessions

    async def register_session(self, session: Session, *, now: int | None = None) -> Session:
        """See Store. Raises Conflict("session_superseded")."""
        record, superseded = await self._write(self._registry.register_session, session, self.replicas.id, now=now)
        # Ours were asked before; a socket that another replica has is to be closed there, also that of this session.
        taken = (*superseded, record.id)
        self.replicas.forward([SessionTaken(session_id=each, before=record.last_seen_at) for each in taken])
        return record

    async def session_by_token(self, project_id: str, token_hash: bytes) -> Session | None:
        """See Store."""
        return await self._read(self._queries.session_by_token, project_id, token_hash)

    async def session_of_instance(self, project_id: str, worker_instance_id: str) -> Session | None:
        """See Store."""
        return await self._read(self._queries.session_of_instance, project_id, worker_instance_id)

    async def sessions_seen(self, seen: dict[str, int]) -> None:
        """See Store."""
        await self._write_last_jobs()
        asked_at = self.now()
        lost = await self._read(self._registry.sessions_seen, seen, self.replicas.id)
        if lost:
            self._listener([SessionTaken(session_id=session_id, before=asked_at) for session_id in sorted(lost)])

    async def contest(self, project_id: str, worker_instance_id: str) -> bool:
        """See Store."""
        ours = (self.replicas.id, self.replicas.gone_before)
        rival = await self._pool.run(
            lambda connection: connection.fetchrow(self._sql["rival"], project_id, worker_instance_id, *ours)
        )
        return rival is not None and await self.replicas.contest(*rival)

    async def answer_contest(self, contest_id: str, *, alive: bool) -> None:
        """See Store."""
        await self.replicas.answer(contest_id, alive=alive)

    async def update_session(
        self,
        session_id: str,
        *,
        draining: bool | None = None,
        ended: bool | None = None,
        selector: Selector | None = None,
        now: int | None = None,
    ) -> None:
        """See Store."""
        at = now if now is not None else self.now()
        await self._pool.transact(
            lambda connection: self._registry.update_session(
                connection,
                session_id,
                draining=draining,
                ended=ended,
                selector=selector,
                now=at,
            )
        )

    async def end_sessions(self, *, unseen_since: int, except_for: Sequence[str], now: int | None = None) -> int:
        """See Store."""
        if (now if now is not None else self.now()) < self._leases_lapse_from:
            return 0  # other replicas could not write whom they have seen, either
        ours = (self.replicas.id, self.replicas.gone_before)
        return await self._write(self._registry.end_sessions, unseen_since, except_for, ours, now=now)

    async def sessions(self, project_id: str, *, now: int | None = None) -> list[SessionView]:  # noqa: ARG002 - the port
        """See Store."""
        await self._write_last_jobs()
        return await self._read(self._queries.sessions, project_id)

    async def session_page(
        self, project_id: str, *, state: SessionState, stale_before: int, cursor: str | None, limit: int
    ) -> Page:
        """See Store."""
        await self._write_last_jobs()
        return await self._read(self._queries.session_page, project_id, state, stale_before, cursor, limit)

    async def drain_sessions(self, project_id: str, target: DrainTarget, *, now: int | None = None) -> None:
        """See Store."""
        self._announce(await self._write(postgres_presence.drain, self._sql, project_id, target, now=now))

    async def undrain_sessions(self, project_id: str, target: DrainTarget) -> None:
        """See Store."""
        self._announce(
            await self._pool.transact(
                lambda connection: postgres_presence.undrain(connection, self._sql, project_id, target)
            )
        )

    async def drains(self, project_id: str) -> list[Drain]:
        """See Store."""
        return await self._read(self._queries.drains, project_id)

    def _jobs_finished(self, finished: dict[str, str]) -> None:
        # Which job a session finished last is for people to see: it is written when they look, or now and then.
        self._last_jobs |= finished

    async def _write_last_jobs(self) -> None:
        if self._last_jobs:
            last_jobs, self._last_jobs = self._last_jobs, {}
            await self._pool.run(
                lambda connection: connection.execute(
                    self._sql["set_last_jobs"], list(last_jobs), list(last_jobs.values())
                )
            )

    # --- what is past

    async def retire(self, what: Retired, *, before: int, after: int, limit: int) -> Retirement:
        """See Store."""
        found = await self._read(postgres_retention.find, self._sql, what, before, after, limit)
        number: int | None = 0
        if found:  # where nothing goes, nothing is written
            number = await self._pool.transact(
                lambda connection: postgres_retention.delete(connection, self._sql, what, found, limit)
            )
        if number is None:
            return Retirement(number=0, position=None, kept=True)
        if isinstance(found, Going):
            return Retirement(number=number, position=found.position, kept=found.kept)
        return Retirement(number=number, position=0 if number >= limit else None)

    # --- generations

    async def append_deltas(self, chunks: Sequence[DeltaChunk], *, now: int | None = None) -> list[bool]:
        """See Store."""
        return await self._write(postgres_deltas.append, self._sql, chunks, now=now)

    async def deltas(self, project_id: str, job_id: str, *, after: Position, limit: int) -> DeltaPage:
        """See Store."""
        return await self._read(postgres_deltas.page, self._sql, self._queries, project_id, job_id, after, limit)

    # --- jobs

    async def claim(self, order: ClaimOrder, *, now: int | None = None) -> list[Lease]:
        """See Store."""
        leases: list[Lease] = await self._writer.submit(Claim(order=order), now)
        return leases

    async def heartbeat(
        self, project_id: str, job_id: str, lease_token: str, *, now: int | None = None
    ) -> HeartbeatOutcome:
        """See Store."""
        if "\0" in job_id:
            return HeartbeatOutcome(lost=True)
        command = Heartbeat(project_id=project_id, job_id=job_id, token_hash=hash_secret(lease_token))
        outcome: HeartbeatOutcome = await self._writer.submit(command, now)
        return outcome

    async def reports(
        self, project_id: str, reports: Sequence[JobReport], *, now: int | None = None
    ) -> list[ReportOutcome]:
        """See Store."""
        outcomes: dict[int, ReportOutcome] = {}
        held = {}
        for index, report in enumerate(reports):
            found = self._known.held.take(project_id, report)
            if found is not None:
                held[index] = found
        if held:
            done = await self._finish(list(held.values()), now)
            outcomes = {index: _ACCEPTED for index, finished in zip(held, done, strict=True) if finished}
        if len(outcomes) < len(reports):
            others = [index for index in range(len(reports)) if index not in outcomes]
            told = await asyncio.gather(*(self._report(project_id, reports[index], now) for index in others))
            outcomes |= zip(others, told, strict=True)
        return [outcomes[index] for index in range(len(reports))]

    async def _finish(self, reports: Sequence[HeldReport], now: int | None) -> Sequence[bool]:
        try:
            done: list[bool] = await self._writer.submit(Finish(reports=reports), now)
        except StoreUnavailable:
            raise
        except Exception:  # noqa: BLE001 - one of them is at fault, which the long way will tell
            return [False] * len(reports)
        return done

    async def _report(self, project_id: str, report: JobReport, now: int | None) -> ReportOutcome:
        if "\0" in report.job_id:
            return ReportOutcome(verdict="unknown")
        reported = jobs.read_report(report)
        for taken in (reported, jobs.untakable(reported)):
            try:
                outcome: ReportOutcome = await self._writer.submit(
                    Report(project_id=project_id, job_id=report.job_id, reported=taken), now
                )
            except StoreUnavailable:
                raise
            except Exception:  # noqa: BLE001 - the last resort of one report
                _log.exception("a report could not be taken", job_id=report.job_id)
            else:
                return outcome
        return ReportOutcome(verdict="untakable")

    async def job(self, project_id: str, job_id: str) -> Job:
        """See Store."""
        return await self._read(self._queries.job, project_id, job_id)

    # --- jobs without a run

    async def enqueue(self, project_id: str, jobs: Sequence[NewJob], *, now: int | None = None) -> Enqueued:
        """See Store."""
        enqueued: Enqueued = await self._writer.submit(Enqueue(project_id=project_id, jobs=jobs), now)
        return enqueued

    async def job_view(self, project_id: str, job_id: str) -> JobView:
        """See Store."""
        return await self._read(self._queries.job_view, project_id, job_id)

    async def jobs(self, project_id: str, which: JobFilter, *, cursor: str | None, limit: int) -> Page:
        """See Store."""
        return await self._read(self._queries.jobs, project_id, which, cursor, limit)

    async def cancel_job(self, project_id: str, job_id: str, reason: str | None, *, now: int | None = None) -> Job:
        """See Store."""
        job: Job = await self._writer.submit(CancelJob(project_id=project_id, job_id=job_id, reason=reason), now)
        return job

    async def retry_job(self, project_id: str, job_id: str, *, now: int | None = None) -> Job:
        """See Store."""
        job: Job = await self._writer.submit(RetryJob(project_id=project_id, job_id=job_id), now)
        return job

    # --- recorded actions

    async def create_action(
        self, project_id: str, name: str, fields: dict[str, Any], *, now: int | None = None
    ) -> RecordedAction:
        """See Store."""
        action = await self._write(postgres_actions.create_action, self._known, project_id, name, fields, now=now)
        self._known.lanes.forget(project_id)
        return action

    async def actions(self, project_id: str, *, cursor: str | None, limit: int) -> Page:
        """See Store."""
        return await self._read(postgres_actions.actions_of_project, self._sql, project_id, cursor, limit)

    async def action(self, project_id: str, name: str) -> RecordedAction:
        """See Store."""
        return await self._read(postgres_actions.action, self._sql, project_id, name)

    async def update_action(
        self, project_id: str, name: str, changes: dict[str, Any], *, now: int | None = None
    ) -> RecordedAction:
        """See Store."""
        action = await self._write(postgres_actions.update_action, self._known, project_id, name, changes, now=now)
        await self._rules_changed(project_id, ("action", name), now)
        return action

    async def delete_action(self, project_id: str, name: str, *, now: int | None = None) -> None:
        """See Store."""
        await self._write(postgres_actions.delete_action, self._known, project_id, name, now=now)
        await self._rules_changed(project_id, ("action", name), now)

    # --- queues

    async def queues(self, project_id: str, *, now: int | None = None) -> list[QueueView]:
        """See Store."""
        at = now if now is not None else self.now()
        return await self._read(postgres_queues.views, self._sql, project_id, at)

    async def queue(self, project_id: str, name: str, *, now: int | None = None) -> QueueView:
        """See Store."""
        at = now if now is not None else self.now()
        return await self._read(postgres_queues.view, self._sql, project_id, name, at)

    async def update_queue(
        self, project_id: str, name: str, changes: dict[str, Any], *, now: int | None = None
    ) -> Queue:
        """See Store."""
        queue = await self._write(postgres_queues.update_queue, self._sql, project_id, name, changes, now=now)
        await self._rules_changed(project_id, ("queue", name), now)
        return queue

    async def _rules_changed(self, project_id: str, scope: LimitScope, now: int | None) -> None:
        lanes, at = self._known.lanes, now if now is not None else self.now()
        lanes.forget(project_id)
        await self._pool.run(lambda connection: lanes.refresh(connection, [project_id], time.monotonic()))
        scopes = {(project_id, scope): postgres_queues.MOST_HINTED}
        self._announce(await self._read(postgres_queues.announce, self._sql, lanes, scopes, at))

    async def hold(self, job: Job) -> Hold:
        """See Store."""
        return await self._read(postgres_queues.hold, self._sql, job)

    # --- what time does to jobs

    async def reap(self, *, limit: int, now: int | None = None) -> Reaped:
        """See Store."""
        at = now if now is not None else self.now()
        may_lapse = at >= self._leases_lapse_from

        async def sweep(connection: Connection) -> tuple[Reaped, list[Committed]]:
            one = Sweep(self._known, at, limit, self.replicas.gone_before, leases_may_lapse=may_lapse)
            return await one.run(connection, self._pool.run, time.monotonic()), one.facts

        reaped, facts = await self._pool.transact(sweep)
        self._announce(facts)
        return reaped

    def postpone_lapses(self) -> None:
        """See Store. Also when the store was away."""
        self._leases_lapse_from = self.now() + to_microseconds(self.terms.lease_duration)

    async def next_available_at(self, *, now: int | None = None) -> int | None:
        """See Store."""
        return await self._read(self._queries.next_available_at, self.now() if now is None else now)

    async def claimable(self, *, limit: int, since: int = 0, now: int | None = None) -> list[JobClaimable]:
        """See Store."""
        return await self._read(self._queries.claimable, since, self.now() if now is None else now, limit)


def _ignore(facts: Sequence[Committed]) -> None:
    """Nobody listens."""
