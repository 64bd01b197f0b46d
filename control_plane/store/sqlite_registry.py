"""Commands on projects, keys, automations and sessions: each is one transaction of the writer."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from control_plane.domain import automations, sessions, specs
from control_plane.domain.model import Automation, Project, Selector, Session, Version
from control_plane.errors import Conflict, NotFound
from control_plane.store import rows, sqlite_presence
from control_plane.store.sqlite_unit import Known, Unit
from control_plane.store.sqlite_writer import Writing


def create_project(known: Known, handle: str, name: str) -> Callable[[Writing], Project]:
    """See Store.create_project."""

    def command(writing: Writing) -> Project:
        unit = Unit(known, writing)
        if unit.one("project_by_handle", handle) is not None:
            raise Conflict("handle_taken", f"a project {handle} exists already")
        now = writing.now
        project = Project(id=unit.new_id("proj"), handle=handle, name=name, created_at=now, updated_at=now)
        writing.execute(known.sql["insert_project"], (project.id, handle, name, None, None, now, now))
        return project

    return command


# --- automations


def create_automation(
    known: Known, project_id: str, handle: str, name: str, fields: dict[str, Any]
) -> Callable[[Writing], Automation]:
    """See Store.create_automation."""

    def command(writing: Writing) -> Automation:
        unit = Unit(known, writing)
        automations.check_fields(fields, automations.OPTIONAL)
        if unit.one("automation_by_handle", project_id, handle) is not None:
            raise Conflict("handle_taken", f"an automation {handle} exists already in this project")
        automation = Automation(
            id=unit.new_id("auto"),
            project_id=project_id,
            handle=handle,
            name=name,
            status="draft",
            latest_version=0,
            created_at=writing.now,
            updated_at=writing.now,
            **fields,
        )
        writing.execute(known.sql["insert_automation"], rows.automation_row(automation))
        return automation

    return command


def update_automation(
    known: Known, project_id: str, handle: str, changes: dict[str, Any]
) -> Callable[[Writing], Automation]:
    """See Store.update_automation."""

    def command(writing: Writing) -> Automation:
        before = Unit(known, writing).automation(project_id, handle)
        after = automations.updated(before, changes, writing.now)
        _write(known, writing, after)
        return after

    return command


def create_version(
    known: Known, project_id: str, handle: str, spec: dict[str, Any], compiled_plan: dict[str, Any] | None
) -> Callable[[Writing], Version]:
    """See Store.create_version."""
    _, errors = specs.read(spec)

    def command(writing: Writing) -> Version:
        unit = Unit(known, writing)
        automation = unit.automation(project_id, handle)
        version = automations.draft(automation, unit.new_id("ver"), spec, errors, compiled_plan, writing.now)
        writing.execute(known.sql["insert_version"], rows.version_row(version))
        _write(known, writing, replace(automation, latest_version=version.version, updated_at=writing.now))
        return version

    return command


def publish_version(known: Known, project_id: str, handle: str, number: int) -> Callable[[Writing], Automation]:
    """See Store.publish_version."""

    def command(writing: Writing) -> Automation:
        unit = Unit(known, writing)
        automation = unit.automation(project_id, handle)
        row = unit.one("version", automation.id, number)
        if row is None:
            raise NotFound(f"automation {handle} has no version {number}")
        after = automations.published(automation, rows.version(row), writing.now)
        if automation.published_version not in (None, number):
            bindings = ("superseded", automation.id, automation.published_version)
            writing.execute(known.sql["set_version_status"], bindings)
        writing.execute(known.sql["set_version_status"], ("published", automation.id, number))
        _write(known, writing, after)
        return after

    return command


def _write(known: Known, writing: Writing, automation: Automation) -> None:
    bindings = (
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
        automation.id,
    )
    writing.execute(known.sql["update_automation"], bindings)


# --- sessions


def register_session(known: Known, session: Session) -> Callable[[Writing], Session]:
    """See Store.register_session. Raises Conflict("session_superseded")."""

    def command(writing: Writing) -> Session:
        unit = Unit(known, writing)
        row = unit.one("session_by_id", session.id) if session.id else None
        earlier = rows.session(row[:-1]) if row is not None else None
        record = sessions.registered(session, earlier, unit.new_id, writing.now)
        record = replace(record, drain_requested=sqlite_presence.stands(known, writing, record))
        if earlier is None:
            writing.execute(known.sql["insert_session"], rows.session_row(record))
        else:
            _renew(known, writing, record)
        if not record.draining:  # one that drains owns its identity no more: its successor may be at work already
            bindings = (writing.now, record.project_id, record.worker_instance_id, record.id)
            writing.execute(known.sql["supersede_sessions"], bindings)
        return record

    return command


def _renew(known: Known, writing: Writing, record: Session) -> None:
    bindings = (
        record.concurrency_limit,
        rows.to_json(record.selector),
        record.last_seen_at,
        record.name,
        record.version,
        rows.to_json(record.capabilities),
        record.api_key_id,
        int(record.draining),
        int(record.drain_requested),
        record.id,
    )
    writing.execute(known.sql["renew_session"], bindings)


def sessions_seen(known: Known, seen: dict[str, int]) -> Callable[[Writing], None]:
    """See Store.sessions_seen."""

    def command(writing: Writing) -> None:
        for session_id, seen_at in seen.items():
            writing.execute(known.sql["session_seen"], (seen_at, session_id))

    return command


def update_session(
    known: Known,
    session_id: str,
    *,
    draining: bool | None,
    ended: bool | None,
    selector: Selector | None,
) -> Callable[[Writing], None]:
    """See Store.update_session."""

    def command(writing: Writing) -> None:
        if draining is not None:
            writing.execute(known.sql["set_draining"], (int(draining), session_id))
        if ended is not None:
            writing.execute(
                known.sql["set_ended"], (*((writing.now, "drained") if ended else (None, None)), session_id)
            )
        if selector is not None:
            writing.execute(known.sql["set_selector"], (rows.to_json(selector), session_id))

    return command


def end_sessions(known: Known, unseen_since: int, except_for: Sequence[str]) -> Callable[[Writing], int]:
    """See Store.end_sessions."""
    kept = frozenset(except_for)

    def command(writing: Writing) -> int:
        stale = [row[0] for row in writing.execute(known.sql["stale_sessions"], (unseen_since,))]
        ending = [session_id for session_id in stale if session_id not in kept]
        for session_id in ending:
            writing.execute(known.sql["set_ended"], (writing.now, "unseen", session_id))
        return len(ending)

    return command
