"""One worker process against an in-memory server: no-op jobs a second, CPU a job, and dispatch latency.

Side by side with the public Python client's worker, in turn, on the same server, in one run; medians and ratios.
`python -m bench.worker [--rounds 5] [--jobs 20000]`. The other client must be installed (`make bench` sees to it).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
CONCURRENCY = 100
Figures = dict[str, float]


@contextmanager
def server(jobs: int, *, one_at_a_time: bool) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "bench.in_memory_server", "--jobs", str(jobs)]
    if one_at_a_time:
        command.append("--one-at-a-time")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}", process
    finally:
        process.kill()
        process.wait()


@contextmanager
def ours(url: str, concurrency: int) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryDirectory() as state:
        environment = os.environ | {"MOBIUS_API_URL": url, "MOBIUS_API_KEY": "mbx_" + "b" * 32, "XDG_STATE_HOME": state}
        command = [sys.executable, "-m", "mobius_cli", "worker", "--instance-id", "ours", "--modules", "bench.handlers"]
        command += ["--concurrency", str(concurrency)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def theirs(url: str, concurrency: int) -> Iterator[subprocess.Popen[bytes]]:
    python = ROOT / ".venv/clients/0.0.23/bin/python"
    process = subprocess.Popen(
        [str(python), "bench/public_client_worker.py", url, str(concurrency)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,  # it complains when the server ends
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def busiest(process: subprocess.Popen[bytes]) -> float:
    """CPU seconds of the process that did the jobs: of the tree, the one that used most."""
    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    times = [member.cpu_times() for member in family if member.is_running()]
    return max(time.user + time.system for time in times)


def measure(worker: Any, jobs: int) -> Figures:
    with server(jobs, one_at_a_time=False) as (url, source), worker(url, CONCURRENCY) as process:
        assert source.stdout is not None
        figures = json.loads(source.stdout.readline())
        cpu = busiest(process)
    with server(jobs // 10, one_at_a_time=True) as (url, source), worker(url, 1):
        assert source.stdout is not None
        dispatch = json.loads(source.stdout.readline())
    return {
        "jobs/s": jobs / figures["seconds"],
        "CPU us/job": cpu / jobs * 1e6,
        "dispatch p50 ms": dispatch["p50"] * 1e3,
        "dispatch p99 ms": dispatch["p99"] * 1e3,
    }


def main() -> None:
    """Measure both in turn and print medians and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=20_000)
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, CPython {platform.python_version()}")
    print(f"{arguments.rounds} rounds of {arguments.jobs} jobs, concurrency {CONCURRENCY}; CPU includes start-up\n")
    rounds: dict[str, list[Figures]] = {"ours": [], "deepnoodle-mobius 0.0.23": []}
    for _ in range(arguments.rounds):
        for name, worker in zip(rounds, (ours, theirs), strict=True):
            rounds[name].append(measure(worker, arguments.jobs))
    print(f"{'':18}{'ours':>12}{'public client':>16}{'ours/theirs':>14}")
    for figure in rounds["ours"][0]:
        mine, other = (statistics.median(one[figure] for one in figures) for figures in rounds.values())
        print(f"{figure:18}{mine:12.2f}{other:16.2f}{mine / other:14.2f}")


if __name__ == "__main__":
    main()
