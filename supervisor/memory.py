"""Memory, as the kernel counts it: how many processes of this unit it has killed for want of it, and what one holds."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

_MAX_TEXT = 16 * 1024


class KillCounter:
    """The unit's counter of out-of-memory kills: cgroup v2 `memory.events`, or v1 `memory.oom_control`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._descriptor = -1
        path = _counter_of(root)
        if path is not None:
            with contextlib.suppress(OSError):
                self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int | None:
        """Processes killed so far; None where the kernel does not say."""
        if self._descriptor < 0:
            return None
        with contextlib.suppress(OSError, ValueError):
            for line in os.pread(self._descriptor, _MAX_TEXT, 0).decode("ascii", "replace").splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
        return None

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class MemoryUse(Struct, frozen=True, kw_only=True):
    """Bytes of one process: `private` is what its end would give back, `shared_fairly` (PSS) adds its share of the
    memory that it has in common with its mold and siblings."""

    private: int
    shared_fairly: int


def memory_of(pid: int) -> MemoryUse | None:
    """None when the process is gone. May wait for a process that is stuck in the kernel: not for the loop's thread."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, size = line.partition(":")
            sizes[name] = int(size.split()[0]) * 1024
    if "Private_Dirty" not in sizes:
        return None
    swapped = sizes.get("SwapPss", 0)
    return MemoryUse(private=sizes["Private_Dirty"] + swapped, shared_fairly=sizes.get("Pss", 0) + swapped)


class Sampler:
    """Reads the memory of processes in a thread of its own: the kernel may make the reader wait for the process.

    `found` is called from the thread with the given key and what was found.
    """

    def __init__(self, found: Callable[[tuple[str, int], MemoryUse], None]) -> None:
        self._found = found
        self._asked: queue.Queue[list[tuple[tuple[str, int], int]]] = queue.Queue(maxsize=1)
        # Not joined at the end: it may wait in the kernel for as long as a stuck process is stuck.
        threading.Thread(target=self._run, name="memory-sampler", daemon=True).start()

    def ask(self, processes: list[tuple[tuple[str, int], int]]) -> None:
        """Pairs of a key and a process id. Dropped while an earlier request waits: the next round asks again."""
        with contextlib.suppress(queue.Full):
            self._asked.put_nowait(processes)

    def _run(self) -> None:
        while True:
            for key, pid in self._asked.get():
                use = memory_of(pid)
                if use is not None:
                    self._found(key, use)


def _counter_of(root: Path) -> Path | None:
    """Of the cgroup that we are in, whichever version has a memory controller."""
    groups: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, _, named = line.partition(":")
            controllers, _, path = named.partition(":")
            groups |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
    if "memory" in groups:
        return root / "sys/fs/cgroup/memory" / groups["memory"] / "memory.oom_control"
    return root / "sys/fs/cgroup" / groups[""] / "memory.events" if "" in groups else None
