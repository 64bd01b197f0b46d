"""One generation's deltas on their way through this process: what is live in memory, and what waits to be written.

A position in a stream is (claim attempt, sequence): the worker numbers its deltas from 0 in each attempt. Decides only.
"""

from collections import deque
from typing import Any

import msgspec
from msgspec import Struct

MOST_RECENT_BYTES = 256 * 1024
"""Of deltas that readers find in memory; those who are further behind read the store."""

MOST_UNWRITTEN_BYTES = 4 * 1024 * 1024
"""Of deltas that wait for the store; the oldest beyond are left out of the stream, never out of the job's result."""

MOST_STREAM_BYTES = 16 * 1024 * 1024
"""Of one attempt's deltas; what comes after them is left out too."""

Position = tuple[int, int]

START: Position = (0, -1)
"""Before every delta."""

_encoder = msgspec.json.Encoder()
_items = msgspec.json.Decoder(list[tuple[int, msgspec.Raw]])


class Delta(Struct, frozen=True):
    """One delta as JSON."""

    sequence: int
    text: bytes


class DeltaChunk(Struct, frozen=True, kw_only=True):
    """Consecutive deltas of one lease, for the store. `items` is JSON: a list of [sequence, delta]."""

    project_id: str
    job_id: str
    token_hash: bytes
    last_sequence: int
    items: str


def read_items(items: str) -> list[Delta]:
    """The deltas of a chunk."""
    return [Delta(sequence, bytes(raw)) for sequence, raw in _items.decode(items)]


class Generation:
    """The deltas of one lease of one job. `attempt` is known once the store has confirmed the lease; `lost`: the store
    has refused it, and nothing more is taken."""

    def __init__(self, project_id: str, job_id: str, token_hash: bytes) -> None:
        self.project_id = project_id
        self.job_id = job_id
        self.token_hash = token_hash
        self.attempt = 0
        self.lost = False
        self.last_sequence = -1
        self.left_out = 0
        self._floor = -1
        self._recent: deque[Delta] = deque()
        self._recent_bytes = 0
        self._unwritten: deque[Delta] = deque()
        self._unwritten_bytes = 0
        self._total_bytes = 0

    @property
    def waits(self) -> bool:
        """Whether anything is to be written."""
        return bool(self._unwritten)

    @property
    def unwritten_bytes(self) -> int:
        """Of what is to be written."""
        return self._unwritten_bytes

    def confirm(self, attempt: int, last_sequence: int) -> None:
        """The store knows the lease, and has its deltas up to this sequence."""
        self.attempt = attempt
        self._floor = last_sequence
        self.last_sequence = max(self.last_sequence, last_sequence)
        while self._unwritten and self._unwritten[0].sequence <= last_sequence:
            self._unwritten_bytes -= len(self._unwritten.popleft().text)
        while self._recent and self._recent[0].sequence <= last_sequence:
            self._recent_bytes -= len(self._recent.popleft().text)

    def refuse(self) -> None:
        """The lease is gone: what it still says is not part of the stream."""
        self.lost = True
        self._recent.clear()
        self._unwritten.clear()
        self._recent_bytes = self._unwritten_bytes = 0

    def take(self, sequence: int, delta: dict[str, Any]) -> bool:
        """One delta of the worker; False for one that is known, or is left out."""
        if self.lost or sequence <= self.last_sequence:
            return False
        self.last_sequence = sequence
        if self._total_bytes > MOST_STREAM_BYTES:
            self.left_out += 1
            return False
        taken = Delta(sequence, _encoder.encode(delta))
        size = len(taken.text)
        self._total_bytes += size
        self._recent.append(taken)
        self._recent_bytes += size
        self._unwritten.append(taken)
        self._unwritten_bytes += size
        while self._recent_bytes > MOST_RECENT_BYTES:
            oldest = self._recent.popleft()
            self._floor = oldest.sequence
            self._recent_bytes -= len(oldest.text)
        while self._unwritten_bytes > MOST_UNWRITTEN_BYTES and len(self._unwritten) > 1:
            self._unwritten_bytes -= len(self._unwritten.popleft().text)
            self.left_out += 1
        return True

    def chunk(self) -> DeltaChunk | None:
        """All that waits to be written, to be given to `written` or `put_back`; None where nothing waits."""
        if not self._unwritten or not self.attempt or self.lost:
            return None
        parts = [b"[%d,%b]" % (each.sequence, each.text) for each in self._unwritten]
        return DeltaChunk(
            project_id=self.project_id,
            job_id=self.job_id,
            token_hash=self.token_hash,
            last_sequence=self._unwritten[-1].sequence,
            items=(b"[" + b",".join(parts) + b"]").decode(),
        )

    def written(self, chunk: DeltaChunk) -> None:
        """The store has it."""
        while self._unwritten and self._unwritten[0].sequence <= chunk.last_sequence:
            self._unwritten_bytes -= len(self._unwritten.popleft().text)

    def after(self, position: Position) -> list[Delta] | None:
        """What is live after the position; None for a reader that must look into the store."""
        attempt, sequence = position
        if self.lost or not self.attempt or attempt > self.attempt:
            return None
        if attempt < self.attempt:
            sequence = -1
        if sequence < self._floor:
            return None
        return [delta for delta in self._recent if delta.sequence > sequence]
