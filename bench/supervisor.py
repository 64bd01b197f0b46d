"""The supervisor's figures: a killed child's way back, fifty children from nothing, and what they cost when idle.

`python -m bench.supervisor [--children 50] [--kills 40] [--starts 3] [--idle 20]`. A real supervisor, and a real
control plane in a process of its own; the same children started by exec are measured in the same run. On a machine
that does other work besides, latencies are the machine's: when a stranger with nothing else to do sees the same death
is shown beside ours.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import select
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from supervisor.memory import MemoryUse, memory_of
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.supervisor_process import SupervisorProcess
from wire import pipe

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0
SETTLED = 3.0
"""Seconds after which a child that has just registered counts as idle."""
WINDOWS = 10
"""Into so many the time of idleness is cut; each gives one figure of the processors' time."""
MIB = 1024 * 1024


def instant(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()


def line(what: str, values: list[float], unit: str, target: str = "") -> None:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    print(f"{what:<62} median {statistics.median(ordered):8.2f} {unit:<3}  p95 {p95:8.2f} {unit:<3} {target}")


def pause(seconds: float) -> None:
    """What is measured here is how little happens while nobody asks for anything."""
    select.select([], [], [], seconds)


def processor_time(pid: int) -> float:
    """Seconds that all threads of a process have had, ended ones too; clock_getcpuclockid(3), which counts exactly."""
    return time.clock_gettime((~pid << 3) | 2)


def shares(pids: list[int], seconds: float) -> list[float]:
    """Percent of one processor that these processes take together, window by window."""
    found = []
    for _ in range(WINDOWS):
        before, since = sum(map(processor_time, pids)), time.monotonic()
        pause(seconds / WINDOWS)
        found.append((sum(map(processor_time, pids)) - before) / (time.monotonic() - since) * 100)
    return found


def show_memory(what: str, pids: Iterable[int], target: str) -> None:
    uses: list[MemoryUse] = [use for use in map(memory_of, pids) if use is not None]
    line(f"{what}, PSS", [use.shared_fairly / MIB for use in uses], "MiB", target)
    line(f"{what}, private and dirty", [use.private / MIB for use in uses], "MiB")


def kill_and_watch(pid: int) -> tuple[float, float]:
    """SIGKILL: when it was sent (wall clock), and milliseconds until the kernel says that the process is gone."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        sent = time.time()
        os.kill(pid, signal.SIGKILL)
        poll.poll(PATIENCE * 1000)
        return sent, (time.time() - sent) * 1000
    finally:
        os.close(descriptor)


# --- children of a supervisor --------------------------------------------------------------------------------------


def end_of(supervisor: SupervisorProcess, slot: str, incarnation: int) -> float:
    """When the supervisor knew of an end, to the microsecond: the log has milliseconds. A thread writes the record."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for path in sorted((supervisor.state / "exits" / slot).glob("*.json"), reverse=True):
            record = json.loads(path.read_text())
            if record["incarnation"] == incarnation:
                return instant(record["ended_at"])
        pause(0.01)
    raise AssertionError(f"{slot} has no record of incarnation {incarnation}")


def wait_for_children(supervisor: SupervisorProcess, event: str, children: int) -> float:
    """When the last of all children said so."""
    return max(
        instant(supervisor.wait_for(event, slot=f"default-{number}", incarnation=1, timeout=PATIENCE)["timestamp"])
        for number in range(1, children + 1)
    )


def measure_kills(supervisor: SupervisorProcess, children: int, kills: int) -> None:
    kernel, facts, back = [], [], []
    for number in range(kills):
        slot, incarnation = f"default-{number % children + 1}", number // children + 1
        pid = supervisor.wait_for("process started", slot=slot, incarnation=incarnation)["pid"]
        supervisor.wait_for("ready", slot=slot, incarnation=incarnation)
        sent, seen_after = kill_and_watch(pid)
        again = supervisor.wait_for("registered", slot=slot, incarnation=incarnation + 1, timeout=PATIENCE)
        kernel.append(seen_after)
        facts.append((end_of(supervisor, slot, incarnation) - sent) * 1000)
        back.append((instant(again["timestamp"]) - sent) * 1000)
    line("SIGKILL of a child to the fact in the parent", facts, "ms", "(target 5 ms)")
    line("  the same death, seen by a stranger who does nothing else", kernel, "ms")
    line("SIGKILL of a child to its replacement registered", back, "ms", "(target 150 ms)")


def measure_forked(directory: Path, plane: ControlPlaneProcess, settings: argparse.Namespace) -> None:
    children, starts = settings.children, []
    for number in range(settings.starts):
        supervisor = SupervisorProcess(directory / str(number), plane, workers=children, modules=["bench.handlers"])
        began = time.time()
        with supervisor:
            starts.append(wait_for_children(supervisor, "registered", children) - began)
            if number < settings.starts - 1:
                supervisor.terminate(PATIENCE)
                continue
            line(f"{children} children, start to all registered", starts, "s", "(target 3 s)")
            wait_for_children(supervisor, "ready", children)
            pids = [
                int(supervisor.wait_for("process started", slot=f"default-{number}")["pid"])
                for number in range(1, children + 1)
            ]
            pause(SETTLED)
            parent = shares([supervisor.process.pid], settings.idle)
            line(f"parent's processor time, {children} idle children", parent, "%", "(target 1 % of a core)")
            line(f"processor time of {children} idle children together", shares(pids, settings.idle), "%")
            show_memory(f"idle registered child of {children}", pids, "(target 8 MiB)")
            show_memory("parent", [supervisor.process.pid], "")
            measure_kills(supervisor, children, settings.kills)
            supervisor.terminate(PATIENCE)


# --- the same children by exec --------------------------------------------------------------------------------------


class Children:
    """Processes that run what a mold's children run, each started by exec. Ended with the block."""

    def __init__(self, directory: Path, plane: ControlPlaneProcess) -> None:
        directory.mkdir()
        self._directory = directory
        self._plane = plane
        self._channels: dict[int, socket.socket] = {}
        self._number = 0

    @property
    def pids(self) -> list[int]:
        return list(self._channels)

    def start(self) -> socket.socket:
        self._number += 1
        name = f"exec-{self._number}"
        settings = pipe.ChildSettings(
            worker_instance_id=name,
            api_url=self._plane.url,
            project="default",
            api_key_file=str(self._plane.key_file),
            journal_path=str(self._directory / f"{name}.journal"),
            log_format="json",
        )
        spawn = pipe.Spawn(slot=name, incarnation=1, supervisor_pid=os.getpid(), settings=settings)
        file = self._directory / f"{name}.json"
        file.write_bytes(msgspec.json.encode(spawn))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE)
        arguments = [sys.executable, "-P", "-m", "bench.exec_child", str(file)]
        actions = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
        actions.append((os.POSIX_SPAWN_DUP2, theirs.fileno(), pipe.MOLD_FD))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._channels[os.posix_spawn(sys.executable, arguments, environment, file_actions=actions)] = ours
        theirs.close()
        return ours

    def kill(self, pid: int) -> tuple[float, float, float]:
        """`kill_and_watch`, and when it was reaped."""
        sent, seen_after = kill_and_watch(pid)
        os.waitpid(pid, 0)
        self._channels.pop(pid).close()
        return sent, seen_after, time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for pid in self.pids:
            self.kill(pid)


def until(channel: socket.socket, kind: type[Any]) -> Any:
    while True:
        message = pipe.decode_from_child(channel.recv(pipe.MAX_MESSAGE))
        if isinstance(message, kind):
            return message


def measure_exec(directory: Path, plane: ControlPlaneProcess, settings: argparse.Namespace) -> None:
    count, starts = settings.children, []
    for number in range(settings.starts):
        began = time.monotonic()
        with Children(directory / str(number), plane) as children:
            for channel in [children.start() for _ in range(count)]:
                until(channel, pipe.Registered)
            starts.append(time.monotonic() - began)
            if number < settings.starts - 1:
                continue
            line(f"{count} children by exec, start to all registered", starts, "s")
            pause(SETTLED)
            line(f"processor time of {count} idle children together", shares(children.pids, settings.idle), "%")
            show_memory(f"idle registered child of {count} by exec", children.pids, "")
            kernel, back = [], []
            for pid in children.pids[: max(1, settings.kills // 4)]:
                sent, seen_after, _ = children.kill(pid)
                until(children.start(), pipe.Registered)
                kernel.append(seen_after)
                back.append((time.time() - sent) * 1000)
            line("SIGKILL of a child by exec to the kernel's word of it", kernel, "ms")
            line("SIGKILL of a child to its replacement by exec registered", back, "ms")


@contextlib.contextmanager
def surroundings() -> Iterator[tuple[Path, ControlPlaneProcess]]:
    with tempfile.TemporaryDirectory() as directory, ControlPlaneProcess(Path(directory)) as plane:
        yield Path(directory), plane


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--children", type=int, default=50)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--idle", type=float, default=20.0)
    settings = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}")
    print(json.dumps(vars(settings)))
    for what, measure in (("forked", measure_forked), ("exec", measure_exec)):
        with surroundings() as (home, plane):
            (home / what).mkdir()
            measure(home / what, plane, settings)


if __name__ == "__main__":
    main()
