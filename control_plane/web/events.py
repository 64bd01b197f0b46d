"""The live stream of a run's events: read from the store, woken by its commits. It ends after the run's terminal event
(contract, "The HTTP side")."""

from collections.abc import Callable, Sequence

import msgspec

from control_plane.domain.model import TERMINAL_RUN, Event
from control_plane.domain.store import Committed, RunChanged, Store
from control_plane.web.server_sent import Readers, Stream, Write
from control_plane.web.shapes import event_shape

POLL_INTERVAL = 5.0
"""Seconds after which a stream reads the store although nothing woke it."""

PAGE = 50
"""Events that one read of the store may bring."""

TERMINAL_EVENTS = frozenset(f"run.{status}" for status in TERMINAL_RUN)

_encoder = msgspec.json.Encoder()


def encode_event(event: Event) -> bytes:
    """One event as Server-Sent Events want it; JSON never holds a raw line end."""
    head = f"id: {event.sequence}\nevent: {event.event_type}\ndata: ".encode()
    return head + _encoder.encode(event_shape(event)) + b"\n\n"


class RunStreams(Readers):
    """Who waits for news of which run. `committed` is called by the store after every commit."""

    def committed(self, facts: Sequence[Committed]) -> None:
        """Wake the streams of every run that has new events."""
        for fact in facts:
            if isinstance(fact, RunChanged):
                self.wake(fact.run_id)


class EventStream(Stream):
    """The response that streams one run from `since` on."""

    def __init__(
        self,
        store: Store,
        streams: RunStreams,
        project_id: str,
        run_id: str,
        since: int,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(streams, run_id, POLL_INTERVAL, clock)
        self._store = store
        self._project_id = project_id
        self._run_id = run_id
        self._since = since

    async def write_news(self, write: Write) -> bool:
        """Write every event there is; True when nothing can follow."""
        came, ended = await self._write_events(write)
        if came or ended:
            return ended
        # A reader that resumes behind the terminal event finds nothing. The status is read first: of a run that is
        # terminal by then, every event is in the store.
        if (await self._store.run(self._project_id, self._run_id)).status not in TERMINAL_RUN:
            return False
        await self._write_events(write)
        return True

    async def _write_events(self, write: Write) -> tuple[bool, bool]:
        """Whether there were any, and whether the terminal one was among them, or the reader has gone."""
        came = False
        while not self.reader_gone:
            events = await self._store.events(self._project_id, self._run_id, since=self._since, limit=PAGE)
            if not events:
                return came, False
            came = True
            for event in events:
                await write(encode_event(event))
                self._since = event.sequence
                if event.event_type in TERMINAL_EVENTS:
                    return came, True
        return came, True
