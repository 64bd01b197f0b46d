"""What the kernel knows of a process, read cheaply from /proc. Nothing here raises: a process may go at any moment."""

import contextlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from supervisor.facts import ChildHung, HangClass, ProcessEvidence, SuspectFact
from supervisor.slots import HEARD
from wire.pipe import STACKS_SIGNAL

SuspectT = TypeVar("SuspectT", bound=SuspectFact)
_KEPT_LINES = 40
_STATUS = ("State", "Threads", "TracerPid", "VmRSS", "VmSwap", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")


def complete(suspect: SuspectT, pid: int) -> SuspectT:
    """The fact with what /proc says of the process, and what that says of the hang."""
    evidence = evidence_of(pid)
    hang: HangClass | None = hang_class(evidence.state, suspect)
    if hang == "not_progressing" and isinstance(suspect, ChildHung) and suspect.ordered:
        # Nothing is wrong with it as far as anybody can see.
        hang = None
    return msgspec.structs.replace(suspect, evidence=evidence, hang=hang)


def evidence_of(pid: int) -> ProcessEvidence:
    """What /proc says of a process.

    Nothing is read that waits for the process's memory lock: whoever holds that may be what hangs.
    """
    return ProcessEvidence(
        state=_state_and_parent(pid)[0],
        wait_channel="".join(_lines(f"/proc/{pid}/wchan")),
        kernel_stack=_lines(f"/proc/{pid}/stack"),
        status=[line for line in _lines(f"/proc/{pid}/status") if line.partition(":")[0] in _STATUS],
        children=[_described(child) for child in sorted(children_of(pid))[:_KEPT_LINES]],
    )


def why_no_stacks(pid: int) -> str:
    """Why a process would not answer STACKS_SIGNAL with its stacks (it might die of it); empty if it would."""
    state = _state_and_parent(pid)[0]
    if state in ("T", "t"):
        return "the process is stopped: it runs nothing that could write them"
    if state in ("", "Z", "X"):
        return "the process has ended"
    for line in _lines(f"/proc/{pid}/status", most=1000):
        name, _, mask = line.partition(":")
        if name == "SigCgt" and int(mask, 16) >> (STACKS_SIGNAL - 1) & 1:
            return ""
    return "the process does not answer (it has not come so far, or it is not ours)"


def hang_class(process_state: str, suspect: SuspectFact) -> HangClass:
    """Why a process does not work, told from the kernel's letter and from its two ticks."""
    if process_state in ("T", "t"):
        return "stopped"
    if process_state == "D":
        return "uninterruptible"
    if not suspect.loop_silent:
        return "not_progressing"
    return "loop_blocked" if suspect.thread_silent_for < min(HEARD, suspect.silent_for) else "interpreter_stuck"


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


def name_of(pid: int) -> str:
    """What a process calls itself; empty when it is gone."""
    return "".join(_lines(f"/proc/{pid}/comm"))


def _state_and_parent(pid: int) -> tuple[str, int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The command name stands in parentheses and may hold anything, parentheses too.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode("ascii", "replace"), int(fields[1])
    return "", -1


def _described(pid: int) -> str:
    return f"{pid} {_state_and_parent(pid)[0]} {name_of(pid)}"


def _lines(path: str, most: int = _KEPT_LINES) -> list[str]:
    with contextlib.suppress(OSError):
        return [line.strip() for line in Path(path).read_text(errors="replace").splitlines()[:most]]
    return []
