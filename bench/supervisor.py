"""The supervisor's figures: a killed child's way back, fifty children from nothing, and what they cost when idle.

`python -m bench.supervisor [--children 50] [--kills 40] [--idle 20]`. A real supervisor, and a real control plane in
a process of its own; the same children started by exec are measured in the same run.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from supervisor.memory import MemoryUse, memory_of
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.supervisor_process import SupervisorProcess
from wire import pipe

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0
MIB = 1024 * 1024


def wall(entry: dict[str, Any]) -> float:
    return dt.datetime.fromisoformat(entry["timestamp"]).timestamp()


def line(what: str, values: list[float], unit: str, target: str) -> None:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    print(f"{what:<58} median {statistics.median(ordered):8.2f} {unit}  p95 {p95:8.2f} {unit}  {target}")


def wait_for_children(supervisor: SupervisorProcess, event: str, children: int, incarnation: int = 1) -> float:
    """When the last of all children said so."""
    return max(
        wall(supervisor.wait_for(event, slot=f"default-{number}", incarnation=incarnation, timeout=PATIENCE))
        for number in range(1, children + 1)
    )


def memory_of_all(pids: list[int]) -> list[MemoryUse]:
    return [use for use in map(memory_of, pids) if use is not None]


def show_memory(what: str, pids: list[int], target: str) -> None:
    uses = memory_of_all(pids)
    line(f"{what}, PSS", [use.shared_fairly / MIB for use in uses], "MiB", target)
    line(f"{what}, private and dirty", [use.private / MIB for use in uses], "MiB", "")


def measure_forked(directory: Path, plane: ControlPlaneProcess, children: int, kills: int, idle: float) -> None:
    supervisor = SupervisorProcess(directory, plane, workers=children, modules=["bench.handlers"])
    began = time.time()
    with supervisor:
        registered = wait_for_children(supervisor, "registered", children)
        line(f"{children} children, start to all registered", [registered - began], "s", "(target 3 s)")
        parent = psutil.Process(supervisor.process.pid)
        before, since = sum(parent.cpu_times()[:2]), time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.process.wait(idle)
        share = (sum(parent.cpu_times()[:2]) - before) / (time.monotonic() - since) * 100
        line(f"parent's CPU with {children} idle children", [share], "%", "(target 1 % of a core)")
        pids = [
            int(supervisor.wait_for("process started", slot=f"default-{number}")["pid"])
            for number in range(1, children + 1)
        ]
        show_memory(f"idle registered child of {children}", pids, "(target 8 MiB)")
        show_memory("parent", [supervisor.process.pid], "")
        facts, back = [], []
        for number in range(kills):
            slot, incarnation = f"default-{number % children + 1}", number // children + 1
            pid = supervisor.wait_for("process started", slot=slot, incarnation=incarnation)["pid"]
            supervisor.wait_for("ready", slot=slot, incarnation=incarnation)
            killed = time.time()
            os.kill(pid, signal.SIGKILL)
            died = supervisor.wait_for("process ended", slot=slot, incarnation=incarnation)
            again = supervisor.wait_for("registered", slot=slot, incarnation=incarnation + 1)
            facts.append(max(0.0, wall(died) - killed) * 1000)
            back.append((wall(again) - killed) * 1000)
        line("SIGKILL of a child to the fact in the parent", facts, "ms", "(target 5 ms; the log's clock has 1 ms)")
        line("SIGKILL of a child to its replacement registered", back, "ms", "(target 150 ms)")
        supervisor.terminate(PATIENCE)


@contextlib.contextmanager
def exec_children(directory: Path, plane: ControlPlaneProcess, children: int) -> Iterator[list[socket.socket]]:
    processes, channels = [], []
    for number in range(1, children + 1):
        settings = pipe.ChildSettings(
            worker_instance_id=f"exec-{number}",
            api_url=plane.url,
            project="default",
            api_key_file=str(plane.key_file),
            journal_path=str(directory / f"{number}.journal"),
            log_format="json",
        )
        spawn = pipe.Spawn(slot=f"exec-{number}", incarnation=1, supervisor_pid=os.getpid(), settings=settings)
        file = directory / f"{number}.json"
        file.write_bytes(msgspec.json.encode(spawn))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE)
        arguments = [sys.executable, "-P", "-m", "bench.exec_child", str(file)]
        actions = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
        actions.append((os.POSIX_SPAWN_DUP2, theirs.fileno(), pipe.MOLD_FD))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        processes.append(os.posix_spawn(sys.executable, arguments, environment, file_actions=actions))
        theirs.close()
        channels.append(ours)
    try:
        yield channels
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for channel in channels:
            channel.close()


def until(channel: socket.socket, kind: type[Any]) -> Any:
    while True:
        message = pipe.decode_from_child(channel.recv(pipe.MAX_MESSAGE))
        if isinstance(message, kind):
            return message


def measure_exec(directory: Path, plane: ControlPlaneProcess, children: int, kills: int) -> None:
    directory.mkdir()
    began = time.monotonic()
    with exec_children(directory, plane, children) as channels:
        pids = [until(channel, pipe.Hello).pid for channel in channels]
        for channel in channels:
            until(channel, pipe.Registered)
        line(f"{children} children by exec, start to all registered", [time.monotonic() - began], "s", "")
        show_memory(f"the same child by exec, idle, of {children}", pids, "")
    alone = []
    for _ in range(max(1, kills // 4)):
        began = time.monotonic()
        with exec_children(directory, plane, 1) as (channel,):
            until(channel, pipe.Registered)
            alone.append((time.monotonic() - began) * 1000)
    line("one child by exec, start to registered", alone, "ms", "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--children", type=int, default=50)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--idle", type=float, default=20.0)
    arguments = parser.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(json.dumps(vars(arguments)))
    with tempfile.TemporaryDirectory() as directory, ControlPlaneProcess(Path(directory)) as plane:
        home = Path(directory)
        measure_forked(home / "forked", plane, arguments.children, arguments.kills, arguments.idle)
        measure_exec(home / "exec", plane, arguments.children, arguments.kills)


if __name__ == "__main__":
    main()
