"""What is recorded of actions, in PostgreSQL."""

from typing import Any

import asyncpg

from control_plane.domain import actions
from control_plane.domain.model import RecordedAction
from control_plane.domain.store import Page
from control_plane.errors import Conflict, NotFound
from control_plane.store import pages, rows
from control_plane.store.pages import page, position
from control_plane.store.postgres_connections import Connection
from control_plane.store.postgres_decisions import Known


async def create_action(
    connection: Connection, known: Known, project_id: str, name: str, fields: dict[str, Any], *, now: int
) -> RecordedAction:
    """See Store.create_action."""
    action = actions.created(project_id, name, fields, known.identifiers.new("act", now), now)
    try:
        await connection.execute(known.sql["insert_action"], *rows.action_row(action))
    except asyncpg.UniqueViolationError as error:
        raise Conflict("name_taken", f"action {name} is recorded already") from error
    return action


async def update_action(
    connection: Connection, known: Known, project_id: str, name: str, changes: dict[str, Any], *, now: int
) -> RecordedAction:
    """See Store.update_action."""
    row = await connection.fetchrow(known.sql["action_by_name"] + " FOR UPDATE", project_id, name)
    if row is None:
        raise _not_found(name)
    action = actions.updated(rows.action(tuple(row)), changes, now)
    await connection.execute(known.sql["update_action"], *rows.action_changes(action))
    return action


async def delete_action(connection: Connection, known: Known, project_id: str, name: str, *, now: int) -> None:
    """See Store.delete_action."""
    del now
    if await connection.fetchrow(known.sql["delete_action"], project_id, name) is None:
        raise _not_found(name)


async def action(connection: Connection, sql: dict[str, str], project_id: str, name: str) -> RecordedAction:
    """See Store.action."""
    row = await connection.fetchrow(sql["action_by_name"], project_id, name)
    if row is None:
        raise _not_found(name)
    return rows.action(tuple(row), rows.raw_json)


async def actions_of_project(
    connection: Connection, sql: dict[str, str], project_id: str, cursor: str | None, limit: int
) -> Page:
    """See Store.actions."""
    bindings = (project_id, position(cursor), limit + 1, pages.MOST_PAGE_BYTES)
    found = [tuple(row) for row in await connection.fetch(sql["actions_of_project"], *bindings)]
    return page([(row[0], rows.action(row[1:-3], rows.raw_json)) for row in found], limit, more=pages.is_cut(found))


def _not_found(name: str) -> NotFound:
    return NotFound(f"no action {name} is recorded in this project")
