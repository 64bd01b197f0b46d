"""What handlers did, written down outside of every store: who began a job and who got it done, in the order of time.

A worker's process has one connection, and a line for every begin and every end. What it has sent is here whatever
happens to it, and what a store says of its jobs is compared with it.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from tests.campaign.changes import Changes

BEGINS, DONE = "begins", "is done"


class Ledger:
    """Listens on loopback. `lines` by job are ("1 begins", "1 is done"); `done_at` are times of ends, in order; `done`
    counts them by the name that the load has given the work. `moving` are the names that were heard of since
    `forget_moving`, and are to be heard of again."""

    def __init__(self, jobs_of: Callable[[str], int]) -> None:
        self.lines: defaultdict[str, list[str]] = defaultdict(list)
        self.done_at: list[float] = []
        self.done: Counter[str] = Counter()
        self.moving: set[str] = set()
        self.changes = Changes()
        self._jobs_of = jobs_of
        self.port = 0
        self._server: asyncio.Server | None = None
        self._readers: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """From here on workers may write."""
        self._server = await asyncio.start_server(self._read, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """When there are no workers any more: what they wrote last is read first."""
        if self._server is not None:
            self._server.close()
        if self._readers:
            await asyncio.wait(self._readers, timeout=10)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)
        while line := await reader.readline():
            self.note(line.decode(), time.monotonic())
        writer.close()

    def note(self, line: str, now: float) -> None:
        """One line: the run's name, the job's id, the attempt, and what it did."""
        name, job_id, attempt, what = line.rstrip("\n").split(" ", 3)
        self.lines[job_id].append(f"{attempt} {what}")
        if what == DONE:
            self.done_at.append(now)
            self.done[name] += 1
        if self.is_done(name):
            self.moving.discard(name)
        else:
            self.moving.add(name)
        if what == DONE:
            self.changes.told()

    def is_done(self, name: str) -> bool:
        """Whether all its jobs are."""
        return self.done[name] >= self._jobs_of(name)

    def forget_moving(self) -> None:
        """A fault comes: what it brings to a standstill is not to count as work for anybody."""
        self.moving.clear()


def problems_of(job_id: str, lines: Sequence[str], attempt: int | None) -> list[str]:
    """Why a job of the record was not done exactly once, in sentences. `attempt` is the record's last.

    A claim may get lost on its way to a worker: then an attempt of the record was never begun.
    """
    begun = [int(line.split()[0]) for line in lines if line.endswith(BEGINS)]
    done = [int(line.split()[0]) for line in lines if line.endswith(DONE)]
    if len(done) != 1:
        return [f"job {job_id} was done {len(done)} times: {list(lines)}"]
    if not lines[-1].endswith(DONE):
        return [f"job {job_id} was done, and begun again: {list(lines)}"]
    if len(set(begun)) != len(begun):
        return [f"job {job_id} was begun twice in one attempt: {list(lines)}"]
    if done[0] != attempt or begun[-1] != attempt:
        return [f"job {job_id} was done by attempt {done[0]}, and its record says {attempt}: {list(lines)}"]
    return []
