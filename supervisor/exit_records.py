"""How each process ended, as JSON files under the state directory: what people read, and what survives a restart.

    exits/<slot>/<time>.json    one end, with its evidence; 0600; the newest KEPT of each slot
    exits/<slot>/running        a child of that slot was started, and its end has not been seen

They are written by a thread of their own, because a disk may be slow or stuck, and the supervisor's loop must not wait
for it.
"""

import contextlib
import datetime as dt
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from supervisor import facts
from supervisor.facts import Fact
from supervisor.slots import Slot
from wire.pipe import PreviousEnd

DIRECTORY = "exits"
KEPT = 50
"""Records of each slot."""

KEPT_IN_ALL = 5000
"""Records of all slots, also of those that are gone."""

_RUNNING = "running"
_MAX_WAITING = 1000
_CLOSE_PATIENCE = 2.0
_UNSEEN = PreviousEnd(
    incarnation=0,
    cause="supervisor_gone",
    detail="the supervisor ended while the process ran, and nobody saw how it ended",
    self_made=False,
)


class ExitRecords:
    """`publish` facts; what cannot be written is told by `complain`, from the thread."""

    def __init__(self, state_dir: Path, complain: Callable[[str], None]) -> None:
        self._directory = state_dir / DIRECTORY
        self._complain = complain
        self._seen: dict[tuple[str, int], dict[str, facts.SuspectFact]] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(_MAX_WAITING)
        # Not joined at the end of the process: a disk that is stuck must not keep the supervisor from ending.
        self._thread = threading.Thread(target=self._run, name="exit-records", daemon=True)
        self._thread.start()

    def publish(self, fact: Fact) -> None:
        """Keep what belongs to a record, and write the record when the process has ended. Never blocks."""
        match fact:
            case facts.ChildSpawned():
                self._enqueue(lambda: self._mark(fact.slot))
            case facts.ChildSilent():
                self._seen.setdefault((fact.slot, fact.incarnation), {})["silence"] = fact
            case facts.ChildHung():
                self._seen.setdefault((fact.slot, fact.incarnation), {})["hang"] = fact
            case facts.ChildDied():
                record = _record(fact, self._seen.pop((fact.slot, fact.incarnation), {}))
                self._last[fact.slot] = record
                self._enqueue(lambda: self._write(fact.slot, record))

    def last(self, slot: str) -> dict[str, Any] | None:
        """The newest record of a slot in this supervisor's time, ready for JSON."""
        return self._last.get(slot)

    def newest(self, slot: str) -> dict[str, Any] | None:
        """The newest record on the disk, which may be of an earlier supervisor's time. Not for the loop's thread."""
        for path in _newest_first(self._directory / slot)[:1]:
            with contextlib.suppress(OSError, ValueError, RecursionError):
                found: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
                return found
        return None

    def close(self) -> None:
        """Write what is queued, for two seconds at most."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(_CLOSE_PATIENCE)

    def _enqueue(self, task: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait(task)
        except queue.Full:
            self._complain(f"{self._directory}: the disk does not keep up, and an exit record was not written")

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            try:
                task()
            except OSError as error:
                self._complain(f"{error.filename}: an exit record could not be written ({error.strerror})")

    def _mark(self, slot: str) -> None:
        _write_file(self._directory / slot, _RUNNING, b"{}\n")

    def _write(self, slot: str, record: dict[str, Any]) -> None:
        folder = self._directory / slot
        data = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
        _write_file(folder, f"{time.time_ns() // 1000:016d}.json", data)
        with contextlib.suppress(FileNotFoundError):
            (folder / _RUNNING).unlink()
        for old in _newest_first(folder)[KEPT:]:
            old.unlink()


def previous_ends(state_dir: Path) -> dict[str, PreviousEnd]:
    """How the last process of each slot ended in an earlier supervisor's time. What cannot be read is left out."""
    ends: dict[str, PreviousEnd] = {}
    for folder in _folders(state_dir / DIRECTORY):
        if (folder / _RUNNING).exists():
            ends[folder.name] = _UNSEEN
            continue
        for path in _newest_first(folder)[:1]:
            with contextlib.suppress(OSError, ValueError, RecursionError):
                ends[folder.name] = msgspec.json.decode(path.read_bytes(), type=PreviousEnd)
    return ends


def remember(children: Iterable[Slot], state_dir: Path) -> None:
    """Tell each slot how its last process ended in an earlier supervisor's time: its successor will be told."""
    ends = previous_ends(state_dir)
    for child in children:
        child.last_end = ends.get(child.name)


def prune(state_dir: Path) -> None:
    """Delete the oldest records beyond KEPT_IN_ALL, and folders of slots that have none left."""
    records = [path for folder in _folders(state_dir / DIRECTORY) for path in _newest_first(folder)]
    with contextlib.suppress(OSError):
        for path in sorted(records, key=lambda path: path.name, reverse=True)[KEPT_IN_ALL:]:
            path.unlink()
    for folder in _folders(state_dir / DIRECTORY):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _record(died: facts.ChildDied, seen: dict[str, facts.SuspectFact]) -> dict[str, Any]:
    """`silence` is what was seen when its loop had just fallen silent (the last time), `hang` before it was killed."""
    record = msgspec.to_builtins(died)
    ended = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    evidence = {name: msgspec.to_builtins(seen[name]) if name in seen else None for name in ("silence", "hang")}
    return {"ended_at": ended, **record, **evidence}


def _write_file(folder: Path, name: str, data: bytes) -> None:
    """0600 from its first moment, and whole or not at all."""
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    new = folder / f".{name}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, which has no path
            file.write(data)
        new.replace(folder / name)
    except OSError as error:
        # On a full disk each attempt would leave a file that nobody counts; and the error does not say of which file.
        with contextlib.suppress(OSError):
            new.unlink()
        raise OSError(error.errno, error.strerror, str(folder / name)) from error


def _folders(directory: Path) -> Iterable[Path]:
    with contextlib.suppress(OSError):
        return [entry for entry in directory.iterdir() if entry.is_dir()]
    return []


def _newest_first(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder.glob("*.json"), reverse=True)
    return []
