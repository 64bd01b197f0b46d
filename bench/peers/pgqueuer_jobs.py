"""PgQueuer: its own batch enqueue, a pool of asyncpg connections, finished jobs in its log table."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import asyncpg
import measured
import uvloop
from pgqueuer import AsyncpgDriver, AsyncpgPoolDriver, Job, PgQueuer, Queries

BATCH = 1000
DEQUEUED = 250
"""Jobs a worker takes at once; the library's own default of 10 is much slower here."""


class PgQueuerJobs:
    def __init__(self, address: str) -> None:
        self.address = address
        self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.connection: Any = None

    def connected(self) -> tuple[Any, Queries]:
        if self.connection is None:
            self.connection = self.loop.run_until_complete(asyncpg.connect(self.address))
        return self.connection, Queries(AsyncpgDriver(self.connection))

    def prepare(self) -> None:
        _, queries = self.connected()
        self.loop.run_until_complete(queries.install())

    def work(self) -> None:
        self.loop.run_until_complete(self.consume())

    async def consume(self) -> None:
        async with asyncpg.create_pool(self.address, min_size=2, max_size=10) as pool:
            program = PgQueuer(AsyncpgPoolDriver(pool))

            @program.entrypoint("job")
            async def job(job: Job) -> None:
                if job.payload:
                    measured.started(json.loads(job.payload))

            await program.run(batch_size=DEQUEUED, dequeue_timeout=timedelta(seconds=30))

    def enqueue(self, number: int) -> None:
        _, queries = self.connected()
        for first in range(0, number, BATCH):
            size = min(BATCH, number - first)
            self.loop.run_until_complete(queries.enqueue(["job"] * size, [None] * size, [0] * size))

    def send(self, message: dict[str, Any]) -> None:
        _, queries = self.connected()
        self.loop.run_until_complete(queries.enqueue("job", json.dumps(message).encode()))

    def ask(self, question: str) -> Any:
        connection, _ = self.connected()
        return self.loop.run_until_complete(connection.fetchval(question))

    def due(self) -> None: ...

    def unfinished(self) -> bool:
        return bool(self.ask("SELECT EXISTS (SELECT 1 FROM pgqueuer)"))

    def finished(self) -> int:
        return int(self.ask("SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"))

    def close(self) -> None:
        if self.connection is not None:
            self.loop.run_until_complete(self.connection.close())


measured.main(PgQueuerJobs)
