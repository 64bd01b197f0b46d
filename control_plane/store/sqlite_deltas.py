"""The deltas of generations: written by the writer, read beside it."""

from collections.abc import Callable, Sequence

import apsw

from control_plane.domain.deltas import DeltaChunk, Position
from control_plane.domain.model import TERMINAL_JOB
from control_plane.domain.store import DeltaPage
from control_plane.store.sqlite_queries import Queries
from control_plane.store.sqlite_writer import Writing


def append(sql: dict[str, str], chunks: Sequence[DeltaChunk]) -> Callable[[Writing], list[bool]]:
    """See Store.append_deltas."""

    def command(writing: Writing) -> list[bool]:
        return [_append(sql, writing, chunk) for chunk in chunks]

    return command


def _append(sql: dict[str, str], writing: Writing, chunk: DeltaChunk) -> bool:
    lease = (chunk.job_id, chunk.project_id, chunk.token_hash)
    held = next(iter(writing.execute(sql["lease_of_job"], lease)), None)
    if held is None:
        return False
    writing.execute(sql["insert_deltas"], (*held, chunk.last_sequence, writing.now, chunk.items))
    return True


def page(
    connection: apsw.Connection,
    sql: dict[str, str],
    queries: Queries,
    project_id: str,
    job_id: str,
    after: Position,
    limit: int,
) -> DeltaPage:
    """See Store.deltas."""
    # The state is read first: of a job that has ended by then, every delta is there.
    job = queries.job(connection, project_id, job_id)
    ((seq,),) = connection.execute(sql["find_job"], (job_id, project_id))
    newest = next(iter(connection.execute(sql["newest_delta"], (seq,))), None)
    chunks = list(connection.execute(sql["deltas_of_job"], (seq, *after, limit)))
    return DeltaPage(chunks=chunks, newest=newest, ended=job if job.status in TERMINAL_JOB else None)
