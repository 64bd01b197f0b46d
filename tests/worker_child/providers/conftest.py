"""A model server of the test's own, and a provider that talks to it over real HTTP."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from tests.support.model_server import DEADLINE, ModelServer, model_server
from tests.support.session_driver import claimed_generation
from wire.pipe import ModelProvider
from worker_child.actions import Context
from worker_child.catalogue import Catalogue, Provider
from worker_child.generators import Generators
from worker_child.providers import provider


class Generated(Struct):
    """What came of a generation, with its deltas in order."""

    message: dict[str, Any]
    deltas: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """The texts of the deltas."""
        return "".join(delta.get("text", "") for delta in self.deltas)


class Client:
    """Generates with one provider. `deltas` grow as they come."""

    def __init__(self, made: Provider) -> None:
        self.provider = made
        self.deltas: list[dict[str, Any]] = []
        self.first = asyncio.Event()

    async def generate(self, request: Any = None, model: str = "m") -> Generated:
        catalogue = Catalogue([f"{self.provider.name}/{model}"], Generators(), [self.provider])
        catalogue._listed = {self.provider.name: None}
        catalogue._choose()
        asked = {"messages": [{"role": "user", "content": "hi"}]} if request is None else request
        job = claimed_generation(1, provider=self.provider.name, model=model, spec={"request": asked})
        self.deltas = []
        async with asyncio.timeout(DEADLINE):
            result = await catalogue.action(job, self._emit).handler(Context(job, "rig-1"))
        return Generated(msgspec.to_builtins(result["llm_response"]), self.deltas)

    def _emit(self, delta: dict[str, Any]) -> None:
        self.deltas.append(delta)
        self.first.set()


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with model_server() as scripted:
        yield scripted


@pytest.fixture
async def client_of(server: ModelServer) -> AsyncIterator[Callable[..., Client]]:
    """Makes clients of the server; `base_path` is what its API's address has behind the host."""
    async with contextlib.AsyncExitStack() as stack:

        def make(api: str, base_path: str = "", **settings: Any) -> Client:
            given: dict[str, Any] = {"name": "lab", "base_url": server.url + base_path, "silence": 5.0} | settings
            made = provider(ModelProvider(api=api, **given))  # type: ignore[arg-type]
            stack.push_async_callback(made.close)
            return Client(made)

        yield make
