"""What a process writes to stdout and stderr: read at once, cut into lines, the last ones kept."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable

KEPT_LINES = 100
MAX_LINE = 8 * 1024
"""Bytes. A longer line is cut into several."""

_READ = 64 * 1024
_LAST_READS = 16


class OutputReader:
    """Reads a pipe without blocking, so that its writer never does. Owns the file descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, forward: Callable[[list[bytes]], None]) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._forward = forward
        self._partial = b""
        self._kept: deque[bytes] = deque(maxlen=KEPT_LINES)
        loop.add_reader(fd, self._read)

    def drain(self) -> None:
        """Read what a process has left, but no more than a pipe holds: a grandchild may still write."""
        for _ in range(_LAST_READS):
            if self._fd < 0 or not self._read():
                break
        if self._partial:
            self._take([self._partial])
            self._partial = b""

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
        *lines, partial = (self._partial + data).split(b"\n")
        while len(partial) > MAX_LINE:
            lines.append(partial[:MAX_LINE])
            partial = partial[MAX_LINE:]
        self._partial = partial
        self._take(
            [line[start : start + MAX_LINE] for line in lines for start in range(0, max(len(line), 1), MAX_LINE)]
        )
        return True

    def _take(self, lines: list[bytes]) -> None:
        self._kept.extend(lines)
        if lines:
            self._forward(lines)
