"""A log's records are written by a thread of their own from a bounded queue.

Whoever reads the log may be slow or gone, and no event loop must wait for it.
"""

import contextlib
import os
import threading
from collections.abc import Callable

MAX_WAITING = 8 * 1024 * 1024
"""Bytes that wait for the log's reader."""

_CLOSE_PATIENCE = 2.0
_RETRY = 0.5

Sink = Callable[[list[bytes]], list[bytes]]
"""Takes records and returns those that it could not get rid of, to be tried again. May wait for its reader."""


class LogWriter:
    """Hands records to `put` on a thread. What would wait beyond a limit is dropped and counted."""

    def __init__(self, put: Sink) -> None:
        self._put = put
        self._queue: list[bytes] = []
        self._waiting = 0
        self._changed = threading.Condition()
        self._closing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, record: bytes) -> None:
        """Never blocks on the reader of the log."""
        with self._changed:
            if self._waiting + len(record) >= MAX_WAITING:
                self.dropped += 1
                return
            self._waiting += len(record) + 1
            self._queue.append(record)
            self._changed.notify()

    def close(self) -> None:
        """Write what is queued, for two seconds at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_PATIENCE)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                records = self._queue
                self._queue = []
            left = self._put(records)
            with self._changed:
                self._waiting -= sum(len(record) + 1 for record in records) - sum(len(record) + 1 for record in left)
                self._queue[:0] = left
                if left:
                    self._changed.wait(_RETRY)


def to_stream(fd: int) -> Sink:
    """Records as lines of a file descriptor."""

    def put(records: list[bytes]) -> list[bytes]:
        data = memoryview(b"\n".join(records) + b"\n")
        # When nobody reads the log any more, there is nowhere left to say so.
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(fd, data) :]
        return []

    return put
