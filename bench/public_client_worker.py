"""The public Python client's worker with a no-op handler. Run by an interpreter that has `deepnoodle-mobius`."""

import asyncio
import sys
from typing import Any

from deepnoodle.mobius import Client, ClientOptions, Worker, WorkerConfig


async def noop(params: dict[str, Any]) -> dict[str, Any]:
    return {}


async def main(url: str, concurrency: int, instance: str) -> None:
    client = Client(ClientOptions(api_key="mbx_bench", base_url=url))
    worker = Worker(client, WorkerConfig(worker_instance_id=instance, concurrency=concurrency, queues=["default"]))
    await worker.register("bench.noop", noop).run()


asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
