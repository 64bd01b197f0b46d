"""One generation's deltas on their way to the control plane: what waits, what was sent, what is sent again.

A delta that was sent keeps its sequence and its text for good, so that a server which has seen it can pass over its
repetition; only what was not sent yet is coalesced. Decides only: `now` is monotonic seconds, handed in.
"""

import math
from collections import deque
from typing import Any

from msgspec import Struct

ACKNOWLEDGEMENT_PATIENCE = 1.0
"""Seconds for which an acknowledgement that is outstanding holds the next delta back."""
MAX_PIECE = 64 * 1024
"""Characters of one delta; more text becomes several."""
MAX_KEPT = 1024 * 1024
"""Characters, about, that are kept of what was sent and not acknowledged, and of what waits to be sent."""

Delta = dict[str, Any]


class Sent(Struct, frozen=True):
    """A delta as it goes, and went, over the wire."""

    sequence: int
    delta: Delta


class _Piece:
    """What waits: consecutive texts of one kind as one, or a delta of any other shape by itself."""

    __slots__ = ("_delta", "_key", "_texts", "size")

    def __init__(self, delta: Delta, key: str | None) -> None:
        self._delta = delta
        self._key = key
        self._texts = [delta[key]] if key is not None else []
        self.size = len(delta[key]) if key is not None else len(repr(delta))

    def take_in(self, delta: Delta, key: str | None) -> bool:
        """Whether the delta has become part of this piece."""
        if key is None or key != self._key or self.size + len(delta[key]) > MAX_PIECE:
            return False
        self._texts.append(delta[key])
        self.size += len(delta[key])
        return True

    def delta(self) -> Delta:
        return self._delta if self._key is None else self._delta | {self._key: "".join(self._texts)}


class DeltaStream:
    """The deltas of one run of one job. `skipped`: some were left out, because nobody took them for too long."""

    __slots__ = ("_kept_size", "_sent", "_sent_at", "_sequence", "_sizes", "_waiting", "_waiting_size", "skipped")

    def __init__(self) -> None:
        self.skipped = False
        self._waiting: deque[_Piece] = deque()
        self._waiting_size = 0
        self._sent: deque[Sent] = deque()
        self._sizes: deque[int] = deque()
        self._kept_size = 0
        self._sent_at = -math.inf
        self._sequence = 0

    @property
    def waits(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._waiting)

    def add(self, delta: Delta) -> None:
        """The generation has produced one more delta."""
        key = _text_key(delta)
        if key is not None and len(delta[key]) > MAX_PIECE:
            for start in range(0, len(delta[key]), MAX_PIECE):
                self.add(delta | {key: delta[key][start : start + MAX_PIECE]})
            return
        before = self._waiting[-1].size if self._waiting else 0
        if self._waiting and self._waiting[-1].take_in(delta, key):
            self._waiting_size += self._waiting[-1].size - before
        elif self._waiting_size > MAX_KEPT:
            self.skipped = True
        else:
            self._waiting.append(_Piece(delta, key))
            self._waiting_size += self._waiting[-1].size

    def due(self, *, throttled: bool) -> float:
        """When what waits may be sent; infinity: nothing waits. `throttled`: this server acknowledges deltas."""
        if not self._waiting:
            return math.inf
        return self._sent_at + ACKNOWLEDGEMENT_PATIENCE if throttled and self._sent else -math.inf

    def send(self, now: float) -> list[Sent]:
        """All that waits, to be sent now."""
        sent = []
        while self._waiting:
            piece = self._waiting.popleft()
            sent.append(Sent(self._sequence, piece.delta()))
            self._sequence += 1
            self._sizes.append(piece.size)
            self._kept_size += piece.size
        self._waiting_size = 0
        self._sent += sent
        while self._kept_size > MAX_KEPT and len(self._sent) > 1:
            self._forget()
        self._sent_at = now
        return sent

    def acknowledged(self, sequence: int) -> None:
        """The server has this delta and all before it."""
        while self._sent and self._sent[0].sequence <= sequence:
            self._forget()

    def unacknowledged(self) -> list[Sent]:
        """All that a new connection may have to hear again."""
        return list(self._sent)

    def _forget(self) -> None:
        self._sent.popleft()
        self._kept_size -= self._sizes.popleft()


class DeltaTraffic:
    """What all streams of a worker share: the connection that they leave by.

    A delta is sent at once, unless bytes of an earlier one have not left yet, or (when this connection has shown that
    its server acknowledges deltas) its own stream's last one was not acknowledged yet. `awaits_written`: `written` is
    to be called once no bytes wait to be sent. `next_at`: when `release` is to be tried again, at the latest.
    """

    __slots__ = ("_acknowledged", "awaits_written", "next_at")

    def __init__(self) -> None:
        self.awaits_written = False
        self.next_at = math.inf
        self._acknowledged = False

    def release(self, stream: DeltaStream, now: float) -> list[Sent]:
        """What of the stream may be sent now."""
        if self.awaits_written:
            return []
        due = stream.due(throttled=self._acknowledged)
        if now < due:
            self.next_at = min(self.next_at, due)
            return []
        return self.flush(stream, now)

    def flush(self, stream: DeltaStream, now: float) -> list[Sent]:
        """All of the stream that was not sent yet: its generation has ended, and its report follows."""
        self.awaits_written = self.awaits_written or stream.waits
        return stream.send(now)

    def repeat(self, stream: DeltaStream, now: float) -> list[Sent]:
        """On a new connection: what the server may not have, then what it cannot have."""
        again = stream.unacknowledged()
        self.awaits_written = self.awaits_written or bool(again)
        return [*again, *self.flush(stream, now)]

    def acknowledged(self, stream: DeltaStream | None, sequence: int) -> None:
        """The server has the stream's delta of this sequence and all before it."""
        self._acknowledged = True
        if stream is not None:
            stream.acknowledged(sequence)

    def written(self) -> None:
        """All bytes have left: `release` of every stream is due."""
        self.awaits_written = False
        self.next_at = math.inf

    def disconnected(self) -> None:
        """The connection is gone, with all that was known of it."""
        self.awaits_written = self._acknowledged = False
        self.next_at = math.inf


def _text_key(delta: Delta) -> str | None:
    """Where the text of a delta of nothing but text is: `{"text": ""}` or `{"type": "thinking", "thinking": ""}`."""
    if len(delta) == 1 and isinstance(delta.get("text"), str):
        return "text"
    if len(delta) == 2 and delta.get("type") == "thinking" and isinstance(delta.get("thinking"), str):
        return "thinking"
    return None
