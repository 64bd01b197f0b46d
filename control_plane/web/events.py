"""The live stream of a run's events: Server-Sent Events, read from the store, woken by its commits.

A stream holds no event: it remembers the last sequence it has written and reads on from there, so that a slow reader
costs one page of events and the socket's send buffer, and no other stream waits for it. Lines end with LF alone, a
heartbeat is a comment, and the stream ends after the run's terminal event (contract, "The HTTP side").
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec
import structlog
from starlette.types import Message, Receive, Scope, Send

from control_plane.domain.model import TERMINAL_RUN, Event
from control_plane.domain.store import Committed, RunChanged, Store
from control_plane.errors import StoreUnavailable
from control_plane.web.shapes import event_shape

HEARTBEAT_INTERVAL = 15.0
"""Seconds between comment lines on a stream that has nothing to say."""

POLL_INTERVAL = 5.0
"""Seconds after which a stream reads the store although nothing woke it."""

PAGE = 50
"""Events that one read of the store may bring."""

HEARTBEAT = b": keep-alive\n\n"
TERMINAL_EVENTS = frozenset(f"run.{status}" for status in TERMINAL_RUN)

_encoder = msgspec.json.Encoder()
_log = structlog.get_logger(__name__)


def encode_event(event: Event) -> bytes:
    """One event as Server-Sent Events want it; JSON never holds a raw line end."""
    head = f"id: {event.sequence}\nevent: {event.event_type}\ndata: ".encode()
    return head + _encoder.encode(event_shape(event)) + b"\n\n"


class RunStreams:
    """Who waits for news of which run. `committed` is called by the store after every commit."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.closed = False

    @property
    def readers(self) -> int:
        """Streams that are open now."""
        return sum(len(waiting) for waiting in self._waiting.values())

    def committed(self, facts: Sequence[Committed]) -> None:
        """Wake the streams of every run that has new events."""
        for fact in facts:
            if isinstance(fact, RunChanged):
                for wake in self._waiting.get(fact.run_id, ()):
                    wake.set()

    def close(self) -> None:
        """End every stream at the next event boundary: the server stops, and readers resume elsewhere."""
        self.closed = True
        for waiting in self._waiting.values():
            for wake in waiting:
                wake.set()

    def join(self, run_id: str) -> asyncio.Event:
        """An event that is set when the run has news."""
        wake = asyncio.Event()
        self._waiting[run_id].add(wake)
        return wake

    def leave(self, run_id: str, wake: asyncio.Event) -> None:
        """The stream has ended."""
        waiting = self._waiting[run_id]
        waiting.discard(wake)
        if not waiting:
            del self._waiting[run_id]


class EventStream:
    """The response that streams one run from `since` on, as an ASGI application."""

    def __init__(
        self,
        store: Store,
        streams: RunStreams,
        project_id: str,
        run_id: str,
        since: int,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._streams = streams
        self._project_id = project_id
        self._run_id = run_id
        self._since = since
        self._clock = clock
        self._reader_gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the terminal event, the reader's end, or the server's."""
        del scope
        wake = self._streams.join(self._run_id)
        watcher = asyncio.create_task(self._watch(receive, wake), name=f"reader of {self._run_id}")
        try:
            await send(_START)
            await self._follow(send, wake)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watcher.cancel()
            self._streams.leave(self._run_id, wake)

    async def _watch(self, receive: Receive, wake: asyncio.Event) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._reader_gone = True
        wake.set()

    async def _follow(self, send: Send, wake: asyncio.Event) -> None:
        heartbeat_at = self._clock() + HEARTBEAT_INTERVAL
        while not (self._reader_gone or self._streams.closed):
            wake.clear()
            try:
                if await self._write_news(send):
                    return
            except StoreUnavailable:
                # The reader keeps its place and the run may well go on: the next look comes with the poll.
                _log.debug("store unavailable", run_id=self._run_id)
            try:
                async with asyncio.timeout(max(0.0, min(POLL_INTERVAL, heartbeat_at - self._clock()))):
                    await wake.wait()
            except TimeoutError:
                if self._clock() >= heartbeat_at:
                    await send({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})
                    heartbeat_at = self._clock() + HEARTBEAT_INTERVAL

    async def _write_news(self, send: Send) -> bool:
        """Write every event there is; True when nothing can follow."""
        # The status is read first: a run that is terminal now has all of its events in the store, so an empty page
        # after that means the end also for a reader that resumes behind the terminal event.
        terminal = (await self._store.run(self._project_id, self._run_id)).status in TERMINAL_RUN
        while not self._reader_gone:
            events = await self._store.events(self._project_id, self._run_id, since=self._since, limit=PAGE)
            if not events:
                return terminal
            for event in events:
                await send({"type": "http.response.body", "body": encode_event(event), "more_body": True})
                self._since = event.sequence
                if event.event_type in TERMINAL_EVENTS:
                    return True
        return True


_START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ],
}
