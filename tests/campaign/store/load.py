"""A load that never lets up, as clients bring it: a start is repeated until it is acknowledged, and then remembered."""

import asyncio
from itertools import count
from typing import Any

from tests.campaign.changes import CampaignError
from tests.campaign.record import STEPS
from tests.campaign.record import problems_of as problems_of_run
from tests.campaign.store import ledger as written
from tests.campaign.store.ledger import Ledger
from tests.campaign.store.requests import Requests

AUTOMATIONS = "/v1/projects/default/automations"
RUNS = "/v1/projects/default/runs"
HANDLE = "campaign"

PRODUCERS = 6
READERS = 8
MOST_PROBLEMS = 50
_PAUSE = 0.05
"""Seconds before what was refused is tried again."""

_ENDED = ("completed", "failed", "cancelled")


def jobs_of(name: str) -> int:
    """How many jobs the work of this name has."""
    del name
    return len(STEPS)


def spec() -> dict[str, Any]:
    """One job after the other. A claim that is lost costs an attempt."""
    parameters = {"name": "{{ .inputs.name }}", "milliseconds": "{{ .inputs.milliseconds }}"}
    config = {"action_name": "campaign.entry", "parameters": parameters}
    return {
        "inputs": {"name": {"type": "string"}, "milliseconds": {"type": "integer"}},
        "steps": [{"key": key, "kind": "action", "retry": {"max_attempts": 10}, "config": config} for key in STEPS],
    }


class Load:
    """`in_flight` runs that move, at any time. `acknowledged` are ids of runs by name."""

    def __init__(self, port: int, key: str, ledger: Ledger, *, in_flight: int, milliseconds: int) -> None:
        self.acknowledged: dict[str, str] = {}
        self.repeated = 0
        """Starts that got no answer, or were refused for now, and were sent again."""
        self.lost_claims = 0
        self._port = port
        self._key = key
        self._ledger = ledger
        self._in_flight = in_flight
        self._milliseconds = milliseconds
        self._numbers = count(1)
        self._finishing = False
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Publish the automation and start to start."""
        client = self._client()
        for path, body in (
            (AUTOMATIONS, {"handle": HANDLE, "name": HANDLE}),
            (f"{AUTOMATIONS}/{HANDLE}/versions", {"spec": spec()}),
            (f"{AUTOMATIONS}/{HANDLE}/versions/1/publication", None),
        ):
            status, answer = await client.ask("POST", path, body)
            if status >= 300:
                raise CampaignError(f"{path}: {status} {answer}")
        client.close()
        self._tasks = [asyncio.create_task(self._produce()) for _ in range(PRODUCERS)]

    def check(self) -> None:
        """Raises what a producer has met."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def finish(self, seconds: float) -> None:
        """Start no more, and wait until every job of what was acknowledged is done."""
        self._finishing = True
        self._ledger.changes.told()
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._tasks)
        await self._ledger.changes.until(
            lambda: all(self._ledger.is_done(name) for name in reversed(self.acknowledged)),
            seconds,
            "all that was acknowledged is done",
        )

    async def abandon(self) -> None:
        """For a campaign that failed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- starting

    def _client(self) -> Requests:
        return Requests(self._port, self._key)

    async def _produce(self) -> None:
        client = self._client()
        while True:
            await self._ledger.changes.until(
                lambda: self._finishing or len(self._ledger.moving) < self._in_flight, 600, "there is room for a run"
            )
            if self._finishing:
                client.close()
                return
            name = f"run-{next(self._numbers)}"
            self._ledger.moving.add(name)
            inputs = {"name": name, "milliseconds": self._milliseconds}
            body = {"inputs": inputs, "external_id": name}
            self.acknowledged[name] = await self._started(client, f"{AUTOMATIONS}/{HANDLE}/runs", body)

    async def _started(self, client: Requests, path: str, body: dict[str, Any]) -> str:
        while True:
            try:
                status, answer = await client.ask("POST", path, body)
            except ConnectionError:
                pass
            else:
                if status < 300:
                    return str(answer["id"])
                if status != 503:
                    raise CampaignError(f"{path}: {status} {answer}")
            self.repeated += 1
            await asyncio.sleep(_PAUSE)

    # --- the verdict

    async def verify(self, seconds: float) -> list[str]:
        """What is wrong in the record and the ledger, in sentences. Runs have `seconds` to end."""
        problems: list[str] = []
        names = iter(self.acknowledged.items())
        seen: set[str] = set()

        async def read() -> None:
            client = self._client()
            for name, run_id in names:
                problems.extend(f"{name} {run_id}: {problem}" for problem in await self._problems(client, run_id, seen))
            client.close()

        async with asyncio.timeout(seconds + len(self.acknowledged)):
            await asyncio.gather(*(read() for _ in range(READERS)))
        problems += [f"job {job_id} was done for nobody" for job_id in self._ledger.lines.keys() - seen]
        recorded = await self._recorded()
        if recorded != set(self.acknowledged.values()):
            problems.append(f"{len(self.acknowledged)} runs were acknowledged, {len(recorded)} are in the record")
        return problems[:MOST_PROBLEMS]

    async def _problems(self, client: Requests, run_id: str, seen: set[str]) -> list[str]:
        _, run = await client.ask("GET", f"{RUNS}/{run_id}")
        while run.get("status") not in _ENDED and "id" in run:
            await asyncio.sleep(_PAUSE)  # its last report is on its way
            _, run = await client.ask("GET", f"{RUNS}/{run_id}")
        if "id" not in run:
            return [f"it was acknowledged, and is not there: {run}"]
        _, page = await client.ask("GET", f"{RUNS}/{run_id}/events?limit=200")
        told = problems_of_run(run, page["items"])
        for event in page["items"]:
            if event["event_type"] == "action.result":
                job_id, attempt = event["payload"]["job_id"], event["payload"]["attempt"]
                seen.add(job_id)
                self.lost_claims += attempt - len({line.split()[0] for line in self._ledger.lines[job_id]})
                told += written.problems_of(job_id, self._ledger.lines[job_id], attempt)
        return told

    async def _recorded(self) -> set[str]:
        client = self._client()
        found: set[str] = set()
        cursor = ""
        while True:
            _, page = await client.ask("GET", f"{RUNS}?limit=200{cursor}")
            found |= {run["id"] for run in page["items"]}
            if not page.get("next_cursor"):
                client.close()
                return found
            cursor = f"&cursor={page['next_cursor']}"
