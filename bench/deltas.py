"""How soon a reader of a generation's stream has what its worker sent.

`python -m bench.deltas [--tokens 5000] [--interval 0.001] [--readers 1]`: a control plane with a SQLite store in a
process of its own; here a worker's socket that sends one token after the other, and readers of the job's event stream.
The time is that from the send to the arrival at a reader. Rows are what the store has written for all of them.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import apsw
import httpx
import psutil
from websockets.asyncio.client import ClientConnection, connect

from tests.support import automations
from tests.support.control_plane_process import ControlPlaneProcess


async def ask(socket: ClientConnection, frame: dict[str, Any]) -> dict[str, Any]:
    await socket.send(json.dumps({"message_id": frame["type"], **frame}))
    while True:
        answer: dict[str, Any] = json.loads(await socket.recv())
        if answer.get("message_id") == frame["type"]:
            return answer


async def read(plane: ControlPlaneProcess, job_id: str, joined: asyncio.Event) -> list[float]:
    """Seconds from the send of each delta to its arrival."""
    took: list[float] = []
    async with (
        httpx.AsyncClient(base_url=plane.url, headers={"authorization": f"Bearer {plane.key}"}, timeout=60) as http,
        http.stream("GET", f"/v1/projects/default/jobs/{job_id}/deltas.stream") as response,
    ):
        joined.set()
        async for line in response.aiter_lines():
            arrived = time.perf_counter()
            if line.startswith("data: ") and '"delta"' in line:
                took += [arrived - json.loads(line[6:])["delta"]["sent"]]
    return took


async def stream(plane: ControlPlaneProcess, tokens: int, interval: float, readers: int) -> dict[str, Any]:
    url = f"ws://127.0.0.1:{plane.port}/v1/projects/default/workers/socket"
    async with connect(url, additional_headers={"authorization": f"Bearer {plane.key}"}, compression=None) as worker:
        await ask(worker, {"type": "worker.register", "worker_instance_id": "bench"})
        [job] = (await ask(worker, {"type": "jobs.claim", "available_slots": 1}))["jobs"]
        lease = {"job_id": job["id"], "lease_token": job["lease_token"]}
        events = [asyncio.Event() for _ in range(readers)]
        reading = [asyncio.create_task(read(plane, job["id"], joined)) for joined in events]
        for joined in events:
            await joined.wait()
        before = sum(psutil.Process(plane.pid).cpu_times()[:2])
        begun = time.perf_counter()
        for number in range(tokens):
            await asyncio.sleep(max(0.0, begun + number * interval - time.perf_counter()))
            delta = {"text": "word ", "sent": time.perf_counter()}
            await worker.send(json.dumps({"type": "generation.delta", **lease, "sequence": number, "delta": delta}))
        await ask(worker, {"type": "job.report", **lease})
        took = sorted(itertools.chain.from_iterable(await asyncio.gather(*reading)))
        used = sum(psutil.Process(plane.pid).cpu_times()[:2]) - before
    assert len(took) == tokens * readers, "every delta has arrived"
    return {
        "p50 ms": 1e3 * took[len(took) // 2],
        "p99 ms": 1e3 * took[len(took) * 99 // 100],
        "most ms": 1e3 * took[-1],
        "control plane CPU us/token": 1e6 * used / tokens,
    }


def measure(tokens: int, interval: float, readers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory, ControlPlaneProcess(Path(directory)) as plane:
        with plane.http() as http:
            automations.publish(http, "talk", [automations.action_step("say", "bench.talk", {})])
            automations.start(http, "talk")
        figures = asyncio.run(stream(plane, tokens, interval, readers))
        plane.terminate()
        store = apsw.Connection(f"{directory}/control-plane.db", flags=apsw.SQLITE_OPEN_READONLY)
        ((rows,),) = store.execute("SELECT count(*) FROM deltas")
        store.close()
    return figures | {"rows": rows}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=5_000)
    parser.add_argument("--interval", type=float, default=0.001, help="seconds between two tokens")
    parser.add_argument("--readers", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, CPython {platform.python_version()}")
    print(f"{arguments.tokens} tokens, one every {arguments.interval * 1e3:g} ms, {arguments.readers} readers\n")
    for name, value in measure(arguments.tokens, arguments.interval, arguments.readers).items():
        print(f"{name:28}{value:>12.2f}" if isinstance(value, float) else f"{name:28}{value:>12}")


if __name__ == "__main__":
    main()
