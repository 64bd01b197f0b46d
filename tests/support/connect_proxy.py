"""An HTTP proxy that connects through to a port of this machine, whatever host it is asked for."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator


class ConnectProxy:
    """`asked` are the heads of the requests that came. With `credentials`, others are answered 407."""

    def __init__(self, to_port: int, credentials: str | None = None) -> None:
        self.asked: list[str] = []
        self.answer = b"HTTP/1.1 200 Connection established\r\n\r\n"
        self.port = 0
        self._to_port = to_port
        self._credentials = credentials
        self._conversations: set[asyncio.Task[None]] = set()

    def url(self, credentials: str = "", scheme: str = "http") -> str:
        """As an environment variable has it."""
        return f"{scheme}://{credentials + '@' if credentials else ''}localhost:{self.port}"

    def cut(self) -> None:
        """Ends every connection through it."""
        for task in list(self._conversations):
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head)
            if self._credentials is not None:
                expected = base64.b64encode(self._credentials.encode()).decode()
                if f"Proxy-Authorization: Basic {expected}\r\n" not in head:
                    writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                    return
            writer.write(self.answer)
            if not self.answer.startswith(b"HTTP/1.1 200"):
                return
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._to_port)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(reader, to_server))
                both.create_task(_pass_on(from_server, writer))

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, and close it."""
        task = asyncio.ensure_future(self.serve(reader, writer))
        self._conversations.add(task)
        try:
            await asyncio.wait([task])
        finally:
            self._conversations.discard(task)
            task.cancel()
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def connect_proxy(
    to_port: int, *, credentials: str | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ConnectProxy]:
    """A proxy on a free port of loopback."""
    proxy = ConnectProxy(to_port, credentials)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
