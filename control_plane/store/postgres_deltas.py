"""The deltas of generations."""

from collections.abc import Sequence

from control_plane.domain.deltas import DeltaChunk, Position
from control_plane.domain.model import TERMINAL_JOB
from control_plane.domain.store import DeltaPage
from control_plane.store.postgres_connections import Connection
from control_plane.store.postgres_queries import Queries


async def append(connection: Connection, sql: dict[str, str], chunks: Sequence[DeltaChunk], now: int) -> list[bool]:
    """See Store.append_deltas."""
    held = await connection.fetch(
        sql["append_deltas"],
        [chunk.project_id for chunk in chunks],
        [chunk.job_id for chunk in chunks],
        [chunk.token_hash for chunk in chunks],
        [chunk.last_sequence for chunk in chunks],
        [chunk.items for chunk in chunks],
        now,
    )
    places = {row[0] for row in held}
    return [place in places for place in range(1, len(chunks) + 1)]


async def page(
    connection: Connection,
    sql: dict[str, str],
    queries: Queries,
    project_id: str,
    job_id: str,
    after: Position,
    limit: int,
) -> DeltaPage:
    """See Store.deltas."""
    # The state is read first: of a job that has ended by then, every delta is there.
    job = await queries.job(connection, project_id, job_id)
    seq = await connection.fetchval(sql["seq_of_job"], job_id, project_id)
    newest = await connection.fetchrow(sql["newest_delta"], seq)
    chunks = [tuple(row) for row in await connection.fetch(sql["deltas_of_job"], seq, *after, limit)]
    ended = job if job.status in TERMINAL_JOB else None
    return DeltaPage(chunks=chunks, newest=None if newest is None else tuple(newest), ended=ended)
