"""The store on PostgreSQL: group commit, many replicas on one database, migrations, refusals."""

import asyncio
import random
from itertools import combinations, count

import asyncpg
import pytest

from control_plane.domain.store import JobClaimable, LeaseTerms, RunChanged
from control_plane.errors import Conflict, Invalid, StoreRefused
from control_plane.store import maintenance, postgres_lanes, postgres_migrations, store_at
from control_plane.store.postgres import PostgresStore
from control_plane.store.postgres_batch import Batch
from control_plane.store.postgres_changes import BESIDE, PARTS, Statements
from control_plane.store.postgres_connections import Database
from control_plane.store.postgres_migrations import migrate
from control_plane.store.statements import load_migrations, load_statements
from tests.control_plane.test_store_plans import FRAGMENTS
from tests.support.store_scenario import PostgresPlace, action, at, scenario


@pytest.fixture
def place(cluster):
    made = PostgresPlace(cluster)
    yield made
    made.remove()


@pytest.fixture
def empty(cluster):
    """The URL of a database without tables."""
    name = cluster.new_database()
    yield cluster.url(name)
    cluster.drop_database(name)


def ignore(facts):
    del facts


# --- group commit


async def test_what_is_asked_together_is_committed_together(place, monkeypatch):
    batches = []
    run = Batch.run

    async def counted(self, batch):
        batches.append(len(batch))
        return await run(self, batch)

    async with scenario(place) as s:
        await s.publish("a", [action()])
        monkeypatch.setattr(Batch, "run", counted)
        runs = await asyncio.gather(*(s.start("a") for _ in range(100)))
        assert len({run.id for run in runs}) == 100
        assert sum(batches) == 100
        assert len(batches) <= 3


async def test_a_refused_command_harms_no_neighbour(place):
    async with scenario(place) as s:
        await s.publish("a", [action()])
        outcomes = await asyncio.gather(
            s.start("a"),
            s.start("nobody"),
            s.start("a", external_id="x"),
            s.start("a", external_id="nul \0 nul"),
            s.start("a", external_id="x"),
            s.store.cancel_run(s.project.id, "run_nobody", None),
            return_exceptions=True,
        )
        assert [type(each).__name__ for each in outcomes] == ["Run", "NotFound", "Run", "Invalid", "Run", "NotFound"]
        assert outcomes[2].id == outcomes[4].id
        assert len(await s.claim()) == 2


async def test_a_text_that_cannot_be_stored_or_looked_for_is_refused(place):
    async with scenario(place) as s:
        with pytest.raises(Invalid) as caught:
            await s.store.create_automation(s.project.id, "a", "nul \0", {})
        assert caught.value.code == "invalid_text"
        with pytest.raises(Invalid):
            await s.store.run(s.project.id, "nul \0")
        await s.publish("a", [action()])
        await s.start("a")
        assert await s.report(await s.claim_one(), "failed", error="Nul\0", message="nul \0") == "accepted"


async def test_facts_are_announced_before_the_caller_goes_on(place):
    async with scenario(place) as s:
        await s.publish("a", [action()])
        s.facts.clear()
        await s.start("a")
        assert [type(fact) for fact in s.facts] == [JobClaimable, RunChanged]


# --- several replicas


async def test_replicas_share_everything_and_claim_nothing_twice(place):
    async with scenario(place) as one, scenario(place, prepared=False) as two:
        two.project, two.session = one.project, one.session
        two.numbers = count(1_000_000)
        await one.publish("a", [action()])
        runs = await asyncio.gather(*((one, two)[number % 2].start("a") for number in range(60)))
        claims = await asyncio.gather(*((one, two)[number % 2].claim(limit=7) for number in range(20)))
        leases = [lease for found in claims for lease in found]
        assert len({lease.job.id for lease in leases}) == len(leases) == 60
        # Whoever claimed it, any replica takes the report.
        verdicts = await asyncio.gather(*((two, one)[number % 2].report(lease) for number, lease in enumerate(leases)))
        assert verdicts == ["accepted"] * 60
        for run in runs:
            assert (await one.run(run)).status == "completed"
            events = await two.events(run)
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_a_lane_that_another_replica_made_is_claimed_from_when_lanes_are_read_again(place, monkeypatch):
    async with scenario(place) as one, scenario(place, prepared=False) as two:
        two.project, two.session = one.project, one.session
        two.numbers = count(1_000_000)
        await one.publish("a", [action()])
        assert await two.claim() == []
        await one.start("a")
        monkeypatch.setattr(postgres_lanes, "REREAD_AFTER", 0.0)
        assert len(await two.claim()) == 1


async def test_one_external_id_is_one_run_on_all_replicas(place):
    async with scenario(place) as one, scenario(place, prepared=False) as two:
        two.project = one.project
        await one.publish("a", [action()])
        starts = [(one, two)[number % 2].start("a", external_id="order") for number in range(20)]
        assert len({run.id for run in await asyncio.gather(*starts)}) == 1


async def test_the_same_report_at_two_replicas_is_accepted_once(place):
    async with scenario(place) as one, scenario(place, prepared=False) as two:
        two.project = one.project
        await one.publish("a", [action()])
        for _ in range(20):
            await one.start("a")
        leases = await one.claim(limit=20)
        verdicts = await asyncio.gather(
            *(one.report(lease) for lease in leases), *(two.report(lease) for lease in leases)
        )
        assert sorted(verdicts) == ["accepted"] * 20 + ["duplicate"] * 20


async def test_replicas_that_publish_at_the_same_time_give_versions_different_numbers(place):
    async with scenario(place) as one, scenario(place, prepared=False) as two:
        await one.publish("a", [action()])
        versions = await asyncio.gather(
            *(
                s.store.create_version(one.project.id, "a", {"steps": [action()]}, None)
                for s in (one, two)
                for _ in range(5)
            )
        )
        assert sorted(version.version for version in versions) == list(range(2, 12))
        with pytest.raises(Conflict):
            await two.store.create_automation(one.project.id, "a", "A", {})


async def test_replicas_that_do_everything_to_the_same_runs_never_wait_in_a_circle(place):
    async with scenario(place) as one, scenario(place, prepared=False) as two:
        two.project, two.session = one.project, one.session
        two.numbers = count(1_000_000)
        await one.publish("a", [action("x", retry={"max_attempts": 3}), action("y")])
        shuffled = random.Random(7)
        for round_ in range(4):
            now = 1_000 * round_
            runs = [await one.start("a", now=now) for _ in range(24)]
            leases = [lease for s in (one, two) for lease in await s.claim(limit=12, now=now)]
            work = []
            for s in (one, two):
                work += [s.heartbeat(lease, now=now + 1) for lease in leases]
                work += [s.report(lease, now=now + 2) for lease in leases[::2]]
                work += [s.report(lease, "failed", error="Boom", now=now + 2) for lease in leases[1::4]]
                work += [s.store.cancel_run(s.project.id, run.id, "stop", now=at(now + 3)) for run in runs[::3]]
                work += [s.claim(limit=3, now=now + 3) for _ in range(4)]
                work += [s.reap(now + 500) for _ in range(2)]
            shuffled.shuffle(work)
            await asyncio.gather(*work)
        assert await one.read("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
    findings = await maintenance.check(place.url, None)
    assert not [finding for finding in findings[3:] if finding.faults]


# --- statements


async def test_every_statement_can_be_prepared(place):
    statements = load_statements("postgresql")
    joined = Statements(statements)
    connection = await asyncpg.connect(place.url)
    complete = [text for name, text in statements.items() if not name.endswith(FRAGMENTS) and name not in BESIDE]
    combined = (*combinations(PARTS, 1), *combinations(PARTS, 2), PARTS)
    together = [joined.of(parts) for parts in combined if {BESIDE.get(part, part) for part in parts} <= {*parts}]
    for text in (*complete, *together):
        await connection.prepare(text)
    assert len(complete) > 60
    await connection.close()


# --- the schema


async def test_many_replicas_may_migrate_at_once(empty):
    versions = await asyncio.gather(*(migrate(Database(empty)) for _ in range(8)))
    newest = load_migrations("postgresql")[-1][0]
    assert {after for _, after in versions} == {newest}
    connection = await asyncpg.connect(empty)
    rows = await connection.fetch("SELECT version FROM schema_migrations ORDER BY version")
    assert [row[0] for row in rows] == list(range(1, newest + 1))
    await connection.close()


async def test_a_newer_schema_is_refused(place):
    async with scenario(place) as s:
        await s.write("INSERT INTO schema_migrations VALUES (99, now())")
    store = PostgresStore(place.url, LeaseTerms())
    with pytest.raises(StoreRefused, match="has schema 99, newer than this version knows"):
        await store.open(ignore)
    await store.close()


async def test_a_migration_that_fails_leaves_nothing_half_done(place, monkeypatch):
    first = load_migrations("postgresql")
    broken = [*first, (len(first) + 1, "CREATE TABLE extra (x text); INSERT INTO nothing VALUES (1);")]
    monkeypatch.setattr(postgres_migrations, "load_migrations", lambda dialect: broken)
    with pytest.raises(Exception, match="nothing"):
        await migrate(Database(place.url))
    monkeypatch.undo()
    async with scenario(place) as s:
        assert await s.read("SELECT to_regclass('extra')::text") == [(None,)]


async def test_a_database_with_tables_of_another_program_is_refused(empty):
    connection = await asyncpg.connect(empty)
    await connection.execute("CREATE TABLE jobs (mine text)")
    await connection.close()
    with pytest.raises(StoreRefused, match="tables of another program"):
        await migrate(Database(empty))


async def test_a_tool_does_not_migrate_under_control_planes_that_run(place, monkeypatch):
    known = load_migrations("postgresql")
    newer = [*known, (len(known) + 1, "CREATE TABLE extra (x text)")]
    monkeypatch.setattr(postgres_migrations, "load_migrations", lambda dialect: newer)
    tool = PostgresStore(place.url, LeaseTerms(), shared=True)
    with pytest.raises(StoreRefused, match="run mobius-control-plane migrate first"):
        await tool.open(ignore)
    assert await migrate(Database(place.url)) == (len(known), len(known) + 1)


# --- where it is


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("postgresql://mobius:secret@localhost/mobius", "--store-password-file"),
        ("postgresql://mobius@localhost/mobius?password=secret", "--store-password-file"),
        ("postgresql://mobius@db.example.com/mobius", "sslmode=verify-full"),
        ("postgresql://mobius@10.1.2.3,127.0.0.1/mobius", "sslmode=verify-full"),
        ("postgresql://mobius@/mobius?host=db.example.com", "sslmode=verify-full"),
    ],
)
def test_urls_that_are_refused(url, match):
    with pytest.raises(StoreRefused, match=match) as caught:
        store_at(url, LeaseTerms())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///mobius",
        "postgres://mobius@localhost/mobius",
        "postgresql://mobius@[::1]:5433/mobius",
        "postgresql://mobius@/mobius?host=/run/postgresql",
        "postgresql://mobius@db.example.com,other.example.com/mobius?sslmode=verify-full",
    ],
)
def test_urls_that_are_accepted(url):
    assert isinstance(store_at(url, LeaseTerms()), PostgresStore)
