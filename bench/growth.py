"""Costs that are not to grow: with what a store keeps, with what has passed through, with workers that wait.

`python -m bench.growth [claims|memory|idle ...] [--finished 1000000] [--pending 100000] [--jobs 1000000]
[--workers 1000] [--store sqlite,postgresql] [--output json]`. Minutes at the sizes that count (`make bench-growth`).

- `claims`: jobs claimed (and reported) a second with so many finished and pending, beside a tenth of the pending ones
  and nothing finished. A store alone, which several callers ask at once.
- `memory`: what the control plane's process holds while so many jobs go through it and two real children.
- `idle`: the share of one processor that it takes while so many workers are connected and there is nothing to do.
"""

import argparse
import asyncio
import json
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import apsw
import asyncpg

from bench import control_plane as systems
from bench.isolation import processor_time
from control_plane.domain.enqueue import NewJob
from control_plane.domain.model import Selector, Session
from control_plane.domain.store import ClaimOrder, Lease, LeaseTerms, Store
from control_plane.keys import hash_secret, new_lease_tokens
from control_plane.store import store_at
from supervisor.memory import memory_of
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.postgres_cluster import Cluster
from tests.support.postgres_cluster import why_not as why_no_postgres
from wire.frames import Report

ROOT = Path(__file__).resolve().parent.parent
MIB = 1024 * 1024
BATCH = 1000
CALLERS = 4
CLAIMED = 64
"""Jobs a claim."""

SAMPLES = 20
"""How often memory is looked at, and into how many windows a time of idleness is cut."""

Figures = dict[str, Any]


@contextmanager
def place(kind: str, directory: Path) -> Iterator[str]:
    """The address of a new store."""
    if kind == "sqlite":
        yield f"sqlite://{directory.resolve()}/store.db"
        return
    cluster = Cluster(durable=True)
    try:
        yield cluster.url(cluster.new_database())
    finally:
        cluster.close()


# --- claims beside much that is kept -------------------------------------------------------------------------------


async def opened(url: str) -> tuple[Store, Session]:
    """The store, with a project `default` and a session of it."""
    store = store_at(url, LeaseTerms())
    await store.open(lambda _facts: None)
    known = {project.handle: project for project in await store.projects()}
    project = known.get("default") or await store.create_project("default", "Default")
    session = Session(
        id="",
        project_id=project.id,
        worker_instance_id="worker",
        token_hash=hash_secret(new_lease_tokens(1)[0]),
        concurrency_limit=CLAIMED,
        selector=Selector(),
        created_at=0,
        last_seen_at=0,
    )
    return store, await store.register_session(session)


async def enqueue(store: Store, project_id: str, number: int) -> None:
    for first in range(0, number, BATCH):
        job = NewJob(spec={"parameters": {}}, action_name="bench.noop")
        await store.enqueue(project_id, [job] * min(BATCH, number - first))


async def claim(store: Store, session: Session) -> list[Lease]:
    order = ClaimOrder(
        project_id=session.project_id,
        session_id=session.id,
        worker_instance_id=session.worker_instance_id,
        selector=session.selector,
        limit=CLAIMED,
        lease_tokens=new_lease_tokens(CLAIMED),
    )
    return await store.claim(order)


async def report(store: Store, leases: Sequence[Lease]) -> None:
    """All of them as completed, as one connection's reports."""
    said = [Report(job_id=lease.job.id, lease_token=lease.lease_token, result={}) for lease in leases]
    outcomes = await store.reports(leases[0].job.project_id, said)
    assert all(outcome.verdict == "accepted" for outcome in outcomes)


async def seed(url: str, pending: int, finished: int) -> None:
    """One job goes the whole way; copies of its rows are the other finished ones, older than all that wait."""
    store, session = await opened(url)
    await enqueue(store, session.project_id, 1)
    await report(store, await claim(store, session))
    await store.close()
    if finished > 1:
        await (multiply_sqlite if url.startswith("sqlite") else multiply_postgres)(url, finished - 1)
    store, session = await opened(url)
    await enqueue(store, session.project_id, pending)
    await store.close()


def copy_of(table: str, columns: Sequence[str], numbers: str) -> str:
    other = {"seq": "p.seq + n.i", "id": "p.id || '.' || n.i"}
    chosen = ", ".join(other.get(name, f"p.{name}") for name in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen} FROM {table} p CROSS JOIN {numbers}"


async def multiply_sqlite(url: str, number: int) -> None:
    connection = apsw.Connection(url.removeprefix("sqlite://"))
    numbers = f"(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number}) SELECT i FROM n) n"
    with connection:
        for table in ("jobs", "jobs_finished"):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            connection.execute(copy_of(table, columns, numbers))
    connection.close()


async def multiply_postgres(url: str, number: int) -> None:
    connection = await asyncpg.connect(url)
    for table in ("jobs", "jobs_finished"):
        columns = await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_name = $1 ORDER BY ordinal_position", table
        )
        await connection.execute(copy_of(table, [row[0] for row in columns], f"generate_series(1, {number}) AS n(i)"))
    await connection.execute("SELECT setval('jobs_seq_seq', (SELECT max(seq) FROM jobs))")
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


async def in_turn(callers: int, number: int, ask: Callable[[], Awaitable[int]]) -> float:
    """How many a second, asked by so many callers at once until there were so many."""
    done = 0

    async def call() -> None:
        nonlocal done
        while done < number:
            more = await ask()
            done += more

    began = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return done / (time.perf_counter() - began)


async def rates(url: str, number: int) -> Figures:
    """Jobs claimed and reported a second, and what is left claims on."""
    store, session = await opened(url)
    leases: list[Lease] = []

    async def take() -> int:
        found = await claim(store, session)
        assert found, "there are jobs for every claim of the measurement"
        leases.extend(found)
        return len(found)

    async def give() -> int:
        mine = [leases.pop() for _ in range(min(CLAIMED, len(leases)))]
        if mine:
            await report(store, mine)
        return len(mine) or number

    figures = {"claims/s": await in_turn(CALLERS, number, take)}
    taken = len(leases)
    figures["reports/s"] = await in_turn(CALLERS, taken, give)
    await store.close()
    return figures


def claims(kind: str, pending: int, finished: int, rounds: int) -> Figures:
    """The rates with much and with little, and the ratio of the two, from stores that take turns."""
    number = max(CLAIMED * CALLERS, min(pending // 10 // (rounds + 1), 4000))
    found: dict[str, list[Figures]] = {"little": [], "much": []}
    with ExitStack() as stack:
        addresses = {}
        for name, sizes in {"little": (pending // 10, 0), "much": (pending, finished)}.items():
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mobius-bench-")))
            addresses[name] = stack.enter_context(place(kind, directory))
            asyncio.run(seed(addresses[name], *sizes))
        for _ in range(rounds):
            for name, url in addresses.items():
                found[name].append(asyncio.run(rates(url, number)))
    figures: Figures = {}
    for figure in ("claims/s", "reports/s"):
        medians = {name: statistics.median(one[figure] for one in each) for name, each in found.items()}
        figures |= {f"{figure} with {name}": median for name, median in medians.items()}
        figures[f"{figure}, much to little"] = medians["much"] / medians["little"]
    return figures


# --- memory while jobs go through -----------------------------------------------------------------------------------


def memory(kind: str, jobs: int) -> Figures:
    """Mebibytes of the control plane's own after each twentieth of the jobs."""
    contestant = next(each for each in systems.CONTESTANTS if each.name == f"ours-{kind}")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mobius-bench-")))
        parts, loader = stack.enter_context(systems.running(contestant, directory))
        (pid,) = parts.processes["server"]
        held, began = [], time.monotonic()
        for _ in range(SAMPLES):
            systems.ask(loader, f"jobs {max(1, jobs // SAMPLES)}")
            use = memory_of(pid)
            assert use is not None
            held.append(use.private / MIB)
        seconds = time.monotonic() - began
    return {
        "jobs/s": jobs / seconds,
        "MiB after a twentieth": held[0],
        "MiB after a half": held[SAMPLES // 2],
        "MiB after all": held[-1],
        "samples": held,
    }


# --- workers that wait -----------------------------------------------------------------------------------------------


def idle(kind: str, workers: int, seconds: float) -> Figures:
    """Percent of one processor with so many connected workers."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mobius-bench-")))
        url = None if kind == "sqlite" else stack.enter_context(place(kind, directory))
        plane = stack.enter_context(ControlPlaneProcess(directory / "plane", store_url=url))
        command = [sys.executable, "-m", "bench.idle_workers", plane.url, str(plane.key_file), str(workers)]
        simulated = stack.enter_context(
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(simulated.kill)
        assert simulated.stdout is not None
        if simulated.stdout.readline() != "ready\n":
            raise RuntimeError("the simulated workers did not connect")
        taken = []
        for _ in range(SAMPLES):
            before, since = processor_time(plane.pid), time.monotonic()
            select.select([simulated.stdout], [], [], seconds / SAMPLES)
            taken.append((processor_time(plane.pid) - before) / (time.monotonic() - since) * 100)
        assert simulated.poll() is None, "the simulated workers stay connected"
        use = memory_of(plane.pid)
    assert use is not None
    return {"% of a core": statistics.mean(taken), "% in the busiest window": max(taken), "MiB": use.private / MIB}


# --- the program -----------------------------------------------------------------------------------------------------


def show(name: str, figures: Figures) -> None:
    print(f"\n{name}")
    for figure, value in figures.items():
        text = " ".join(f"{each:.0f}" for each in value) if isinstance(value, list) else f"{value:.2f}"
        print(f"  {figure:30} {text}")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["claims", "memory", "idle"])
    parser.add_argument("--store", default="sqlite,postgresql")
    parser.add_argument("--finished", type=int, default=1_000_000)
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    measurements: dict[str, Callable[[str], Figures]] = {
        "claims": lambda kind: claims(kind, arguments.pending, arguments.finished, arguments.rounds),
        "memory": lambda kind: memory(kind, arguments.jobs),
        "idle": lambda kind: idle(kind, arguments.workers, arguments.idle_seconds),
    }
    if unknown := set(arguments.what) - measurements.keys():
        parser.error(f"no measurement {sorted(unknown)}; there are {list(measurements)}")
    kinds = arguments.store.split(",")
    left_out = {}
    if "postgresql" in kinds and (why := why_no_postgres()) is not None:
        kinds.remove("postgresql")
        left_out["postgresql"] = why
    about, results = systems.machine(), {}
    if arguments.output == "text":
        print(about)
        for name, why in left_out.items():
            print(f"  {name} is left out: {why}")
    for what in arguments.what:
        for kind in kinds:
            results[f"{what}, {kind}"] = figures = measurements[what](kind)
            if arguments.output == "text":
                show(f"{what}, {kind}", figures)
    if arguments.output == "json":
        print(json.dumps({"machine": about, "figures": results, "left_out": left_out}, indent=2))


if __name__ == "__main__":
    main()
