"""The store as a file: group commit, faults, locks, migrations, the clock, and a kill -9 in mid-load."""

import asyncio
import os
import threading
from itertools import count
from pathlib import Path

import apsw
import apsw.ext
import msgspec
import pytest
from structlog.testing import capture_logs

from control_plane.domain.enqueue import NewJob
from control_plane.domain.store import LeaseTerms
from control_plane.errors import Conflict, StoreRefused, StoreUnavailable
from control_plane.store import sqlite, store_at
from control_plane.store.clock import Clock
from control_plane.store.sqlite import SqliteStore
from control_plane.store.statements import load_migrations, load_statements
from tests.support.store_scenario import LEASE, START, Scenario, SqlitePlace, action, at, scenario

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


def ignore(facts):
    del facts


async def refused(path, match, store=None):
    store = store or SqliteStore(path, LeaseTerms())
    with pytest.raises(StoreRefused, match=match):
        await store.open(ignore)
    await store.close()


# --- group commit


async def test_what_is_asked_together_is_committed_together(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        connection = s.store._writer._connection
        commits = []
        connection.set_commit_hook(lambda: bool(commits.append(1)))
        held, gate = threading.Event(), threading.Event()

        def hold(writing):
            held.set()
            gate.wait(10)

        # The others are asked while one slow command is being done, and go into its transaction.
        first = asyncio.ensure_future(s.store._writer.submit(hold))
        await asyncio.to_thread(held.wait)
        others = [asyncio.ensure_future(s.start("a")) for _ in range(100)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *others)
        connection.set_commit_hook(None)
        assert len(commits) == 1


async def idle(s):
    """Lanes of two priorities in which nothing waits, as the writer knows."""
    await s.enqueue([NewJob(spec={}, action_name="a", priority=priority) for priority in (0, 5)])
    for lease in await s.claim():
        await s.report(lease)
    assert await s.claim() == []


async def together(s, *asked):
    """What they come to in one transaction."""
    async with s.writes_held():
        pending = [asyncio.ensure_future(each) for each in asked]
        await asyncio.sleep(0)
    return await asyncio.gather(*pending, return_exceptions=True)


def numbered(*priorities):
    return [NewJob(spec={"n": n}, action_name="a", priority=each) for n, each in enumerate(priorities)]


async def test_a_job_that_a_claim_comes_with_is_never_pending(path):
    async with scenario(SqlitePlace(path)) as s:
        await idle(s)
        touched = []
        connection = s.store._writer._connection
        connection.set_update_hook(lambda _kind, _database, table, _rowid: touched.append(table))
        enqueued, (lease,) = await together(s, s.enqueue(numbered(0), now=1), s.claim(now=1, with_new=True))
        connection.set_update_hook(None)
        assert (lease.job.id, lease.spec) == (enqueued.ids[0], '{"n":0}')
        assert {"jobs", "jobs_claimed"} <= set(touched)
        assert "jobs_pending" not in touched
        assert await s.job(lease) == msgspec.structs.replace(lease.job, spec={"n": 0})
        assert await s.report(lease, now=1) == "accepted"


async def test_what_such_a_claim_leaves_waits_in_order(path):
    async with scenario(SqlitePlace(path)) as s:
        await idle(s)
        enqueued, first, second = await together(
            s,
            s.enqueue(numbered(0, 0, 5, 5, 5, 0), now=1),
            s.claim(now=1, limit=2, with_new=True),
            s.claim(now=1, limit=2, with_new=True),
        )
        assert [lease.spec for lease in (*first, *second)] == ['{"n":2}', '{"n":3}', '{"n":4}', '{"n":0}']
        assert await s.read("SELECT count(*) FROM jobs_pending") == [(2,)]
        assert [lease.job.id for lease in await s.claim(now=1)] == [enqueued.ids[1], enqueued.ids[5]]


@pytest.mark.parametrize("external_id", [None, "x"])
async def test_others_of_the_transaction_find_what_is_new_among_the_pending(path, external_id):
    async with scenario(SqlitePlace(path)) as s:
        await idle(s)
        job = NewJob(spec={}, action_name="a", external_id=external_id)
        _, seen, leases, delayed, none = await together(
            s,
            s.enqueue([job], now=1),
            s.store._writer.submit(lambda writing: list(writing.execute("SELECT count(*) FROM jobs_pending"))),
            s.claim(now=1, with_new=True),
            s.enqueue([NewJob(spec={}, action_name="a", delay=5.0)], now=1),
            s.claim(now=1, with_new=True),
        )
        assert seen == [(1,)]
        assert len(leases) == 1
        assert none == []
        assert [lease.job.id for lease in await s.claim(now=6)] == delayed.ids


async def test_what_is_new_outlives_a_neighbour_that_is_refused_half_done(path):
    def half_done(writing):
        writing.execute("DELETE FROM jobs_pending")
        raise Conflict("nothing", "no")

    async with scenario(SqlitePlace(path)) as s:
        await idle(s)
        enqueued, refused_, leases, more = await together(
            s,
            s.enqueue(numbered(0, 0, 0), now=1),
            s.store._writer.submit(half_done),
            s.claim(now=1, limit=1, with_new=True),
            s.enqueue(numbered(5), now=1),
        )
        assert isinstance(refused_, Conflict)
        assert [lease.job.id for lease in leases] == enqueued.ids[:1]
        assert [lease.job.id for lease in await s.claim(now=1)] == [*more.ids, *enqueued.ids[1:]]


async def test_what_is_new_outlives_a_claim_that_fails_over_it(path):
    async with scenario(SqlitePlace(path)) as s:
        await idle(s)
        await s.enqueue(numbered(5))
        connection = s.store._writer._connection

        def fail_once(_cursor, statement, _bindings):
            if "INTO jobs_pending" in statement:
                connection.exec_trace = None
                raise MemoryError
            return True

        connection.exec_trace = fail_once
        enqueued, failed = await together(s, s.enqueue(numbered(0, 0, 0), now=1), s.claim(now=1, with_new=True))
        assert isinstance(failed, MemoryError)
        assert [lease.job.id for lease in await s.claim(now=1)][1:] == enqueued.ids


async def test_a_claim_takes_nothing_new_before_its_time_nor_what_it_has_handed_back(path):
    async with scenario(SqlitePlace(path)) as s:
        await idle(s)
        later, none, first = await together(
            s, s.enqueue(numbered(0), now=5), s.claim(now=1, with_new=True), s.enqueue(numbered(0), now=1)
        )
        assert none == []
        assert [lease.job.id for lease in await s.claim(now=5)] == [*first.ids, *later.ids]
        numbers = count(1)
        s.store._known.identifiers.new = lambda prefix, _now: f"{prefix}_{next(numbers)}"
        assert await s.claim(now=5) == []
        _, leases = await together(
            s, s.enqueue(numbered(0, 0, 0), now=6), s.claim(now=6, with_new=True, excluded=("job_1",))
        )
        assert [lease.job.id for lease in leases] == ["job_2", "job_3"]
        assert [lease.job.id for lease in await s.claim(now=6)] == ["job_1"]


async def test_what_is_queued_when_the_store_closes_is_committed(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        held, gate = threading.Event(), threading.Event()

        def hold(writing):
            held.set()
            gate.wait(10)

        holding = asyncio.ensure_future(s.store._writer.submit(hold))
        await asyncio.to_thread(held.wait)
        runs = [asyncio.ensure_future(s.start("a")) for _ in range(3)]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(s.store.close())
        await asyncio.sleep(0)
        gate.set()
        await holding
        acknowledged = {run.id for run in await asyncio.gather(*runs)}
        await closing
        project = s.project
    async with scenario(SqlitePlace(path), prepared=False) as s:
        page = await s.store.runs(project.id, status=None, automation_id=None, cursor=None, limit=9)
        assert {run.id for run in page.items} == acknowledged


async def test_a_refused_command_harms_no_neighbour(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        outcomes = await asyncio.gather(
            s.start("a"),
            s.store.create_project("default", "Again"),
            s.start("nobody"),
            s.start("a", external_id="x"),
            s.store._writer.submit(lambda writing: 1 / 0),
            s.start("a", external_id="x"),
            return_exceptions=True,
        )
        assert [type(each).__name__ for each in outcomes] == [
            "Run",
            "Conflict",
            "NotFound",
            "Run",
            "ZeroDivisionError",
            "Run",
        ]
        assert outcomes[3].id == outcomes[5].id
        assert len(await s.claim()) == 2


async def test_what_is_remembered_of_the_lanes_is_forgotten_when_a_batch_is_undone(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        await s.start("a")
        held, gate = threading.Event(), threading.Event()

        def hold(writing):
            held.set()
            gate.wait(10)

        def fail(writing):
            raise apsw.FullError("database or disk is full")

        # The three others are asked while it is being done, and are of its batch.
        holding = asyncio.ensure_future(s.store._writer.submit(hold))
        await asyncio.to_thread(held.wait)
        batch = [asyncio.ensure_future(ask) for ask in (s.claim(), s.claim(), s.store._writer.submit(fail))]
        await asyncio.sleep(0)
        gate.set()
        outcomes = await asyncio.gather(holding, *batch, return_exceptions=True)
        assert [type(each) for each in outcomes] == [StoreUnavailable] * 4
        assert await s.claim_one()


async def test_a_refused_command_leaves_nothing_behind(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])

        def half(writing):
            writing.execute("DELETE FROM automations")
            raise Conflict("no", "no")

        with pytest.raises(Conflict):
            await s.store._writer.submit(half)
        assert (await s.store.automation(s.project.id, "a")).handle == "a"


async def test_facts_are_announced_before_the_caller_goes_on(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        s.facts.clear()
        await s.start("a")
        assert [type(fact).__name__ for fact in s.facts] == ["JobClaimable", "RunChanged"]


# --- faults


def fill(connection):
    """No page more: what a full disk does to SQLite."""
    pages = connection.pragma("page_count")
    connection.execute(f"PRAGMA max_page_count = {pages}")


async def test_a_full_disk_is_told_to_every_caller_and_is_left_behind_by_itself(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()], inputs={"x": {}})
        await s.store._writer.submit(lambda writing: None)
        fill(s.store._writer._connection)
        large = {"x": "y" * 50_000}
        outcomes = await asyncio.gather(*(s.start("a", inputs=large) for _ in range(10)), return_exceptions=True)
        told = [each for each in outcomes if isinstance(each, StoreUnavailable)]
        acknowledged = {each.id for each in outcomes if not isinstance(each, StoreUnavailable)}
        assert told
        assert all("the store cannot write now" in str(each) for each in told)
        # The connection is opened anew, without the limit: there is room again.
        run = await s.start("a", inputs=large)
        page = await s.store.runs(s.project.id, status=None, automation_id=None, cursor=None, limit=99)
        assert {each.id for each in page.items} == acknowledged | {run.id}
        assert s.store._leases_lapse_from > 0


async def test_a_read_only_file_is_told_and_recovered_from(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        s.store._writer._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreUnavailable, match="readonly"):
            await s.store.ping()
        await s.store.ping()
        assert (await s.start("a")).status == "suspended"


async def test_a_store_that_stays_away_keeps_saying_so(path, monkeypatch):
    async with scenario(SqlitePlace(path)) as s:

        def gone():
            raise apsw.CantOpenError("unable to open database file")

        s.store._writer._connection.execute("PRAGMA query_only = ON")
        monkeypatch.setattr(s.store._writer, "_connect", gone)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await s.store.ping()
        monkeypatch.undo()
        await s.store.ping()


async def test_readers_cannot_write(path):
    async with scenario(SqlitePlace(path)) as s:
        with pytest.raises(StoreUnavailable, match="cannot read now"):
            await s.store._read(lambda connection: connection.execute("DELETE FROM projects"))
        assert await s.store.projects() == [s.project]


async def test_whoever_else_writes_to_the_file_is_waited_for(path):
    """As a tool does that makes a key beside a control plane. A transaction that reads before it writes would fail at
    once; each of ours takes the lock when it begins."""
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        statements = []
        s.store._writer._connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: statements.append(event["sql"]))
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        starting = asyncio.ensure_future(s.start("a"))
        # What reads goes on.
        assert (await s.store.automation(s.project.id, "a")).handle == "a"
        other.execute("COMMIT")
        other.close()
        await starting
        s.store._writer._connection.trace_v2(0, None)
        assert {text for text in statements if text.startswith("BEGIN")} == {"BEGIN IMMEDIATE"}


async def test_a_closed_store_says_so(path):
    async with scenario(SqlitePlace(path)) as s:
        store = s.store
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.ping()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.projects()
    await store.close()


# --- opening


async def test_the_file_and_what_lies_beside_it_are_the_owners_alone(path):
    previous = os.umask(0)
    try:
        async with scenario(SqlitePlace(path)):
            modes = {entry.name: entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()}
    finally:
        os.umask(previous)
    assert set(modes) == {"store.db", "store.db-wal", "store.db-shm", "store.db.lock"}
    assert set(modes.values()) == {0o600}


async def test_commits_are_synchronous_and_the_log_is_ahead(path):
    async with scenario(SqlitePlace(path)) as s:
        connection = s.store._writer._connection
        assert connection.pragma("synchronous") == 2
        assert connection.pragma("journal_mode") == "wal"


async def test_one_process_owns_the_file(path):
    async with scenario(SqlitePlace(path)):
        await refused(path, "is in use by another control plane")
    async with scenario(SqlitePlace(path), prepared=False) as s:
        await s.store.ping()


async def test_what_cannot_be_opened(tmp_path, monkeypatch):
    await refused(tmp_path / "nowhere" / "store.db", "No such file or directory")
    (tmp_path / "text").write_text("this is no database, " * 100)
    await refused(tmp_path / "text", "is no SQLite database")
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    await refused(tmp_path / "store.db", "SQLite 3.51.2 can corrupt databases")


async def test_a_newer_schema_is_refused(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.store._writer.submit(lambda writing: writing.execute("PRAGMA user_version = 99"))
    await refused(path, "has schema 99, newer than this version knows")


async def test_migrations_run_once_and_leave_nothing_half_done(path, monkeypatch):
    first = load_migrations("sqlite")
    assert [number for number, _ in first] == list(range(1, len(first) + 1))
    async with scenario(SqlitePlace(path)) as s:
        assert (await s.store.projects())[0].handle == "default"
    broken = [*first, (len(first) + 1, "CREATE TABLE extra (x); INSERT INTO nothing VALUES (1);")]
    monkeypatch.setattr(sqlite, "load_migrations", lambda dialect: broken)
    store = SqliteStore(path, LeaseTerms())
    with pytest.raises(StoreUnavailable, match="nothing"):
        await store.open(ignore)
    await store.close()
    monkeypatch.undo()
    async with scenario(SqlitePlace(path), prepared=False) as s:
        tables = await s.store._read(lambda connection: list(connection.execute("SELECT name FROM sqlite_schema")))
        assert ("extra",) not in tables
        assert (await s.store.projects())[0].handle == "default"


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("mysql://x/y", "mysql:... is not supported"),
        ("store.db", "expected sqlite:///path"),
        ("sqlite://host/x.db", "names a host"),
        ("sqlite:///", "names no file"),
        ("sqlite:", "names no file"),
    ],
)
def test_urls_that_name_no_store(url, match):
    with pytest.raises(StoreRefused, match=match):
        store_at(url, LeaseTerms())


def test_urls_that_name_a_file():
    assert store_at("sqlite:///var/lib/x.db", LeaseTerms()).path == Path("/var/lib/x.db")
    assert store_at("sqlite:x.db", LeaseTerms()).path == Path("x.db")


def test_every_statement_can_be_prepared(path):
    connection = apsw.Connection(str(path))
    for _, text in load_migrations("sqlite"):
        connection.execute(text)
    statements = load_statements("sqlite")
    prepared = [
        apsw.ext.query_info(connection, text)
        for name, text in statements.items()
        if not name.endswith("_columns") and name not in ("job_body", "pending_state", "drain_names", "run_filter")
    ]
    assert len(prepared) > 60
    connection.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work for somebody else")
async def test_a_lock_that_root_makes_belongs_to_the_databases_owner(path):
    async with scenario(SqlitePlace(path)):
        pass
    lock = path.with_name(f"{path.name}.lock")
    lock.unlink()
    os.chown(path, 4711, 4712)
    path.chmod(0o640)
    async with scenario(SqlitePlace(path), prepared=False):
        made = lock.stat()
        assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (4711, 4712, 0o640)
    # One that was there stays as it is, wherever it leads.
    other = path.with_name("other")
    other.touch(0o600)
    lock.unlink()
    lock.symlink_to(other)
    async with scenario(SqlitePlace(path), prepared=False):
        found = other.stat()
        assert (found.st_uid, found.st_mode & 0o777) == (0, 0o600)


@pytest.mark.parametrize(("is_there", "words"), [(True, "cannot be opened"), (False, "cannot be made")])
async def test_a_lock_that_we_may_not_have_is_named(path, monkeypatch, is_there, words):
    lock = path.with_name(f"{path.name}.lock")
    if is_there:
        lock.touch()
    opened = os.open

    def guarded(name, flags, *mode):
        # As for a user whom neither file nor directory belongs to; root may open everything.
        if name == str(lock) and not (is_there and flags & os.O_EXCL):
            raise PermissionError(13, "Permission denied", name)
        return opened(name, flags, *mode)

    monkeypatch.setattr(os, "open", guarded)
    await refused(path, f"its lock file {lock} {words}: Permission denied")


# --- the clock


class HandClock:
    def __init__(self):
        self.wall, self.steady = 1_000_000_000_000, 5_000

    def make(self):
        return Clock(wall=lambda: self.wall, monotonic=lambda: self.steady)


def test_the_clock_goes_on_steadily_when_the_wall_clock_is_set_back():
    hand = HandClock()
    clock = hand.make()
    assert clock.now() == 1_000_000_000
    hand.wall -= 500_000_000_000
    hand.steady += 2_000_000
    assert clock.follow() == 0
    assert clock.now() == 1_000_002_000


@pytest.mark.parametrize(
    ("set_forward", "followed"), [(0, 0), (1_000_000, 0), (1_000_001, 1_000_001), (3_600_000_000, 3_600_000_000)]
)
def test_the_clock_follows_what_is_set_forward_by_more_than_a_second(set_forward, followed):
    hand = HandClock()
    clock = hand.make()
    hand.wall += set_forward * 1000
    assert clock.now() == 1_000_000_000
    assert clock.follow() == followed
    assert clock.now() == 1_000_000_000 + followed
    assert clock.follow() == 0


def test_a_clock_ahead_of_the_wall_clock_waits_for_it():
    hand = HandClock()
    clock = hand.make()
    clock.keep_above(1_010_000_000)
    hand.wall += 10_000_000_000
    assert clock.follow() == 0
    hand.wall += 5_000_000_000
    assert clock.follow() == 5_000_000
    assert clock.now() == 1_015_000_000


async def test_a_round_after_the_clock_was_set_forward_says_so_and_takes_no_lease(path):
    hand = HandClock()
    hand.wall = START * 1000
    store = SqliteStore(path, LeaseTerms(lease_duration=LEASE), hand.make())
    await store.open(lambda _: None)
    s = Scenario(SqlitePlace(path), store)
    await s.prepare()
    await s.publish("a", [action()])
    await s.start("a")
    lease = await s.claim_one()
    with capture_logs() as logs:
        hand.wall += 3_600_000_000_000
        assert (await store.reap(limit=9)).leases_lapsed == 0
        assert (await store.reap(limit=9)).leases_lapsed == 0
    assert [(entry["log_level"], entry["seconds"]) for entry in logs] == [("warning", 3600.0)]
    assert store.now() == at(3600)
    # Whoever is not heard of in the grace loses it then.
    hand.steady += round(LEASE * 1e9)
    hand.wall += round(LEASE * 1e9)
    assert (await store.reap(limit=9)).leases_lapsed == 1
    assert (await s.job(lease)).error_type == "LeaseLapsed"
    await store.close()


def test_the_clock_is_never_behind_what_is_stored():
    clock = HandClock().make()
    clock.keep_above(3_000_000_000)
    assert clock.now() == 3_000_000_000
    clock.keep_above(5)
    assert clock.now() == 3_000_000_000


async def test_the_stores_clock_goes_on_from_what_was_stored_when_the_wall_clock_was_set_back(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.store.create_project("later", "Later", now=s.store.now() + 3_600_000_000)
        stored = (await s.store.project("later")).created_at
    async with scenario(SqlitePlace(path), prepared=False) as s:
        assert s.store.now() >= stored
