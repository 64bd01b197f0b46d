"""The one thread that writes: it drains its queue into one transaction, commits, and only then tells the callers.

A command that is refused harms no neighbour: nearly all are before they have written anything, and where one was not,
the batch is undone and done again with a savepoint for each. A fault of the store itself (disk full, read-only, I/O)
ends the whole batch: everybody in it is told so, the connection is opened anew, and the next batch tries again.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import apsw
import structlog

from control_plane.domain.store import CommitObserver, Committed, Listener
from control_plane.errors import ControlPlaneError, StoreUnavailable
from control_plane.store.clock import Clock

MAX_BATCH = 512
"""Commands a transaction, each counted by its weight."""

ROWS_A_STEP = (64, 32, 16, 8, 4, 2, 1)
"""Each size is a statement to prepare."""

FAULTS = (
    apsw.FullError,
    apsw.ReadOnlyError,
    apsw.IOError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.NoMemError,
    apsw.ProtocolError,
    apsw.PermissionsError,
)
"""What is the store's fault, not a command's."""

ResultT = TypeVar("ResultT")
_log = structlog.get_logger("control_plane.store")


class Writing:
    """What a command works with: the connection, the time, and the facts that it leaves behind when it commits."""

    def __init__(self, connection: apsw.Connection, now: int) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.now = now
        self.facts: list[Committed] = []
        self.seen_jobs: dict[str, int] = {}
        """The last finished job's seq by session id."""

    def insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Many rows of an INSERT that ends in its values. Several go into one step of SQLite: each step lets go of the
        interpreter's lock and has to get it back from the event loop."""
        place = 0
        for many in ROWS_A_STEP:
            text = _of_rows(statement, many)
            while len(rows) - place >= many:
                self.execute(text, tuple(chain.from_iterable(rows[place : place + many])))
                place += many


Command = Callable[[Writing], Any]
_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]
_One = Callable[[Command, Writing], tuple[Any, BaseException | None]]


class _Entry(NamedTuple):
    """A command whose caller waits."""

    command: Command
    now: int | None
    future: "asyncio.Future[Any]"
    weight: int
    with_unsettled: bool


class _HalfDoneError(Exception):
    """A command was refused after it had written something."""


class _Done:
    """What the commands of a batch came to: how each ended, the facts of all, the latest of their times, and the last
    finished job's seq by session id."""

    def __init__(self, outcomes: list[_Outcome] | None = None) -> None:
        self.outcomes: list[_Outcome] = outcomes if outcomes is not None else []
        self.facts: list[Committed] = []
        self.latest = 0
        self.finished: dict[str, int] = {}


class Writer:
    """Group commit. `connect` opens the writing connection; `settle` writes what a command has left to those behind it,
    who could make it needless; `before_commit(connection, latest, finished)` adds what is written once a batch;
    `rolled_back` hears that something was undone, `failed` that the store was at fault."""

    def __init__(
        self,
        connect: Callable[[], apsw.Connection],
        settle: Callable[[apsw.Connection], None],
        before_commit: Callable[[apsw.Connection, int, dict[str, int]], None],
        rolled_back: Callable[[], None],
        failed: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._connect = connect
        self._settle = settle
        self._before_commit = before_commit
        self._rolled_back = rolled_back
        self._failed = failed
        self._clock = clock
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._connection: apsw.Connection | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: Listener = _ignore
        self._closing = False
        self.observe: CommitObserver = _observe_nothing
        """See Store.observe_commits."""

    def start(self, connection: apsw.Connection, listener: Listener) -> None:
        """Begin to write, in the running loop's service."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._connection = connection
        self._thread.start()

    async def submit(
        self,
        command: Callable[[Writing], ResultT],
        now: int | None = None,
        *,
        weight: int = 1,
        with_unsettled: bool = False,
    ) -> ResultT:
        """The command's result, once it is durable. Raises what the command raises, and StoreUnavailable. `weight`: how
        many small commands it is worth. `with_unsettled`: it knows what others have left to be settled."""
        if self._loop is None or self._closing:
            raise StoreUnavailable("the store is closed")
        future: asyncio.Future[ResultT] = self._loop.create_future()
        self._queue.put(_Entry(command, now, future, weight, with_unsettled))
        return await future

    async def stop(self) -> None:
        """Commit what is queued, then end."""
        if self._loop is None or self._closing:
            return
        self._closing = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # --- in the thread

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._commit(entry)
        if self._connection is not None:
            self._connection.close()

    def _entries(self, entry: _Entry | None, batch: list[_Entry]) -> Iterator[_Entry]:
        """One transaction's, which go into `batch` when they are taken: also what is asked while others are done."""
        weight = 0
        while entry is not None:
            batch.append(entry)
            weight += entry.weight
            yield entry
            if weight >= MAX_BATCH:
                return
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return
        # The end was queued behind them: it is taken up in the next turn.
        self._queue.put(None)

    def _commit(self, first: _Entry) -> None:
        batch: list[_Entry] = []
        entries = self._entries(first, batch)
        done = _Done()
        seconds: float | None = None
        try:
            if self._connection is None:
                self._connection = self._connect()
            connection = self._connection
            begun = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            try:
                done = self._done(connection, entries, self._at_once)
            except _HalfDoneError:
                connection.execute("ROLLBACK")
                self._rolled_back()
                connection.execute("BEGIN IMMEDIATE")
                done = self._done(connection, batch, self._in_savepoint)
            self._settle(connection)
            self._before_commit(connection, done.latest, done.finished)
            connection.execute("COMMIT")
            seconds = time.perf_counter() - begun
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear and the thread must live
            self._give_up(error)
            deque(entries, maxlen=0)  # who waits behind them would meet the same
            sentence = f"the store cannot write now: {error}"
            done = _Done([(entry.future, None, StoreUnavailable(sentence)) for entry in batch])
        self._tell(done.outcomes, done.facts, seconds)

    def _done(self, connection: apsw.Connection, entries: Iterable[_Entry], one: _One) -> "_Done":
        done = _Done()
        for entry in entries:
            if not entry.with_unsettled:
                self._settle(connection)
            writing = Writing(connection, self._clock.now() if entry.now is None else entry.now)
            done.outcomes.append((entry.future, *one(entry.command, writing)))
            done.facts += writing.facts
            done.finished |= writing.seen_jobs
            done.latest = max(done.latest, writing.now)
        return done

    def _at_once(self, command: Command, writing: Writing) -> tuple[Any, BaseException | None]:
        changes = writing.connection.total_changes
        before = changes()
        try:
            return command(writing), None
        except FAULTS:
            raise
        except Exception as error:
            if changes() != before:
                raise _HalfDoneError from error
            return None, _refused(writing, error)

    def _in_savepoint(self, command: Command, writing: Writing) -> tuple[Any, BaseException | None]:
        writing.execute("SAVEPOINT command")
        try:
            result = command(writing)
            # What another savepoint undoes must not have gone out of this one.
            self._settle(writing.connection)
        except FAULTS:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this command's caller alone
            writing.execute("ROLLBACK TO command")
            writing.execute("RELEASE command")
            self._rolled_back()
            return None, _refused(writing, error)
        writing.execute("RELEASE command")
        return result, None

    def _give_up(self, error: Exception) -> None:
        _log.warning("the store failed a batch", error=str(error))
        self._failed()
        self._rolled_back()
        connection, self._connection = self._connection, None
        if connection is not None:
            # Closing rolls back; a connection that has seen an I/O error is not used again. A disk that fails may fail
            # this too, which must not end the thread.
            with contextlib.suppress(apsw.Error):
                connection.close(force=True)

    def _tell(self, outcomes: Sequence[_Outcome], facts: Sequence[Committed], seconds: float | None) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._resolve, outcomes, facts, seconds)
        except RuntimeError:
            # The loop is closed: nobody waits any more, and what is committed stays committed.
            return

    # --- in the loop

    def _resolve(self, outcomes: Sequence[_Outcome], facts: Sequence[Committed], seconds: float | None) -> None:
        try:
            if facts:
                self._listener(facts)
        finally:
            # The last first: a claim that came with new jobs is answered before whoever has handed them in, since it is
            # its worker that begins.
            for future, result, error in reversed(outcomes):
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(result)
            if seconds is not None:
                # When those who wait have gone on.
                asyncio.get_running_loop().call_soon(self.observe, len(outcomes), seconds)


@lru_cache(maxsize=1000)
def _of_rows(statement: str, many: int) -> str:
    head, _, values = statement.rpartition("VALUES ")
    return f"{head}VALUES {', '.join([values] * many)}"


def _refused(writing: Writing, error: Exception) -> Exception:
    writing.facts.clear()
    writing.seen_jobs.clear()
    if not isinstance(error, ControlPlaneError):
        _log.error("a store command failed", exc_info=error)
    return error


def _ignore(facts: Sequence[Committed]) -> None:
    """Nobody listens."""


def _observe_nothing(calls: int, seconds: float) -> None:
    """Nobody observes."""
