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
JOBS = "/v1/projects/default/jobs"
HANDLE = "campaign"

PRODUCERS = 6
READERS = 8
MOST_PROBLEMS = 50
_PAUSE = 0.05
"""Seconds before what was refused is tried again."""

_ENDED = ("completed", "failed", "cancelled")


RETRY = {"max_attempts": 10}
"""A claim that is lost costs an attempt."""


def jobs_of(name: str) -> int:
    """How many jobs the work of this name has: a run one after the other, a batch all at once."""
    del name
    return len(STEPS)


def spec() -> dict[str, Any]:
    """One job after the other."""
    parameters = {"name": "{{ .inputs.name }}", "milliseconds": "{{ .inputs.milliseconds }}"}
    config = {"action_name": "campaign.entry", "parameters": parameters}
    return {
        "inputs": {"name": {"type": "string"}, "milliseconds": {"type": "integer"}},
        "steps": [{"key": key, "kind": "action", "retry": RETRY, "config": config} for key in STEPS],
    }


class Load:
    """Runs and batches of jobs in turn, `in_flight` of both that move, at any time. `runs` are ids by name, `batches`
    those of a batch's jobs."""

    def __init__(self, port: int, key: str, ledger: Ledger, *, in_flight: int, milliseconds: int) -> None:
        self.runs: dict[str, str] = {}
        self.batches: dict[str, list[str]] = {}
        self.repeated = 0
        """Requests that got no answer, or were refused for now, and were sent again."""
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
            lambda: all(self._ledger.is_done(name) for name in (*reversed(self.runs), *self.batches)),
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
            number = next(self._numbers)
            await (self._start_run(client, f"run-{number}") if number % 2 else self._enqueue(client, f"batch-{number}"))

    async def _start_run(self, client: Requests, name: str) -> None:
        self._ledger.moving.add(name)
        inputs = {"name": name, "milliseconds": self._milliseconds}
        body = {"inputs": inputs, "external_id": name}
        self.runs[name] = (await self._sent(client, f"{AUTOMATIONS}/{HANDLE}/runs", body))["id"]

    async def _enqueue(self, client: Requests, name: str) -> None:
        self._ledger.moving.add(name)
        parameters = {"name": name, "milliseconds": self._milliseconds}
        job = {"action_name": "campaign.entry", "parameters": parameters, "retry": RETRY}
        jobs = [job | {"external_id": f"{name}-{number}"} for number in range(jobs_of(name))]
        self.batches[name] = (await self._sent(client, JOBS, {"jobs": jobs}))["ids"]

    async def _sent(self, client: Requests, path: str, body: dict[str, Any]) -> Any:
        while True:
            try:
                status, answer = await client.ask("POST", path, body)
            except ConnectionError:
                pass
            else:
                if status < 300:
                    return answer
                if status != 503:
                    raise CampaignError(f"{path}: {status} {answer}")
            self.repeated += 1
            await asyncio.sleep(_PAUSE)

    # --- the verdict

    async def verify(self, seconds: float) -> list[str]:
        """What is wrong in the record and the ledger, in sentences. Runs have `seconds` to end."""
        problems: list[str] = []
        seen: set[str] = set()
        works = iter([*self.runs.items(), *((name, each) for name, ids in self.batches.items() for each in ids)])

        async def read() -> None:
            client = self._client()
            for name, record_id in works:
                look = self._problems_of_run if name in self.runs else self._problems_of_job
                problems.extend(f"{name} {record_id}: {problem}" for problem in await look(client, record_id, seen))
            client.close()

        async with asyncio.timeout(seconds + len(self.runs) + len(self.batches)):
            await asyncio.gather(*(read() for _ in range(READERS)))
        problems += [f"job {job_id} was done for nobody" for job_id in self._ledger.lines.keys() - seen]
        recorded = await self._recorded()
        if recorded != set(self.runs.values()):
            problems.append(f"{len(self.runs)} runs were acknowledged, {len(recorded)} are in the record")
        return problems[:MOST_PROBLEMS]

    async def _ended(self, client: Requests, path: str) -> Any:
        """The record, once it has ended: its last report may be on its way."""
        while True:
            _, record = await client.ask("GET", path)
            if record.get("status") in _ENDED or "id" not in record:
                return record
            await asyncio.sleep(_PAUSE)

    async def _problems_of_run(self, client: Requests, run_id: str, seen: set[str]) -> list[str]:
        run = await self._ended(client, f"{RUNS}/{run_id}")
        if "id" not in run:
            return [f"it was acknowledged, and is not there: {run}"]
        _, page = await client.ask("GET", f"{RUNS}/{run_id}/events?limit=200")
        told = problems_of_run(run, page["items"])
        for event in page["items"]:
            if event["event_type"] == "action.result":
                told += self._compared(event["payload"]["job_id"], event["payload"]["attempt"], seen)
        return told

    async def _problems_of_job(self, client: Requests, job_id: str, seen: set[str]) -> list[str]:
        job = await self._ended(client, f"{JOBS}/{job_id}")
        if "id" not in job:
            return [f"it was acknowledged, and is not there: {job}"]
        attempt = job["claim_attempt"]
        if job["status"] != "completed" or job["result"]["attempt"] != attempt:
            return [f"it is {job['status']} in attempt {attempt}, with {job.get('result')}"]
        return self._compared(job_id, attempt, seen)

    def _compared(self, job_id: str, attempt: int, seen: set[str]) -> list[str]:
        lines = self._ledger.lines[job_id]
        seen.add(job_id)
        self.lost_claims += attempt - len({line.split()[0] for line in lines})
        return written.problems_of(job_id, lines, attempt)

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
