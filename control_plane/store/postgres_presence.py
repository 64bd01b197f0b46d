"""Commands on drains; `connection` is in a transaction."""

from control_plane.domain.model import DrainTarget
from control_plane.domain.store import Committed, SessionDrainLifted, SessionDrainRequested
from control_plane.errors import NotFound
from control_plane.store.postgres_connections import Connection
from control_plane.store.postgres_facts import lock_key


def drains_key(project_id: str) -> int:
    """What registrations share and drains hold alone."""
    return lock_key(project_id, "drains")


async def drain(
    connection: Connection, sql: dict[str, str], project_id: str, target: DrainTarget, now: int
) -> list[Committed]:
    """See Store.drain_sessions."""
    await connection.execute(sql["lock_keys"], [drains_key(project_id)])
    if target.kind == "session" and not await connection.fetchrow(sql["session_is_open"], project_id, target.value):
        raise NotFound(f"no worker session {target.value} is open in this project")
    await connection.execute(sql["insert_drain"], project_id, target.kind, target.value, now)
    asked = await connection.fetch(sql["request_drains"], project_id)
    return [SessionDrainRequested(session_id=row[0]) for row in asked]


async def undrain(connection: Connection, sql: dict[str, str], project_id: str, target: DrainTarget) -> list[Committed]:
    """See Store.undrain_sessions."""
    await connection.execute(sql["lock_keys"], [drains_key(project_id)])
    if not await connection.fetchrow(sql["delete_drain"], project_id, target.kind, target.value):
        raise NotFound(f"no drain of {target.kind} {target.value} stands in this project")
    lifted = await connection.fetch(sql["lift_drains"], project_id)
    return [SessionDrainLifted(session_id=row[0]) for row in lifted]
