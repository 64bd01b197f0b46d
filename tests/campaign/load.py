"""A load of runs that never lets up, over the API as any client would, and what the record says of them afterwards."""

import asyncio
import random
from collections import Counter

from mobius_cli.http import Mobius
from tests.campaign.changes import CampaignError, Changes
from tests.campaign.record import STEPS, failures, problems_of

HANDLE = "campaign"
MILLISECONDS = (50, 1500)
LONG_MILLISECONDS = 4000
"""A few jobs take so long that they need heartbeats."""

_SHARE_OF_LONG = 0.05
_ACTIONS = ("campaign.work", "campaign.work_in_thread")
_READERS = 16


def spec() -> dict[str, object]:
    """Coroutines and threads in turn. So many attempts as a step may have: a worker's death costs one."""
    return {
        "inputs": {"milliseconds": {"type": "integer"}},
        "steps": [
            {
                "key": key,
                "kind": "action",
                "retry": {"max_attempts": 10},
                "config": {
                    "action_name": _ACTIONS[number % 2],
                    "parameters": {"milliseconds": "{{ .inputs.milliseconds }}"},
                },
            }
            for number, key in enumerate(STEPS)
        ],
    }


class Load:
    """`in_flight` runs at any time, until `finish`. `jobs` are the results so far, `workers` those by worker."""

    def __init__(self, mobius: Mobius, in_flight: int, seed: int) -> None:
        self.jobs = 0
        self.runs: list[str] = []
        self.finished = 0
        self.workers: Counter[str] = Counter()
        self.changes = Changes()
        self._mobius = mobius
        self._in_flight = in_flight
        self._chance = random.Random(seed)
        self._finishing = False
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Publish the automation and start as many runs as are to be in flight."""
        await self._mobius.create_automation({"handle": HANDLE, "name": HANDLE})
        version = await self._mobius.create_version(HANDLE, spec())
        await self._mobius.publish(HANDLE, version["version"])
        self._tasks = [asyncio.create_task(self._one_after_the_other()) for _ in range(self._in_flight)]

    async def _one_after_the_other(self) -> None:
        while not self._finishing:
            is_long = self._chance.random() < _SHARE_OF_LONG
            inputs = {"milliseconds": LONG_MILLISECONDS if is_long else self._chance.randint(*MILLISECONDS)}
            run = (await self._mobius.start_run(HANDLE, inputs=inputs, external_id=None))["id"]
            self.runs.append(run)
            async for event in self._mobius.events(run):
                if event["event_type"] == "action.result":
                    self.jobs += 1
                    self.workers[event["payload"]["worker_instance_id"]] += 1
                    self.changes.told()
            self.finished += 1

    def check(self) -> None:
        """Raises what a follower of runs has met."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def finish(self, seconds: float) -> None:
        """Start no more, and wait for every run to end."""
        self._finishing = True
        done, late = await asyncio.wait(self._tasks, timeout=seconds)
        for task in done:
            task.result()
        if late:
            raise CampaignError(f"after {seconds:g} s {len(late)} runs have not ended: they wait for ever")

    async def abandon(self) -> None:
        """For a campaign that failed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def verify(self) -> tuple[list[str], Counter[str]]:
        """What is wrong in the record of all runs, and how attempts failed."""
        problems: list[str] = []
        failed: Counter[str] = Counter()
        rooms = asyncio.Semaphore(_READERS)

        async def read(run: str) -> None:
            async with rooms:
                events = [event async for event in self._mobius.events(run)]
                told = problems_of(await self._mobius.run(run), events)
                problems.extend(f"run {run}: {problem}" for problem in told)
                failed.update(failures(events))

        recorded, _ = await self._mobius.runs(limit=len(self.runs) + 1)
        if {run["id"] for run in recorded} != set(self.runs):
            problems.append(f"{len(self.runs)} runs were started, {len(recorded)} are in the record")
        await asyncio.gather(*(read(run) for run in self.runs))
        return problems, failed
