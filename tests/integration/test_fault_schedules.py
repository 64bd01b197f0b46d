"""Real workers and a real control plane with a proxy between them that harms connections by seeded schedules.

Every run is completed exactly once, no worker is wedged, and what was harmed has recovered within a bound. The limits
of both sides are a tenth of the usual ones, about in the same proportions, so that a schedule takes seconds.
"""

import asyncio
import os
import random
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from control_plane.web import worker_socket
from tests.support.control_plane_server import Serving, serving
from tests.support.tcp_faults import FaultProxy, listening
from wire import pipe
from worker_child import backoff, session, transport
from worker_child import worker as worker_module
from worker_child.actions import Registry
from worker_child.backoff import Backoff
from worker_child.endpoint import endpoint
from worker_child.journal import Journal
from worker_child.parent import Parent
from worker_child.session import ActionTerms, Session, SessionSettings
from worker_child.transport import ApiKey
from worker_child.worker import Worker

SCHEDULES = 200 if os.environ.get("MOBIUS_TEST_LONG") else 10
AT_ONCE = 10
INPUTS = {"name": "string", "seconds": "number", "size": "integer"}
RUNS = 8
LEASE, CADENCE = 4.0, 1.0
HURRIED = [
    (session, "CONNECT_DEADLINE", 3.0),
    (session, "REGISTER_DEADLINE", 3.0),
    (session, "CLAIM_DEADLINE_FLOOR", 3.0),
    (session, "REPORT_AGAIN", 1.0),
    (session, "PING_AFTER", 1.5),
    (session, "READ_DEADLINE", 4.0),
    (backoff, "FIRST", 0.2),
    (backoff, "CAP", 2.0),
    (backoff, "HEALTHY_AFTER", 3.0),
    (transport, "OPEN_TIMEOUT", 2.0),
    (transport, "WRITE_DEADLINE", 1.0),
    (worker_module, "WATCH_INTERVAL", 0.2),
    (worker_socket, "PING_INTERVAL", 2.0),
    (worker_socket, "REGISTER_TIMEOUT", 2.0),
]
BOUND = 4.0 + 2.0 + 3.0 + 3.0 + 2 * LEASE + 2.0
"""Seconds, by the contract's rules with the limits above: a dead connection is noticed (read deadline), the longest
pause passes, another attempt fails to connect or register, a lease lapses and the job is done by the next claim."""
PATIENCE = 4 * BOUND
"""What a loaded machine is given; the time that it took is told."""


class InProcess:
    """A worker in this process, with an action of its own. `ran` counts how often each run's handler was started."""

    def __init__(self, url: str, key: str, name: str, directory: Path, chance: random.Random) -> None:
        self.ran: dict[str, int] = {}
        registry = Registry()

        @registry.action(name)
        async def work(params: dict[str, Any]) -> dict[str, Any]:
            self.ran[params["name"]] = self.ran.get(params["name"], 0) + 1
            await asyncio.sleep(params["seconds"])
            return {"name": params["name"], "text": "x" * params["size"]}

        settings = SessionSettings(
            worker_instance_id=name,
            concurrency=4,
            queues=["default"],
            actions={name: ActionTerms()},
            id_prefix=name,
        )
        self.session = Session(settings, Backoff(chance.random), time.monotonic())
        self.journal = Journal(directory / f"{name}.journal", "write")
        self.journal.recover(5)
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        told = pipe.ChildSettings(worker_instance_id=name, api_url=url, project="default")
        spawn = pipe.Spawn(slot=name, incarnation=1, supervisor_pid=1, settings=told)
        parent = Parent(spawn, self._ends[1], self.session.beat)
        where = endpoint(url, "default", "")
        self.worker = Worker(self.session, self.journal, registry, ApiKey(key, None), where, parent)
        self.running = asyncio.ensure_future(self.worker.run())

    async def stop(self) -> None:
        """A drain, as its supervisor orders it."""
        self.worker.drain(5.0, "the schedule is over", ordered=True)
        await asyncio.wait_for(self.running, PATIENCE)
        for end in self._ends:
            end.close()


class Runs:
    """Starts runs of one worker's automation, and waits for them."""

    def __init__(self, http: httpx.AsyncClient, name: str) -> None:
        self._http = http
        self._name = name
        self._base = "/v1/projects/default"

    async def publish(self) -> None:
        given = {parameter: f"{{{{ .inputs.{parameter} }}}}" for parameter in INPUTS}
        config = {"action_name": self._name, "parameters": given}
        step = {"key": "work", "kind": "action", "config": config, "retry": {"max_attempts": 10}}
        await self._post("/automations", {"handle": self._name, "name": self._name})
        spec = {"inputs": {name: {"type": kind} for name, kind in INPUTS.items()}, "steps": [step]}
        version = await self._post(f"/automations/{self._name}/versions", {"spec": spec})
        assert version["validation"]["valid"], version
        await self._post(f"/automations/{self._name}/versions/{version['version']}/publication", None)

    async def start(self, inputs: dict[str, Any]) -> str:
        return str((await self._post(f"/automations/{self._name}/runs", {"inputs": inputs}))["id"])

    async def completed(self, run_id: str, by: float) -> dict[str, Any]:
        """The run, once it is terminal."""
        while True:
            run = await self._get(f"/runs/{run_id}")
            if run["status"] in ("completed", "failed", "cancelled"):
                return run
            assert time.monotonic() < by, f"{self._name}: a run is {run['status']} still"
            await asyncio.sleep(0.05)

    async def results(self, run_id: str) -> int:
        """How many results its step has had."""
        events = (await self._get(f"/runs/{run_id}/events?limit=200"))["items"]
        return [event["event_type"] for event in events].count("action.result")

    async def _post(self, path: str, body: Any) -> dict[str, Any]:
        response = await self._http.post(self._base + path, json=body)
        assert response.is_success, response.text
        return response.json() if response.content else {}

    async def _get(self, path: str) -> dict[str, Any]:
        response = await self._http.get(self._base + path)
        assert response.is_success, response.text
        return dict(response.json())


async def harm(proxy: FaultProxy, chance: random.Random) -> None:
    """Three to six faults, one after the other; then none."""
    for _ in range(chance.randint(3, 6)):
        await asyncio.sleep(chance.uniform(0.05, 0.8))
        fault = chance.choice(["cut", "half-open", "up", "down", "delay", "trickle", "swallow", "cut"])
        if fault == "cut":
            proxy.cut()
        elif fault == "half-open":
            proxy.half_open()
        elif fault in ("up", "down"):
            proxy.drop(fault)
        elif fault == "delay":
            proxy.delay = chance.uniform(0.05, 0.6)
        elif fault == "trickle":
            proxy.trickle = True
        else:
            proxy.swallows = True
            proxy.cut()
        await asyncio.sleep(chance.uniform(0.1, 1.0))
        proxy.heal()


async def schedule(plane: Serving, seed: int, directory: Path) -> float:
    """One worker under one schedule. Seconds from the last fault until everything was done."""
    chance = random.Random(seed)
    name = f"seed-{seed}"
    proxy = FaultProxy(plane.port)
    async with listening(proxy) as url, plane.http() as http:
        runs = Runs(http, name)
        await runs.publish()
        worker = InProcess(url, plane.key, name, directory, chance)
        harming = asyncio.ensure_future(harm(proxy, chance))
        started: dict[str, str] = {}
        for number in range(RUNS):
            inputs = {"name": str(number), "seconds": chance.uniform(0, 1.0), "size": chance.choice([0, 10, 200_000])}
            started[await runs.start(inputs)] = str(number)
            await asyncio.sleep(chance.uniform(0, 0.5))
        await harming
        healed = time.monotonic()
        for run_id, number in started.items():
            run = await runs.completed(run_id, healed + PATIENCE)
            assert run["status"] == "completed", run
            assert run["result"]["work"]["name"] == number
        took = time.monotonic() - healed
        for run_id in started:
            assert await runs.results(run_id) == 1
        last = await runs.start({"name": "last", "seconds": 0.0, "size": 0})
        assert (await runs.completed(last, time.monotonic() + PATIENCE))["status"] == "completed", "it is not wedged"
        await worker.stop()
        assert worker.session.outstanding() == ([], [])
    return took


@pytest.mark.timeout(1800)  # `make test-long` runs twenty times as many; each wait has a deadline of its own
async def test_every_run_is_completed_exactly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, limit, seconds in HURRIED:
        monkeypatch.setattr(module, limit, seconds)
    gate = asyncio.Semaphore(AT_ONCE)
    terms = {"lease_duration": LEASE, "heartbeat_cadence": CADENCE}

    async with serving(tmp_path, **terms) as plane:

        async def one(seed: int) -> float:
            async with gate:
                try:
                    return await schedule(plane, seed, tmp_path)
                except BaseException as error:
                    error.add_note(f"seed {seed}")
                    raise

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(seed)) for seed in range(SCHEDULES)]
    took = sorted(task.result() for task in tasks)
    figures = {"median": round(took[len(took) // 2], 1), "longest": round(took[-1], 1), "bound": BOUND}
    structlog.get_logger().warning("from the last fault to the last run", schedules=len(took), **figures)
