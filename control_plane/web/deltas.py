"""Deltas of generations: from the worker sockets to readers and to the store.

What arrives is live at once for readers here. Every WRITE_AFTER seconds all that is new goes to the store in one
transaction, one row a generation, and only where the lease still holds the job; readers elsewhere, and those who come
late, find it there. The first delta of a lease asks the store whether it is one; until then nobody sees it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog
from msgspec import UNSET

from control_plane.domain.deltas import MOST_UNWRITTEN_BYTES, START, DeltaChunk, Generation, Position, read_items
from control_plane.domain.model import Job
from control_plane.domain.store import Lease, Store
from control_plane.errors import ControlPlaneError, StoreUnavailable
from control_plane.keys import hash_secret, same_hash
from control_plane.session import TakeDelta
from control_plane.web.server_sent import Readers, Stream, Write
from control_plane.web.shapes import GenerationEvent, if_known

WRITE_AFTER = 0.2
"""Seconds for which deltas are gathered before they are written."""

WRITE_AGAIN_AFTER = 1.0
"""Seconds until the next try when the store was away."""

CONFIRM_TIMEOUT = 3.0
"""Seconds for which a report waits until what was said before it can be written."""

IDLE_AFTER = 10.0
"""Seconds without a delta after which a generation is forgotten here: the next delta asks the store again."""

WRITE_AT_ONCE = MOST_UNWRITTEN_BYTES // 4
"""Bytes of one generation that are not gathered any longer."""

MOST_GENERATIONS = 10_000
"""Leases of one project that are followed at a time; deltas of more are left out."""

MOST_UNCONFIRMED_BYTES = 16 * 1024 * 1024
"""Of one project's deltas whose lease the store has not confirmed yet; more are left out. One delta is taken however
large it is."""

POLL_INTERVAL = 1.0
"""Seconds after which a reader looks into the store although nothing woke it."""

REPLICATED_POLL_INTERVAL = 0.25
"""The same where other processes may take the deltas."""

PAGE = 16
"""Chunks that one read of the store may bring."""

_Key = tuple[str, str]
_log = structlog.get_logger(__name__)


class DeltaStreams(Readers):
    """The generations of which this process takes the deltas. Keys are (project id, job id)."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.taken = 0
        self.refused = 0
        self.left_out = 0
        self.chunks_written = 0
        self._store = store
        self._clock = clock
        self._leases: dict[tuple[str, str, bytes], Generation] = {}
        self._newest: dict[_Key, Generation] = {}
        self._seen_at: dict[Generation, float] = {}
        self._confirming: dict[_Key, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Lock()
        self._followed: Counter[str] = Counter()
        """Leases by project."""
        self._unconfirmed: Counter[str] = Counter()
        """Bytes by project."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def generations(self) -> int:
        """Leases that are followed now."""
        return len(self._leases)

    # --- what the worker sockets call

    @property
    def busy(self) -> bool:
        """Whether a report or a claim can matter to anybody here."""
        return bool(self._leases or self._waiting)

    def take(self, delta: TakeDelta) -> None:
        """A worker sent it."""
        key = (delta.project_id, delta.job_id, hash_secret(delta.lease_token))
        generation = self._leases.get(key)
        if generation is None:
            if self._followed[delta.project_id] >= MOST_GENERATIONS:
                self.left_out += 1
                return
            generation = self._leases[key] = Generation(*key)
            self._followed[delta.project_id] += 1
            self._confirming[key[:2]] = self._keep(self._confirm(generation))
        self._seen_at[generation] = self._clock()
        if generation.attempt or generation.lost:
            self._take(generation, delta)
        elif self._unconfirmed[delta.project_id] < MOST_UNCONFIRMED_BYTES:
            before = generation.unwritten_bytes
            self._take(generation, delta)
            self._unconfirmed[delta.project_id] += generation.unwritten_bytes - before
        else:
            self.left_out += 1

    def _take(self, generation: Generation, delta: TakeDelta) -> None:
        left_out = generation.left_out
        is_taken = generation.take(delta.sequence, delta.delta)
        self.left_out += generation.left_out - left_out
        if not is_taken:
            self.refused += generation.lost
            return
        self.taken += 1
        if generation.attempt:
            self.wake((generation.project_id, generation.job_id))
        hurries = generation.unwritten_bytes >= WRITE_AT_ONCE and not self._writing.locked()
        self._write_soon(0.0 if hurries else WRITE_AFTER)

    def leased(self, leases: Iterable[Lease]) -> None:
        """These jobs were claimed anew: what their earlier leases still say is not part of the stream."""
        if self._newest:
            for lease in leases:
                earlier = self._newest.get((lease.job.project_id, lease.job.id))
                if earlier is not None and earlier.attempt < lease.job.claim_attempt:
                    earlier.refuse()

    async def settle(self, project_id: str, job_ids: Iterable[str]) -> None:
        """These jobs are about to end: what was said of them is written first."""
        keys = [(project_id, job_id) for job_id in job_ids]
        confirming = [task for key in keys if (task := self._confirming.get(key)) is not None]
        if confirming:
            await asyncio.wait(confirming, timeout=CONFIRM_TIMEOUT)
        if any(key in self._newest for key in keys):
            await self._write()

    def ended(self, project_id: str, job_ids: Iterable[str]) -> None:
        """Reports of these jobs were taken: their readers look into the store."""
        for job_id in job_ids:
            generation = self._newest.pop((project_id, job_id), None)
            if generation is not None:
                self._forget(generation)
            self.wake((project_id, job_id))

    async def stop(self) -> None:
        """Write what waits, then end."""
        if self._timer is not None:
            self._timer.cancel()
        await self._write()
        for task in list(self._tasks):
            task.cancel()

    # --- what readers call

    def live(self, key: _Key) -> Generation | None:
        """The generation whose deltas arrive here."""
        generation = self._newest.get(key)
        return None if generation is None or generation.lost else generation

    # --- the store

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="deltas")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _confirm(self, generation: Generation) -> None:
        """Ask the store whether the lease holds the job, and what it has of it already."""
        key = (generation.project_id, generation.job_id)
        found = None
        try:
            found = await self._look_up(generation)
        finally:
            self._confirming.pop(key, None)
            self._unconfirmed[generation.project_id] -= generation.unwritten_bytes
            if found is None:
                generation.refuse()
        if found is None:
            return
        job, newest = found
        written = newest[1] if newest is not None and newest[0] == job.claim_attempt else -1
        generation.confirm(job.claim_attempt, written)
        earlier = self._newest.get(key)
        if earlier is not None and earlier.attempt < generation.attempt:
            earlier.refuse()
        self._newest[key] = generation
        self.wake(key)
        self._write_soon(WRITE_AFTER)

    async def _look_up(self, generation: Generation) -> tuple[Job, Position | None] | None:
        project_id, job_id = generation.project_id, generation.job_id
        while True:
            try:
                job = await self._store.job(project_id, job_id)
                if job.status != "claimed" or not same_hash(job.lease_token_hash, generation.token_hash):
                    return None
                return job, (await self._store.deltas(project_id, job_id, after=START, limit=0)).newest
            except StoreUnavailable:
                await asyncio.sleep(WRITE_AGAIN_AFTER)
            except ControlPlaneError:
                return None  # there is no such job, or no store could have one of that name

    def _write_soon(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + delay
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        # uvloop gives no time for a timer that is due at once.
        self._timer, self._timer_at = loop.call_later(delay, self._time_to_write), at

    def _time_to_write(self) -> None:
        self._timer = None
        self._keep(self._write())

    async def _write(self) -> None:
        async with self._writing:
            waiting = [(each, chunk) for each in self._newest.values() if (chunk := each.chunk()) is not None]
            if waiting:
                try:
                    held = await self._store.append_deltas([chunk for _, chunk in waiting])
                except StoreUnavailable as error:
                    _log.debug("deltas not written", error=str(error))
                    self._write_soon(WRITE_AGAIN_AFTER)
                    return
                self._written(waiting, held)
        self._forget_idle()

    def _written(self, waiting: list[tuple[Generation, DeltaChunk]], held: list[bool]) -> None:
        for (generation, chunk), is_held in zip(waiting, held, strict=True):
            if is_held:
                generation.written(chunk)
                self.chunks_written += 1
            else:
                generation.refuse()
            self.wake((generation.project_id, generation.job_id))

    def _forget_idle(self) -> None:
        now = self._clock()
        for generation, seen_at in list(self._seen_at.items()):
            if now > seen_at + IDLE_AFTER and not generation.waits:
                self._forget(generation)
        if self._leases:
            self._write_soon(WRITE_AFTER if any(each.waits for each in self._newest.values()) else IDLE_AFTER / 2)

    def _forget(self, generation: Generation) -> None:
        key = (generation.project_id, generation.job_id)
        if self._leases.pop((*key, generation.token_hash), None) is not None:
            self._followed[generation.project_id] -= 1
        self._seen_at.pop(generation, None)
        if self._newest.get(key) is generation:
            del self._newest[key]


class DeltaStream(Stream):
    """The response that streams one job's deltas after `since`."""

    def __init__(
        self, store: Store, streams: DeltaStreams, job: Job, since: Position, clock: Callable[[], float]
    ) -> None:
        interval = REPLICATED_POLL_INTERVAL if store.replicated else POLL_INTERVAL
        super().__init__(streams, (job.project_id, job.id), interval, clock)
        self._store = store
        self._streams = streams
        self._project_id = job.project_id
        self._job_id = job.id
        self._position = since

    async def write_news(self, write: Write) -> bool:
        """Write every delta there is; True when the job has ended."""
        while not self.reader_gone:
            generation = self._streams.live((self._project_id, self._job_id))
            live = None if generation is None else generation.after(self._position)
            if generation is not None and live is not None:
                await self._write_deltas(write, generation.attempt, [(each.sequence, each.text) for each in live])
                return False
            page = await self._store.deltas(self._project_id, self._job_id, after=self._position, limit=PAGE)
            for attempt, items in page.chunks:
                known = self._position[1] if attempt == self._position[0] else -1
                deltas = [(each.sequence, each.text) for each in read_items(items) if each.sequence > known]
                await self._write_deltas(write, attempt, deltas)
            if not page.chunks:
                if page.ended is not None:
                    await write(_end_of(page.ended))
                return page.ended is not None
        return True

    async def _write_deltas(self, write: Write, attempt: int, deltas: list[tuple[int, bytes]]) -> None:
        if not deltas:
            return
        parts: list[bytes] = []
        if attempt != self._position[0]:
            parts.append(self._beginning(attempt))
        head = b'"job_id":"%b","attempt":%d' % (self._job_id.encode(), attempt)
        for sequence, text in deltas:
            data = b'{%b,"sequence":%d,"delta":%b}' % (head, sequence, text)
            parts.append(b"id: %d-%d\nevent: generation.delta\ndata: %b\n\n" % (attempt, sequence, data))
        # Before the write: a page may be written while the next deltas arrive.
        self._position = (attempt, deltas[-1][0])
        await write(b"".join(parts))

    def _beginning(self, attempt: int) -> bytes:
        earlier = self._position[0]
        event = GenerationEvent(job_id=self._job_id, attempt=attempt, supersedes=earlier or UNSET)
        return _event("generation.started", event)


def _end_of(job: Job) -> bytes:
    if job.status not in ("completed", "failed", "cancelled"):
        raise AssertionError(f"{job.id} has not ended")
    event = GenerationEvent(
        job_id=job.id,
        attempt=job.claim_attempt,
        outcome=job.status,
        error_type=if_known(job.error_type),
        error_message=if_known(job.error_message),
    )
    return _event("generation.ended", event)


def _event(name: str, event: GenerationEvent) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), event.encode())


def position_of(text: str) -> Position:
    """`<attempt>-<sequence>`, the id of a delta's event; empty: before all. Raises ValueError."""
    if not text:
        return START
    attempt, dash, sequence = text.partition("-")
    if not (dash and attempt.isascii() and attempt.isdigit() and sequence.isascii() and sequence.isdigit()):
        raise ValueError(text)
    if len(attempt) > 9 or len(sequence) > 18:
        raise ValueError(text)
    return int(attempt), int(sequence)
