"""The store on one SQLite file: a writer thread with group commit, and a few readers that cannot write.

`synchronous=FULL` in WAL mode: a commit is on disk before anybody is told of it. One process owns the file (a lock
beside it), so that the writer may remember what it has read.
"""

import asyncio
import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
import structlog

from control_plane.domain import jobs
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
from control_plane.domain.retention import Going, Retired, Retirement
from control_plane.domain.store import (
    EVERY_RUN,
    Census,
    ClaimOrder,
    CommitObserver,
    DeltaPage,
    Fired,
    HeartbeatOutcome,
    Hold,
    JobClaimable,
    JobFilter,
    JobReport,
    JobView,
    Lease,
    LeaseTerms,
    Listener,
    Load,
    Page,
    QueueView,
    Reaped,
    ReportOutcome,
    RunFilter,
    SessionView,
    Turn,
)
from control_plane.domain.times import MICROSECONDS, to_microseconds
from control_plane.errors import StoreDamaged, StoreInUse, StoreRefused, StoreUnavailable
from control_plane.store import (
    sqlite_actions,
    sqlite_deltas,
    sqlite_enqueue,
    sqlite_jobs,
    sqlite_keys,
    sqlite_presence,
    sqlite_queues,
    sqlite_registry,
    sqlite_retention,
    sqlite_timers,
)
from control_plane.store.clock import Clock, lead
from control_plane.store.sqlite_queries import Queries
from control_plane.store.sqlite_unit import Known
from control_plane.store.sqlite_writer import FAULTS, Writer, Writing
from control_plane.store.statements import load_migrations, load_statements

OLDEST_SQLITE = (3, 51, 3)
"""Older ones can corrupt a database when its write-ahead log is reset."""

BUSY_TIMEOUT = 5000
"""Milliseconds."""

READERS = 3
_CHECKPOINT_PAGES = 4000
_CACHE = 16_384
"""KiB of pages that the writer keeps: what was handed in a moment ago is claimed without being read again."""

_CACHED_STATEMENTS = 200

ResultT = TypeVar("ResultT")

_log = structlog.get_logger("control_plane.store")


class SqliteStore:
    """control_plane.domain.store.Store on the file at `path`, made with mode 0600 when it does not exist (but not for
    who is `shared`: a tool with a wrong name would work on a store of its own)."""

    replicated = False

    def __init__(
        self, path: str | Path, terms: LeaseTerms, clock: Clock | None = None, *, shared: bool = False
    ) -> None:
        self.path = Path(path)
        self._shared = shared
        self.terms = terms
        self._clock = clock if clock is not None else Clock()
        statements = load_statements("sqlite")
        self._known = Known(statements, terms)
        self.watched_jobs = self._known.watched
        self._queries = Queries(statements)
        self._writer = Writer(
            self._connect_writer_again,
            partial(sqlite_enqueue.settle, self._known),
            self._before_commit,
            self._known.forget,
            self.postpone_lapses,
            self._clock,
        )
        self._lock: int | None = None
        self._leases_lapse_from = 0
        self._readers: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._reading: list[apsw.Connection] = []
        self._files: tuple[_FileIdentity, _FileIdentity] | None = None

    # --- life

    async def open(self, listener: Listener) -> None:
        """See Store.open. StoreRefused when trying again would change nothing."""
        connection = await asyncio.to_thread(self._open)
        self.postpone_lapses()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._writer.start(connection, listener)

    async def close(self) -> None:
        """See Store.close. A second call does nothing."""
        await self._writer.stop()
        readers, self._readers = self._readers, None
        if readers is not None:
            await asyncio.to_thread(readers.shutdown)
        for connection in self._reading:
            connection.close()
        self._reading.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def now(self) -> int:
        """See Store.now."""
        return self._clock.now()

    async def ping(self) -> None:
        """See Store.ping."""
        await self._writer.submit(_nothing)

    async def load(self) -> Load:
        """See Store.load."""
        return await self._read(self._queries.load)

    def observe_commits(self, observer: CommitObserver) -> None:
        """See Store.observe_commits."""
        self._writer.observe = observer

    async def census(self, *, stale_before: int, now: int | None = None) -> Census:
        """See Store.census."""
        return await self._read(self._queries.census, stale_before, self.now() if now is None else now)

    def _open(self) -> apsw.Connection:
        if tuple(int(part) for part in apsw.sqlite_lib_version().split(".")) < OLDEST_SQLITE:
            oldest = ".".join(map(str, OLDEST_SQLITE))
            raise StoreRefused(
                f"SQLite {apsw.sqlite_lib_version()} can corrupt databases in WAL mode; {oldest} or newer is needed: "
                "install the apsw package from PyPI, which brings its own"
            )
        if self._shared:
            require_file(self.path)
        try:
            self._lock = _lock(self.path, shared=self._shared)
            # Made here and not by SQLite, so that the file and what SQLite puts beside it are for the owner alone.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StoreRefused(f"store {self.path}: {error.strerror}") from error
        try:
            connection = self._connect_writer()
            _migrate(connection, self.path, alone=self._lock is not None)
            ((latest,),) = connection.execute("SELECT latest FROM store_clock")
        except apsw.Error as error:
            raise unreadable(self.path, error) from error
        self._clock.keep_above(latest)
        if (ahead := lead(self._clock.ahead())) is not None:
            _log.warning(ahead)
        return connection

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(
            str(self.path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=_CACHED_STATEMENTS
        )
        connection.set_busy_timeout(BUSY_TIMEOUT)
        # Plans must not depend on bound values: else SQLite compiles a join anew at every execution (57 against 3 µs).
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        return connection

    def _connect_writer(self) -> apsw.Connection:
        connection = self._connect()
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "temp_store = MEMORY", f"cache_size = -{_CACHE}"):
            connection.execute(f"PRAGMA {pragma}")
        connection.wal_autocheckpoint(_CHECKPOINT_PAGES)
        return connection

    def _connect_writer_again(self) -> apsw.Connection:
        """After a fault. What a disk once refused to flush may be in its cache and never reach it, and what is written
        behind that would be lost with it: the log is emptied into the file before anything is acknowledged again."""
        if self._files is not None:
            found = self._identities()
            # SQLite removes the log with the last connection, and that may have been ours.
            ended_with_ours = found == (self._files[0], None) and not self._reading
            if found != self._files and not ended_with_ours:
                raise apsw.CantOpenError(_NOT_OURS)
            self._files = None
        connection = self._connect_writer()
        try:
            ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if busy:
                raise apsw.BusyError("readers keep the log from being emptied")
        except apsw.Error:
            connection.close()
            raise
        return connection

    def _identities(self) -> "tuple[_FileIdentity, _FileIdentity]":
        return _identity(self.path), _identity(f"{self.path}-wal")

    def _insist_on_our_files(self, connection: apsw.Connection) -> None:
        """What is written to a file that was removed, or that another has replaced, is gone with the next start."""
        found = self._identities()
        if self._files is None:
            self._files = found
        elif found != self._files:
            connection.execute("ROLLBACK")
            # As far as the file is there, it gets what only the log has.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raise apsw.CantOpenError(_NOT_OURS)

    def _before_commit(self, connection: apsw.Connection, latest: int, finished: dict[str, int]) -> None:
        self._insist_on_our_files(connection)
        connection.execute("UPDATE store_clock SET latest = ? WHERE latest < ?", (latest, latest))
        for session_id, job_seq in finished.items():
            connection.execute(self._known.sql["set_last_job"], (job_seq, session_id))

    async def _write(self, command: Callable[[Writing], ResultT], now: int | None) -> ResultT:
        return await self._writer.submit(command, now)

    async def _read(self, query: Callable[..., ResultT], *arguments: Any) -> ResultT:
        if self._readers is None:
            raise StoreUnavailable("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read_now, query, *arguments)

    def _read_now(self, query: Callable[..., ResultT], *arguments: Any) -> ResultT:
        try:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._connect_reader()
            return query(connection, *arguments)
        except FAULTS as error:
            raise StoreUnavailable(f"the store cannot read now: {error}") from error

    def _connect_reader(self) -> apsw.Connection:
        connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        # Checkpoints are the writer's: they hold a lock and take time.
        connection.wal_autocheckpoint(0)
        self._local.connection = connection
        self._reading.append(connection)
        return connection

    # --- projects

    async def create_project(self, handle: str, name: str, *, now: int | None = None) -> Project:
        """See Store."""
        return await self._write(sqlite_registry.create_project(self._known, handle, name), now)

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
        return await self._write(sqlite_keys.create_key(self._known, project_handle, grant, secret_hash), now)

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
        command = sqlite_keys.rotate_key(self._known, project_id, key_id, secret_hash, overlap, expires_at)
        return await self._write(command, now)

    async def revoke_key(self, project_id: str, key_id: str, *, now: int | None = None) -> ApiKey:
        """See Store."""
        return await self._write(sqlite_keys.revoke_key(self._known, project_id, key_id), now)

    async def keys(self, project_id: str) -> list[ApiKey]:
        """See Store."""
        return await self._read(self._queries.keys, project_id)

    async def changed_keys(self, since: int) -> list[ApiKey]:
        """See Store."""
        return await self._read(self._queries.changed_keys, since)

    async def keys_used(self, used: dict[str, int]) -> None:
        """See Store."""
        await self._write(sqlite_keys.keys_used(self._known, used), None)

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
        command = sqlite_registry.create_automation(self._known, project_id, handle, name, fields)
        return await self._write(command, now)

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
        return await self._write(sqlite_registry.update_automation(self._known, project_id, handle, changes), now)

    async def archive_automation(self, project_id: str, handle: str, *, now: int | None = None) -> None:
        """See Store."""
        command = sqlite_registry.update_automation(self._known, project_id, handle, {"status": "archived"})
        await self._write(command, now)

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
        command = sqlite_registry.create_version(self._known, project_id, handle, spec, compiled_plan)
        return await self._write(command, now)

    async def versions(self, project_id: str, handle: str, *, cursor: str | None, limit: int) -> Page:
        """See Store."""
        return await self._read(self._queries.versions, project_id, handle, cursor, limit)

    async def publish_version(
        self, project_id: str, handle: str, version: int, *, now: int | None = None
    ) -> Automation:
        """See Store."""
        return await self._write(sqlite_registry.publish_version(self._known, project_id, handle, version), now)

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
        command = sqlite_jobs.start_run(self._known, project_id, handle, inputs, source, external_id)
        return await self._write(command, now)

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
        return await self._write(sqlite_jobs.cancel_run(self._known, project_id, run_id, reason), now)

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
        return await self._write(sqlite_timers.signal_run(self._known, project_id, run_id, step_key, result), now)

    async def fire_timers(self, *, limit: int, now: int | None = None) -> Fired:
        """See Store."""
        return await self._write(sqlite_timers.fire(self._known, limit), now)

    async def next_timer_at(self) -> int | None:
        """See Store."""
        return await self._read(self._queries.next_timer_at)

    # --- sessions

    async def register_session(self, session: Session, *, now: int | None = None) -> Session:
        """See Store."""
        return await self._write(sqlite_registry.register_session(self._known, session), now)

    async def session_by_token(self, project_id: str, token_hash: bytes) -> Session | None:
        """See Store."""
        return await self._read(self._queries.session_by_token, project_id, token_hash)

    async def session_of_instance(self, project_id: str, worker_instance_id: str) -> Session | None:
        """See Store."""
        return await self._read(self._queries.session_of_instance, project_id, worker_instance_id)

    async def sessions_seen(self, seen: dict[str, int]) -> None:
        """See Store."""
        await self._write(sqlite_registry.sessions_seen(self._known, seen), None)

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
        command = sqlite_registry.update_session(
            self._known,
            session_id,
            draining=draining,
            ended=ended,
            selector=selector,
        )
        await self._write(command, now)

    async def end_sessions(self, *, unseen_since: int, except_for: Sequence[str], now: int | None = None) -> int:
        """See Store."""
        if (now if now is not None else self.now()) < self._leases_lapse_from:
            return 0
        return await self._write(sqlite_registry.end_sessions(self._known, unseen_since, except_for), now)

    async def sessions(self, project_id: str, *, now: int | None = None) -> list[SessionView]:  # noqa: ARG002 - the port
        """See Store."""
        return await self._read(self._queries.sessions, project_id)

    async def session_page(
        self, project_id: str, *, state: SessionState, stale_before: int, cursor: str | None, limit: int
    ) -> Page:
        """See Store."""
        return await self._read(self._queries.session_page, project_id, state, stale_before, cursor, limit)

    async def drain_sessions(self, project_id: str, target: DrainTarget, *, now: int | None = None) -> None:
        """See Store."""
        await self._write(sqlite_presence.drain(self._known, project_id, target), now)

    async def undrain_sessions(self, project_id: str, target: DrainTarget) -> None:
        """See Store."""
        await self._write(sqlite_presence.undrain(self._known, project_id, target), None)

    async def drains(self, project_id: str) -> list[Drain]:
        """See Store."""
        return await self._read(self._queries.drains, project_id)

    async def contest(self, project_id: str, worker_instance_id: str) -> bool:  # noqa: ARG002 - the port
        """See Store: one process owns the file."""
        return False

    async def answer_contest(self, contest_id: str, *, alive: bool) -> None:
        """See Store: nobody asks."""

    # --- what is past

    async def retire(self, what: Retired, *, before: int, after: int, limit: int) -> Retirement:
        """See Store."""
        sql = self._known.sql
        found = await self._read(sqlite_retention.find, sql, what, before, after, limit)
        # Where nothing goes, nothing is written.
        number = await self._write(sqlite_retention.delete(sql, what, found, limit), None) if found else 0
        if isinstance(found, Going):
            return Retirement(number=number, position=found.position, kept=found.kept)
        return Retirement(number=number, position=0 if number >= limit else None)

    # --- generations

    async def append_deltas(self, chunks: Sequence[DeltaChunk], *, now: int | None = None) -> list[bool]:
        """See Store."""
        return await self._write(sqlite_deltas.append(self._known.sql, chunks), now)

    async def deltas(self, project_id: str, job_id: str, *, after: Position, limit: int) -> DeltaPage:
        """See Store."""
        return await self._read(sqlite_deltas.page, self._known.sql, self._queries, project_id, job_id, after, limit)

    # --- jobs

    async def claim(self, order: ClaimOrder, *, now: int | None = None) -> list[Lease]:
        """See Store."""
        command = sqlite_jobs.claim(self._known, order)
        return await self._writer.submit(command, now, with_unsettled=order.with_new)

    async def heartbeat(
        self, project_id: str, job_id: str, lease_token: str, *, now: int | None = None
    ) -> HeartbeatOutcome:
        """See Store."""
        return await self._write(sqlite_jobs.heartbeat(self._known, project_id, job_id, lease_token), now)

    async def reports(
        self, project_id: str, reports: Sequence[JobReport], *, now: int | None = None
    ) -> list[ReportOutcome]:
        """See Store."""
        read = [(report.job_id, jobs.read_report(report)) for report in reports]
        try:
            weight = 1 + len(read) // sqlite_jobs.REPORTS_A_COMMAND
            return await self._writer.submit(sqlite_jobs.reports(self._known, project_id, read), now, weight=weight)
        except StoreUnavailable:
            raise
        except Exception:  # noqa: BLE001 - one of them is at fault
            return [await self._report_alone(project_id, job_id, reported, now) for job_id, reported in read]

    async def _report_alone(
        self, project_id: str, job_id: str, reported: jobs.Reported, now: int | None
    ) -> ReportOutcome:
        for taken in (reported, jobs.untakable(reported)):
            try:
                (outcome,) = await self._write(sqlite_jobs.reports(self._known, project_id, [(job_id, taken)]), now)
            except StoreUnavailable:
                raise
            except Exception:  # noqa: BLE001 - the last resort of one report
                _log.exception("a report could not be taken", job_id=job_id)
            else:
                return outcome
        return ReportOutcome(verdict="untakable")

    async def job(self, project_id: str, job_id: str) -> Job:
        """See Store."""
        return await self._read(self._queries.job, project_id, job_id)

    # --- jobs without a run

    async def enqueue(self, project_id: str, jobs: Sequence[NewJob], *, now: int | None = None) -> Enqueued:
        """See Store."""
        weight = 1 + len(jobs) // sqlite_enqueue.JOBS_A_COMMAND
        command = sqlite_enqueue.enqueue(self._known, project_id, jobs)
        return await self._writer.submit(command, now, weight=weight, with_unsettled=True)

    async def job_view(self, project_id: str, job_id: str) -> JobView:
        """See Store."""
        return await self._read(self._queries.job_view, project_id, job_id)

    async def jobs(self, project_id: str, which: JobFilter, *, cursor: str | None, limit: int) -> Page:
        """See Store."""
        return await self._read(self._queries.jobs, project_id, which, cursor, limit)

    async def cancel_job(self, project_id: str, job_id: str, reason: str | None, *, now: int | None = None) -> Job:
        """See Store."""
        return await self._write(sqlite_jobs.cancel_job(self._known, project_id, job_id, reason), now)

    async def retry_job(self, project_id: str, job_id: str, *, now: int | None = None) -> Job:
        """See Store."""
        return await self._write(sqlite_jobs.retry_job(self._known, project_id, job_id), now)

    # --- recorded actions

    async def create_action(
        self, project_id: str, name: str, fields: dict[str, Any], *, now: int | None = None
    ) -> RecordedAction:
        """See Store."""
        return await self._write(sqlite_actions.create_action(self._known, project_id, name, fields), now)

    async def actions(self, project_id: str, *, cursor: str | None, limit: int) -> Page:
        """See Store."""
        return await self._read(sqlite_actions.actions_of_project, self._known.sql, project_id, cursor, limit)

    async def action(self, project_id: str, name: str) -> RecordedAction:
        """See Store."""
        return await self._read(sqlite_actions.action, self._known.sql, project_id, name)

    async def update_action(
        self, project_id: str, name: str, changes: dict[str, Any], *, now: int | None = None
    ) -> RecordedAction:
        """See Store."""
        return await self._write(sqlite_actions.update_action(self._known, project_id, name, changes), now)

    async def delete_action(self, project_id: str, name: str, *, now: int | None = None) -> None:
        """See Store."""
        await self._write(sqlite_actions.delete_action(self._known, project_id, name), now)

    # --- queues

    async def queues(self, project_id: str, *, now: int | None = None) -> list[QueueView]:
        """See Store."""
        at = now if now is not None else self.now()
        return await self._read(sqlite_queues.views, self._known.sql, project_id, at)

    async def queue(self, project_id: str, name: str, *, now: int | None = None) -> QueueView:
        """See Store."""
        at = now if now is not None else self.now()
        return await self._read(sqlite_queues.view, self._known.sql, project_id, name, at)

    async def update_queue(
        self, project_id: str, name: str, changes: dict[str, Any], *, now: int | None = None
    ) -> Queue:
        """See Store."""
        return await self._write(sqlite_queues.update_queue(self._known, project_id, name, changes), now)

    async def hold(self, job: Job) -> Hold:
        """See Store."""
        return await self._read(sqlite_queues.hold, self._known.sql, job)

    # --- what time does to jobs

    async def reap(self, *, limit: int, now: int | None = None) -> Reaped:
        """See Store."""
        self._follow_the_clock()
        command = sqlite_jobs.reap(self._known, limit, leases_lapse_from=self._leases_lapse_from)
        return await self._write(command, now)

    def postpone_lapses(self) -> None:
        """See Store. Also when the store was away."""
        self._leases_lapse_from = self.now() + to_microseconds(self.terms.lease_duration)

    def _follow_the_clock(self) -> None:
        """In a round that comes every second, so that no call pays for it."""
        forward = self._clock.follow()
        if forward:
            self.postpone_lapses()
            _log.warning("the machine's clock was set forward, or the machine slept", seconds=forward / MICROSECONDS)

    async def next_available_at(self, *, now: int | None = None) -> int | None:
        """See Store."""
        return await self._read(self._queries.next_available_at, self.now() if now is None else now)

    async def claimable(self, *, limit: int, since: int = 0, now: int | None = None) -> list[JobClaimable]:
        """See Store."""
        return await self._read(self._queries.claimable, since, self.now() if now is None else now, limit)


def _nothing(writing: Writing) -> None:
    # A commit without a change would not touch the disk; the clock's row does not always change.
    writing.execute("UPDATE store_clock SET latest = latest")


_FileIdentity = tuple[int, int] | None
_NOT_OURS = "its file or its log was removed or replaced: put them back, or restart the control plane"


def _identity(path: str | Path) -> _FileIdentity:
    try:
        status = os.stat(path)  # noqa: PTH116 - once a commit, and faster
    except OSError:
        return None
    return status.st_dev, status.st_ino


def require_file(path: Path) -> None:
    """For those who have no use for an empty store. Raises StoreRefused."""
    if not path.exists():
        raise StoreRefused(f"store {path}: No such file or directory; `serve` and `migrate` make one")


def unreadable(path: Path, error: apsw.Error) -> StoreUnavailable:
    """What SQLite says of the file, for an operator."""
    if isinstance(error, apsw.NotADBError):
        return StoreRefused(f"store {path} is no SQLite database")
    if isinstance(error, apsw.CorruptError):
        return StoreDamaged(f"store {path} is damaged ({error}): put a backup in its place")
    return StoreUnavailable(f"store {path} cannot be read: {error}")


def _lock(path: Path, *, shared: bool) -> int | None:
    """A lock that dies with the process; None when `shared` and a control plane has it. SQLite's own locks would be
    lost with any other descriptor of the file."""
    descriptor = _lock_file(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if shared:
            return None
        raise StoreInUse(
            f"store {path} is in use by another control plane; stop that one, or name another file"
        ) from error
    return descriptor


def _lock_file(path: Path) -> int:
    """For whoever may open the database: root, beside a service of another user, leaves it no lock of root's own."""
    name = f"{path}.lock"
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        pass
    except PermissionError as error:
        raise StoreRefused(f"store {path}: its lock file {name} cannot be made: {error.strerror}") from error
    else:
        # Of what we have made ourselves alone: a name that was there may lead to any file.
        if os.geteuid() == 0 and path.exists():
            found = path.stat()
            os.fchmod(descriptor, found.st_mode & 0o666)
            os.fchown(descriptor, found.st_uid, found.st_gid)
        return descriptor
    try:
        return os.open(name, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise StoreRefused(
            f"store {path}: its lock file {name} cannot be opened: {error.strerror}; give it the database's owner"
        ) from error


def _migrate(connection: apsw.Connection, path: Path, *, alone: bool) -> None:
    """Forward only; each migration and its number are one transaction. Not under a control plane that runs."""
    migrations = load_migrations("sqlite")
    newest = migrations[-1][0]
    version = int(connection.pragma("user_version"))
    if version > newest:
        raise StoreRefused(
            f"store {path} has schema {version}, newer than this version knows ({newest}): install the newer one again"
        )
    if version < newest and not alone:
        raise StoreInUse(f"store {path} has schema {version}, and the control plane that uses it is older: restart it")
    for number, text in migrations:
        if number > version:
            with contextlib.ExitStack() as undo:
                connection.execute("BEGIN IMMEDIATE")
                undo.callback(connection.execute, "ROLLBACK")
                connection.execute(text)
                connection.execute(f"PRAGMA user_version = {number}")
                undo.pop_all()
                connection.execute("COMMIT")
