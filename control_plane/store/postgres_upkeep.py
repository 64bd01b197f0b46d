"""Rows of the hot tables die by the thousand a second; PostgreSQL's own vacuum looks once a minute.

Any replica does it when there is something to do; where another one, or PostgreSQL itself, is at it, it is passed over.
"""

import asyncpg
import structlog

from control_plane.store.postgres_connections import Connection

HOT_TABLES = ("jobs_pending", "jobs_claimed")
WORTH_IT = 5_000
"""Dead rows."""

_DEAD = "SELECT relname FROM pg_stat_user_tables WHERE relname = ANY($1::text[]) AND n_dead_tup > $2 ORDER BY relname"

_log = structlog.get_logger("control_plane.store")


async def vacuum(connection: Connection) -> list[str]:
    """Vacuum the hot tables that need it; their names. What cannot be done now is left to PostgreSQL."""
    tables = [row[0] for row in await connection.fetch(_DEAD, HOT_TABLES, WORTH_IT)]
    for table in tables:
        try:
            # Without the truncation at its end, which would lock everybody out.
            await connection.execute(f"VACUUM (SKIP_LOCKED, TRUNCATE OFF) {table}")
        except (asyncpg.QueryCanceledError, asyncpg.InsufficientPrivilegeError) as error:
            _log.debug("not vacuumed", table=table, error=str(error))
    return tables
