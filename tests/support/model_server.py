"""A model server that streams what a test tells it to, piece by piece, over real HTTP on loopback.

async with model_server() as server:
    server.answers("/api/chat", ndjson({"done": True}))
    ...
    assert server.requests[-1].body["model"] == "m"
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

DEADLINE = 20.0


class Request:
    """One request as it came. `gone` is set when the client has ended its connection."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: Any) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.gone = asyncio.Event()


class Reply:
    """How a handler answers: a head, then pieces, each of which is a chunk and a write of its own."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.begun = False

    async def begin(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.begun = True
        fields = {"content-type": "text/event-stream", "transfer-encoding": "chunked", "connection": "close"} | (
            headers or {}
        )
        lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self._writer.write("\r\n".join(lines).encode())
        await self._writer.drain()

    async def piece(self, data: bytes) -> None:
        if not self.begun:
            await self.begin()
        if data:
            self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await self._writer.drain()

    async def end(self) -> None:
        await self.piece(b"")
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def cut(self) -> None:
        """The connection breaks, in the middle of whatever it was."""
        self._writer.transport.abort()


Handler = Callable[[Request, Reply], Awaitable[None]]


class ModelServer:
    """Answers by path; what has no handler is 404."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.port = 0
        self._handlers: dict[str, Handler] = {}
        self._came = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle(self, path: str, handler: Handler) -> None:
        """From now on this path is answered so."""
        self._handlers[path] = handler

    def answers(self, path: str, pieces: Iterable[bytes] | bytes, status: int = 200, **headers: str) -> None:
        """The path is answered with these pieces, and ends."""
        given = [pieces] if isinstance(pieces, bytes) else list(pieces)

        async def handler(_request: Request, reply: Reply) -> None:
            await reply.begin(status, {name.replace("_", "-"): value for name, value in headers.items()})
            for piece in given:
                await reply.piece(piece)
            await reply.end()

        self.handle(path, handler)

    async def request(self, number: int = 1) -> Request:
        """Waits for the `number`-th request."""
        async with asyncio.timeout(DEADLINE), self._came:
            await self._came.wait_for(lambda: len(self.requests) >= number)
        return self.requests[number - 1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection, as its client wants it."""
        watching = None
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await self._read(reader)
            async with self._came:
                self.requests.append(request)
                self._came.notify_all()
            watching = asyncio.ensure_future(self._watch(reader, request))
            reply = Reply(writer)
            handler = self._handlers.get(request.path.partition("?")[0])
            if handler is not None:
                await handler(request, reply)
            else:
                await reply.begin(404)
                await reply.piece(b'{"error":"nothing here"}')
                await reply.end()
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()
        if watching is not None:
            watching.cancel()

    @staticmethod
    async def _watch(reader: asyncio.StreamReader, request: Request) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        request.gone.set()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Request:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Request(method, path, headers, json.loads(body) if body else None)


def ndjson(*values: Any) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def sse(*values: Any, end: str = "\n") -> bytes:
    """Server-sent events; a text stands for itself, and an object with a `type` is called by it."""
    parts = []
    for value in values:
        name = f"event: {value['type']}{end}" if isinstance(value, dict) and isinstance(value.get("type"), str) else ""
        data = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        parts.append(f"{name}data: {data}{end}{end}")
    return "".join(parts).encode()


def in_pieces(data: bytes, size: int) -> list[bytes]:
    """The same bytes, cut without regard for what they mean."""
    return [data[start : start + size] for start in range(0, len(data), size)]


@contextlib.asynccontextmanager
async def model_server() -> AsyncIterator[ModelServer]:
    """A server on a free port of loopback, for as long as the block lasts."""
    scripted = ModelServer()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        server.close()
