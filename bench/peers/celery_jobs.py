"""Celery on Redis: prefork workers that fetch many short tasks at once, as its guide advises, and keep results.

Results are its only record of what has completed: without them nothing says when a task has ended.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import celery
import measured
import redis

THREADS = 8
"""It sends task by task: several threads enqueue, so that the messages share Redis' flushes."""

ADDRESS = "MEASURED_ADDRESS"
address = os.environ.get(ADDRESS) or sys.argv[2]
app = celery.Celery("celery_jobs", broker=f"{address}/0", backend=f"{address}/1")
app.conf.update(
    worker_prefetch_multiplier=128,
    worker_hijack_root_logger=False,
    task_serializer="json",
    broker_connection_retry_on_startup=True,
    broker_pool_limit=THREADS,
)


@app.task(name="job")
def job(message: dict[str, Any] | None = None) -> None:
    if message is not None:
        measured.started(message)


class CeleryJobs:
    def __init__(self, address: str) -> None:
        self.address = address
        self.threads = ThreadPoolExecutor(THREADS)
        self.results = redis.Redis.from_url(f"{address}/1")
        self.sent = 0

    def prepare(self) -> None:
        self.results.flushall()

    def work(self) -> None:
        os.environ[ADDRESS] = self.address
        command = [sys.executable, "-m", "celery", "-A", "celery_jobs", "worker", "--concurrency", "2"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
        os.execv(sys.executable, command)

    def enqueue(self, number: int) -> None:
        def some(size: int) -> None:
            with app.producer_or_acquire() as producer:
                for _ in range(size):
                    job.apply_async(producer=producer)

        for sent in [self.threads.submit(some, len(range(each, number, THREADS))) for each in range(THREADS)]:
            sent.result()
        self.sent += number

    def send(self, message: dict[str, Any]) -> None:
        job.delay(message)
        self.sent += 1

    def due(self) -> None: ...

    def unfinished(self) -> bool:
        return self.finished() < self.sent

    def finished(self) -> int:
        return int(self.results.dbsize())

    def close(self) -> None:
        self.threads.shutdown()


if __name__ == "__main__":
    measured.main(CeleryJobs)
