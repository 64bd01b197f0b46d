"""A disk that is really full: a small file system in memory, and something on it that takes all that is left."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_BLOCK = b"\0" * 4096
_BALLAST = "ballast"


class SmallDisk:
    """A directory of which `fill` leaves nothing, and `free` gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Until nothing more can be written. May be called again, when somebody has made room."""
        # Not buffered: what cannot be written is known at once.
        descriptor = os.open(self.path / _BALLAST, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with contextlib.suppress(OSError):
                while True:
                    os.write(descriptor, _BLOCK)
        finally:
            os.close(descriptor)

    def free(self) -> None:
        """There is room again."""
        (self.path / _BALLAST).unlink()


@contextlib.contextmanager
def small_disk(path: Path, mebibytes: int) -> Iterator[SmallDisk]:
    """Mounted at the new directory `path`. Skips the test for who may not mount."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0755", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a small disk needs the command mount")
    if done.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount one: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: a process that a failed test leaves behind must not keep it.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
