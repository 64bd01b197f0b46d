"""Procrastinate: batches of deferred jobs, workers with many jobs at once, finished jobs stay in its table."""

import asyncio
from typing import Any

import measured
import procrastinate

BATCH = 1000
CONCURRENCY = 30


class ProcrastinateJobs:
    def __init__(self, address: str) -> None:
        self.app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=address))
        self.loop = asyncio.new_event_loop()
        self.opened = False

        @self.app.task(name="job")
        async def job(message: dict[str, Any] | None = None) -> None:
            if message is not None:
                measured.started(message)

        self.job = job

    def run(self, coroutine: Any) -> Any:
        if not self.opened:
            self.loop.run_until_complete(self.app.open_async())
            self.opened = True
        return self.loop.run_until_complete(coroutine)

    def prepare(self) -> None:
        self.run(self.app.schema_manager.apply_schema_async())

    def work(self) -> None:
        self.run(self.app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False))

    def enqueue(self, number: int) -> None:
        for first in range(0, number, BATCH):
            self.run(self.job.batch_defer_async(*({} for _ in range(min(BATCH, number - first)))))

    def send(self, message: dict[str, Any]) -> None:
        self.run(self.job.defer_async(message=message))

    def due(self) -> None: ...

    def count(self, condition: str) -> int:
        question = f"SELECT count(*) AS jobs FROM procrastinate_jobs WHERE {condition}"
        return int(self.run(self.app.connector.execute_query_one_async(question))["jobs"])

    def unfinished(self) -> bool:
        question = "SELECT EXISTS (SELECT 1 FROM procrastinate_jobs WHERE status IN ('todo', 'doing')) AS any"
        return bool(self.run(self.app.connector.execute_query_one_async(question))["any"])

    def finished(self) -> int:
        return self.count("status = 'succeeded'")

    def close(self) -> None:
        self.run(self.app.close_async())


measured.main(ProcrastinateJobs)
