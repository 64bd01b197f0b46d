"""Journals of slots that are gone: what is left in them is handed to the next child that starts. Acts.

A slot may go before its reports are acknowledged: its number was exchanged, or its pool is smaller since. Any worker of
the project can send what it left.
"""

import contextlib
import fcntl
import os
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
