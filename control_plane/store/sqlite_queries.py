"""What is read for people and programs, on connections that cannot write: every call is one short read."""

from typing import Any

import apsw
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
from control_plane.store.pages import fitting_page, position


class Queries:
    """The reading half of the store; `connection` is passed to every call."""

    def __init__(self, statements: dict[str, str]) -> None:
        self._sql = statements

    def _one(self, connection: apsw.Connection, name: str, *bindings: Any) -> Any:
        return next(iter(connection.execute(self._sql[name], bindings)), None)

    def _all(self, connection: apsw.Connection, name: str, *bindings: Any) -> list[Any]:
        return list(connection.execute(self._sql[name], bindings))

    # --- projects and keys

    def projects(self, connection: apsw.Connection) -> list[Project]:
        """See Store.projects."""
        return [rows.project(row) for row in self._all(connection, "projects")]

    def project(self, connection: apsw.Connection, handle: str) -> Project:
        """See Store.project."""
        row = self._one(connection, "project_by_handle", handle)
        if row is None:
            raise NotFound(f"no project {handle}")
        return rows.project(row)

    def key(self, connection: apsw.Connection, secret_hash: bytes) -> ApiKey | None:
        """See Store.key."""
        row = self._one(connection, "key_by_hash", secret_hash)
        return None if row is None else rows.api_key(row)

    def keys(self, connection: apsw.Connection, project_id: str) -> list[ApiKey]:
        """See Store.keys."""
        return [rows.api_key(row) for row in self._all(connection, "keys_of_project", project_id)]

    def changed_keys(self, connection: apsw.Connection, since: int) -> list[ApiKey]:
        """See Store.changed_keys."""
        return [rows.api_key(row) for row in self._all(connection, "changed_keys", since)]

    def has_keys(self, connection: apsw.Connection) -> bool:
        """See Store.has_keys."""
        return self._one(connection, "any_key") is not None

    # --- automations

    def automations(
        self, connection: apsw.Connection, project_id: str, status: str | None, cursor: str | None, limit: int
    ) -> Page:
        """See Store.automations."""
        bindings = (project_id, position(cursor), status, limit + 1)
        found = connection.execute(self._sql["automations_of_project"], bindings)
        return fitting_page(((row[0], row[-1], rows.automation(row[1:-1], rows.raw_json)) for row in found), limit)

    def automation(self, connection: apsw.Connection, project_id: str, handle: str) -> Automation:
        """See Store.automation."""
        row = self._one(connection, "automation_by_handle", project_id, handle)
        if row is None:
            raise NotFound(f"no automation {handle} in this project")
        return rows.automation(row, rows.raw_json)

    def versions(
        self, connection: apsw.Connection, project_id: str, handle: str, cursor: str | None, limit: int
    ) -> Page:
        """See Store.versions."""
        automation = self.automation(connection, project_id, handle)
        found = connection.execute(self._sql["versions"], (automation.id, position(cursor), limit + 1))
        versions = ((rows.version(row[:-1], rows.raw_json), row[-1]) for row in found)
        return fitting_page(((version.version, size, version) for version, size in versions), limit)

    # --- runs

    def run(self, connection: apsw.Connection, project_id: str, run_id: str, with_result: bool) -> Run:  # noqa: FBT001
        """See Store.run."""
        row = self._one(connection, "run_by_id", run_id, project_id)
        if row is None:
            raise NotFound(f"no run {run_id} in this project")
        run = rows.run(row, rows.raw_json)
        if run.status == "completed" and with_result:
            saved = self._all(connection, "step_results", row[0])
            return replace(run, result={name: rows.raw_json(text) for name, text in saved})
        if run.status in TERMINAL_RUN:
            return run
        wakes = self._one(connection, "timer", row[0], "step")
        return replace(run, wake_at=wakes[0] if wakes is not None else None)

    def runs(
        self,
        connection: apsw.Connection,
        project_id: str,
        status: str | None,
        automation_id: str | None,
        cursor: str | None,
        limit: int,
        more: RunFilter,
    ) -> Page:
        """See Store.runs."""
        before = position(cursor)
        with connection:
            first, behind = self._created_between(connection, more)
            asked = (project_id, min(before, behind), first, status, automation_id, more.parent_run_id)
            times = (more.external_id, more.created_after, more.created_before, limit + 1)
            statement = self._sql[pages.runs_statement(status, automation_id, more)]
            found = connection.execute(statement, (*asked, *times))
            runs = fitting_page(((row[0], len(row[-1]), rows.run(row, rows.raw_json)) for row in found), limit)
        return runs  # noqa: RET504 - a return inside `with` may be skipped, for all that mypy knows

    def _created_between(self, connection: apsw.Connection, more: RunFilter) -> tuple[int, int]:
        """Keys of runs; see pages.created_between."""
        if more.created_after is None and more.created_before is None:
            return 0, NEVER
        search = pages.created_between(self._one(connection, "run_ends"), more)
        try:
            key = next(search)
            while True:
                key = search.send(self._one(connection, "run_at_or_before", key))
        except StopIteration as found:
            first, behind = found.value
            return first, behind

    def steps(self, connection: apsw.Connection, project_id: str, run_id: str) -> list[Step]:
        """See Store.steps."""
        return [
            rows.step(row, rows.raw_json)
            for row in self._all(connection, "steps_of_run", self._run_seq(connection, project_id, run_id))
        ]

    def open_step(self, connection: apsw.Connection, project_id: str, run_id: str) -> Step | None:
        """See Store.open_step."""
        row = self._one(connection, "open_step", self._run_seq(connection, project_id, run_id))
        return None if row is None else rows.step(row)

    def events(self, connection: apsw.Connection, project_id: str, run_id: str, since: int, limit: int) -> list[Event]:
        """See Store.events; fewer than `limit` when their payloads are large, but at least one."""
        run_seq = self._run_seq(connection, project_id, run_id)
        events: list[Event] = []
        size = 0
        for row in connection.execute(self._sql["events_of_run"], (run_seq, since, limit)):
            size += len(row[-1])
            if events and size > pages.MOST_PAGE_BYTES:
                break
            events.append(rows.event(project_id, run_id, row))
        return events

    def turn(self, connection: apsw.Connection, project_id: str, run_id: str) -> Turn | None:
        """See Store.turn."""
        found = self._one(connection, "turn_of_run", COUNTED_UP_TO, self._run_seq(connection, project_id, run_id))
        return None if found is None else Turn(holder_id=found[0], before=found[1])

    def next_timer_at(self, connection: apsw.Connection) -> int | None:
        """See Store.next_timer_at."""
        found = self._one(connection, "next_timer")[0]
        return None if found is None else int(found)

    def _run_seq(self, connection: apsw.Connection, project_id: str, run_id: str) -> int:
        row = self._one(connection, "run_seq", run_id, project_id)
        if row is None:
            raise NotFound(f"no run {run_id} in this project")
        return int(row[0])

    # --- sessions

    def session_by_token(self, connection: apsw.Connection, project_id: str, token_hash: bytes) -> Session | None:
        """See Store.session_by_token."""
        row = self._one(connection, "session_by_token", token_hash, project_id)
        return None if row is None else rows.session(row[:-1])

    def session_of_instance(
        self, connection: apsw.Connection, project_id: str, worker_instance_id: str
    ) -> Session | None:
        """See Store.session_of_instance."""
        row = self._one(connection, "session_of_instance", project_id, worker_instance_id)
        return None if row is None else rows.session(row[:-1])

    def sessions(self, connection: apsw.Connection, project_id: str) -> list[SessionView]:
        """See Store.sessions."""
        with connection:
            held = self._held(connection, project_id)
            found = self._all(connection, "sessions_of_project", project_id)
            views = [self._view(connection, row, held.get(row[0], [])) for row in found]
        return views  # noqa: RET504 - a return inside `with` may be skipped, for all that mypy knows

    def session_page(
        self,
        connection: apsw.Connection,
        project_id: str,
        state: SessionState,
        stale_before: int,
        cursor: str | None,
        limit: int,
    ) -> Page:
        """See Store.session_page."""
        before = pages.text_position(cursor)
        with connection:
            if state in ("all", "ended"):
                found = self._all(connection, "sessions_page", project_id, before, state, limit + 1)
            else:
                bindings = (project_id, before, state, stale_before, limit + 1)
                found = self._all(connection, "open_sessions_page", *bindings)
            held = self._held(connection, project_id) if found else {}
            views = [(row[0], self._view(connection, row, held.get(row[0], []))) for row in found]
        return pages.text_page(views, limit)

    def drains(self, connection: apsw.Connection, project_id: str) -> list[Drain]:
        """See Store.drains."""
        return [rows.drain(row) for row in self._all(connection, "drains", project_id)]

    def _held(self, connection: apsw.Connection, project_id: str) -> dict[str, list[tuple[Job, str | None]]]:
        held: dict[str, list[tuple[Job, str | None]]] = {}
        for session_id, seq in self._all(connection, "jobs_of_sessions", project_id):
            shown = self._shown_job(connection, "claimed_job", seq)
            if shown is not None:
                held.setdefault(session_id, []).append(shown)
        return held

    def _view(self, connection: apsw.Connection, row: rows.Row, held: list[tuple[Job, str | None]]) -> SessionView:
        last = None if row[-1] is None else self._shown_job(connection, "finished_job_without_result", row[-1])
        shown = [*held, last] if last is not None else held
        return SessionView(
            session=rows.session(row[:-1]),
            current_jobs=[job for job, _ in held],
            last_job=last[0] if last is not None else None,
            step_names={job.id: name for job, name in shown if name is not None},
        )

    def _shown_job(self, connection: apsw.Connection, statement: str, seq: int) -> tuple[Job, str | None] | None:
        row = self._one(connection, statement, seq)
        if row is None:
            return None  # it was retired
        name = self._one(connection, "step_name", row[1], row[2]) if row[1] is not None else None
        return rows.job(row, {}), name[0] if name is not None else None

    # --- jobs

    def job(self, connection: apsw.Connection, project_id: str, job_id: str) -> Job:
        """See Store.job."""
        with connection:
            found = self._one(connection, "find_job", job_id, project_id)
            if found is None:
                raise NotFound(f"no job {job_id} in this project")
            (seq,) = found
            for statement in ("claimed_job", "pending_job", "finished_job"):
                row = self._one(connection, statement, seq)
                if row is not None:
                    return rows.job(row, rows.from_json(self._one(connection, "spec_of_job", seq)[0]))
        raise NotFound(f"job {job_id} has no state")

    def job_view(self, connection: apsw.Connection, project_id: str, job_id: str) -> JobView:
        """See Store.job_view."""
        with connection:
            job = self.job(connection, project_id, job_id)
            (seq,) = self._one(connection, "find_job", job_id, project_id)
            attempts = [rows.attempt(row) for row in self._all(connection, "attempts_of_job", seq)]
        return JobView(job=job, attempts=attempts)

    def jobs(
        self, connection: apsw.Connection, project_id: str, which: JobFilter, cursor: str | None, limit: int
    ) -> Page:
        """See Store.jobs."""
        bindings = (position(cursor), pages.MOST_LOOKED_AT, project_id, which.queue, which.action_name, limit + 1)
        with connection:
            found = self._all(connection, f"listed_{which.status or 'jobs'}", *bindings)
            seqs = [seq for _, _, seq in found if seq is not None]
            items = [(seq, self._listed(connection, seq)) for seq in seqs]
        return pages.page_of_looks(items, limit, looked_at=found[0][0], last=found[0][1])

    def _listed(self, connection: apsw.Connection, seq: int) -> Job:
        for statement in ("finished_job_without_result", "claimed_job", "pending_job"):
            row = self._one(connection, statement, seq)
            if row is not None:
                return rows.job(row, {})
        raise NotFound(f"job {seq} has no state")

    def load(self, connection: apsw.Connection) -> Load:
        """See Store.load."""
        pending, claimed, runs = self._one(connection, "load", *[COUNTED_UP_TO] * 3)
        return Load(jobs_pending=pending, jobs_claimed=claimed, runs_open=runs)

    def census(self, connection: apsw.Connection, stale_before: int, now: int) -> Census:
        """See Store.census."""
        return counted(
            now,
            self._all(connection, "census_projects"),
            self._all(connection, "census_lanes", now, CENSUS_UP_TO),
            self._all(connection, "census_claimed", CENSUS_UP_TO),
            self._all(connection, "census_sessions", stale_before),
        )

    def next_available_at(self, connection: apsw.Connection, now: int) -> int | None:
        """See Store.next_available_at."""
        found = self._one(connection, "next_available", now)[0]
        return None if found is None else int(found)

    def claimable(self, connection: apsw.Connection, since: int, now: int, limit: int) -> list[JobClaimable]:
        """See Store.claimable."""
        with connection:
            found = self._all(connection, "claimable", since, now, limit)
            due = [claimable_row((at, *self._one(connection, "claimable_job", seq))) for at, seq in found]
        return due  # noqa: RET504 - as above
