"""What was sent to PostgreSQL to be committed and got no answer, and how to learn what became of it."""

import datetime as dt

import asyncpg
from msgspec import Struct

from control_plane.store.postgres_connections import Connection

LIFE = "(SELECT concat(pg_postmaster_start_time(), ' ', stats_reset) FROM pg_stat_bgwriter)"
"""Another one after every restart, every recovery from a crash, and at every other server."""


class InProgressError(Exception):
    """The server has not done yet what it was told to do."""


SERVER = f"SELECT {LIFE}, pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"  # noqa: S608 - ours
"""The fields of a Server."""


class Server(Struct, frozen=True):
    """Who is at the other end of a connection: the server's life, and of its process what tells it from all others."""

    life: str
    pid: int
    begun_at: dt.datetime


class Unanswered(Struct, frozen=True, kw_only=True):
    """What was sent to be committed, and not answered."""

    server: Server | None
    error: Exception

    async def outcome(self, connection: Connection) -> bool | None:
        """Whether it has committed; None when that cannot be known. Raises InProgressError."""
        raise NotImplementedError


class UnansweredCommit(Unanswered, frozen=True, kw_only=True):
    """A transaction whose COMMIT was sent, by its id."""

    xid: str

    async def outcome(self, connection: Connection) -> bool | None:
        """See Unanswered."""
        try:
            query = f"SELECT pg_xact_status($1::text::xid8), {LIFE}"
            status, life = await connection.fetchrow(query, self.xid)
        except asyncpg.InvalidParameterValueError:
            return False  # the number is still to be given: the server has forgotten the transaction
        if self.server is None or life != self.server.life:
            # A transaction that a crash has undone leaves its number to another one, whose outcome this may be.
            return None if status in ("committed", None) else False
        if status == "in progress":
            raise InProgressError
        return None if status is None else bool(status == "committed")


class UnansweredJobs(Unanswered, frozen=True, kw_only=True):
    """A statement that is a transaction by itself, by one of the jobs that it stores."""

    job_id: str

    async def outcome(self, connection: Connection) -> bool | None:
        """See Unanswered."""
        if await self._is_stored(connection):
            return True
        if self.server is None:
            return None
        # The process that was to do it, and then in a new statement what it has done: one that has gone does no more.
        # Its number alone may be another's by now.
        query = "SELECT FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2"
        if await connection.fetchrow(query, self.server.pid, self.server.begun_at) is not None:
            raise InProgressError
        return await self._is_stored(connection)

    async def _is_stored(self, connection: Connection) -> bool:
        return await connection.fetchrow("SELECT FROM jobs WHERE id = $1", self.job_id) is not None
