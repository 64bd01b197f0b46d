"""The replicas that serve one database: who is there, and what they tell each other (postgres_hints.py).

One connection listens and notifies. A beat that it sends must come back on it: a connection that hears nothing any more
is replaced, and what may have been missed meanwhile is read from the tables.
"""

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from control_plane.domain.store import (
    CancelRequested,
    Committed,
    JobClaimable,
    SessionContested,
    SessionDrainLifted,
    SessionDrainRequested,
)
from control_plane.domain.times import to_microseconds
from control_plane.errors import StoreUnavailable
from control_plane.keys import Identifiers
from control_plane.store.postgres_connections import FAULTS, Connection, Database
from control_plane.store.postgres_hints import (
    Answer,
    AnyHint,
    Beat,
    Contest,
    Gathered,
    decode,
    encode,
    facts_of,
)
from control_plane.store.postgres_lanes import Lanes
from control_plane.store.postgres_pool import Pool
from control_plane.store.postgres_upkeep import vacuum

CHANNEL = "mobius"

BEAT_INTERVAL = 3.0
"""Seconds between two signs of life."""

GONE_AFTER = 12.0
"""Seconds without one after which a replica counts as gone."""

FORGOTTEN_AFTER = 86_400.0

GATHER = 0.01
"""Seconds for which facts are gathered before they are sent."""

CONTEST_TIMEOUT = 3.0
"""Seconds that another replica has to say whether a worker's socket answers: it gives the worker two."""

LATE_COMMIT = 5.0
"""Seconds that may pass from a request's time to its commit."""

RECONNECT_PAUSES = (0.1, 5.0)

_NOTIFY = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS sent (payload)"

_log = structlog.get_logger("control_plane.store")


class Replicas:
    """This replica among the others. `now` is the store's clock, `at_beat(database_time)` hears the database's,
    `heard` gets the facts of other replicas."""

    def __init__(
        self,
        database: Database,
        pool: Pool,
        statements: dict[str, str],
        lanes: Lanes,
        now: Callable[[], int],
        at_beat: Callable[[int], None],
    ) -> None:
        self.id = ""
        self._database = database
        self._pool = pool
        self._sql = statements
        self._lanes = lanes
        self._now = now
        self._at_beat = at_beat
        self._heard: Callable[[Sequence[Committed]], None] = lambda _: None
        self._connection: Connection | None = None
        self._sending = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._peers: dict[str, float] = {}
        self._gathered = Gathered()
        self._has_gathered = asyncio.Event()
        self._contests: dict[str, asyncio.Future[bool]] = {}
        self._beats = 0
        self._heard_at = time.monotonic()
        self._drains_told: set[str] = set()
        self._started_at = 0

    # --- life

    async def start(self, heard: Callable[[Sequence[Committed]], None]) -> None:
        """Say that we are there, then listen."""
        self._heard = heard
        self._started_at = self._now()
        self.id = Identifiers().new("rep", self._started_at)
        await self._beat()
        work = (self._listen, self._keep_beating, self._keep_sending)
        self._tasks = [asyncio.create_task(one(), name=f"replicas {one.__name__}") for one in work]

    async def stop(self) -> None:
        """Say that we are gone. A second call does nothing."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if tasks:
            with contextlib.suppress(StoreUnavailable):
                await self._pool.run(
                    lambda connection: connection.execute(self._sql["stop_beating"], self.id, self._now())
                )

    @property
    def gone_before(self) -> int:
        """A replica whose last beat is not younger counts as gone."""
        return self._now() - to_microseconds(GONE_AFTER)

    # --- what others are told

    def forward(self, facts: Sequence[Committed]) -> None:
        """Tell the other replicas soon, if there are any."""
        self._drains_told |= {fact.session_id for fact in facts if isinstance(fact, SessionDrainRequested)}
        if self._peers:
            self._gathered.add(facts, self._now())
            if self._gathered:
                self._has_gathered.set()

    async def contest(self, session_id: str, replica_id: str) -> bool:
        """Whether that replica says that the session's worker is alive; no answer is a no."""
        contest_id = f"{self.id}.{len(self._contests)}.{time.monotonic_ns()}"
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._contests[contest_id] = answer
        try:
            await self._send([Contest(replica_id, contest_id, session_id)])
            async with asyncio.timeout(CONTEST_TIMEOUT):
                return await answer
        except TimeoutError:
            return False
        finally:
            del self._contests[contest_id]

    async def answer(self, contest_id: str, *, alive: bool) -> None:
        """Say what became of a SessionContested."""
        await self._send([Answer(contest_id, alive)])

    async def _send(self, hints: list[AnyHint]) -> None:
        payloads = encode(self.id, hints)
        async with self._sending:
            connection = self._connection
            if connection is None or not payloads:
                return
            try:
                await connection.execute(_NOTIFY, CHANNEL, payloads)
            except FAULTS as error:
                _log.debug("hints not sent", error=str(error))
                connection.terminate()

    async def _keep_sending(self) -> None:
        while True:
            await self._has_gathered.wait()
            await asyncio.sleep(GATHER)
            self._has_gathered.clear()
            gathered, self._gathered = self._gathered, Gathered()
            await self._send(gathered.hints())

    # --- signs of life

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(BEAT_INTERVAL)
            try:
                await self._beat()
                await self._catch_up()
            except StoreUnavailable as error:
                _log.debug("no beat", error=str(error))
            await self._check_hearing()

    async def _beat(self) -> None:
        now = self._now()
        name = f"{socket.gethostname()}:{os.getpid()}"
        steady = time.monotonic()

        async def beat(connection: Connection) -> Any:
            return await connection.fetchrow(self._sql["beat"], self.id, name, now, self.gone_before)

        database_time, peers = await self._pool.run(beat)
        self._at_beat(database_time)
        heard = {replica_id: at for replica_id, at in self._peers.items() if at > steady - GONE_AFTER}
        self._peers = heard | dict.fromkeys(peers, steady)
        if self._beats % 1000 == 0:
            too_old = now - to_microseconds(FORGOTTEN_AFTER)
            await self._pool.run(lambda connection: connection.execute(self._sql["forget_replicas"], too_old))
        await self._pool.run(vacuum)

    async def _check_hearing(self) -> None:
        connection = self._connection
        if connection is not None and time.monotonic() > self._heard_at + GONE_AFTER:
            _log.warning("the connection that listens to other replicas hears nothing: it is replaced")
            connection.terminate()
            return
        self._beats += 1
        await self._send([Beat(self._beats)])

    # --- listening

    async def _listen(self) -> None:
        pause, longest = RECONNECT_PAUSES
        while True:
            lost = asyncio.Event()
            try:
                connection = await self._database.connect(durable=False, synchronous_commit="off")
                connection.add_termination_listener(lambda *_, lost=lost: lost.set())
                await connection.add_listener(CHANNEL, self._take)
                self._connection = connection
                deaf_for, self._heard_at = time.monotonic() - self._heard_at, time.monotonic()
                pause = RECONNECT_PAUSES[0]
                # Others learn at once that there is one more to tell.
                await self._send([Beat(self._beats)])
                await self._catch_up(deaf_for)
                await lost.wait()
            except (StoreUnavailable, *FAULTS) as error:
                _log.debug("not listening", error=str(error))
            finally:
                lost_connection, self._connection = self._connection, None
                if lost_connection is not None:
                    lost_connection.terminate()
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause)  # noqa: S311 - replicas are not to come in step
            pause = min(longest, 2 * pause)

    def _take(self, _connection: Connection, _pid: int, _channel: str, text: str) -> None:
        payload = decode(text)
        if payload is None:
            return
        if payload.replica_id == self.id:
            self._heard_at = time.monotonic()
            return
        self._peers[payload.replica_id] = time.monotonic()
        facts: list[Committed] = []
        for hint in payload.hints:
            if isinstance(hint, Contest):
                if hint.replica_id == self.id:
                    facts.append(SessionContested(session_id=hint.session_id, contest_id=hint.contest_id))
            elif isinstance(hint, Answer):
                answer = self._contests.get(hint.contest_id)
                if answer is not None and not answer.done():
                    answer.set_result(hint.alive)
            else:
                facts += facts_of(hint)
        self._tell(facts)

    def _tell(self, facts: Sequence[Committed]) -> None:
        for fact in facts:
            if isinstance(fact, JobClaimable):
                self._lanes.heard_of(fact.project_id, fact)
            elif isinstance(fact, SessionDrainRequested):
                self._drains_told.add(fact.session_id)
        if facts:
            try:
                self._heard(facts)
            except Exception:  # noqa: BLE001 - the last resort: one bad hint must not deafen us
                _log.exception("the store's listener failed")

    async def _catch_up(self, deaf_for: float | None = None) -> None:
        """Tell of what nobody may have told us; `deaf_for` so many seconds we have heard nothing at all."""

        async def look(connection: Connection) -> list[Committed]:
            facts: list[Committed] = []
            if deaf_for is not None:
                since = self._now() - to_microseconds(deaf_for + LATE_COMMIT)
                names = ("project_id", "job_id", "session_id", "reason", "requested_at")
                missed = await connection.fetch(self._sql["missed_cancels"], self.id, since)
                facts += [CancelRequested(**dict(zip(names, row, strict=True))) for row in missed]
            drains = {row[0] for row in await connection.fetch(self._sql["missed_drains"], self.id)}
            facts += [SessionDrainRequested(session_id=session_id) for session_id in drains - self._drains_told]
            facts += [SessionDrainLifted(session_id=session_id) for session_id in self._drains_told - drains]
            self._drains_told &= drains
            return facts

        self._tell(await self._pool.run(look))
