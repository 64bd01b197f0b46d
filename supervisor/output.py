"""What a process writes to stdout and stderr: read at once, cut into lines, the last ones kept."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from wire.lines import LineCutter

KEPT_LINES = 100
MAX_KEPT = 8 * 1024
"""Bytes that are kept of a line."""

_READ = 64 * 1024
_LAST_READS = 16


class Line(NamedTuple):
    """One line without its end. `is_own`: the process's own log wrote it, and not any code that prints."""

    text: bytes
    is_own: bool


class OutputReader:
    """Reads a pipe without blocking, so that its writer never does. Owns the file descriptor.

    `mark` is how the lines of the process's own log end; where it is empty, every line may be one.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, forward: Callable[[list[Line]], None], mark: bytes = b""
    ) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._forward = forward
        self._mark = mark
        self._cutter = LineCutter()
        self._kept: deque[bytes] = deque(maxlen=KEPT_LINES)
        loop.add_reader(fd, self._read)

    def drain(self) -> None:
        """Read what a process has left, but no more than a pipe holds: a grandchild may still write."""
        for _ in range(_LAST_READS):
            if self._fd < 0 or not self._read():
                break
        self._take(self._cutter.rest())

    def last_lines(self) -> list[str]:
        """At most KEPT_LINES, oldest first."""
        return [line.decode("utf-8", "replace") for line in self._kept]

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> bool:
        """One piece; whether there may be more."""
        data = b""
        with contextlib.suppress(OSError):
            data = os.read(self._fd, _READ)
            if not data:
                # Every writer is gone. Without a reader, the loop would be woken for the end again and again.
                self._loop.remove_reader(self._fd)
        if not data:
            return False
        self._take(self._cutter.cut(data))
        return True

    def _take(self, texts: list[bytes]) -> None:
        lines = [Line(text.removesuffix(self._mark), text.endswith(self._mark)) for text in texts]
        self._kept.extend(line.text[:MAX_KEPT] for line in lines)
        if lines:
            self._forward(lines)
