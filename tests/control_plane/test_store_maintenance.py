"""What operators do with a store: check it, back it up, and take it from a file to a server."""

import asyncio
import re
import subprocess
import time
from contextlib import closing

import apsw
import asyncpg
import pytest
from structlog.testing import capture_logs

from control_plane.domain.store import LeaseTerms
from control_plane.errors import CannotCreate, StoreInUse, StoreRefused
from control_plane.store import audit, maintenance
from control_plane.store.postgres_migrations import TABLE
from control_plane.store.sqlite import SqliteStore
from control_plane.store.statements import load_migrations
from tests.support.postgres_cluster import binaries
from tests.support.store_scenario import LEASE, PostgresPlace, SqlitePlace, action, at, scenario

POSTGRES_ALONE = {
    "schema_migrations": None,
    "replicas": None,
    "sessions": {"replica_id", "connected_at"},
    "jobs_pending": {"run_seq"},
    "store_clock": {"singleton"},
}
"""What SQLite has no use for: whole tables, and columns."""

SQLITE_ALONE = {"store_clock": {"only"}}


async def lived(s):
    """A bit of everything: what waits, is held, has failed, was cancelled, and is delayed."""
    await s.publish("a", [action("one", retry={"max_attempts": 3, "delay": "1h"}), action("two")])
    await s.store.create_key("default", "laptop", b"h" * 32)
    runs = [await s.start("a", external_id=f"order {number}", now=number) for number in range(8)]
    held, done, failed, delayed, lapsed, _ = await s.claim(limit=6, now=10)
    await s.report(done, result={"answer": 42}, now=11)
    await s.report(failed, "failed", error="ValidationError", message="no", now=12)
    await s.report(delayed, "failed", error="Boom", now=13)
    await s.heartbeat(held, now=60)
    await s.reap(now=10 + LEASE)
    await s.store.cancel_run(s.project.id, runs[7].id, "enough", now=at(80))
    del lapsed
    return held


async def told(store, project):
    """Everything that its readers are told."""
    runs = (await store.runs(project.id, status=None, automation_id=None, cursor=None, limit=99)).items
    steps = [step for run in runs for step in await store.steps(project.id, run.id)]
    return {
        "projects": await store.projects(),
        "key": await store.key(b"h" * 32),
        "automations": (await store.automations(project.id, status=None, cursor=None, limit=9)).items,
        "versions": (await store.versions(project.id, "a", cursor=None, limit=9)).items,
        "runs": [await store.run(project.id, run.id, with_result=True) for run in runs],
        "steps": steps,
        "events": [event for run in runs for event in await store.events(project.id, run.id, since=0, limit=99)],
        "jobs": [await store.job(project.id, step.job_id) for step in steps],
        "sessions": await store.sessions(project.id),
        "next": await store.next_available_at(now=at(100)),
    }


# --- both schemas


async def test_both_databases_have_the_same_tables_and_columns(cluster, tmp_path):
    with closing(apsw.Connection(str(tmp_path / "x.db"))) as sqlite:
        for _, text in load_migrations("sqlite"):
            sqlite.execute(text)
        tables = [name for (name,) in sqlite.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        one = {table: {row[1] for row in sqlite.execute(f"PRAGMA table_info({table})")} for table in tables}
    place = PostgresPlace(cluster)
    connection = await asyncpg.connect(place.url)
    two = {}
    for table, column in await connection.fetch(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    ):
        two.setdefault(table, set()).add(column)
    await connection.close()
    place.remove()
    for table, columns in POSTGRES_ALONE.items():
        if columns is None:
            del two[table]
        else:
            two[table] -= columns
    for table, columns in SQLITE_ALONE.items():
        one[table] -= columns
    assert one == two
    assert "schema_migrations" in TABLE


# --- check


async def test_a_store_that_has_lived_is_as_it_should_be(place):
    async with scenario(place) as s:
        await lived(s)
        while_served = await maintenance.check(place.url, None)
    findings = await maintenance.check(place.url, None)
    assert while_served == findings
    faults = {finding.sentence: finding.faults for finding in findings if finding.faults}
    assert set(faults) <= {
        f"{name} is off: a crash may lose or damage what was stored" for name in ("fsync", "full_page_writes")
    }
    said = [finding.sentence for finding in findings]
    assert "8 runs" in said
    assert "6 runs that go on" in said


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        ("DELETE FROM jobs_claimed", "every job is in exactly one state"),
        ("DELETE FROM events WHERE sequence = 2", "the events of every run are without gaps"),
        ("DELETE FROM jobs", "every state is a job's"),
        ("DELETE FROM runs", "every step, event, job, timer and signal belongs to a run"),
        (
            "UPDATE steps SET status = 'completed'",
            "every run that goes on waits for a job, a time, a signal or its turn",
        ),
    ],
)
async def test_what_is_broken_is_counted(place, damage, rule):
    async with scenario(place) as s:
        await lived(s)
        await s.write(damage)
    broken = {finding.sentence for finding in await maintenance.check(place.url, None) if finding.faults}
    assert rule in broken


@pytest.mark.parametrize(("seconds", "said"), [(50, False), (3_700, True)])
async def test_a_clock_that_is_ahead_is_said_at_the_start_and_by_a_check_and_is_no_fault(place, seconds, said):
    async with scenario(place) as s:
        await s.write(f"UPDATE store_clock SET latest = {s.store.now() + seconds * 1_000_000}")
    with capture_logs() as logs:
        async with scenario(place, prepared=False) as s:
            assert s.store.now() > time.time_ns() // 1000 + (seconds - 30) * 1_000_000
    ahead = re.compile(r"the store's clock is 3[67]\d\d s ahead")
    assert [entry["log_level"] for entry in logs if ahead.match(entry["event"])] == ["warning"] * said
    found = [finding for finding in await maintenance.check(place.url, None) if ahead.match(finding.sentence)]
    assert [finding.faults for finding in found] == [None] * said


async def test_a_store_of_another_schema_is_not_judged(place):
    async with scenario(place) as s:
        if isinstance(place, SqlitePlace):
            await s.store._writer.submit(lambda writing: writing.execute("PRAGMA user_version = 99"))
        else:
            await s.write("INSERT INTO schema_migrations VALUES (99, now())")
    (finding,) = await maintenance.check(place.url, None)
    assert finding.sentence.startswith("schema 99; this version knows")
    assert finding.faults == 1


async def test_migrate_says_what_it_did(tmp_path, cluster):
    newest = {kind: load_migrations(kind)[-1][0] for kind in ("sqlite", "postgresql")}
    url = f"sqlite://{tmp_path}/x.db"
    assert await maintenance.migrate(url, None) == (0, newest["sqlite"])
    assert await maintenance.migrate(url, None) == (newest["sqlite"],) * 2
    database = cluster.new_database()
    url = cluster.url(database)
    assert await maintenance.migrate(url, None) == (0, newest["postgresql"])
    assert await maintenance.migrate(url, None) == (newest["postgresql"],) * 2
    cluster.drop_database(database)


# --- backup


async def test_a_backup_of_a_file_under_load_is_a_whole_store(tmp_path):
    place = SqlitePlace(tmp_path / "store.db")
    async with scenario(place) as s:
        await s.publish("a", [action()])
        starting = [asyncio.ensure_future(s.start("a")) for _ in range(200)]
        await starting[20]
        size = await asyncio.to_thread(maintenance.backup, place.url, None, tmp_path / "backup.db")
        runs = {run.id for run in await asyncio.gather(*starting)}
        with pytest.raises(CannotCreate, match="File exists"):
            maintenance.backup(place.url, None, tmp_path / "backup.db")
        with pytest.raises(CannotCreate, match="No such file"):
            maintenance.backup(place.url, None, tmp_path / "nowhere" / "backup.db")
        project = s.project
    assert size == (tmp_path / "backup.db").stat().st_size
    assert (tmp_path / "backup.db").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.glob("backup*")) == ["backup.db"]
    restored = SqlitePlace(tmp_path / "backup.db")
    assert not [finding for finding in await maintenance.check(restored.url, None) if finding.faults]
    async with scenario(restored, prepared=False) as s:
        kept = (await s.store.runs(project.id, status=None, automation_id=None, cursor=None, limit=999)).items
        assert 21 <= len(kept) <= 200
        assert {run.id for run in kept} <= runs


async def test_a_backup_of_a_database_can_be_restored(cluster, tmp_path):
    place = PostgresPlace(cluster)
    async with scenario(place) as s:
        await lived(s)
        before = await told(s.store, s.project)
        target = tmp_path / "backup"
        size = await asyncio.to_thread(maintenance.backup, place.url, None, target)
        assert size == target.stat().st_size
        assert target.stat().st_mode & 0o777 == 0o600
        with pytest.raises(CannotCreate, match="File exists"):
            await asyncio.to_thread(maintenance.backup, place.url, None, target)
    restored = PostgresPlace(cluster, empty=True)
    command = [binaries() / "pg_restore", "--dbname", restored.url, "--no-owner", "--exit-on-error", target]
    await asyncio.to_thread(subprocess.run, command, check=True)
    async with scenario(restored, prepared=False) as s:
        assert await told(s.store, before["projects"][0]) == before
    for each in (place, restored):
        each.remove()


# --- from a file to a server


async def test_a_copy_is_the_same_store_on_the_other_database(cluster, tmp_path):
    source, target = SqlitePlace(tmp_path / "store.db"), PostgresPlace(cluster)
    async with scenario(source) as s:
        held = await lived(s)
        before, project, session = await told(s.store, s.project), s.project, s.session
    copied = await maintenance.copy(source.url, target.url, None)
    assert (copied["runs"], copied["api_keys"]) == (8, 1)
    assert [finding.faults for finding in await maintenance.check(target.url, None)][3:].count(0) == len(audit.RULES)
    async with scenario(target, prepared=False) as s:
        s.project, s.session = project, session
        assert await told(s.store, project) == before
        # It goes on where it was: who held a job reports it, what waits is claimed, new rows get keys of their own.
        assert await s.report(held, result={"late": True}, now=100) == "accepted"
        new = await s.start("a", now=100)
        assert (await s.start("a", now=100, external_id="order 0")).id == before["runs"][-1].id
        leases = await s.claim(limit=99, now=101)
        assert new.id in {lease.job.run_id for lease in leases}
        for lease in leases:
            assert await s.report(lease, now=102) == "accepted"
    # The file is as it was.
    async with scenario(source, prepared=False) as s:
        assert await told(s.store, project) == before
    target.remove()


async def test_what_runs_wait_for_is_copied(cluster, tmp_path):
    source, target = SqlitePlace(tmp_path / "store.db"), PostgresPlace(cluster)
    wait = {"key": "ok", "kind": "wait_for_event", "config": {"event_type": "x"}, "timeout": {"duration": "10m"}}
    async with scenario(source) as s:
        await s.publish("a", [action(), wait], concurrency="queue")
        runs = [await s.start("a") for _ in range(2)]
        await s.signal(runs[1], "ok", {"early": 1})
        await s.report(await s.claim_one())
        project, session = s.project, s.session
    await maintenance.copy(source.url, target.url, None)
    broken = {finding.sentence for finding in await maintenance.check(target.url, None) if finding.faults}
    assert broken.isdisjoint(audit.RULES.values())
    async with scenario(target, prepared=False) as s:
        s.project, s.session = project, session
        await s.fire(600)
        assert await s.statuses(*runs) == ["failed", "suspended"]
        await s.report(await s.claim_one(now=600), now=600)
        assert (await s.run(runs[1])).result["ok"] == {"early": 1}
    target.remove()


async def test_the_first_start_after_a_copy_gives_live_leases_one_lease_duration_more(cluster, tmp_path):
    source, target = SqlitePlace(tmp_path / "store.db"), PostgresPlace(cluster)
    async with scenario(source) as s:
        await s.publish("a", [action()])
        now = (s.store.now() - at(0)) / 1e6
        await s.start("a", now=now - LEASE - 1)
        await s.claim_one(now=now - LEASE)
    await maintenance.copy(source.url, target.url, None)
    async with scenario(target, prepared=False, grace=True) as s:
        opened = s.store.now()
        assert (await s.store.reap(limit=9, now=opened + round((LEASE - 1) * 1e6))).leases_lapsed == 0
        assert (await s.store.reap(limit=9, now=opened + round((LEASE + 1) * 1e6))).leases_lapsed == 1
    target.remove()


async def test_a_text_that_only_a_file_can_hold_is_copied_with_a_mark_in_its_place(cluster, tmp_path):
    source, target = SqlitePlace(tmp_path / "store.db"), PostgresPlace(cluster)
    async with scenario(source) as s:
        await s.store.create_project("other", "Nul \0 nul")
    await maintenance.copy(source.url, target.url, None)
    async with scenario(target, prepared=False) as s:
        assert (await s.store.project("other")).name == "Nul \ufffd nul"
    target.remove()


async def test_what_is_not_copied(cluster, tmp_path):
    source, target = SqlitePlace(tmp_path / "store.db"), PostgresPlace(cluster)
    with pytest.raises(StoreRefused, match="No such file"):
        await maintenance.copy(source.url, target.url, None)
    async with scenario(source):
        with pytest.raises(StoreInUse, match="in use by another control plane"):
            await maintenance.copy(source.url, target.url, None)
    async with scenario(target, prepared=False):
        with pytest.raises(StoreInUse, match="is served by a control plane"):
            await maintenance.copy(source.url, target.url, None)
    async with scenario(target):
        pass
    with pytest.raises(StoreRefused, match="is not empty"):
        await maintenance.copy(source.url, target.url, None)
    for one, other in ((target.url, source.url), (source.url, source.url), (target.url, target.url)):
        with pytest.raises(StoreRefused, match="no other way"):
            await maintenance.copy(one, other, None)
    target.remove()


async def test_a_copy_that_fails_leaves_nothing_behind(cluster, tmp_path):
    source, target = SqlitePlace(tmp_path / "store.db"), PostgresPlace(cluster)
    async with scenario(source) as s:
        await lived(s)
    connection = await asyncpg.connect(target.url)
    await connection.execute("ALTER TABLE events ADD CHECK (sequence < 3)")
    with pytest.raises(Exception, match="violates check constraint"):
        await maintenance.copy(source.url, target.url, None)
    assert await connection.fetchval("SELECT count(*) FROM projects") == 0
    await connection.close()
    # The lock on the file has gone with the attempt.
    store = SqliteStore(source.path, LeaseTerms())
    await store.open(lambda facts: None)
    await store.close()
    target.remove()
