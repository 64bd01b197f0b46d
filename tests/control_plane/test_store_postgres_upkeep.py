"""Hot tables stay small, and claims quick, however many jobs have passed through them."""

import asyncio

import asyncpg
import pytest

from control_plane.store import postgres_upkeep
from control_plane.store.postgres_lanes import LATE_COMMIT, SCAN_EVERY, Lanes
from control_plane.store.postgres_upkeep import vacuum
from control_plane.store.statements import load_statements
from tests.support.store_scenario import PostgresPlace, action, scenario


@pytest.fixture
def place(cluster):
    made = PostgresPlace(cluster)
    yield made
    made.remove()


async def dead(connection, table):
    await connection.execute("SELECT pg_stat_force_next_flush()")
    return await connection.fetchval("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = $1", table)


async def test_what_is_dead_is_removed_once_there_is_enough_of_it(place, monkeypatch):
    monkeypatch.setattr(postgres_upkeep, "WORTH_IT", 50)
    async with scenario(place) as s:
        await s.publish("a", [action()])
        connection = await asyncpg.connect(place.url)
        await connection.execute("ALTER TABLE jobs_claimed SET (autovacuum_enabled = off)")
        assert await vacuum(connection) == []
        await connection.execute(
            "INSERT INTO jobs_claimed (seq, available_at, execution_deadline_at, claim_attempt, attempts_charged,"
            " hand_backs, lease_token_hash, lease_expires_at, session_id, worker_instance_id, claimed_at, updated_at)"
            " SELECT n, 0, 0, 0, 0, 0, 'x', 0, 's', 'w', 0, 0 FROM generate_series(1, 500) n"
        )
        await connection.execute("DELETE FROM jobs_claimed")
        assert await dead(connection, "jobs_claimed") == 500
        assert await vacuum(connection) == ["jobs_claimed"]
        async with asyncio.timeout(60):
            # Whoever looked before the rows died keeps them for a while (PostgreSQL itself, analysing a catalog);
            # another round removes them.
            while await dead(connection, "jobs_claimed"):
                await vacuum(connection)
        await connection.close()


async def test_a_heartbeat_touches_no_index(place):
    async with scenario(place) as s:
        await s.publish("a", [action()])
        for _ in range(20):
            await s.start("a")
        leases = await s.claim(limit=20)
        for now in range(20, 120, 20):
            for lease in leases:
                assert not (await s.heartbeat(lease, now=now)).lost
        count = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'jobs_claimed'"
        async with asyncio.timeout(60):
            # A backend reports what it did at the end of a statement, once a second.
            while (counted := (await s.read(count))[0])[0] < 100:
                await s.store.ping()
        assert counted[1] >= 95


# --- where a claim begins to look


def test_a_claim_begins_where_the_last_one_found_something_and_looks_at_everything_now_and_then():
    lanes = Lanes(load_statements("postgresql"))
    at = 1_000_000_000
    assert lanes.begin(1, 0.0) == 0
    lanes.found(1, [at + 5, at])
    assert lanes.begin(1, 1.0) == at - LATE_COMMIT
    lanes.found(1, [])
    assert lanes.begin(1, 2.0) == at - LATE_COMMIT
    assert lanes.begin(2, 2.0) == 0
    assert lanes.begin(1, SCAN_EVERY) == 0
    assert lanes.begin(1, SCAN_EVERY + 1) == at - LATE_COMMIT


async def test_a_job_that_was_committed_late_is_found_by_the_next_look_at_everything(place):
    async with scenario(place) as s:
        await s.publish("a", [action()])
        for now in (100, 101, 102):
            await s.start("a", now=now)
        assert len(await s.claim(now=200, limit=1)) == 1
        # Its transaction began long before those that were seen.
        late = await s.start("a", now=50)
        assert late.id not in {lease.job.run_id for lease in await s.claim(now=200, limit=1)}
        s.store._known.lanes._scanned_at.clear()
        assert [lease.job.run_id for lease in await s.claim(now=200, limit=1)] == [late.id]


async def test_an_old_snapshot_does_not_make_claims_walk_over_what_is_gone(place):
    async with scenario(place) as s:
        await s.publish("a", [action()])
        holder = await asyncpg.connect(place.url)
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await holder.execute("SELECT count(*) FROM jobs_pending")
        for now in range(0, 2000, 100):
            for _ in range(50):
                await s.start("a", now=now)
            while leases := await s.claim(now=now, limit=64):
                del leases
        await s.start("a", now=2000)
        (lane,) = (await s.read("SELECT id FROM lanes"))[0]
        begin = s.store._known.lanes.begin(lane, 0.0)
        assert begin > 0
        statement = load_statements("postgresql")["claim_candidates"]
        connection = await asyncpg.connect(place.url, server_settings={"enable_seqscan": "off"})
        looked_at = []
        for since in (0, begin):
            await connection.execute(f"PREPARE this AS {statement}")
            plan = await connection.fetch(
                "EXPLAIN (ANALYZE, BUFFERS) EXECUTE this"
                f"(ARRAY[{lane}]::bigint[], ARRAY[{since}]::bigint[], ARRAY[{1 << 60}]::bigint[], ARRAY[1]::bigint[])"
            )
            await connection.execute("DEALLOCATE this")
            buffers = next(row[0] for row in plan if "Buffers: shared hit=" in row[0])
            looked_at.append(int(buffers.split("hit=")[1].split()[0]))
        await connection.close()
        await holder.close()
        assert looked_at[1] < looked_at[0] / 2
