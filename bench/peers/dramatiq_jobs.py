"""Dramatiq on Redis: a message leaves Redis when its worker has acknowledged it, which is all the record there is.

The workers are Dramatiq's own program, which imports this module: `dramatiq --processes 2 dramatiq_jobs`.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
import measured
from dramatiq.brokers.redis import RedisBroker

THREADS = 8
"""It has no batches: several threads enqueue, so that the messages share Redis' flushes."""

ADDRESS = "MEASURED_ADDRESS"
broker = RedisBroker(url=os.environ.get(ADDRESS) or sys.argv[2])
dramatiq.set_broker(broker)


@dramatiq.actor
def job(message: dict[str, Any] | None = None) -> None:
    if message is not None:
        measured.started(message)


class DramatiqJobs:
    def __init__(self, address: str) -> None:
        self.address = address
        self.threads = ThreadPoolExecutor(THREADS)

    def prepare(self) -> None:
        broker.flush_all()

    def work(self) -> None:
        os.environ[ADDRESS] = self.address
        command = [sys.executable, "-m", "dramatiq", "--processes", "2", "dramatiq_jobs"]
        os.execv(sys.executable, command)

    def enqueue(self, number: int) -> None:
        def some(size: int) -> None:
            for _ in range(size):
                job.send()

        for sent in [self.threads.submit(some, len(range(each, number, THREADS))) for each in range(THREADS)]:
            sent.result()

    def send(self, message: dict[str, Any]) -> None:
        job.send(message)

    def due(self) -> None: ...

    def unfinished(self) -> bool:
        return bool(broker.client.hlen("dramatiq:default.msgs"))

    def finished(self) -> None:
        return None

    def close(self) -> None:
        self.threads.shutdown()


if __name__ == "__main__":
    measured.main(DramatiqJobs)
