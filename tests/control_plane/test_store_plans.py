"""How both databases find what they look for when there is much of it: by an index, never by reading everything."""

import json
import re
from itertools import pairwise

import apsw
import apsw.ext
import asyncpg

from control_plane.domain.enqueue import NewJob
from control_plane.domain.model import Selector
from control_plane.store.postgres_changes import BESIDE, PARTS, Statements
from control_plane.store.postgres_connections import Database
from control_plane.store.statements import load_statements
from tests.support.store_scenario import PostgresPlace, SqlitePlace, action, scenario

MANY = 100_000
LANES = 10
LARGE = ("jobs", "jobs_pending", "jobs_finished", "runs", "steps", "events")
"""What grows without end. The claimed jobs are as many as the workers take, and are swept over."""

FRAGMENTS = (
    "_columns", "_names", "_body", "_state", "_tables", "last_event", "open_step_of_run", "_filter", "_page_begin",
    "_page_end", "saving_step",
)  # fmt: skip
COUNTED = ("load",)
"""Reads a bounded number of rows of whichever comes first."""


async def filled(s):
    """Many jobs that wait in LANES lanes, and as many that are finished: copies of real ones, with run and events."""
    for lane in range(LANES):
        await s.publish(f"a{lane}", [action()], settings={"queue": f"q{lane}"})
        await s.start(f"a{lane}", now=1)
    for lease in await s.claim(limit=LANES, now=2):
        await s.report(lease, now=3)
    for lane in range(LANES):
        await s.start(f"a{lane}", now=4)
    for state in ("jobs_pending", "jobs_finished"):
        await multiply(s, state, "p.seq")
        await multiply(s, "jobs", f"p.seq IN (SELECT seq FROM {state} WHERE seq < 1000) AND p.seq")
    await multiply(s, "runs", "p.seq")
    await multiply(s, "steps", "p.run_seq", key="run_seq")
    await multiply(s, "events", "p.run_seq", key="run_seq")
    await s.write("ANALYZE")


async def multiply(s, table, which, *, key="seq"):
    """Copies of the first rows, behind them in every order."""
    names = [name for name in await columns(s, table) if not (table == "jobs_pending" and name == "position")]
    (first,) = [row[0] for row in await s.read(f"SELECT count(*) FROM {table} p WHERE {which} < 1000")]
    each = 2 * MANY // first if table not in ("events", "steps") else MANY // first
    values = {key: f"p.{key} + 1000 * n.i", "id": "p.id || '.' || n.i", "available_at": "p.available_at + n.i"}
    chosen = ", ".join(values.get(name, f"p.{name}") for name in names)
    await s.write(
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {chosen} FROM {table} p CROSS JOIN {numbers(s, each)}"
        f" WHERE {which} < 1000"
    )


async def columns(s, table):
    if isinstance(s.place, SqlitePlace):
        return [row[1] for row in await s.read(f"PRAGMA table_info({table})")]
    found = await s.read(
        f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}' ORDER BY ordinal_position"
    )
    return [row[0] for row in found]


def numbers(s, count):
    if isinstance(s.place, SqlitePlace):
        return f"(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n) n"
    return f"generate_series(1, {count}) AS n(i)"


def details(plan):
    yield plan.detail
    for each in plan.sub or ():
        yield from details(each)


def nodes(plan):
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)


async def oldest_are_claimed(s):
    leases = await s.claim(limit=20, now=1_000_000)
    assert len(leases) == 20
    times = [lease.job.available_at for lease in leases]
    assert times == sorted(times)
    assert {lease.job.queue for lease in leases} == {f"q{lane}" for lane in range(LANES)}
    assert {lease.job.queue for lease in await s.claim(selector=Selector(queues=("q3",)), now=1_000_000)} == {"q3"}


async def test_sqlite_reads_no_large_table_whole(tmp_path):
    place = SqlitePlace(tmp_path / "store.db")
    async with scenario(place) as s:
        await filled(s)
        steps = 0

        def count(event):
            nonlocal steps
            steps += event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]

        s.store._writer._connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, count)
        await oldest_are_claimed(s)
        s.store._writer._connection.trace_v2(0, None)
    # A few hundred for each job claimed and lane looked at, and nothing for the 200,000 others.
    assert 0 < steps < 100_000
    connection = apsw.Connection(str(place.path))
    looked_at = 0
    for name, text in load_statements("sqlite").items():
        if name.endswith(FRAGMENTS) or name in COUNTED:
            continue
        looked_at += 1
        for detail in details(apsw.ext.query_info(connection, text, explain_query_plan=True).query_plan):
            scanned = re.match(r"SCAN (\w+)(?!.*USING (COVERING )?INDEX)", detail)
            table = scanned and {"p": "jobs_pending", "j": "jobs", "s": "steps"}.get(scanned[1], scanned[1])
            assert table not in LARGE, f"{name}: {detail}"
    connection.close()
    assert looked_at > 50


async def test_postgresql_reads_no_large_table_whole(cluster):
    place = PostgresPlace(cluster)
    async with scenario(place) as s:
        await filled(s)
        await oldest_are_claimed(s)
    statements = load_statements("postgresql")
    joined = Statements(statements)
    texts = {
        name: text
        for name, text in statements.items()
        if not name.endswith(FRAGMENTS) and name not in COUNTED and name not in PARTS
    }
    texts |= {part: joined.of((BESIDE[part], part) if part in BESIDE else (part,)) for part in PARTS}
    # The writers forbid sequential scans; the planner is not to need that.
    settings = {"plan_cache_mode": "force_generic_plan", "jit": "off"}
    connection = await asyncpg.connect(place.url, server_settings=settings)
    for name, text in texts.items():
        arguments = ", ".join(["NULL"] * len({*re.findall(r"\$(\d+)", text)}))
        await connection.execute(f"PREPARE this AS {text}")
        plan = "\n".join(
            row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE this{f'({arguments})' if arguments else ''}")
        )
        await connection.execute("DEALLOCATE this")
        for table in re.findall(r"Seq Scan on (\w+)", plan):
            assert table not in LARGE, f"{name}:\n{plan}"
    lanes = [row[0] for row in await connection.fetch("SELECT id FROM lanes")]
    asked = ", ".join(
        f"ARRAY[{', '.join(map(str, column))}]::bigint[]"
        for column in (lanes, [0] * LANES, [1 << 60] * LANES, [20] * LANES)
    )
    await connection.execute(f"PREPARE this AS {statements['claim_candidates']}")
    async with connection.transaction():
        (row,) = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE this({asked})")
    (explained,) = json.loads(row[0])
    await connection.close()
    place.remove()
    # 200 jobs and their runs locked, of 200,000.
    assert explained["Plan"]["Actual Rows"] == LANES * 20
    # Were the limit looked at again for each row, more would be locked than was asked for.
    (picked,) = [node for node in nodes(explained["Plan"]) if node.get("Subplan Name") == "CTE picked"]
    assert (picked["Actual Loops"], picked["Actual Rows"]) == (1, LANES * 20)
    assert explained["Plan"]["Shared Hit Blocks"] + explained["Plan"]["Shared Read Blocks"] < 10_000


async def test_postgresql_names_what_it_changes_also_by_plans_of_empty_tables(cluster):
    """Such a plan stays when the tables have grown: an index that is read without a condition is read whole."""
    place = PostgresPlace(cluster)
    statements = load_statements("postgresql")
    joined = Statements(statements)
    texts = {part: joined.of((BESIDE[part], part) if part in BESIDE else (part,)) for part in PARTS}
    texts["finish_held"] = statements["finish_held"]
    connection = await Database(place.url).connect()
    for name, text in texts.items():
        arguments = ", ".join(["NULL"] * len({*re.findall(r"\$(\d+)", text)}))
        await connection.execute(f"PREPARE this AS {text}")
        plan = [row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE this({arguments})")]
        await connection.execute("DEALLOCATE this")
        whole = [line for line, after in pairwise([*plan, ""]) if "Index Cond" not in after]
        tables = {table for line in whole for table in re.findall(r"(?:Seq Scan on|Scan using \w+ on) (\w+)", line)}
        assert tables.isdisjoint({*LARGE, "jobs_claimed"}), f"{name}:\n" + "\n".join(plan)
    await connection.close()
    place.remove()


async def test_a_claim_has_one_plan_also_after_a_vacuum_that_found_nothing(cluster):
    """Where a table has pages and no rows any index that has the key costs the same, also one that is read whole."""
    place = PostgresPlace(cluster)
    async with scenario(place) as s:
        await s.enqueue([NewJob(action_name="print", spec={})] * 500)
        await s.write("DELETE FROM jobs_pending")
        await s.write("VACUUM (TRUNCATE OFF) jobs_pending")
    statements = load_statements("postgresql")
    connection = await Database(place.url).connect()
    empty = await connection.fetchrow("SELECT relpages > 0, reltuples FROM pg_class WHERE relname = 'jobs_pending'")
    assert tuple(empty) == (True, 0)
    claim = Statements(statements).of(("find_leased", "leave_leased", "insert_leased"))
    for text in (statements["load_candidates"], claim):
        arguments = ", ".join(["NULL"] * len({*re.findall(r"\$(\d+)", text)}))
        await connection.execute(f"PREPARE this AS {text}")
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE this({arguments})"))
        await connection.execute("DEALLOCATE this")
        assert set(re.findall(r"(\w+ Scan) (?:using \w+ )?on jobs_pending", plan)) == {"Tid Scan"}, plan
        assert "Join Filter" not in plan
    await connection.close()
    place.remove()
