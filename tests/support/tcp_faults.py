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
