"""A control plane that says what a test tells it to, over a real WebSocket on loopback."""

import asyncio
import contextlib
import http
import ssl
from collections.abc import AsyncIterator
from typing import TypeVar

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from wire import codec, frames

FrameT = TypeVar("FrameT")
DEADLINE = 20.0


class ScriptedServer:
    """Accepts every worker. `receive` hands out what the worker sent; `send` says whatever the test wants.

    `refuse` answers the next upgrades with an HTTP status instead.
    """

    def __init__(self) -> None:
        self.refuse: list[int] = []
        self.requests: list[tuple[str, str]] = []
        """(path, Authorization) of every upgrade."""
        self.port = 0
        self.scheme = "http"
        self._connections: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self._current: ServerConnection | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def connection(self) -> ServerConnection:
        assert self._current is not None, "no worker has connected"
        return self._current

    async def connected(self) -> ServerConnection:
        """Waits for the next connection."""
        async with asyncio.timeout(DEADLINE):
            self._current = await self._connections.get()
        return self._current

    async def receive(self, kind: type[FrameT]) -> FrameT:
        """The next frame, which must be of this kind."""
        async with asyncio.timeout(DEADLINE):
            frame = codec.decode_from_worker(await self.connection.recv())
        assert isinstance(frame, kind), f"expected {kind.__name__}, got {frame}"
        return frame

    async def send(self, frame: frames.FromServer) -> None:
        await self.connection.send(codec.encode_to_worker(frame).decode())

    async def register(self, *, lease: int = 60, cadence: int = 20) -> frames.Register:
        """Waits for a connection and accepts its registration."""
        await self.connected()
        register = await self.receive(frames.Register)
        terms = frames.Lease(lease_duration_seconds=lease, heartbeat_cadence_seconds=cadence)
        await self.send(frames.Registered(message_id=register.message_id, worker_session_token="session", lease=terms))
        return register

    async def answer_claim(self, *jobs: frames.ClaimedJob) -> frames.Claim:
        """Waits for a claim and answers it."""
        claim = await self.receive(frames.Claim)
        await self.send(frames.Claimed(message_id=claim.message_id, jobs=list(jobs)))
        return claim

    async def acknowledge_report(self) -> frames.Report:
        """Waits for a report and acknowledges it."""
        report = await self.receive(frames.Report)
        await self.send(frames.ReportAck(message_id=report.message_id, job_id=report.job_id))
        return report

    async def _accept(self, connection: ServerConnection) -> None:
        await self._connections.put(connection)
        await connection.wait_closed()

    def _upgrade(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append((request.path, request.headers.get("Authorization", "")))
        return connection.respond(http.HTTPStatus(self.refuse.pop(0)), "no\n") if self.refuse else None


@contextlib.asynccontextmanager
async def scripted_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
    """A server on a free port of loopback, for as long as the block lasts."""
    scripted = ScriptedServer()
    scripted.scheme = "http" if tls is None else "https"
    server: Server
    async with serve(
        scripted._accept,
        "127.0.0.1",
        0,
        process_request=scripted._upgrade,
        compression=None,
        max_size=None,
        close_timeout=0.2,
        ssl=tls,
    ) as server:
        scripted.port = next(iter(server.sockets)).getsockname()[1]
        yield scripted
        server.close(close_connections=True)
