"""Deleting the past of a SQLite store, a little at a time: a reader finds it, the writer's transaction deletes it."""

from collections.abc import Callable, Sequence

import apsw

from control_plane.domain.retention import Going, Past, Retired, going
from control_plane.store.retired_tables import LOOKS, OF_JOB, OF_RUN
from control_plane.store.sqlite_writer import Writing

Found = Going | list[str]


def find(connection: apsw.Connection, sql: dict[str, str], what: Retired, before: int, after: int, limit: int) -> Found:
    """What may go: runs and jobs as Going, sessions and the jobs of deltas by their keys."""
    if what in ("sessions", "deltas"):
        return [row[0] for row in connection.execute(sql[f"past_{what}"], (before, limit))]
    rows = connection.execute(sql[f"past_{what}"], (after,))
    looked_at = [
        Past(seq=seq, created_at=created, ended_at=ended, events=events) for seq, created, ended, events in rows
    ]
    return going(looked_at, before, limit, LOOKS)


def delete(sql: dict[str, str], what: Retired, found: Found, limit: int) -> Callable[[Writing], int]:
    """Deletes it, as far as it is still past; the number of what was asked for."""

    def command(writing: Writing) -> int:
        if isinstance(found, Going):
            return _jobs(writing, found.seqs) if what == "jobs" else _runs(sql, writing, found, limit)
        if what == "sessions":
            return _sessions(sql, writing, found)
        return _deltas(sql, writing, found, limit)

    return command


def _runs(sql: dict[str, str], writing: Writing, found: Going, limit: int) -> int:
    if found.cut is not None and next(iter(writing.execute(sql["finished_run"], (found.cut,))), None):
        writing.execute(sql["delete_last_events"], (found.cut, limit))
    number = 0
    for seq in found.seqs:
        if next(iter(writing.execute(sql["finished_run"], (seq,))), None) is None:
            continue
        _jobs(writing, [row[0] for row in writing.execute(sql["jobs_of_run"], (seq,))])
        for table in OF_RUN:
            writing.execute(f"DELETE FROM {table} WHERE run_seq = ?", (seq,))  # noqa: S608 - a name of ours
        writing.execute("DELETE FROM runs WHERE seq = ?", (seq,))
        number += 1
    return number


def _jobs(writing: Writing, seqs: Sequence[int]) -> int:
    number = 0
    for seq in seqs:
        writing.execute("DELETE FROM jobs_finished WHERE seq = ?", (seq,))
        if writing.connection.changes():
            for table in OF_JOB:
                writing.execute(f"DELETE FROM {table} WHERE job_seq = ?", (seq,))  # noqa: S608 - a name of ours
            writing.execute("DELETE FROM jobs WHERE seq = ?", (seq,))
            number += 1
    return number


def _sessions(sql: dict[str, str], writing: Writing, ids: Sequence[str]) -> int:
    number = 0
    for session_id in ids:
        writing.execute(sql["delete_session"], (session_id,))
        number += writing.connection.changes()
    if number:
        writing.execute(sql["delete_drains_of_nobody"])
    return number


def _deltas(sql: dict[str, str], writing: Writing, seqs: Sequence[str], limit: int) -> int:
    number = 0
    for seq in seqs:
        if number >= limit:
            break
        writing.execute(sql["delete_deltas"], (seq, limit - number))
        number += writing.connection.changes()
    return number
