"""The schema of the PostgreSQL store: numbered steps forward, safe for several replicas that start at once."""

import asyncpg
import structlog

from control_plane.errors import StoreRefused
from control_plane.store.postgres_connections import FAULTS, Connection, Database
from control_plane.store.statements import load_migrations

MIGRATION_LOCK = 0x6D6F62697573
"""The key of the advisory lock that one migrating process holds."""

TABLE = "CREATE TABLE IF NOT EXISTS schema_migrations (version integer PRIMARY KEY, applied_at timestamptz NOT NULL)"

_log = structlog.get_logger("control_plane.store")


async def schema_version(connection: Connection) -> int:
    """The number of the newest step that the database has; 0: none."""
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return 0
    return int(await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_migrations"))


async def migrate(database: Database) -> tuple[int, int]:
    """Bring the schema up to date; the versions before and after. Raises StoreRefused, StoreUnavailable."""
    # Whoever is second waits until the first is done, however long that takes.
    connection = await database.connect(statement_timeout="0", lock_timeout="0")
    try:
        await database.check(connection)
        before = await schema_version(connection)
        newest = load_migrations("postgresql")[-1][0]
        if before == newest:
            return before, before
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK, timeout=3600)
        return before, await _migrate(connection, database)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreRefused(
            f"store {database.name}: {error}; make the role the owner of the database, or run "
            "mobius-control-plane migrate as a role that may create tables there"
        ) from error
    except FAULTS as error:
        raise database.unavailable(error) from error
    finally:
        connection.terminate()


async def require_current(database: Database) -> None:
    """For a tool beside control planes that may be running: it does not change their schema under them. Raises
    StoreRefused."""
    connection = await database.connect()
    try:
        version = await schema_version(connection)
    except FAULTS as error:
        raise database.unavailable(error) from error
    finally:
        connection.terminate()
    if 0 < version < load_migrations("postgresql")[-1][0]:
        raise StoreRefused(
            f"store {database.name} has schema {version}, and control planes that use it may be older than this "
            "program: run mobius-control-plane migrate first"
        )


async def _migrate(connection: Connection, database: Database) -> int:
    version = await schema_version(connection)
    migrations = load_migrations("postgresql")
    if version > migrations[-1][0]:
        raise StoreRefused(
            f"store {database.name} has schema {version}, newer than this version knows ({migrations[-1][0]}): "
            "install the newer one again"
        )
    for number, text in migrations:
        if number > version:
            async with connection.transaction():
                await connection.execute(TABLE)
                try:
                    await connection.execute(text, timeout=3600)
                except asyncpg.DuplicateTableError as error:
                    raise StoreRefused(
                        f"store {database.name} has tables of another program ({error}): give us a database of our own"
                    ) from error
                await connection.execute("INSERT INTO schema_migrations VALUES ($1, now())", number)
            _log.info("schema migrated", store=database.name, version=number)
            version = number
    return version
