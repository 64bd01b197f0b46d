"""Runs stock actions of a workspace as jobs are run: by their names, with parameters as JSON has them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.support.session_driver import claimed_job
from worker_child.actions import Registry
from worker_child.decisions import Outcome
from worker_child.runner import Runner
from worker_child.stock.environment import register

DEADLINE = 60.0


class Environment:
    """The environment actions of one workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        registry = Registry()
        register(registry, root)
        self.names = registry.names()
        self._outcomes: dict[int, asyncio.Future[Outcome]] = {}
        self._runner = Runner(
            registry,
            "rig-1",
            threads=4,
            finished=lambda number, outcome, _returned: self._outcomes[number].set_result(outcome),
            came_back=lambda _number: None,
        )

    def start(self, action: str, **parameters: Any) -> "asyncio.Future[Outcome]":
        """Starts a job; its outcome, when it has one."""
        number = len(self._outcomes) + 1
        self._outcomes[number] = asyncio.get_running_loop().create_future()
        job = msgspec.structs.replace(claimed_job(number, action=action), spec={"parameters": parameters})
        self._runner.start(number, job)
        self._runner.begin()
        return self._outcomes[number]

    def cancel(self) -> None:
        """Cancels the job that was started last."""
        self._runner.cancel(len(self._outcomes), "cancelled")

    async def run(self, action: str, **parameters: Any) -> dict[str, Any]:
        """The result of a job that must succeed."""
        outcome = await self.outcome(action, **parameters)
        assert outcome.status == "completed", outcome
        result: dict[str, Any] = msgspec.json.decode(outcome.result)
        return result

    async def fails(self, action: str, **parameters: Any) -> tuple[str, str]:
        """What a job that must fail is reported with: type and message."""
        outcome = await self.outcome(action, **parameters)
        assert outcome.status == "failed", outcome
        return str(outcome.error_type), str(outcome.error_message)

    async def outcome(self, action: str, **parameters: Any) -> Outcome:
        """How a job ends."""
        async with asyncio.timeout(DEADLINE):
            return await self.start(action, **parameters)


@asynccontextmanager
async def environment_actions(root: Path) -> AsyncIterator[Environment]:
    """The actions, and an end for what they still run."""
    made = Environment(root)
    yield made
    made._runner.stop()
