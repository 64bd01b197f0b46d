"""Between a store and its PostgreSQL: passes everything on, and breaks a connection just when it commits."""

import asyncio
import contextlib
from typing import Self

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
"""The message that asks for it, as the driver sends it."""


class CommitProxy:
    """Listens on loopback in the running loop. `break_next("before")` cuts the next connection that commits before the
    server hears of it, `break_next("sent")` when it was told, `break_next("after")` when the server has answered,
    which nobody is told, and `break_next("kept")` when it has answered, and goes on as if nothing had happened; `at` is
    what it waits for in place of a COMMIT. With `then_refuse` it turns new connections away from that moment on, as
    long as `refuse` is true."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._moment: str | None = None
        self._at = COMMIT
        self._then_refuse = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.broken = 0
        self.refuse = False
        self.port = 0

    def break_next(self, moment: str, *, at: bytes = COMMIT, then_refuse: bool = False) -> None:
        self._moment = moment
        self._at = at
        self._then_refuse = then_refuse

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refuse:
            writer.close()
            return
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        answers = asyncio.ensure_future(_pass_on(from_server, writer))
        questions = asyncio.ensure_future(self._questions(reader, from_server, to_server, writer, answers))
        try:
            await asyncio.wait([questions, answers], return_when=asyncio.FIRST_COMPLETED)
            if questions.done() or not self._moment:
                await asyncio.wait([questions], timeout=30)
        finally:
            for way in (questions, answers):
                way.cancel()
            writer.transport.abort()
            to_server.transport.abort()

    async def _questions(
        self,
        reader: asyncio.StreamReader,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        writer: asyncio.StreamWriter,
        answers: "asyncio.Future[None]",
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if self._moment is not None and self._at in data:
                    moment, self._moment = self._moment, None
                    self.broken += 1
                    self.refuse = self._then_refuse
                    if moment in ("sent", "after", "kept"):
                        answers.cancel()
                        await asyncio.gather(answers, return_exceptions=True)
                        to_server.write(data)
                        await to_server.drain()
                    if moment in ("after", "kept"):
                        await from_server.read(65536)
                    if moment == "kept":
                        writer.transport.abort()
                        await asyncio.Event().wait()
                    return
                to_server.write(data)
                await to_server.drain()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
