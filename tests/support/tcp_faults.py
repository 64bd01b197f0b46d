"""Peers that misbehave in one way each, on a real loopback socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(conversation: Conversation) -> AsyncIterator[str]:
    """Serve every connection with `conversation`; the URL to reach it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await conversation(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def answering(response: bytes) -> Conversation:
    """Reads one request and answers these bytes, whatever was asked."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        await writer.drain()

    return conversation


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes everything and never says a word."""
    del writer
    while await reader.read(65536):
        pass


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers a JSON text that never ends, as fast as it is read."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"a": "')
    while True:
        writer.write(b"a" * 65536)
        await writer.drain()


class CuttingProxy:
    """Passes bytes to `port` of this machine; the first `cuts` connections end after `limit` bytes of answer each."""

    def __init__(self, port: int, *, limit: int = 0, cuts: int = 0) -> None:
        self.port = port
        self._limit = limit
        self._cuts = cuts
        self.times_cut = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.port)
        forward = asyncio.ensure_future(self._pass_on(reader, to_server))
        left = self._limit
        try:
            while data := await from_server.read(65536):
                cut = self.times_cut < self._cuts and len(data) >= left
                writer.write(data[:left] if cut else data)
                await writer.drain()
                if cut:
                    self.times_cut += 1
                    return
                left -= len(data)
        finally:
            forward.cancel()
            to_server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


class FaultProxy:
    """Passes bytes to `port` of this machine, and harms them as it is told. Harm done to a connection stays: what was
    dropped of a stream cannot be made good later. `heal` is for the connections that come."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.delay = 0.0
        """Seconds that every piece is late."""
        self.trickle = False
        """A few bytes at a time."""
        self.swallows = False
        """New connections are taken, and nothing passes: half-open from the beginning."""
        self._connections: set[_Harmed] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.port)
        connection = _Harmed(asyncio.current_task(), swallowed={"up", "down"} if self.swallows else set())
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on("up", connection, reader, to_server))
                both.create_task(self._pass_on("down", connection, from_server, writer))
        except* (ConnectionError, _CutError):
            pass
        finally:
            self._connections.discard(connection)
            to_server.close()

    def cut(self) -> None:
        """Every connection ends, seen by both sides."""
        for connection in self._connections:
            connection.cut.set()

    def half_open(self) -> None:
        """Nothing of any connection comes through any more, and nobody is told."""
        for connection in self._connections:
            connection.swallowed |= {"up", "down"}

    def drop(self, direction: str) -> None:
        """Nothing comes through in one direction ("up" to the server, or "down") any more."""
        for connection in self._connections:
            connection.swallowed.add(direction)

    def heal(self) -> None:
        """What comes from now on is not harmed."""
        self.delay, self.trickle, self.swallows = 0.0, False, False

    async def _pass_on(
        self, direction: str, connection: "_Harmed", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        cut = asyncio.ensure_future(connection.cut.wait())
        try:
            while True:
                read = asyncio.ensure_future(reader.read(65536))
                await asyncio.wait({read, cut}, return_when=asyncio.FIRST_COMPLETED)
                if not read.done():
                    read.cancel()
                    raise _CutError
                if not (data := await read):
                    break
                for piece in _pieces(data) if self.trickle else [data]:
                    if self.delay or self.trickle:
                        await asyncio.sleep(self.delay or 0.001)
                    if direction not in connection.swallowed:
                        writer.write(piece)
                        await writer.drain()
            raise _CutError
        finally:
            cut.cancel()


class _CutError(Exception):
    """The connection is over."""


class _Harmed:
    """One connection through a FaultProxy."""

    def __init__(self, task: "asyncio.Task[None] | None", swallowed: set[str]) -> None:
        self.task = task
        self.swallowed = swallowed
        self.cut = asyncio.Event()


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + 40] for start in range(0, len(data), 40)]
