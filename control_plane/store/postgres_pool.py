"""A few connections for everything that is no group commit: reads, and rare writes in transactions of their own."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from control_plane.errors import FenceBrokenError, Invalid, StoreUnavailable
from control_plane.store.postgres_changes import commit
from control_plane.store.postgres_connections import FAULTS, LOST, NUL, REPEATABLE, Connection, Database

SIZE = 8
"""Connections at the most."""

REPETITIONS = 5
"""How often a transaction is made again that others got in the way of."""

ResultT = TypeVar("ResultT")
Work = Callable[[Connection], Awaitable[ResultT]]


class Pool:
    """Lends connections. A call waits for one as long as a statement may take; `failed` hears that one broke."""

    def __init__(self, database: Database, failed: Callable[[], None]) -> None:
        self._database = database
        self._failed = failed
        self._slots = asyncio.Semaphore(SIZE)
        self._idle: list[Connection] = []
        self._closed = False

    async def run(self, work: Work[ResultT]) -> ResultT:
        """What `work` answers, whose statements stand for themselves; it may be called twice. Raises StoreUnavailable,
        Invalid, and what `work` raises."""
        return await self._lend(work)

    async def transact(self, work: Work[ResultT]) -> ResultT:
        """The same in one transaction: when it returns it is durable. No answer to COMMIT is StoreUnavailable."""
        for _ in range(REPETITIONS):
            with contextlib.suppress(FenceBrokenError, *REPEATABLE):
                return await self._lend(lambda connection: _in_transaction(connection, work))
        raise StoreUnavailable("the store is too busy")

    async def close(self) -> None:
        """Close what is idle; what is lent is closed when it comes back."""
        self._closed = True
        while self._idle:
            await self._close(self._idle.pop())

    async def _lend(self, work: Work[ResultT]) -> ResultT:
        async with self._slots:
            while True:
                if self._closed:
                    raise StoreUnavailable("the store is closed")
                idle = self._take_idle()
                connection = idle if idle is not None else await self._database.connect()
                try:
                    result = await work(connection)
                except _CommitLostError as lost:
                    connection.terminate()
                    self._failed()
                    raise self._database.unavailable(lost) from lost
                except LOST as error:
                    connection.terminate()
                    self._failed()
                    if idle is None:
                        raise self._database.unavailable(error) from error
                    # It broke while nobody used it, and so did the others: nothing was done with it.
                    self._forget_idle()
                except BaseException as error:
                    await self._take_back(connection, error)
                    raise self._told(error) from error
                else:
                    await self._take_back(connection)
                    return result

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, NUL):
            return Invalid("invalid_text", "a text holds a NUL character, which cannot be stored")
        if isinstance(error, asyncpg.PostgresError) and not isinstance(
            error, (asyncpg.IntegrityConstraintViolationError, *REPEATABLE)
        ):
            return self._database.unavailable(error)
        return error

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    def _forget_idle(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    async def _take_back(self, connection: Connection, error: BaseException | None = None) -> None:
        if isinstance(error, asyncio.CancelledError) or connection.is_closed():
            # A statement may still be under way.
            connection.terminate()
        elif self._closed:
            await self._close(connection)
        else:
            self._idle.append(connection)

    async def _close(self, connection: Connection) -> None:
        try:
            await connection.close(timeout=1.0)
        except FAULTS:
            connection.terminate()


class _CommitLostError(Exception):
    """The connection broke after COMMIT was sent."""


async def _in_transaction(connection: Connection, work: Work[ResultT]) -> ResultT:
    await connection.execute("BEGIN")
    try:
        result = await work(connection)
    except LOST:
        raise
    except Exception:
        await connection.execute("ROLLBACK")
        raise
    try:
        await commit(connection)
    except LOST as error:
        raise _CommitLostError(str(error)) from error
    return result
