"""Server-Sent Events: what every stream has in common.

A stream holds nothing of what it sends: it remembers its reader's place and reads on from there, so that a slow reader
costs one page and the socket's send buffer, no other stream waits for it, and one that does not read at all is cut off
(http_protocol.WRITE_TIMEOUT). Lines end with LF alone, a heartbeat is a comment (contract, "The HTTP side").
"""

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable

import structlog
from starlette.types import Message, Receive, Scope, Send

from control_plane.errors import NotFound, StoreUnavailable

HEARTBEAT_INTERVAL = 15.0
"""Seconds between comment lines on a stream that has nothing to say."""

HEARTBEAT = b": keep-alive\n\n"

Write = Callable[[bytes], Awaitable[None]]

_log = structlog.get_logger(__name__)


class Readers:
    """Who waits for news of what."""

    def __init__(self) -> None:
        self._waiting: defaultdict[Hashable, set[asyncio.Event]] = defaultdict(set)
        self.closed = False

    @property
    def readers(self) -> int:
        """Streams that are open now."""
        return sum(len(waiting) for waiting in self._waiting.values())

    def wake(self, key: Hashable) -> None:
        """There is news."""
        for wake in self._waiting.get(key, ()):
            wake.set()

    def close(self) -> None:
        """End every stream at the next event boundary: the server stops, and readers resume elsewhere."""
        self.closed = True
        for waiting in self._waiting.values():
            for wake in waiting:
                wake.set()

    def join(self, key: Hashable) -> asyncio.Event:
        """An event that is set when there is news."""
        wake = asyncio.Event()
        self._waiting[key].add(wake)
        return wake

    def leave(self, key: Hashable, wake: asyncio.Event) -> None:
        """The stream has ended."""
        waiting = self._waiting[key]
        waiting.discard(wake)
        if not waiting:
            del self._waiting[key]


class Stream(ABC):
    """The response that streams what `readers` are told of under `key`, as an ASGI application. It also looks every
    `poll_interval` seconds, whatever it was told; `clock` gives monotonic seconds."""

    def __init__(self, readers: Readers, key: Hashable, poll_interval: float, clock: Callable[[], float]) -> None:
        self._readers = readers
        self._key = key
        self._poll_interval = poll_interval
        self._clock = clock
        self.reader_gone = False

    @abstractmethod
    async def write_news(self, write: Write) -> bool:
        """Write all that there is now; True when nothing can follow."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until nothing can follow, the reader's end, or the server's."""
        del scope
        wake = self._readers.join(self._key)
        watcher = asyncio.create_task(self._watch(receive, wake), name=f"reader of {self._key}")
        try:
            await send(_START)
            await self._follow(send, wake)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watcher.cancel()
            self._readers.leave(self._key, wake)

    async def _watch(self, receive: Receive, wake: asyncio.Event) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.reader_gone = True
        wake.set()

    async def _follow(self, send: Send, wake: asyncio.Event) -> None:
        async def write(body: bytes) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": True})

        heartbeat_at = self._clock() + HEARTBEAT_INTERVAL
        while not (self.reader_gone or self._readers.closed):
            wake.clear()
            try:
                if await self.write_news(write):
                    return
            except NotFound:
                return  # it was retired
            except StoreUnavailable:
                # The reader keeps its place and there may well be more: the next look comes with the poll.
                _log.debug("store unavailable", stream=self._key)
            try:
                async with asyncio.timeout(max(0.0, min(self._poll_interval, heartbeat_at - self._clock()))):
                    await wake.wait()
            except TimeoutError:
                if self._clock() >= heartbeat_at:
                    await write(HEARTBEAT)
                    heartbeat_at = self._clock() + HEARTBEAT_INTERVAL


_START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ],
}
