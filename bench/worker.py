"""Worker processes against an in-memory server: no-op jobs a second, CPU a job, and dispatch latency.

`python -m bench.worker [--rounds 5] [--jobs 20000] [--children 1,2,4]`. Ours, with its journal on, in turn with the
published Python client and the published npm client (where Node is installed), on the same server in one run: medians
over the rounds, and ratios to ours. `make bench` installs the other clients.

Jobs a second and CPU a job are those of workers with a concurrency of 100 from the moment when all of them have asked
for work, so that nobody's start-up counts. CPU is that of the processes that do the jobs; a supervisor's comes besides.
Dispatch is the time from a job's way out of the server to its report's arrival there, one job at a time.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = ROOT / ".venv/clients"
NPM_CLIENT = ROOT / ".venv/npm-client"
COMPILED = ROOT / ".venv/compiled/bin/python"
"""Where `make bench` installs the wheel that `make wheel` builds."""
CONCURRENCY = 100
POOL = """
[control_plane]
api_url = "{url}"
[supervisor]
listen = ""
state_dir = "state"
runtime_dir = "run"
instance_id = "ours"
[[pool]]
name = "default"
workers = {workers}
concurrency = {concurrency}
modules = ["{handlers}"]
journal = "{journal}"
"""
Figures = dict[str, float]
Start = Callable[[str, int, int, Path], list[subprocess.Popen[bytes]]]
"""(url, concurrency, number of workers, an empty directory) -> the processes that were started."""


def quiet(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    # In a session of its own, as our children are: on a busy machine the scheduler shares time between sessions first.
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **options
    )


def ours(journal: str, python: Path = Path(sys.executable)) -> Start:
    """From the sources, or as that Python has it installed."""

    def start(url: str, concurrency: int, workers: int, directory: Path) -> list[subprocess.Popen[bytes]]:
        file = directory / "pool.toml"
        pool = {"workers": workers, "concurrency": concurrency, "journal": journal}
        file.write_text(POOL.format(url=url, handlers=ROOT / "bench/handlers.py", **pool))
        environment = os.environ | {"MOBIUS_API_KEY": "mbx_" + "b" * 32}
        environment.pop("PYTHONPATH", None)
        return [quiet([str(python), "-m", "supervisor", "-c", str(file)], cwd=directory, env=environment)]

    return start


def of_python(url: str, concurrency: int, workers: int, directory: Path) -> list[subprocess.Popen[bytes]]:
    command = [str(CLIENTS / "0.0.23/bin/python"), str(ROOT / "bench/public_client_worker.py"), url, str(concurrency)]
    return [quiet([*command, f"python-{number}"]) for number in range(workers)]


def of_node(url: str, concurrency: int, workers: int, directory: Path) -> list[subprocess.Popen[bytes]]:
    command = [str(node()), "worker.mjs", url, str(concurrency)]
    return [quiet([*command, f"node-{number}"], cwd=NPM_CLIENT) for number in range(workers)]


def node() -> Path | None:
    """The Node that came with the npm client, as it wants a newer one than many machines have."""
    return next((NPM_CLIENT / "node_modules").glob("node-linux-*/bin/node"), None)


@contextmanager
def running(start: Start, url: str, concurrency: int, workers: int) -> Iterator[list[psutil.Process]]:
    """The started processes and their descendants, once the server has heard of all workers."""
    with tempfile.TemporaryDirectory() as directory:
        processes = start(url, concurrency, workers, Path(directory))
        try:
            yield [psutil.Process(process.pid) for process in processes]
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)


def cpu_seconds(roots: list[psutil.Process]) -> dict[int, float]:
    """CPU time of each process of these trees, in nanosecond resolution (see clock_getcpuclockid(3))."""
    family = [member for root in roots for member in (root, *root.children(recursive=True))]
    return {member.pid: time.clock_gettime(~member.pid << 3 | 2) for member in family}


def run(start: Start, jobs: int, concurrency: int, workers: int, *options: str) -> tuple[Figures, list[float]]:
    """One load: the server's figures, and what each process of the workers' side spent on it, the busiest first."""
    command = [sys.executable, "-m", "bench.in_memory_server", "--jobs", str(jobs), "--workers", str(workers), *options]
    with ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(server.kill)
        assert server.stdin is not None
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        roots = stack.enter_context(running(start, url, concurrency, workers))
        if server.stdout.readline().strip() != "ready":
            raise SystemExit(f"no worker claimed: {start}")
        before = cpu_seconds(roots)
        server.stdin.write("go\n")
        server.stdin.flush()
        figures: Figures = json.loads(server.stdout.readline())
        after = cpu_seconds(roots)
    return figures, sorted((after[pid] - before.get(pid, 0.0) for pid in after), reverse=True)


def throughput(start: Start, jobs: int, workers: int) -> Figures:
    figures, spent = run(start, jobs, CONCURRENCY, workers)
    return {
        "jobs/s": jobs / figures["seconds"],
        "CPU us/job": sum(spent[:workers]) / jobs * 1e6,
        "with its supervisor": sum(spent) / jobs * 1e6,
        "server CPU us/job": figures["cpu_seconds"] / jobs * 1e6,
        "server busy %": figures["cpu_seconds"] / figures["seconds"] * 100,
    }


def dispatch(start: Start, jobs: int) -> Figures:
    figures, _ = run(start, jobs, 1, 1, "--one-at-a-time")
    return {"dispatch p50 ms": figures["p50"] * 1e3, "dispatch p99 ms": figures["p99"] * 1e3}


def show(title: str, rounds: dict[str, list[Figures]]) -> None:
    """Medians, each beside its ratio to that of the published Python client."""
    print(f"\n{title}\n{'':22}" + "".join(f"{name:>26}" for name in rounds))
    baseline = rounds["deepnoodle-mobius"]
    for figure in baseline[0]:
        base = statistics.median(one[figure] for one in baseline)
        medians = [statistics.median(one[figure] for one in figures) for figures in rounds.values()]
        print(f"{figure:22}" + "".join(f"{median:16.2f} ({median / base:6.2f})" for median in medians))


def measure(contestants: dict[str, Start], rounds: int, one: Callable[[Start], Figures]) -> dict[str, list[Figures]]:
    """All in turn in every round, so that a machine that is slow for a while is slow for all."""
    measured: dict[str, list[Figures]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, start in contestants.items():
            measured[name].append(one(start))
    return measured


def main() -> None:
    """Measure all in turn and print medians and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--children", default="1,2,4")
    arguments = parser.parse_args()
    contestants: dict[str, Start] = {"ours": ours("write"), "deepnoodle-mobius": of_python}
    versions = "deepnoodle-mobius 0.0.23 (PyPI)"
    if COMPILED.exists():
        contestants["ours, compiled"] = ours("write", COMPILED)
    else:
        versions += "; nothing of ours compiled (run make bench)"
    if (binary := node()) is not None:
        contestants["@deepnoodle/mobius"] = of_node
        version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        versions += f", @deepnoodle/mobius 0.0.61 (npm) on Node {version}"
    else:
        versions += f"; no npm client ({'run make bench' if shutil.which('npm') else 'npm is not installed'})"
    print(f"{platform.platform()}, {os.cpu_count()} cores, CPython {platform.python_version()}; {versions}")
    print(f"medians of {arguments.rounds} rounds, in brackets the ratio to deepnoodle-mobius")
    dispatched = measure(contestants, arguments.rounds, lambda start: dispatch(start, arguments.jobs // 10))
    show(f"dispatch, {arguments.jobs // 10} jobs one at a time", dispatched)
    for children in (int(number) for number in arguments.children.split(",")):
        worked = measure(contestants, arguments.rounds, lambda start: throughput(start, arguments.jobs, children))  # noqa: B023
        show(f"{children} children, concurrency {CONCURRENCY} each, {arguments.jobs} jobs", worked)
    journals = {"deepnoodle-mobius": of_python} | {f"journal {mode}": ours(mode) for mode in ("off", "write", "fsync")}
    costs = measure(journals, arguments.rounds, lambda start: throughput(start, arguments.jobs, 1))
    show("journal modes of ours, 1 child", costs)


if __name__ == "__main__":
    main()
