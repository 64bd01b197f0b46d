"""Who waits for the end of which job: woken by the store's commits, with a look now and then behind that."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from control_plane.domain.model import TERMINAL_JOB, Job
from control_plane.domain.store import Committed, JobEnded, Store

POLL_INTERVAL = 0.5
"""Seconds after which a job is looked at although nothing was heard of it: another replica may have seen its end."""


class JobWaits:
    """`committed` is called by the store after every commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._closed = False

    def committed(self, facts: Sequence[Committed]) -> None:
        """Wake those whose job has ended."""
        for fact in facts:
            if isinstance(fact, JobEnded):
                for wake in self._waiting.get(fact.job_id, ()):
                    wake.set()

    def close(self) -> None:
        """Nobody waits any longer: the server stops."""
        self._closed = True
        for waiting in self._waiting.values():
            for wake in waiting:
                wake.set()

    async def end_of(self, project_id: str, job_id: str, seconds: float) -> Job:
        """The job when it has ended, or as it is after so many seconds. Raises NotFound, StoreUnavailable."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        wake = asyncio.Event()
        self._waiting[job_id].add(wake)
        self._store.watched_jobs.add(job_id)
        try:
            while True:
                wake.clear()
                job = await self._store.job(project_id, job_id)
                left = until - loop.time()
                if job.status in TERMINAL_JOB or left <= 0 or self._closed:
                    return job
                waiting = asyncio.ensure_future(wake.wait())
                await asyncio.wait({waiting}, timeout=min(left, POLL_INTERVAL))
                waiting.cancel()
        finally:
            self._waiting[job_id].discard(wake)
            if not self._waiting[job_id]:
                del self._waiting[job_id]
                self._store.watched_jobs.discard(job_id)
