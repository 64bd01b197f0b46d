"""The Python stacks of one child: asked for by a signal, read from a pipe that carries nothing else."""

import asyncio
import contextlib
import os
from collections.abc import Callable

PATIENCE = 1.0
"""Seconds that a process has for its answer."""

QUIET = 0.05
"""Seconds without another byte after which an answer is complete: it is written in one go, and has no end mark."""

MAX_ANSWER = 256 * 1024
"""Bytes that are kept of an answer."""

_READ = 64 * 1024


class StacksReader:
    """Reads a pipe without blocking. Owns the file descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._answer = b""
        self._waiting: list[Callable[[str], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        loop.add_reader(fd, self._read)

    def expect(self, done: Callable[[str], None]) -> bool:
        """`done` gets the answer, empty if there was none in time. True if the process is still to be asked."""
        self._waiting.append(done)
        if len(self._waiting) > 1:
            return False
        self._answer = b""
        self._deadline = self._loop.time() + PATIENCE
        self._timer = self._loop.call_at(self._deadline, self._finish)
        return True

    def close(self) -> None:
        """Whoever waits gets what there is. Idempotent."""
        if self._fd >= 0:
            self._read()
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._finish()

    def _read(self) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, _READ)
            if not data:
                self._loop.remove_reader(self._fd)
        if not data or not self._waiting:
            return
        self._answer = (self._answer + data)[:MAX_ANSWER]
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(self._loop.time() + QUIET, self._deadline), self._finish)

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        text = self._answer.decode("utf-8", "replace")
        for done in waiting:
            done(text)
