"""Bytes of a text/event-stream -> run events. No I/O.

The stream is Mobius's: lines end in LF, comments (`:`) are heartbeats, `data:` holds one event as a JSON object with
`sequence` and `event_type`.
"""

from typing import Any

import msgspec

MAX_EVENT_BYTES = 32 * 1024 * 1024
"""An event carries at most one result, and a worker may report 16 MiB of it; escaping can double that."""

RUN_ENDED = {"run.completed": "completed", "run.failed": "failed", "run.cancelled": "cancelled"}
"""Event types after which a run's stream has nothing more to say, with the status that they mean."""


class EventStreamError(ValueError):
    """The peer sent what is no stream of run events."""


class EventStreamReader:
    """Feed it chunks as they arrive; it returns the events that are complete by then."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[dict[str, Any]]:
        """Events that `chunk` completed. Raises EventStreamError."""
        events: list[dict[str, Any]] = []
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._line += line
            complete, self._line = bytes(self._line), bytearray()
            event = self._take_line(complete.removesuffix(b"\r"))
            if event is not None:
                events.append(event)
        self._line += rest
        if len(self._line) + self._size > MAX_EVENT_BYTES:
            raise EventStreamError(f"one event is larger than {MAX_EVENT_BYTES} bytes")
        return events

    def _take_line(self, line: bytes) -> dict[str, Any] | None:
        if not line:
            data, self._data, self._size = b"\n".join(self._data), [], 0
            return _event(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
        return None


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EventStreamError(f"an event's data is no JSON: {error}") from error
    if (
        not isinstance(event, dict)
        or not isinstance(event.get("sequence"), int)
        or not isinstance(event.get("event_type"), str)
    ):
        raise EventStreamError("an event has no sequence or no event_type")
    return event
