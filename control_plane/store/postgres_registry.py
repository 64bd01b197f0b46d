"""Commands on projects, keys, automations and sessions: rare, each in a transaction of its own."""

from collections.abc import Sequence
from typing import Any

import asyncpg
from msgspec.structs import replace

from control_plane.domain import automations, sessions, specs
from control_plane.domain.model import Automation, Project, Selector, Session, Version
from control_plane.errors import Conflict, NotFound
from control_plane.store import postgres_presence, rows
from control_plane.store.postgres_connections import Connection
from control_plane.store.postgres_decisions import Known
from control_plane.store.postgres_facts import lock_key


class Registry:
    """`connection` is in a transaction; `now` is microseconds."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._sql = known.sql

    def _new_id(self, prefix: str, now: int) -> str:
        return self._known.identifiers.new(prefix, now)

    # --- projects

    async def create_project(self, connection: Connection, handle: str, name: str, now: int) -> Project:
        """See Store.create_project."""
        project = Project(id=self._new_id("proj", now), handle=handle, name=name, created_at=now, updated_at=now)
        try:
            await connection.execute(self._sql["insert_project"], project.id, handle, name, None, None, now, now)
        except asyncpg.UniqueViolationError as error:
            raise Conflict("handle_taken", f"a project {handle} exists already") from error
        return project

    # --- automations

    async def create_automation(
        self, connection: Connection, project_id: str, handle: str, name: str, fields: dict[str, Any], now: int
    ) -> Automation:
        """See Store.create_automation."""
        automations.check_fields(fields, automations.OPTIONAL)
        automation = Automation(
            id=self._new_id("auto", now),
            project_id=project_id,
            handle=handle,
            name=name,
            status="draft",
            latest_version=0,
            created_at=now,
            updated_at=now,
            **fields,
        )
        try:
            await connection.execute(self._sql["insert_automation"], *rows.automation_row(automation))
        except asyncpg.UniqueViolationError as error:
            raise Conflict("handle_taken", f"an automation {handle} exists already in this project") from error
        return automation

    async def update_automation(
        self, connection: Connection, project_id: str, handle: str, changes: dict[str, Any], now: int
    ) -> Automation:
        """See Store.update_automation."""
        before = await self._lock(connection, project_id, handle)
        after = automations.updated(before, changes, now)
        await self._write(connection, after)
        return after

    async def create_version(
        self,
        connection: Connection,
        project_id: str,
        handle: str,
        spec: dict[str, Any],
        compiled_plan: dict[str, Any] | None,
        now: int,
    ) -> Version:
        """See Store.create_version."""
        _, errors = specs.read(spec)
        automation = await self._lock(connection, project_id, handle)
        version = automations.draft(automation, self._new_id("ver", now), spec, errors, compiled_plan, now)
        await connection.execute(self._sql["insert_version"], *rows.version_row(version))
        await self._write(connection, replace(automation, latest_version=version.version, updated_at=now))
        return version

    async def publish_version(
        self, connection: Connection, project_id: str, handle: str, number: int, now: int
    ) -> Automation:
        """See Store.publish_version."""
        automation = await self._lock(connection, project_id, handle)
        row = await connection.fetchrow(self._sql["version"], automation.id, number)
        if row is None:
            raise NotFound(f"automation {handle} has no version {number}")
        after = automations.published(automation, rows.version(tuple(row)), now)
        if automation.published_version not in (None, number):
            superseded = ("superseded", automation.id, automation.published_version)
            await connection.execute(self._sql["set_version_status"], *superseded)
        await connection.execute(self._sql["set_version_status"], "published", automation.id, number)
        await self._write(connection, after)
        return after

    async def _lock(self, connection: Connection, project_id: str, handle: str) -> Automation:
        row = await connection.fetchrow(self._sql["lock_automation"], project_id, handle)
        if row is None:
            raise NotFound(f"no automation {handle} in this project")
        return rows.automation(tuple(row))

    async def _write(self, connection: Connection, automation: Automation) -> None:
        await connection.execute(
            self._sql["update_automation"],
            automation.id,
            automation.name,
            automation.status,
            automation.latest_version,
            automation.published_version,
            automation.description,
            automation.default_agent_id,
            rows.to_json(automation.default_inputs),
            rows.to_json(automation.settings),
            rows.to_json(automation.tags),
            automation.archived_at,
            automation.updated_at,
        )

    # --- sessions

    async def register_session(
        self, connection: Connection, session: Session, replica_id: str, now: int
    ) -> tuple[Session, list[str]]:
        """See Store.register_session; with the ids of the sessions that it has superseded. Raises
        Conflict("session_superseded")."""
        # Two replicas that register one instance follow each other, so that the later one supersedes the earlier.
        await connection.execute(self._sql["lock_keys"], [lock_key(session.project_id, session.worker_instance_id)])
        row = await connection.fetchrow(self._sql["lock_session"], session.id) if session.id else None
        earlier = rows.session(tuple(row)) if row is not None else None
        record = sessions.registered(session, earlier, lambda prefix: self._new_id(prefix, now), now)
        await connection.execute(self._sql["share_drains"], postgres_presence.drains_key(record.project_id))
        drains = (record.project_id, record.id, record.worker_instance_id, record.version)
        standing = await connection.fetchrow(self._sql["standing_drain"], *drains)
        record = replace(record, drain_requested=standing is not None)
        if earlier is None:
            await connection.execute(self._sql["insert_session"], *rows.session_row(record), replica_id, now)
        else:
            await self._renew(connection, record, replica_id, now)
        if record.draining:  # it owns its identity no more: its successor may be at work already
            return record, []
        identity = (record.project_id, record.worker_instance_id, record.id)
        superseded = await connection.fetch(self._sql["supersede_sessions"], now, *identity)
        return record, [row[0] for row in superseded]

    async def _renew(self, connection: Connection, record: Session, replica_id: str, now: int) -> None:
        await connection.execute(
            self._sql["renew_session"],
            record.id,
            record.concurrency_limit,
            rows.to_json(record.selector),
            record.last_seen_at,
            record.name,
            record.version,
            rows.to_json(record.capabilities),
            record.api_key_id,
            record.draining,
            record.drain_requested,
            replica_id,
            now,
        )

    async def sessions_seen(self, connection: Connection, seen: dict[str, int], replica_id: str) -> set[str]:
        """See Store.sessions_seen; the ids of those that another replica carries, or that are superseded."""
        ours = await connection.fetch(self._sql["sessions_seen"], list(seen), list(seen.values()), replica_id)
        return seen.keys() - {row[0] for row in ours}

    async def update_session(
        self,
        connection: Connection,
        session_id: str,
        *,
        draining: bool | None,
        ended: bool | None,
        selector: Selector | None,
        now: int,
    ) -> None:
        """See Store.update_session."""
        flags = (draining, ended, now)
        await connection.execute(self._sql["update_session"], session_id, *flags, rows.to_json(selector))

    async def end_sessions(
        self, connection: Connection, unseen_since: int, except_for: Sequence[str], replicas: tuple[str, int], now: int
    ) -> int:
        """See Store.end_sessions; `replicas`: our id, and the time since which one that is gone has not beaten."""
        kept = list(except_for)
        status = await connection.execute(self._sql["end_sessions"], now, unseen_since, kept, *replicas)
        return int(status.rpartition(" ")[2])
