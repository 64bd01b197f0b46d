"""What is recorded of actions, in the SQLite file."""

from collections.abc import Callable
from typing import Any

import apsw

from control_plane.domain import actions
from control_plane.domain.model import RecordedAction
from control_plane.domain.store import Page
from control_plane.errors import Conflict, NotFound
from control_plane.store import rows
from control_plane.store.pages import fitting_page, position
from control_plane.store.sqlite_queues import MOST_HINTED
from control_plane.store.sqlite_unit import Known, Unit
from control_plane.store.sqlite_writer import Writing


def create_action(
    known: Known, project_id: str, name: str, fields: dict[str, Any]
) -> Callable[[Writing], RecordedAction]:
    """See Store.create_action."""

    def command(writing: Writing) -> RecordedAction:
        unit = Unit(known, writing)
        if unit.one("action_by_name", project_id, name) is not None:
            raise Conflict("name_taken", f"action {name} is recorded already")
        action = actions.created(project_id, name, fields, unit.new_id("act"), writing.now)
        writing.execute(known.sql["insert_action"], rows.action_row(action))
        known.rules.forget(project_id)
        return action

    return command


def update_action(
    known: Known, project_id: str, name: str, changes: dict[str, Any]
) -> Callable[[Writing], RecordedAction]:
    """See Store.update_action."""

    def command(writing: Writing) -> RecordedAction:
        row = Unit(known, writing).one("action_by_name", project_id, name)
        if row is None:
            raise _not_found(name)
        action = actions.updated(rows.action(row), changes, writing.now)
        writing.execute(known.sql["update_action"], rows.action_changes(action))
        _limit_changed(known, writing, project_id, name)
        return action

    return command


def delete_action(known: Known, project_id: str, name: str) -> Callable[[Writing], None]:
    """See Store.delete_action."""

    def command(writing: Writing) -> None:
        writing.execute(known.sql["delete_action"], (project_id, name))
        if not writing.connection.changes():
            raise _not_found(name)
        _limit_changed(known, writing, project_id, name)

    return command


def _limit_changed(known: Known, writing: Writing, project_id: str, name: str) -> None:
    known.rules.forget(project_id)
    Unit(known, writing).announce_lanes(project_id, {("action", name): MOST_HINTED})


def action(connection: apsw.Connection, sql: dict[str, str], project_id: str, name: str) -> RecordedAction:
    """See Store.action."""
    row = next(iter(connection.execute(sql["action_by_name"], (project_id, name))), None)
    if row is None:
        raise _not_found(name)
    return rows.action(row, rows.raw_json)


def actions_of_project(
    connection: apsw.Connection, sql: dict[str, str], project_id: str, cursor: str | None, limit: int
) -> Page:
    """See Store.actions."""
    found = connection.execute(sql["actions_of_project"], (project_id, position(cursor), limit + 1))
    return fitting_page(((row[0], row[-1], rows.action(row[1:-1], rows.raw_json)) for row in found), limit)


def _not_found(name: str) -> NotFound:
    return NotFound(f"no action {name} is recorded in this project")
