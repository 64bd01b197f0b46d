"""The whole process table, searched for what belongs to a test; and what one process holds."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Every living process that has this in its environment, whoever its parent is now. The caller is left out."""
    mark = f"{variable}={value}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            continue  # it has ended, or is another user's
        if mark in environment.split(b"\0") and process.pid != os.getpid():
            found.append(process)
    return found


def end_marked(variable: str, value: str) -> None:
    """SIGKILL to all of them: a test that failed leaves nothing running."""
    for process in marked(variable, value):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def related(variable: str, value: str, members: dict[int, float]) -> list[psutil.Process]:
    """Those, and whoever is in a session of a member or the child of one, and as old: a number may be given away.

    `members` are process numbers, and when each was looked at (seconds since the epoch).
    """
    found = {process.pid: process for process in marked(variable, value)}
    for process in psutil.process_iter():
        try:
            near = [number for number in (os.getsid(process.pid), process.ppid()) if number in members]
            if near and process.create_time() <= max(members[number] for number in near):
                found[process.pid] = process
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return living(found.values())


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of them that still run. One that only waits for its parent to look at its end does not."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def descriptors(pid: int) -> Counter[str]:
    """Open file descriptors of a process by what they are: pipes, sockets and the like by their kind, files by path."""
    held: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
        held[target.partition(":")[0] if not target.startswith(("/", "anon_inode:")) else target] += 1
    return held


def memory(pid: int) -> tuple[int, int]:
    """Bytes: unique to the process (USS), and that with its share of what it has in common with others (PSS)."""
    full = psutil.Process(pid).memory_full_info()
    return full.uss, full.pss
