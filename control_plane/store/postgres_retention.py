"""Deleting the past of a PostgreSQL store, a little at a time, by one replica at a time."""

from collections.abc import Sequence

from control_plane.domain.retention import Going, Past, Retired, going
from control_plane.store.postgres_connections import Connection
from control_plane.store.retired_tables import LOOKS, OF_JOB, OF_RUN

Found = Going | list[str]


async def find(
    connection: Connection, sql: dict[str, str], what: Retired, before: int, after: int, limit: int
) -> Found:
    """What may go: runs and jobs as Going, sessions and the jobs of deltas by their keys."""
    if what in ("sessions", "deltas"):
        return [row[0] for row in await connection.fetch(sql[f"past_{what}"], before, limit)]
    rows = await connection.fetch(sql[f"past_{what}"], after)
    looked_at = [
        Past(seq=seq, created_at=created, ended_at=ended, events=events) for seq, created, ended, events in rows
    ]
    return going(looked_at, before, limit, LOOKS)


async def delete(connection: Connection, sql: dict[str, str], what: Retired, found: Found, limit: int) -> int | None:
    """Deletes it, as far as it is still past; the number of what was asked for, None while another replica is at it."""
    if not await connection.fetchval(sql["retire_alone"]):
        return None
    if isinstance(found, Going):
        return await (_jobs(connection, found.seqs) if what == "jobs" else _runs(connection, sql, found, limit))
    if what == "sessions":
        number = _number(await connection.execute(sql["delete_sessions"], found))
        if number:
            await connection.execute(sql["delete_drains_of_nobody"])
        return number
    return _number(await connection.execute(sql["delete_deltas"], found, limit))


async def _runs(connection: Connection, sql: dict[str, str], found: Going, limit: int) -> int:
    asked = [*found.seqs, *([found.cut] if found.cut is not None else [])]
    finished = [row[0] for row in await connection.fetch(sql["finished_runs"], asked)]
    if found.cut in finished:
        await connection.execute(sql["delete_last_events"], found.cut, limit)
    seqs = [seq for seq in finished if seq != found.cut]
    if not seqs:
        return 0
    await _jobs(connection, [row[0] for row in await connection.fetch(sql["jobs_of_runs"], seqs)])
    for table in OF_RUN:
        await connection.execute(f"DELETE FROM {table} WHERE run_seq = ANY($1::bigint[])", seqs)  # noqa: S608
    return _number(await connection.execute("DELETE FROM runs WHERE seq = ANY($1::bigint[])", seqs))


async def _jobs(connection: Connection, seqs: Sequence[int]) -> int:
    rows = await connection.fetch("DELETE FROM jobs_finished WHERE seq = ANY($1::bigint[]) RETURNING seq", list(seqs))
    gone = [row[0] for row in rows]
    for table in OF_JOB:
        await connection.execute(f"DELETE FROM {table} WHERE job_seq = ANY($1::bigint[])", gone)  # noqa: S608
    return _number(await connection.execute("DELETE FROM jobs WHERE seq = ANY($1::bigint[])", gone))


def _number(status: str) -> int:
    return int(status.rpartition(" ")[2])
