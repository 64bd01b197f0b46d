"""A real control plane inside the test's own event loop: real store, real sockets, and its objects within reach.

For what a process of its own makes hard: shortened deadlines, a look at the store. Everybody else uses
tests/support/control_plane_process.py.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from msgspec import Struct
from websockets.asyncio.client import ClientConnection, connect

from control_plane.config import Address, ServeConfig
from control_plane.domain.store import LeaseTerms, Store
from control_plane.keys import hash_secret, new_api_key
from control_plane.server import ControlPlane
from control_plane.store import store_at

DEADLINE = 20.0


class Serving(Struct, frozen=True, kw_only=True):
    """What a test works with."""

    host: str
    port: int
    key: str
    plane: ControlPlane
    store: Store

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    def http(self, key: str | None = None) -> httpx.AsyncClient:
        """A client that sends the key; close it."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=DEADLINE)

    def worker(self, path: str = "/v1/projects/default/workers/socket", key: str | None = None) -> connect:
        """A worker's socket, not registered."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        return connect(
            f"ws://{self.host}:{self.port}{path}",
            additional_headers=headers,
            compression=None,
            max_size=None,
            ping_interval=None,
            open_timeout=DEADLINE,
        )

    async def new_project(self, handle: str) -> str:
        """A further project; returns a key of it."""
        key = new_api_key()
        await self.store.create_project(handle, handle)
        await self.store.create_key(handle, "test", hash_secret(key))
        return key


@asynccontextmanager
async def serving(directory: Path, *, store: str | None = None, **settings: Any) -> AsyncIterator[Serving]:
    """`directory` is absolute, `settings` are fields of ServeConfig. `store`: its URL, if it is no file there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        config = ServeConfig(
            listen=Address(host=host, port=port),
            store=store or f"sqlite://{directory}/control-plane.db",
            bootstrap_key_file=directory / "api-key",
            **settings,
        )
        terms = LeaseTerms(lease_duration=config.lease_duration, heartbeat_cadence=config.heartbeat_cadence)
        opened = store_at(config.store, terms)
        plane = ControlPlane(config, terms, opened)
        listens = asyncio.Event()
        running = asyncio.create_task(plane.run(listening, listens.set))
        ready = asyncio.create_task(listens.wait())
        await asyncio.wait({running, ready}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            ready.cancel()
            await running
        key = (directory / "api-key").read_text().strip()
        try:
            yield Serving(host=host, port=port, key=key, plane=plane, store=opened)
        finally:
            plane.stop("the test ends")
            async with asyncio.timeout(DEADLINE):
                await running


async def register(socket: ClientConnection, worker_instance_id: str = "worker-1", **fields: Any) -> dict[str, Any]:
    """Send `worker.register` and return the answer."""
    return await ask(socket, {"type": "worker.register", "worker_instance_id": worker_instance_id, **fields})


async def ask(socket: ClientConnection, frame: dict[str, Any]) -> dict[str, Any]:
    """Send one frame and return the answer that carries its message id; hints in between are passed over."""
    frame = {"message_id": "m-1", **frame}
    await socket.send(json.dumps(frame))
    return await answer_to(socket, frame["message_id"])


async def answer_to(socket: ClientConnection, message_id: str | None) -> dict[str, Any]:
    """The next frame that carries this message id."""
    async with asyncio.timeout(DEADLINE):
        while True:
            frame = json.loads(await socket.recv())
            if frame.get("message_id") == message_id and frame["type"] != "work.available":
                return frame


async def next_of(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next frame of this type."""
    async with asyncio.timeout(DEADLINE):
        while True:
            frame = json.loads(await socket.recv())
            if frame["type"] == kind:
                return frame
