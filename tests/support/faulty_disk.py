"""A disk that fails on demand, under SQLite in this process: a layer between it and the real files.

with FaultyDisk() as disk:
    ...                       # every database that is opened from here on
    disk.writes_raise = apsw.FullError("database or disk is full")
    disk.writes_raise = None
    with disk.flushes_held():
        ...                   # no flush ends
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import apsw

REAL = "unix"
NAME = "faulty-disk"
LONGEST = 60.0
"""Seconds that a held flush waits, if nobody lets it go."""


class FaultyDisk(apsw.VFS):
    """Is the default from `__enter__` to `__exit__`. `flushed` counts flushes by the end of the file's name."""

    def __init__(self) -> None:
        super().__init__(NAME, REAL, makedefault=True)
        self.writes_raise: apsw.Error | None = None
        self.flushes_raise: list[apsw.Error] = []
        """One for each flush that is to fail."""
        self.flushed: list[str] = []
        self.holding = threading.Event()
        """A flush is being held."""
        self._may_flush = threading.Event()
        self._may_flush.set()

    def xOpen(self, name: Any, flags: list[int]) -> "_File":  # noqa: N802 - SQLite's name
        """Every file."""
        return _File(self, name, flags)

    @contextmanager
    def flushes_held(self) -> Iterator[None]:
        """As long as this is entered no flush ends."""
        self.holding.clear()
        self._may_flush.clear()
        try:
            yield
        finally:
            self._may_flush.set()

    def flush(self, name: str) -> None:
        """What becomes of a flush."""
        if not self._may_flush.is_set():
            self.holding.set()
            self._may_flush.wait(LONGEST)
        if self.flushes_raise:
            raise self.flushes_raise.pop(0)
        self.flushed.append(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._may_flush.set()
        self.unregister()


class _File(apsw.VFSFile):
    def __init__(self, disk: FaultyDisk, name: Any, flags: list[int]) -> None:
        super().__init__(REAL, name, flags)
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path or "").name

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        if self._disk.writes_raise is not None:
            raise self._disk.writes_raise
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.flush(self._name)
        super().xSync(flags)
