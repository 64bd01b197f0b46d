"""Ours: batches over HTTP, and a look into the store of the running control plane, as with the others.

ADDRESS is a JSON object of `url`, `key_file` and `store`.
"""

import asyncio
import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import apsw
import asyncpg
import measured

BATCH = 1000


class Ours:
    def __init__(self, address: str) -> None:
        told = json.loads(address)
        where = urlsplit(told["url"])
        self.http = http.client.HTTPConnection(where.hostname or "", where.port, timeout=measured.LIMIT)
        key = Path(told["key_file"]).read_text().strip()
        self.headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self.ask = self.sqlite(told["store"]) if told["store"].startswith("sqlite") else self.postgres(told["store"])

    def sqlite(self, store: str) -> Any:
        connection = apsw.Connection(store.removeprefix("sqlite://"), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(10_000)
        return lambda question: connection.execute(question).get

    def postgres(self, store: str) -> Any:
        loop = asyncio.new_event_loop()
        connection = loop.run_until_complete(asyncpg.connect(store))
        return lambda question: loop.run_until_complete(connection.fetchval(question))

    def prepare(self) -> None: ...

    def work(self) -> None: ...

    def post(self, jobs: list[dict[str, Any]]) -> None:
        self.http.request("POST", "/v1/projects/default/jobs", json.dumps({"jobs": jobs}), self.headers)
        answer = self.http.getresponse()
        body = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{answer.status}: {body.decode()}")

    def enqueue(self, number: int) -> None:
        for first in range(0, number, BATCH):
            self.post([{"action_name": "bench.noop"}] * min(BATCH, number - first))

    def send(self, message: dict[str, Any]) -> None:
        self.post([{"action_name": "bench.started", "parameters": message}])

    def due(self) -> float:
        newest = "SELECT available_at FROM jobs_finished WHERE seq = (SELECT max(seq) FROM jobs)"
        return float(self.ask(newest)) / 1e6

    def unfinished(self) -> bool:
        waiting = "EXISTS (SELECT 1 FROM jobs_pending) OR EXISTS (SELECT 1 FROM jobs_claimed)"
        return bool(self.ask(f"SELECT {waiting}"))

    def finished(self) -> int:
        return int(self.ask("SELECT count(*) FROM jobs_finished WHERE status = 'completed'"))

    def close(self) -> None:
        self.http.close()


if __name__ == "__main__":
    measured.main(Ours)
