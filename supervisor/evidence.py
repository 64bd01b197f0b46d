"""What the kernel knows of a process, read cheaply from /proc. Nothing here raises: a process may go at any moment."""

import contextlib
import os
from pathlib import Path

import msgspec

from supervisor.facts import ChildHung, HangClass

_HEARD = 3.0
"""Seconds since the other tick's beat within which it counts as running (it beats once a second)."""


def complete(hung: ChildHung, pid: int) -> ChildHung:
    """The fact with the process's kernel state and what that says of the hang."""
    state = _state_and_parent(pid)[0]
    return msgspec.structs.replace(
        hung,
        process_state=state,
        wait_channel=_first_line(Path(f"/proc/{pid}/wchan")),
        hang=hang_class(state, hung.thread_silent_for),
    )


def hang_class(process_state: str, thread_silent_for: float) -> HangClass:
    """Why the event loop is silent, told from the kernel's letter and from the other tick."""
    if process_state in ("T", "t"):
        return "stopped"
    if process_state == "D":
        return "uninterruptible"
    return "loop_blocked" if thread_silent_for < _HEARD else "interpreter_stuck"


def children_of(pid: int) -> set[int]:
    """The numbers of all living or unreaped children of a process."""
    found: set[int] = set()
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found.update(int(number) for number in (task / "children").read_text().split())
    except FileNotFoundError:
        # A kernel without CONFIG_PROC_CHILDREN: ask every process for its parent.
        with os.scandir("/proc") as entries:
            numbers = [int(entry.name) for entry in entries if entry.name.isdigit()]
        return {number for number in numbers if _state_and_parent(number)[1] == pid}
    except OSError:
        return found
    return found


def _state_and_parent(pid: int) -> tuple[str, int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The command name stands in parentheses and may hold anything, parentheses too.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode("ascii", "replace"), int(fields[1])
    return "", -1


def _first_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[:64].strip()
    return ""
