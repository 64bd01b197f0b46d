"""Many simulated workers that are connected and wait: `python -m bench.idle_workers URL KEY_FILE NUMBER`.

Each registers, claims, and claims again when it is hinted, which is what a worker without work does; the pings are
those of the library. Prints `ready` when all have claimed, and stays until its input ends.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

CONNECTING = 50
"""Handshakes at a time."""


async def worker(number: int, url: str, key: str, connecting: asyncio.Semaphore, ready: asyncio.Queue[int]) -> None:
    headers = {"authorization": f"Bearer {key}"}
    async with connecting:
        socket = await websockets.connect(url, additional_headers=headers, open_timeout=60, ping_interval=20)
        await say(socket, type="worker.register", worker_instance_id=f"idle-{number}", concurrency_limit=4)
        await hear(socket, "worker.registered")
        await say(socket, type="jobs.claim", available_slots=4, queues=["default"], action_names=["bench.noop"])
    ready.put_nowait(number)
    while True:
        await hear(socket, "work.available")
        await say(socket, type="jobs.claim", available_slots=4, queues=["default"], action_names=["bench.noop"])


async def say(socket: ClientConnection, **frame: Any) -> None:
    await socket.send(json.dumps(frame))


async def hear(socket: ClientConnection, kind: str) -> None:
    while json.loads(await socket.recv())["type"] != kind:
        pass


async def main(address: str, key: str, number: int) -> None:
    url = f"{address.replace('http', 'ws', 1)}/v1/projects/default/workers/socket"
    connecting, ready = asyncio.Semaphore(CONNECTING), asyncio.Queue[int]()
    async with asyncio.TaskGroup() as workers:
        for each in range(number):
            workers.create_task(worker(each, url, key, connecting, ready))
        for _ in range(number):
            await ready.get()
        sys.stdout.write("ready\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text().strip(), int(sys.argv[3])))
