"""What is read for people and programs: every call is one short statement, or begins with one that settles it."""

from typing import Any

from msgspec.structs import replace

from control_plane.domain.model import (
    TERMINAL_RUN,
    ApiKey,
    Automation,
    Drain,
    Event,
    Job,
    Project,
    Run,
    Session,
    SessionState,
    Step,
)
from control_plane.domain.store import (
    CENSUS_UP_TO,
    COUNTED_UP_TO,
    Census,
    JobClaimable,
    JobFilter,
    JobView,
    Load,
    Page,
    RunFilter,
    SessionView,
    Turn,
)
from control_plane.errors import NotFound
from control_plane.store import pages, rows
from control_plane.store.announced import claimable_row
from control_plane.store.census import counted
from control_plane.store.lanes import NEVER
from control_plane.store.pages import page, position
from control_plane.store.postgres_connections import Connection

_JOB_COLUMNS = rows.JOB_KEYS + len(rows.JOB)


class Queries:
    """The reading half of the store; `connection` is passed to every call."""

    def __init__(self, statements: dict[str, str]) -> None:
        self._sql = statements

    async def _one(self, connection: Connection, name: str, *bindings: Any) -> Any:
        row = await connection.fetchrow(self._sql[name], *bindings)
        return None if row is None else tuple(row)

    async def _all(self, connection: Connection, name: str, *bindings: Any) -> list[Any]:
        return [tuple(row) for row in await connection.fetch(self._sql[name], *bindings)]

    # --- projects and keys

    async def projects(self, connection: Connection) -> list[Project]:
        """See Store.projects."""
        return [rows.project(row) for row in await self._all(connection, "projects")]

    async def project(self, connection: Connection, handle: str) -> Project:
        """See Store.project."""
        row = await self._one(connection, "project_by_handle", handle)
        if row is None:
            raise NotFound(f"no project {handle}")
        return rows.project(row)

    async def key(self, connection: Connection, secret_hash: bytes) -> ApiKey | None:
        """See Store.key."""
        row = await self._one(connection, "key_by_hash", secret_hash)
        return None if row is None else rows.api_key(row)

    async def keys(self, connection: Connection, project_id: str) -> list[ApiKey]:
        """See Store.keys."""
        return [rows.api_key(row) for row in await self._all(connection, "keys_of_project", project_id)]

    async def changed_keys(self, connection: Connection, since: int) -> list[ApiKey]:
        """See Store.changed_keys."""
        return [rows.api_key(row) for row in await self._all(connection, "changed_keys", since)]

    async def has_keys(self, connection: Connection) -> bool:
        """See Store.has_keys."""
        return await self._one(connection, "any_key") is not None

    # --- automations

    async def automations(
        self, connection: Connection, project_id: str, status: str | None, cursor: str | None, limit: int
    ) -> Page:
        """See Store.automations."""
        bindings = (project_id, position(cursor), status, limit + 1, pages.MOST_PAGE_BYTES)
        found = await self._all(connection, "automations_of_project", *bindings)
        return page(
            [(row[0], rows.automation(row[1:-3], rows.raw_json)) for row in found], limit, more=pages.is_cut(found)
        )

    async def automation(self, connection: Connection, project_id: str, handle: str) -> Automation:
        """See Store.automation."""
        row = await self._one(connection, "automation_by_handle", project_id, handle)
        if row is None:
            raise NotFound(f"no automation {handle} in this project")
        return rows.automation(row, rows.raw_json)

    async def versions(
        self, connection: Connection, project_id: str, handle: str, cursor: str | None, limit: int
    ) -> Page:
        """See Store.versions."""
        automation = await self.automation(connection, project_id, handle)
        bindings = (automation.id, position(cursor), limit + 1, pages.MOST_PAGE_BYTES)
        found = await self._all(connection, "versions", *bindings)
        versions = [rows.version(row[:-1], rows.raw_json) for row in found]
        return page([(version.version, version) for version in versions], limit, more=pages.is_cut(found))

    # --- runs

    async def run(self, connection: Connection, project_id: str, run_id: str, with_result: bool) -> Run:  # noqa: FBT001
        """See Store.run."""
        row = await self._one(connection, "run_with_results", run_id, project_id, with_result)
        if row is None:
            raise NotFound(f"no run {run_id} in this project")
        *columns, names, texts, wake_at = row
        run = rows.run(columns, rows.raw_json)
        if run.status == "completed" and with_result:
            return replace(run, result={name: rows.raw_json(text) for name, text in zip(names, texts, strict=True)})
        return run if run.status in TERMINAL_RUN else replace(run, wake_at=wake_at)

    async def runs(
        self,
        connection: Connection,
        project_id: str,
        status: str | None,
        automation_id: str | None,
        cursor: str | None,
        limit: int,
        more: RunFilter,
    ) -> Page:
        """See Store.runs."""
        before = position(cursor)
        first, behind = await self._created_between(connection, more)
        asked = (project_id, min(before, behind), first, status, automation_id, more.parent_run_id)
        rest = (more.external_id, more.created_after, more.created_before, limit + 1, pages.MOST_PAGE_BYTES)
        found = await self._all(connection, pages.runs_statement(status, automation_id, more), *asked, *rest)
        return page([(row[0], rows.run(row[:-2], rows.raw_json)) for row in found], limit, more=pages.is_cut(found))

    async def _created_between(self, connection: Connection, more: RunFilter) -> tuple[int, int]:
        """Keys of runs; see pages.created_between."""
        if more.created_after is None and more.created_before is None:
            return 0, NEVER
        search = pages.created_between(await self._one(connection, "run_ends"), more)
        try:
            key = next(search)
            while True:
                key = search.send(await self._one(connection, "run_at_or_before", key))
        except StopIteration as found:
            first, behind = found.value
            return first, behind

    async def next_timer_at(self, connection: Connection) -> int | None:
        """See Store.next_timer_at."""
        found = (await self._one(connection, "next_timer"))[0]
        return None if found is None else int(found)

    async def steps(self, connection: Connection, project_id: str, run_id: str) -> list[Step]:
        """See Store.steps."""
        run_seq = await self._run_seq(connection, project_id, run_id)
        return [rows.step(row, rows.raw_json) for row in await self._all(connection, "steps_of_run", run_seq)]

    async def open_step(self, connection: Connection, project_id: str, run_id: str) -> Step | None:
        """See Store.open_step."""
        row = await self._one(connection, "open_step", await self._run_seq(connection, project_id, run_id))
        return None if row is None else rows.step(row)

    async def events(self, connection: Connection, project_id: str, run_id: str, since: int, limit: int) -> list[Event]:
        """See Store.events; fewer than `limit` when their payloads are large, but at least one."""
        run_seq = await self._run_seq(connection, project_id, run_id)
        found = await self._all(connection, "events_of_run", run_seq, since, limit, pages.MOST_PAGE_BYTES)
        return [rows.event(project_id, run_id, row) for row in found]

    async def turn(self, connection: Connection, project_id: str, run_id: str) -> Turn | None:
        """See Store.turn."""
        run_seq = await self._run_seq(connection, project_id, run_id)
        found = await self._one(connection, "turn_of_run", COUNTED_UP_TO, run_seq)
        return None if found is None else Turn(holder_id=found[0], before=found[1])

    async def _run_seq(self, connection: Connection, project_id: str, run_id: str) -> int:
        row = await self._one(connection, "run_seq", run_id, project_id)
        if row is None:
            raise NotFound(f"no run {run_id} in this project")
        return int(row[0])

    # --- sessions

    async def session_by_token(self, connection: Connection, project_id: str, token_hash: bytes) -> Session | None:
        """See Store.session_by_token."""
        row = await self._one(connection, "session_by_token", token_hash, project_id)
        return None if row is None else rows.session(row)

    async def session_of_instance(
        self, connection: Connection, project_id: str, worker_instance_id: str
    ) -> Session | None:
        """See Store.session_of_instance."""
        row = await self._one(connection, "session_of_instance", project_id, worker_instance_id)
        return None if row is None else rows.session(row)

    async def sessions(self, connection: Connection, project_id: str) -> list[SessionView]:
        """See Store.sessions."""
        held = await self._held(connection, project_id)
        found = await self._all(connection, "sessions_of_project", project_id)
        return await self._views(connection, found, held)

    async def session_page(
        self,
        connection: Connection,
        project_id: str,
        state: SessionState,
        stale_before: int,
        cursor: str | None,
        limit: int,
    ) -> Page:
        """See Store.session_page."""
        before = pages.text_position(cursor)
        if state in ("all", "ended"):
            found = await self._all(connection, "sessions_page", project_id, before, state, limit + 1)
        else:
            bindings = (project_id, before, state, stale_before, limit + 1)
            found = await self._all(connection, "open_sessions_page", *bindings)
        views = await self._views(connection, found, await self._held(connection, project_id) if found else {})
        return pages.text_page([(view.session.id, view) for view in views], limit)

    async def drains(self, connection: Connection, project_id: str) -> list[Drain]:
        """See Store.drains."""
        return [rows.drain(row) for row in await self._all(connection, "drains", project_id)]

    async def _held(self, connection: Connection, project_id: str) -> dict[str, list[tuple[Job, str | None]]]:
        held: dict[str, list[tuple[Job, str | None]]] = {}
        for row in await self._all(connection, "jobs_of_sessions", project_id):
            job, name = _shown(row)
            held.setdefault(job.session_id or "", []).append((job, name))
        return held

    async def _views(
        self, connection: Connection, found: list[rows.Row], held: dict[str, list[tuple[Job, str | None]]]
    ) -> list[SessionView]:
        last_seqs = sorted({row[-1] for row in found if row[-1] is not None})
        last = {row[0]: _shown(row) for row in await self._all(connection, "finished_jobs", last_seqs)}
        return [_view(row, held.get(row[0], []), last.get(row[-1])) for row in found]

    # --- jobs

    async def job(self, connection: Connection, project_id: str, job_id: str) -> Job:
        """See Store.job."""
        row = await self._one(connection, "job", job_id, project_id)
        if row is None:
            raise NotFound(f"no job {job_id} in this project")
        return rows.job(row[:_JOB_COLUMNS], rows.from_json(row[-1]))

    async def job_view(self, connection: Connection, project_id: str, job_id: str) -> JobView:
        """See Store.job_view."""
        row = await self._one(connection, "job", job_id, project_id)
        if row is None:
            raise NotFound(f"no job {job_id} in this project")
        job = rows.job(row[:_JOB_COLUMNS], rows.from_json(row[-1]))
        attempts = await self._all(connection, "attempts_of_job", row[0])
        return JobView(job=job, attempts=[rows.attempt(each) for each in attempts])

    async def jobs(
        self, connection: Connection, project_id: str, which: JobFilter, cursor: str | None, limit: int
    ) -> Page:
        """See Store.jobs."""
        bindings = (position(cursor), pages.MOST_LOOKED_AT, project_id, which.queue, which.action_name, limit + 1)
        found = await self._all(connection, f"listed_{which.status or 'jobs'}", *bindings)
        seqs = [seq for _, _, seq in found if seq is not None]
        # One that has moved on since is shown as it is now.
        listed = await self._all(connection, "jobs_of_keys", seqs) if seqs else []
        items = [(row[0], rows.job(row[:_JOB_COLUMNS], {})) for row in listed]
        return pages.page_of_looks(items, limit, looked_at=found[0][0], last=found[0][1])

    async def load(self, connection: Connection) -> Load:
        """See Store.load."""
        pending, claimed, runs = await self._one(connection, "load", COUNTED_UP_TO)
        return Load(jobs_pending=pending, jobs_claimed=claimed, runs_open=runs)

    async def census(self, connection: Connection, stale_before: int, now: int) -> Census:
        """See Store.census."""
        return counted(
            now,
            await self._all(connection, "census_projects"),
            await self._all(connection, "census_lanes", now, CENSUS_UP_TO),
            await self._all(connection, "census_claimed", CENSUS_UP_TO),
            await self._all(connection, "census_sessions", stale_before),
        )

    async def next_available_at(self, connection: Connection, now: int) -> int | None:
        """See Store.next_available_at."""
        found = (await self._one(connection, "next_available", now))[0]
        return None if found is None else int(found)

    async def claimable(self, connection: Connection, since: int, now: int, limit: int) -> list[JobClaimable]:
        """See Store.claimable."""
        found = await self._all(connection, "claimable", since, now, limit)
        return [replace(claimable_row(row[:-1]), count=row[-1]) for row in found]


def _shown(row: rows.Row) -> tuple[Job, str | None]:
    return rows.job(row[:_JOB_COLUMNS], {}), row[-1]


def _view(row: rows.Row, held: list[tuple[Job, str | None]], last: tuple[Job, str | None] | None) -> SessionView:
    shown = [*held, last] if last is not None else held
    return SessionView(
        session=rows.session(row[:-1]),
        current_jobs=[job for job, _ in held],
        last_job=last[0] if last is not None else None,
        step_names={job.id: name for job, name in shown if name is not None},
    )
