"""A store with a project, an automation and a session: what most scenarios of the store begin with.

`now` is fed in seconds from the scenario's start, so that no scenario waits. Where a store is, is a place: a file, or a
database of a PostgreSQL server of the tests' own. What is read and written behind the store's back is SQL that both
databases understand.
"""

import asyncio
import threading
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import asyncpg
import msgspec
from msgspec.structs import replace

from control_plane.domain.model import Selector, Session
from control_plane.domain.store import ClaimOrder, LeaseTerms
from control_plane.keys import hash_secret
from control_plane.store.postgres import PostgresStore
from control_plane.store.postgres_migrations import TABLE
from control_plane.store.sqlite import SqliteStore
from control_plane.store.statements import load_migrations
from tests.support.postgres_cluster import Cluster
from wire.frames import Report

START = 1_577_836_800_000_000
"""Microseconds: the scenario's second 0, long past, so that the store's own clock is never behind a fed time."""

LEASE = 60.0
PENDING_DEADLINE = 600.0


def at(seconds):
    return START + round(seconds * 1_000_000)


class SqlitePlace:
    """A file."""

    def __init__(self, path: Path):
        self.path = path
        self.url = f"sqlite://{path.absolute()}"

    def store(self, terms):
        return SqliteStore(self.path, terms)

    async def read(self, store, sql):
        return await store._read(lambda connection: list(connection.execute(sql)))

    async def write(self, store, sql):
        await store._writer.submit(lambda writing: writing.execute(sql))

    @asynccontextmanager
    async def writes_held(self, store):
        held, gate = threading.Event(), threading.Event()

        def hold(writing):
            held.set()
            gate.wait(30)

        holding = asyncio.ensure_future(store._writer.submit(hold))
        await asyncio.to_thread(held.wait, 30)
        try:
            yield
        finally:
            gate.set()
            await holding

    def remove(self):
        self.path.unlink(missing_ok=True)


class PostgresPlace:
    """A database that has our tables and nothing in them; `empty`: not even those."""

    def __init__(self, cluster: Cluster, *, empty: bool = False):
        self.cluster = cluster
        self.database = cluster.new_database("template0" if empty else cluster.template("migrated", _schema()))
        self.url = cluster.url(self.database)

    def store(self, terms):
        return PostgresStore(self.url, terms)

    async def read(self, store, sql):
        return [tuple(row) for row in await store._pool.run(lambda connection: connection.fetch(sql))]

    async def write(self, store, sql):
        del store  # what is written behind its back may be large: it has no time limit
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    @asynccontextmanager
    async def writes_held(self, store):
        del store
        connection = await asyncpg.connect(self.url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE store_clock, runs IN EXCLUSIVE MODE")
                yield
        finally:
            await connection.close()

    def cut(self):
        """End the connections of every store that is open here."""
        self.cluster.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mobius%'"
            f" AND datname = '{self.database}'"
        )

    def remove(self):
        self.cluster.drop_database(self.database)


def _schema():
    migrations = load_migrations("postgresql")
    numbers = "".join(f"INSERT INTO schema_migrations VALUES ({number}, now());" for number, _ in migrations)
    return ";\n".join([TABLE, *(text for _, text in migrations), numbers])


class Scenario:
    """`facts` are all that the store has announced; tokens are numbered."""

    def __init__(self, place, store):
        self.place = place
        self.store = store
        self.facts = []
        self._announced = asyncio.Event()
        self.numbers = count(1)
        self.project = None
        self.session = None

    async def prepare(self):
        self.project = await self.store.create_project("default", "Default", now=at(0))
        self.session = await self.register("w-1")

    async def register(self, instance, token="token", selector=None, **fields):
        return await self.store.register_session(
            Session(
                id="",
                project_id=self.project.id,
                worker_instance_id=instance,
                token_hash=hash_secret(f"{token} {next(self.numbers)}"),
                concurrency_limit=4,
                selector=selector or Selector(),
                created_at=0,
                last_seen_at=0,
                **fields,
            ),
            now=at(0),
        )

    async def publish(self, handle, steps, *, inputs=None, settings=None, default_inputs=None, **more):
        """An automation with these steps, active. `more` is what else its spec has."""
        fields = {"settings": settings, "default_inputs": default_inputs}
        await self.store.create_automation(self.project.id, handle, handle.title(), fields, now=at(0))
        spec = {"steps": steps, **({"inputs": inputs} if inputs is not None else {}), **more}
        version = await self.store.create_version(self.project.id, handle, spec, None, now=at(0))
        assert version.validation == {"valid": True, "errors": []}
        return await self.store.publish_version(self.project.id, handle, version.version, now=at(0))

    async def start(self, handle, *, now=0.0, **arguments):
        return await self.store.start_run(self.project.id, handle, now=at(now), **arguments)

    async def enqueue(self, jobs, *, now=0.0):
        return await self.store.enqueue(self.project.id, jobs, now=at(now))

    async def claim(self, *, now=0.0, limit=10, session=None, selector=None, **fields):
        session = session or self.session
        return await self.store.claim(
            ClaimOrder(
                project_id=self.project.id,
                session_id=session.id,
                worker_instance_id=session.worker_instance_id,
                selector=selector or Selector(),
                limit=limit,
                lease_tokens=[f"lease {next(self.numbers)}" for _ in range(limit)],
                **fields,
            ),
            now=at(now),
        )

    async def claim_one(self, **arguments):
        (lease,) = await self.claim(**arguments)
        return lease

    async def report(self, lease, status="completed", *, now=0.0, result=None, error=None, message=None, token=None):
        report = Report(
            job_id=lease.job.id,
            lease_token=token or lease.lease_token,
            status=status,
            result=result,
            error_type=error,
            error_message=message,
        )
        (outcome,) = await self.store.reports(self.project.id, [report], now=at(now))
        return outcome.verdict

    async def heartbeat(self, lease, *, now=0.0):
        return await self.store.heartbeat(self.project.id, lease.job.id, lease.lease_token, now=at(now))

    async def run(self, run):
        return plain(await self.store.run(self.project.id, run.id, with_result=True), "inputs", "source", "result")

    async def job(self, lease):
        return await self.store.job(self.project.id, lease.job.id)

    async def steps(self, run):
        steps = await self.store.steps(self.project.id, run.id)
        return [plain(step, "inputs", "parameters", "result") for step in steps]

    async def events(self, run):
        events = await self.store.events(self.project.id, run.id, since=0, limit=10_000)
        return [plain(event, "payload") for event in events]

    async def event_types(self, run):
        return [event.event_type for event in await self.events(run)]

    async def read(self, sql):
        """Rows as tuples, behind the store's back."""
        return await self.place.read(self.store, sql)

    async def write(self, sql):
        """A statement, behind the store's back."""
        await self.place.write(self.store, sql)

    def writes_held(self):
        """As long as this is entered no write comes back."""
        return self.place.writes_held(self.store)

    async def fire(self, now):
        """What is due happens, until nothing is."""
        fired = 0
        while (found := await self.store.next_timer_at()) is not None and found <= at(now):
            fired += (await self.store.fire_timers(limit=100, now=at(now))).fired
        return fired

    async def signal(self, run, step_key, result=None, *, now=0.0):
        return await self.store.signal_run(self.project.id, run.id, step_key, result or {}, now=at(now))

    async def cancel(self, run, *, now=0.0, reason=None):
        return await self.store.cancel_run(self.project.id, run.id, reason, now=at(now))

    async def statuses(self, *runs):
        return [(await self.run(run)).status for run in runs]

    async def reap(self, now):
        return await self.store.reap(limit=100, now=at(now))

    def listen(self, facts):
        self.facts.extend(facts)
        self._announced.set()

    async def hears(self, kind):
        """Wait for a fact of this kind, and forget those before it."""
        async with asyncio.timeout(30):
            while True:
                for place, fact in enumerate(self.facts):
                    if isinstance(fact, kind):
                        del self.facts[: place + 1]
                        return fact
                self._announced.clear()
                await self._announced.wait()

    def announced(self, kind):
        """The facts of one kind since the last call, of any kind."""
        found = [fact for fact in self.facts if isinstance(fact, kind)]
        self.facts.clear()
        return found


def action(key="one", **fields):
    """A step that runs `print`."""
    return {"key": key, "kind": "action", "config": {"action_name": fields.pop("action_name", "print")}, **fields}


@asynccontextmanager
async def scenario(place, *, prepared=True, grace=False, **terms):
    """An open store at `place`, closed at the end. Without `grace` leases may lapse from the first moment on."""
    store = place.store(LeaseTerms(**{"lease_duration": LEASE, "pending_deadline": PENDING_DEADLINE, **terms}))
    made = Scenario(place, store)
    await store.open(made.listen)
    try:
        if not grace:
            store._leases_lapse_from = 0
        if prepared:
            await made.prepare()
        yield made
    finally:
        await store.close()


def plain(record, *names):
    """The record with what is read to be answered, as JSON text, decoded."""
    return replace(record, **{name: msgspec.json.decode(msgspec.json.encode(getattr(record, name))) for name in names})
