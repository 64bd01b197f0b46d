"""No-op jobs a second from enqueue to recorded completion, and how soon one starts, beside other job systems.

`python -m bench.control_plane [--rounds 3] [--jobs 20000] [--starts 100] [--only NAME,NAME] [--output json]`. `make`
installs the other systems into an environment of their own, hash-locked (requirements/bench.txt).

Every system has two worker processes and one process that enqueues, at the settings that its own documents recommend
for many short jobs (bench/peers says which), and a store that has flushed a job before anybody is told that it is
there or done; a server that it needs is started on this machine for it alone. Ours is a real control plane and a real
supervisor with two children and their journal. All take their turn in every round, so that a machine that is slow for a
while is slow for all.

`start` is on an idle system, from the call that enqueues a job to the handler's first line. `schedule to start` begins
when the job is due by the store's record: without the caller's own time, its request and the way of that to the store.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench.isolation import processor_time
from bench.redis_server import RedisServer
from bench.redis_server import why_not as why_no_redis
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.postgres_cluster import Cluster
from tests.support.postgres_cluster import why_not as why_no_postgres
from tests.support.supervisor_process import SupervisorProcess

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
PYTHON = ROOT / ".venv/bench-peers/bin/python"
CONCURRENCY = 250
"""Of one of our workers: as many as PgQueuer takes at once, and what one claim can give."""

WARM = 400
"""Jobs that are done before anything is measured: by then every worker is there."""

STOP_TIMEOUT = 20.0
Figures = dict[str, float]


class Parts(Struct, kw_only=True):
    """One system that runs: the program that enqueues, and the roots of its processes by what they do."""

    command: list[str]
    processes: dict[str, list[int]]


class Contestant(Struct, kw_only=True):
    """`start(stack, directory)` starts it. `share` of the jobs is what it is given: the rate is what is compared."""

    name: str
    durability: str
    start: Callable[[ExitStack, Path], Parts]
    missing: Callable[[], str | None] = lambda: None
    share: float = 1.0


# --- the systems ---------------------------------------------------------------------------------------------------


def environment_of_peers() -> str | None:
    return None if PYTHON.exists() else "its packages are not installed (make bench-peers)"


def first(*reasons: Callable[[], str | None]) -> Callable[[], str | None]:
    return lambda: next((reason for ask in reasons if (reason := ask()) is not None), None)


def postgres_of(stack: ExitStack) -> tuple[str, list[int]]:
    cluster = Cluster(durable=True)
    stack.callback(cluster.close)
    assert cluster.process is not None
    return cluster.url(cluster.new_database()), [cluster.process.pid]


def ours(store: str) -> Callable[[ExitStack, Path], Parts]:
    def start(stack: ExitStack, directory: Path) -> Parts:
        url, servers = postgres_of(stack) if store == "postgresql" else (None, [])
        plane = stack.enter_context(ControlPlaneProcess(directory / "plane", store_url=url))
        quiet = {"log_level": "warning"}
        settings: dict[str, Any] = {"modules": ["bench.handlers"], "concurrency": CONCURRENCY, "supervisor": quiet}
        supervisor = stack.enter_context(SupervisorProcess(directory / "supervisor", plane, workers=2, **settings))
        told = {"url": plane.url, "key_file": str(plane.key_file), "store": plane.store_url}
        return Parts(
            command=[sys.executable, str(PEERS / "ours.py"), "load", json.dumps(told)],
            processes={"workers": [supervisor.process.pid], "server": [plane.pid], "database": servers},
        )

    return start


def peer(program: str, database: Callable[[ExitStack], tuple[str, list[int]]], workers: int) -> Any:
    def start(stack: ExitStack, directory: Path) -> Parts:
        address, servers = database(stack)
        command = [str(PYTHON), str(PEERS / program)]
        subprocess.run([*command, "prepare", address], check=True, cwd=directory, env=environment())
        with (directory / "workers.log").open("wb") as log:
            started = [stack.enter_context(group([*command, "work", address], log)) for _ in range(workers)]
        return Parts(command=[*command, "load", address], processes={"workers": started, "database": servers})

    return start


def environment() -> dict[str, str]:
    """That of a peer: it sees nothing of ours."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": str(PEERS)}


@contextmanager
def group(command: list[str], log: Any) -> Iterator[int]:
    """A process in a session of its own, ended with everything that it has started."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), start_new_session=True
    )
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def redis_of(stack: ExitStack) -> tuple[str, list[int]]:
    server = stack.enter_context(RedisServer())
    return server.url, [server.process.pid]


ON_POSTGRES = "PostgreSQL with fsync and synchronous_commit"
ON_REDIS = "Redis with appendfsync always"
PEER_ON_POSTGRES = first(environment_of_peers, why_no_postgres)
PEER_ON_REDIS = first(environment_of_peers, why_no_redis)
CONTESTANTS = (
    Contestant(name="ours-sqlite", durability="SQLite with synchronous=FULL", start=ours("sqlite")),
    Contestant(name="ours-postgresql", durability=ON_POSTGRES, start=ours("postgresql"), missing=why_no_postgres),
    Contestant(
        name="pgqueuer",
        durability=f"{ON_POSTGRES}, logged tables; a worker records what it has done in groups, a moment later",
        start=peer("pgqueuer_jobs.py", postgres_of, 2),
        missing=PEER_ON_POSTGRES,
    ),
    Contestant(
        name="procrastinate",
        durability=ON_POSTGRES,
        start=peer("procrastinate_jobs.py", postgres_of, 2),
        missing=PEER_ON_POSTGRES,
        share=0.1,
    ),
    Contestant(
        name="dramatiq",
        durability=f"{ON_REDIS}; a finished message is deleted, and leaves no record",
        start=peer("dramatiq_jobs.py", redis_of, 1),
        missing=PEER_ON_REDIS,
        share=0.25,
    ),
    Contestant(
        name="celery",
        durability=f"{ON_REDIS}; a task in a worker's hands when it dies is lost (its default, early acknowledgement)",
        start=peer("celery_jobs.py", redis_of, 1),
        missing=PEER_ON_REDIS,
        share=0.1,
    ),
)

# --- measuring -----------------------------------------------------------------------------------------------------


def ask(loader: "subprocess.Popen[str]", order: str) -> dict[str, Any]:
    assert loader.stdin is not None
    assert loader.stdout is not None
    loader.stdin.write(order + "\n")
    loader.stdin.flush()
    line = loader.stdout.readline()
    if not line:
        raise RuntimeError(f"the loader has ended over {order!r}")
    return dict(json.loads(line))


def spent(parts: Parts) -> Figures:
    return {name: sum(map(processor_time, pids)) for name, pids in parts.processes.items() if pids}


@contextmanager
def running(contestant: Contestant, directory: Path) -> Iterator[tuple[Parts, "subprocess.Popen[str]"]]:
    """The system and the program that enqueues, once all workers have worked."""
    with ExitStack() as stack:
        parts = contestant.start(stack, directory)
        loader = stack.enter_context(
            subprocess.Popen(
                parts.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(),
                cwd=directory,
            )
        )
        stack.callback(loader.kill)
        assert loader.stdin is not None
        assert loader.stdout is not None
        if loader.stdout.readline() != "ready\n":
            raise RuntimeError(f"{contestant.name} did not start")
        ask(loader, f"jobs {WARM}")
        yield parts, loader
        loader.stdin.close()
        loader.wait(STOP_TIMEOUT)


def measure(contestant: Contestant, jobs: int, starts: int) -> Figures:
    """One round of one system."""
    with (
        tempfile.TemporaryDirectory(prefix="mobius-bench-") as directory,
        running(contestant, Path(directory)) as (parts, loader),
    ):
        number = max(1, round(jobs * contestant.share))
        before = spent(parts)
        done = ask(loader, f"jobs {number}")
        after = spent(parts)
        started = ask(loader, f"starts {starts}")
    figures = {"jobs/s": number / done["seconds"], "enqueued/s": number / done["enqueue_seconds"]}
    costs = {name: after[name] - before[name] for name in before} | {"enqueuing": done["cpu_seconds"]}
    figures |= {f"CPU us/job, {name}": seconds / number * 1e6 for name, seconds in costs.items()}
    figures["CPU us/job, together"] = sum(costs.values()) / number * 1e6
    for name, key in (("start", "milliseconds"), ("schedule to start", "milliseconds since due")):
        if waited := sorted(started[key]):
            figures[f"{name} p50 ms"] = waited[len(waited) // 2]
            figures[f"{name} p99 ms"] = waited[min(len(waited) - 1, round(len(waited) * 0.99))]
    return figures


def medians(rounds: Sequence[Figures]) -> Figures:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


FIGURES = (
    "jobs/s",
    "enqueued/s",
    "start p50 ms",
    "start p99 ms",
    "schedule to start p50 ms",
    "schedule to start p99 ms",
    "CPU us/job, together",
    "CPU us/job, server",
    "CPU us/job, workers",
    "CPU us/job, database",
    "CPU us/job, enqueuing",
)


def machine() -> str:
    load = os.getloadavg()[0]
    return f"{platform.platform()}, {os.cpu_count()} cores, CPython {platform.python_version()}, load {load:.1f} before"


def show(results: dict[str, Figures], baseline: str) -> None:
    print(f"\n{'':24}" + "".join(f"{name:>26}" for name in results))
    for figure in FIGURES:
        cells = []
        for found in results.values():
            base = results[baseline].get(figure)
            ratio = f"({found[figure] / base:6.2f})" if figure in found and base else ""
            cells.append(f"{found[figure]:16.2f} {ratio:>9}" if figure in found else f"{'-':>16} {'':>9}")
        print(f"{figure:24}" + "".join(cells))


def main() -> None:
    """Measure all in turn and print medians and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--only", default=",".join(contestant.name for contestant in CONTESTANTS))
    parser.add_argument("--output", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - {contestant.name for contestant in CONTESTANTS}:
        parser.error(f"no system {sorted(unknown)}; there are {[contestant.name for contestant in CONTESTANTS]}")
    chosen = [contestant for contestant in CONTESTANTS if contestant.name in wanted]
    left_out = {contestant.name: why for contestant in chosen if (why := contestant.missing()) is not None}
    taking_part = [contestant for contestant in chosen if contestant.name not in left_out]
    about = machine()
    rounds: dict[str, list[Figures]] = {contestant.name: [] for contestant in taking_part}
    for _ in range(arguments.rounds):
        for contestant in taking_part:
            rounds[contestant.name].append(measure(contestant, arguments.jobs, arguments.starts))
    results = {name: medians(measured) for name, measured in rounds.items()}
    durability = {contestant.name: contestant.durability for contestant in taking_part}
    if arguments.output == "json":
        shown = {"machine": about, "rounds": rounds, "medians": results, "durability": durability, "left_out": left_out}
        print(json.dumps(shown, indent=2))
        return
    print(about)
    for name, sentence in durability.items():
        print(f"  {name}: {sentence}")
    for name, why in left_out.items():
        print(f"  {name} is left out: {why}")
    if results:
        baseline = "pgqueuer" if "pgqueuer" in results else next(iter(results))
        print(f"medians of {arguments.rounds} rounds, in brackets the ratio to {baseline}")
        show(results, baseline)


if __name__ == "__main__":
    main()
