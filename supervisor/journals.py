"""Journals of slots that are gone: what is left in them is handed to the next child that starts. Acts.

A slot may go before its reports are acknowledged: its number was exchanged, or its pool is smaller since. Any worker of
the project can send what it left.
"""

import contextlib
import fcntl
import os
import signal
from collections.abc import Collection
from pathlib import Path

SUFFIX = ".journal"
EMPTY_SIZE = 17
"""Bytes of a journal in which nothing is outstanding."""


def adopt(journal: Path, slots: Collection[str]) -> Path | None:
    """Give a slot whose own journal is empty that of a slot which is not among `slots`; which one it was, if any.

    One that a process still holds is left alone. Never raises: a journal that stays is adopted another time.
    """
    with contextlib.suppress(OSError):
        if journal.exists() and journal.stat().st_size > EMPTY_SIZE:
            return None
        for left in sorted(journal.parent.glob(f"*{SUFFIX}")):
            if left.name.removesuffix(SUFFIX) not in slots and left.stat().st_size > EMPTY_SIZE and _is_free(left):
                left.rename(journal)
                return left
    return None


def _is_free(path: Path) -> bool:
    """Whether no process holds the journal's lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def continue_holders(directory: Path) -> list[int]:
    """Let stopped processes go on that hold a journal; their process ids.

    To be called by whoever has the state directory: they were left by a supervisor that is gone. Its death has told
    them to end, which a stopped process does not hear.
    """
    inodes = set()
    for journal in directory.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            inodes.add(journal.stat().st_ino)
    continued: list[int] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            # Of proc_locks(5): the second field is the kind, the fifth the holder, the sixth device and inode.
            fields = line.split()
            if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) in inodes and int(fields[4]) > 0:
                continued += _continued(int(fields[4]), directory)
    return continued


def _continued(pid: int, directory: Path) -> list[int]:
    """Inodes and process ids are given again: what counts is that this process has a file of the directory open."""
    with contextlib.suppress(OSError, IndexError):
        handle = os.pidfd_open(pid)
        try:
            stopped = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
            files = {entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()} if stopped else set()
            if any(file.parent == directory and file.suffix == SUFFIX for file in files):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
                return [pid]
        finally:
            os.close(handle)
    return []
