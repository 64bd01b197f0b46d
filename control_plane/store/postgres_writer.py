"""Group commit over PostgreSQL: what is asked while a transaction is under way goes into the next one, together.

A transaction whose COMMIT was never sent is made again when the connection breaks; one whose COMMIT got no answer is
looked up by its id, and a statement that was a transaction by itself by a job that it stores, so that a caller is told
the truth or StoreUnavailable, and never what did not happen.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import structlog

from control_plane.domain import jobs
from control_plane.domain.store import CommitObserver, Committed, Lease, Listener
from control_plane.errors import ControlPlaneError, FenceBrokenError, Invalid, StoreUnavailable
from control_plane.keys import hash_secret
from control_plane.store.postgres_batch import Asked, Batch, Claim, Command, Report
from control_plane.store.postgres_changes import commit
from control_plane.store.postgres_connections import FAULTS, LOST, MISTAKES, NUL, REPEATABLE, Connection, Database
from control_plane.store.postgres_decisions import Known
from control_plane.store.postgres_unanswered import (
    SERVER,
    InProgressError,
    Server,
    Unanswered,
    UnansweredCommit,
    UnansweredJobs,
)
from wire.verdicts import OVER_CAPACITY

MAX_BATCH = 256
"""Commands a transaction, each counted by its weight."""

HELP_AFTER = 0.002
"""Seconds that a call waits before a second transaction begins beside the first. Large transactions cost less than two
small ones, so that whoever can come along with the next one does. But a transaction is a dozen milliseconds of which
the database works in some, this process in others, and the disk in the rest: with 20 ms here two workers were served
in turn, and a quarter fewer jobs were done."""

PATIENCE = 3.0
"""Seconds that a call waits for a database that has gone."""

RECONNECT_PAUSES = (0.05, 2.0)
"""Seconds between attempts to reach it: the first pause, and the longest."""

REPETITIONS = 5
"""How often a transaction is made again that others got in the way of."""

_log = structlog.get_logger("control_plane.store")


class _Call(Asked):
    """A command whose caller waits."""

    def __init__(self, command: Command, now: int | None, future: "asyncio.Future[Any]", give_up_at: float) -> None:
        super().__init__(command, now)
        self.future = future
        self.give_up_at = give_up_at
        self.asked_at = time.monotonic()


class Writer:
    """`elsewhere(work)` lends a connection of the pool; `committed(finished)` hears which job each session has finished
    last; `failed` that the store was away."""

    def __init__(
        self,
        database: Database,
        known: Known,
        elsewhere: Callable[..., Any],
        clock: Callable[[], int],
        finished: Callable[[dict[str, str]], None],
        failed: Callable[[], None],
    ) -> None:
        self._database = database
        self._known = known
        self._elsewhere = elsewhere
        self._clock = clock
        self._finished = finished
        self._failed = failed
        self._listener: Listener = _ignore
        self._queue: deque[_Call] = deque()
        self._waiting: asyncio.Event = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: dict[Connection, Server] = {}
        """As each connection found it."""
        self._life = ""
        """As the newest connection found it."""
        self._away_since: float | None = None
        self._closing = False
        self._put_off = 0
        self.observe: CommitObserver = _observe_nothing
        """See Store.observe_commits."""

    def start(self, listener: Listener) -> None:
        """Begin to write, in the running loop."""
        self._listener = listener
        self._tasks = {asyncio.create_task(self._run(after), name="store writer") for after in (0.0, HELP_AFTER)}

    async def submit(self, command: Command, now: int | None = None) -> Any:
        """The command's result, once it is durable. Raises what the command raises, and StoreUnavailable."""
        if self._closing or not self._tasks:
            raise StoreUnavailable("the store is closed")
        steady = time.monotonic()
        if self._away_since is not None and steady > self._away_since + PATIENCE:
            raise StoreUnavailable("the store cannot be reached")
        call = _Call(command, now, asyncio.get_running_loop().create_future(), steady + PATIENCE)
        self._queue.append(call)
        self._waiting.set()
        return await call.future

    async def stop(self) -> None:
        """Commit what is queued, then end. A second call does nothing."""
        if self._closing:
            return
        self._closing = True
        self._waiting.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for call in self._queue:
            _tell(call, StoreUnavailable("the store is closed"))
        self._queue.clear()

    # --- one writer

    async def _run(self, after: float) -> None:
        """Take up calls that have waited for so long."""
        connection: Connection | None = None
        pauses = _Pauses()
        try:
            while True:
                if connection is None and self._away_since is not None and not self._closing:
                    # Calls are refused at once when the store has been away for long: nobody else would try.
                    connection = await self._connect((), pauses)
                    continue
                pauses = _Pauses()
                calls = await self._next(after)
                if calls is None:
                    return
                connection = await self._serve(connection, calls)
        finally:
            if connection is not None:
                await self._close(connection)

    async def _next(self, after: float) -> list[_Call] | None:
        while True:
            if self._queue:
                # One turn of the loop at least: what is being read from sockets right now comes along.
                await asyncio.sleep(max(0.0, self._queue[0].asked_at + after - time.monotonic()))
                if not self._queue or time.monotonic() < self._queue[0].asked_at + after:
                    continue
                calls: list[_Call] = []
                weight = 0
                while self._queue and weight < MAX_BATCH:
                    call = self._queue.popleft()
                    if not call.future.done():
                        calls.append(call)
                        weight += call.command.weight
                if calls:
                    return calls
            elif self._closing and not self._put_off:
                return None
            else:
                self._waiting.clear()
                await self._waiting.wait()

    async def _serve(self, connection: Connection | None, calls: list[_Call]) -> Connection | None:
        """Answer the calls, each with its result or an error; returns the connection for the next ones."""
        repetitions = 0
        pauses = _Pauses()
        while calls:
            if connection is None:
                connection = await self._connect(calls, pauses)
                calls = [call for call in calls if not call.future.done()]
                continue
            try:
                unknown = await self._transact(connection, calls)
            except LOST as error:
                self._drop(connection, error)
                connection = None
                calls, pauses = await self._patient(calls, error)
            except (FenceBrokenError, *REPEATABLE) as error:
                connection = await self._undo(connection)
                repetitions += 1
                if repetitions > REPETITIONS:
                    _tell_all(calls, StoreUnavailable(f"the store is too busy: {error}"))
                    return connection
                await asyncio.sleep(random.uniform(0, 0.01) * repetitions)  # noqa: S311 - to part from a rival
            except asyncpg.PostgresError as error:
                return await self._refused(connection, calls, error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the callers must hear and the writer must live
                connection = await self._undo(connection)
                return await self._apart(connection, calls, error)
            else:
                if unknown is None:
                    return connection
                self._drop(connection, unknown.error)
                connection = None
                if await self._settle(unknown, calls):
                    return None
                calls, pauses = await self._patient(calls, unknown.error)
        return connection

    async def _transact(self, connection: Connection, calls: Sequence[_Call]) -> Unanswered | None:
        for call in calls:
            call.forget()
        server = self._servers.get(connection)
        batch = Batch(self._known, connection, self._elsewhere, self._clock, time.monotonic)
        begun = time.perf_counter()
        try:
            xid = await batch.run(calls)
        finally:
            await batch.end()
        if batch.unanswered is not None:
            if batch.new_job is None:
                raise batch.unanswered
            return UnansweredJobs(job_id=batch.new_job, server=server, error=batch.unanswered)
        if batch.begun:
            try:
                await commit(connection)
            except LOST as error:
                if xid is not None:
                    return UnansweredCommit(xid=xid, server=server, error=error)
                raise
        seconds = time.perf_counter() - begun
        try:
            batch.committed()
        except Exception:  # noqa: BLE001 - it is committed: whatever this is, nothing may be done a second time
            _log.exception("a commit could not be noted")
        self._conclude(calls, batch.finished)
        asyncio.get_running_loop().call_soon(self.observe, len(calls), seconds)  # when those who wait have gone on
        return None

    async def _patient(self, calls: Sequence[_Call], error: Exception) -> tuple[list[_Call], "_Pauses"]:
        """Those that may be tried again, after a first pause, as they may be what broke the connection; the others are
        told. Pauses grow only while nothing answers: calls that were cut off again and again would wait them out
        although the database is there."""
        now = time.monotonic()
        late = [call for call in calls if now >= call.give_up_at]
        _tell_all(late, self._database.unavailable(error))
        pauses = _Pauses()
        await asyncio.sleep(pauses.next())
        return [call for call in calls if now < call.give_up_at], pauses

    def _conclude(self, calls: Sequence[_Call], finished: dict[str, str]) -> None:
        facts: list[Committed] = []
        for call in calls:
            if call.put_off is None and call.error is None:
                facts += call.facts
        try:
            if finished:
                self._finished(finished)
            self._listener(facts)
        except Exception:  # noqa: BLE001 - what has happened has happened, and the callers are to know
            _log.exception("the store's listener failed")
        for call in calls:
            if call.put_off is not None:
                self._again(call, call.put_off)
        # The last first: a claim that came with new jobs is answered before whoever has handed them in, since it is its
        # worker that begins.
        for call in reversed(calls):
            if call.put_off is None:
                _tell(call, call.error)

    def _again(self, call: _Call, delay: float) -> None:
        def ask() -> None:
            self._put_off -= 1
            self._queue.append(call)
            self._waiting.set()

        self._put_off += 1
        asyncio.get_running_loop().call_later(delay, ask)

    # --- when it does not go well

    async def _connect(self, calls: Sequence[_Call], pauses: "_Pauses") -> Connection | None:
        """A new connection; None when there is none, after a pause. Who has waited long enough is told."""
        try:
            connection = await self._database.connect()
            await self._note_server(connection)
        except StoreUnavailable as error:
            now = time.monotonic()
            if self._away_since is None:
                self._away_since = now
                _log.warning("store unavailable", error=str(error))
            self._failed()
            for call in [*calls, *self._queue]:
                if now >= call.give_up_at or self._closing:
                    _tell(call, error)
            await asyncio.sleep(pauses.next())
            return None
        if self._away_since is not None:
            _log.info("store available again", seconds=round(time.monotonic() - self._away_since, 1))
            self._away_since = None
            self._failed()
        return connection

    async def _note_server(self, connection: Connection) -> None:
        self._servers = {each: server for each, server in self._servers.items() if not each.is_closed()}
        try:
            self._servers[connection] = server = Server(*await connection.fetchrow(SERVER))
        except FAULTS as error:
            connection.terminate()
            raise self._database.unavailable(error) from error
        if server.life != self._life:
            # Whoever took the server's place may not have all that was committed there, and give its keys to others.
            self._life = server.life
            self._known.waiting.clear()
            self._known.lanes.forget_all()

    def _drop(self, connection: Connection, error: object) -> None:
        _log.warning("connection to the store lost", error=str(error))
        self._failed()
        connection.terminate()

    async def _undo(self, connection: Connection) -> Connection | None:
        try:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
        except FAULTS:
            connection.terminate()
            return None
        return connection

    async def _refused(
        self, connection: Connection, calls: list[_Call], error: asyncpg.PostgresError
    ) -> Connection | None:
        """PostgreSQL refused a statement: for what one command brought, or because of its own state."""
        kept = await self._undo(connection)
        if isinstance(error, MISTAKES):
            return await self._apart(kept, calls, error)
        _log.warning("the store failed a batch", error=str(error), sqlstate=error.sqlstate)
        self._failed()
        if kept is not None:
            # A server that has become a standby, or whose disk is full, may have a healthy successor.
            await self._close(kept)
        _tell_all(calls, self._database.unavailable(error))
        return None

    async def _apart(self, connection: Connection | None, calls: list[_Call], error: Exception) -> Connection | None:
        """One of them is at fault: each gets a transaction of its own."""
        if len(calls) == 1:
            if isinstance(error, NUL):
                error = Invalid("invalid_text", "a text holds a NUL character, which cannot be stored")
            elif not isinstance(error, ControlPlaneError):
                _log.error("a store command failed", exc_info=error)
            _tell_all(calls, error)
            return connection
        for call in calls:
            connection = await self._serve(connection, [call])
        return connection

    async def _settle(self, unknown: Unanswered, calls: list[_Call]) -> bool:
        """Find out whether the transaction has happened. False: it has not, and may be made again."""
        committed = await self._outcome(unknown, time.monotonic() + PATIENCE)
        if committed is False:
            return False
        if committed:
            self._conclude(calls, {})
            return True
        leases = [lease for call in calls if isinstance(call.command, Claim) for lease in call.result or ()]
        if leases:
            self._keep(self._hand_back(unknown, leases))
        _tell_all(calls, StoreUnavailable(f"the store was lost while it committed: {unknown.error}"))
        return True

    async def _outcome(self, unknown: Unanswered, until: float) -> bool | None:
        """Whether the transaction has committed; None when that cannot be known, or not in time."""
        pauses = _Pauses()
        while time.monotonic() < until and not self._closing:
            try:
                connection = await self._database.connect()
                try:
                    return await unknown.outcome(connection)
                finally:
                    connection.terminate()
            except InProgressError:
                pass
            except (StoreUnavailable, *FAULTS):
                self._failed()
            await asyncio.sleep(pauses.next())
        return None

    async def _hand_back(self, unknown: Unanswered, leases: Sequence[Lease]) -> None:
        """Jobs that may be leased to somebody who was told that there are none: they go back at no cost. Where they are
        not, the lease is nobody's, and changes nothing."""
        if await self._outcome(unknown, float("inf")) is False:
            return
        for lease in leases:
            reported = jobs.Reported(
                token_hash=hash_secret(lease.lease_token),
                status="failed",
                error_type=OVER_CAPACITY,
                error_message="the store was lost while it leased the job",
            )
            await self._report_back(Report(project_id=lease.job.project_id, job_id=lease.job.id, reported=reported))

    async def _report_back(self, report: Report) -> None:
        """Nobody else asks again: left alone, the lease would lapse and cost the job an attempt."""
        pauses = _Pauses()
        while True:
            try:
                await self.submit(report)
            except StoreUnavailable as error:
                if self._closing:
                    _log.warning("a job could not be handed back", job_id=report.job_id, error=str(error))
                    return
                await asyncio.sleep(pauses.next())
            except ControlPlaneError as error:
                _log.warning("a job could not be handed back", job_id=report.job_id, error=str(error))
                return
            else:
                return

    def _keep(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close(self, connection: Connection) -> None:
        try:
            await connection.close(timeout=1.0)
        except FAULTS:
            connection.terminate()


class _Pauses:
    """Doubling pauses with jitter."""

    def __init__(self) -> None:
        self._pause, self._longest = RECONNECT_PAUSES

    def next(self) -> float:
        pause = self._pause
        self._pause = min(self._longest, 2 * pause)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - so that replicas do not come in step


def _tell(call: _Call, error: Exception | None) -> None:
    if call.future.done():
        return
    if error is not None:
        call.future.set_exception(error)
    else:
        call.future.set_result(call.result)


def _tell_all(calls: Sequence[_Call], error: Exception) -> None:
    for call in calls:
        _tell(call, error)


def _ignore(facts: Sequence[Committed]) -> None:
    """Nobody listens."""


def _observe_nothing(calls: int, seconds: float) -> None:
    """Nobody observes."""
