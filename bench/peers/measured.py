"""What every job system under measurement is asked to do, and how it is measured: the same for all of them.

A system is a program beside this file, run by an interpreter that has it: `python SYSTEM.py COMMAND ADDRESS`, where
ADDRESS is that of its store. `prepare` makes tables; `work` (not for every system) is one worker process; `load` says
`ready`, reads one order a line and answers each with a line of JSON:

- `jobs N`: N jobs that do nothing, from the first enqueue to the moment at which the store has recorded the last one;
- `starts N`: one job after the other on an idle system, to the handler's first line: from the call that enqueues it,
  and from the moment at which it is due by what the store has recorded ("schedule to start"), where that is known.
"""

import json
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

POLL = 0.01
"""Seconds between looks at the store, whether all jobs are recorded."""

IDLE = 0.02
"""Seconds without any job after which a system counts as idle."""

LIMIT = 300.0
"""Seconds until a measurement gives up."""


class System(Protocol):
    """One job system. Its worker calls `started` for a job that carries a message, and nothing for one without."""

    def __init__(self, address: str) -> None: ...

    def prepare(self) -> None: ...

    def work(self) -> None: ...

    def enqueue(self, number: int) -> None:
        """So many jobs, durable when it returns, the fastest way that the system documents."""

    def send(self, message: dict[str, Any]) -> None:
        """One job that carries the message."""

    def due(self) -> float | None:
        """When the job that was sent last was due, by the store: seconds since the epoch; None where it does not say.
        Asked when the job has ended."""

    def unfinished(self) -> bool:
        """Whether the store has a job that is not recorded as finished."""

    def finished(self) -> int | None:
        """How many the store has recorded as completed; None where finished jobs leave nothing behind."""

    def close(self) -> None: ...


def started(message: dict[str, Any]) -> None:
    """The first line of a handler: tells the loader how long the job took to come here, and what time it is."""
    waited, now = time.monotonic_ns() - message["at"], time.time_ns()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(f"{waited} {now}".encode(), message["to"])


def measure_jobs(system: System, number: int) -> dict[str, float]:
    before = system.finished()
    began, cpu = time.monotonic(), time.process_time()
    system.enqueue(number)
    enqueued = time.monotonic()
    while system.unfinished():
        if time.monotonic() > began + LIMIT:
            raise TimeoutError(f"not finished within {LIMIT:g} s")
        time.sleep(POLL)
    seconds, spent = time.monotonic() - began, time.process_time() - cpu
    after = system.finished()
    if before is not None and after is not None and after - before != number:
        raise AssertionError(f"{after - before} jobs are recorded as completed, not {number}")
    return {"seconds": seconds, "enqueue_seconds": enqueued - began, "cpu_seconds": spent}


def measure_starts(system: System, number: int) -> dict[str, list[float]]:
    waited: list[float] = []
    scheduled: list[float] = []
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        path = str(Path(directory) / "started")
        channel.bind(path)
        channel.settimeout(LIMIT)
        for _ in range(number):
            system.send({"at": time.monotonic_ns(), "to": path})
            nanoseconds, started_at = map(int, channel.recv(64).split())
            waited.append(nanoseconds / 1e6)
            while system.unfinished():
                time.sleep(POLL)
            if (due := system.due()) is not None:
                scheduled.append(started_at / 1e6 - due * 1e3)
            time.sleep(IDLE)
    return {"milliseconds": waited, "milliseconds since due": scheduled}


def load(system: System) -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        order, number = line.split()
        answer: Any = {"jobs": measure_jobs, "starts": measure_starts}[order](system, int(number))
        print(json.dumps(answer), flush=True)


def main(kind: type[System]) -> None:
    """See the module's docstring."""
    command, address = sys.argv[1:]
    system = kind(address)
    if command == "load":
        load(system)
    else:
        {"prepare": system.prepare, "work": system.work}[command]()
    system.close()
