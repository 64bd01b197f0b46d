"""A SQLite store's rows into an empty PostgreSQL database: all of them, or none."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import asyncpg

from control_plane.domain.store import LeaseTerms
from control_plane.domain.times import to_microseconds
from control_plane.errors import StoreInUse, StoreRefused
from control_plane.store.postgres_connections import FAULTS, Connection, Database
from control_plane.store.postgres_migrations import migrate
from control_plane.store.postgres_replicas import GONE_AFTER
from control_plane.store.sqlite import SqliteStore, require_file, unreadable

CHUNK = 2000
"""Rows that are read and written at a time."""

SINGLETON = "store_clock"
"""The one table whose row is there from the first migration on."""

_NOT_OURS = ("sqlite_", SINGLETON)


async def copy(source: Path, database: Database) -> dict[str, int]:
    """Rows by table. The source keeps its rows. Raises StoreInUse while a control plane serves either of them,
    StoreRefused when the target is not empty, StoreDamaged, StoreUnavailable."""
    require_file(source)
    # Open, it is locked and of our schema.
    opened = SqliteStore(source, LeaseTerms())
    try:
        await opened.open(lambda _: None)
        await migrate(database)
        connection = await database.connect(statement_timeout="0", enable_seqscan="on")
        try:
            with contextlib.closing(apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)) as reading:
                async with connection.transaction():
                    return await _Copy(reading, connection, database).run()
        except FAULTS as error:
            raise database.unavailable(error) from error
        except apsw.Error as error:
            raise unreadable(source, error) from error
        finally:
            connection.terminate()
    finally:
        await opened.close()


class _Copy:
    """One copy in one transaction."""

    def __init__(self, reading: apsw.Connection, connection: Connection, database: Database) -> None:
        self._reading = reading
        self._connection = connection
        self._database = database

    async def run(self) -> dict[str, int]:
        """Rows by table."""
        tables = [
            name
            for (name,) in self._reading.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid")
            if not name.startswith(_NOT_OURS)
        ]
        await self._check_target(tables)
        copied = {table: await self._copy_table(table) for table in tables}
        for table, number in copied.items():
            there = await self._connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608 - a name of ours
            if there != number:
                raise StoreRefused(f"{table}: {number} rows were copied and {there} are there; nothing was kept")
            await self._count_on(table)
        # What PostgreSQL's tables have for their own use.
        await self._connection.execute(
            "UPDATE jobs_pending p SET run_seq = j.run_seq FROM jobs j WHERE j.seq = p.seq", timeout=3600
        )
        ((latest,),) = self._reading.execute("SELECT latest FROM store_clock")
        await self._connection.execute("UPDATE store_clock SET latest = greatest(latest, $1)", latest)
        return copied

    async def _check_target(self, tables: Sequence[str]) -> None:
        current = await self._connection.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        alive = "SELECT count(*) FROM replicas WHERE stopped_at IS NULL AND beat_at > $1"
        if await self._connection.fetchval(alive, current - to_microseconds(GONE_AFTER)):
            raise StoreInUse(f"store {self._database.name} is served by a control plane: stop it first")
        for table in tables:
            try:
                # Nobody begins to use it while we write.
                await self._connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
                full = await self._connection.fetchval(f"SELECT 1 FROM {table} LIMIT 1")  # noqa: S608 - a name of ours
            except asyncpg.UndefinedTableError as error:
                raise StoreRefused(f"store {self._database.name} has no table {table}") from error
            if full:
                raise StoreRefused(
                    f"store {self._database.name} is not empty ({table} has rows): name a fresh database"
                )

    async def _copy_table(self, table: str) -> int:
        columns = [row[1] for row in self._reading.execute(f"PRAGMA table_info({table})")]
        found = await self._connection.fetch(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = current_schema() AND table_name = $1",
            table,
        )
        types = {row[0]: row[1] for row in found}
        text = f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608 - names of ours
        number = 0
        for rows in _chunks(self._reading.execute(text)):
            records = [
                tuple(_value(value, types[column]) for column, value in zip(columns, row, strict=True)) for row in rows
            ]
            await self._connection.copy_records_to_table(table, records=records, columns=columns, timeout=3600)
            number += len(records)
        return number

    async def _count_on(self, table: str) -> None:
        """New rows get keys behind those that were copied."""
        sequences = "SELECT column_name FROM information_schema.columns WHERE table_name = $1 AND is_identity = 'YES'"
        for (column,) in await self._connection.fetch(sequences, table):
            await self._connection.execute(
                f"SELECT setval(pg_get_serial_sequence($1, $2), max({column})) FROM {table} HAVING max({column}) > 0",  # noqa: S608
                table,
                column,
            )


def _chunks(cursor: Any) -> Iterator[list[Any]]:
    rows: list[Any] = []
    for row in cursor:
        rows.append(row)
        if len(rows) == CHUNK:
            yield rows
            rows = []
    if rows:
        yield rows


def _value(value: Any, data_type: str) -> Any:
    if value is None:
        return None
    if data_type == "boolean":
        return bool(value)
    if data_type == "double precision":
        return float(value)
    if data_type == "text":
        # SQLite keeps a NUL in a text, PostgreSQL cannot.
        return str(value).replace("\0", "\ufffd")
    return value
