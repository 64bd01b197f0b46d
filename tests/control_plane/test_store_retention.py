"""The past is deleted and nothing else, on both stores."""

import asyncio
import re

import pytest

from control_plane.domain.deltas import START, DeltaChunk
from control_plane.domain.model import DrainTarget
from control_plane.errors import NotFound
from control_plane.keys import hash_secret
from control_plane.services import Retention, RetentionConfig
from control_plane.store import audit, maintenance
from control_plane.store.retired_tables import OF_JOB, OF_RUN
from control_plane.store.statements import load_migrations
from tests.support.store_scenario import action, at, scenario

STATES = {"jobs_pending", "jobs_claimed", "jobs_finished", "jobs"}


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        await made.publish("a", [action(retry={"max_attempts": 2})])
        yield made


async def finished(s, now, **report):
    run = await s.start("a", now=now)
    await s.report(await s.claim_one(now=now), now=now, **report)
    return run


async def everything(s, what, before, limit=500):
    number, position = 0, 0
    while position is not None:
        retired = await s.store.retire(what, before=at(before), after=position, limit=limit)
        number, position = number + retired.number, retired.position
    return number


async def runs(s):
    page = await s.store.runs(s.project.id, status=None, automation_id=None, cursor=None, limit=50)
    return [run.id for run in page.items]


async def count(s, table):
    ((number,),) = await s.read(f"SELECT count(*) FROM {table}")
    return number


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_every_table_that_hangs_on_a_run_or_a_job_is_known(dialect):
    schema = "\n".join(text for _, text in load_migrations(dialect))
    columns = {}
    for table, body in re.findall(r"CREATE TABLE (\w+) \((.*?)^\)", schema, re.DOTALL | re.MULTILINE):
        columns[table] = set(re.findall(r"^    (\w+) ", body, re.MULTILINE))
    assert {"runs", "events", "deltas"} <= set(columns)
    assert {table for table, names in columns.items() if "run_seq" in names} - STATES == set(OF_RUN)
    assert {table for table, names in columns.items() if "job_seq" in names} == set(OF_JOB)


async def test_finished_runs_go_with_all_that_is_theirs(s, place):
    old = await finished(s, 10)
    failed = await finished(s, 20, status="failed", error="NonRetryableError")
    held = await s.start("a", now=31)
    lease = await s.claim_one(now=32)
    late = await finished(s, 100)
    waiting = await s.start("a", now=101)
    await s.store.append_deltas(
        [
            DeltaChunk(
                project_id=s.project.id,
                job_id=lease.job.id,
                token_hash=hash_secret(lease.lease_token),
                last_sequence=0,
                items="[]",
            )
        ]
    )
    assert await everything(s, "runs", before=50) == 2
    for gone in (old, failed):
        with pytest.raises(NotFound):
            await s.run(gone)
    assert await runs(s) == [waiting.id, late.id, held.id]
    assert await count(s, "runs") == await count(s, "steps") == await count(s, "jobs") == 3
    assert (await count(s, "jobs_finished"), await count(s, "job_attempts"), await count(s, "deltas")) == (1, 0, 1)
    assert await everything(s, "runs", before=50) == 0
    await s.report(lease, now=200)
    assert await everything(s, "runs", before=300) == 2
    assert await runs(s) == [waiting.id]
    assert [await count(s, table) for table in OF_JOB] == [0, 0]


async def test_jobs_in_hand_of_a_run_that_was_cancelled_keep_it(s):
    run = await s.start("a", now=1)
    lease = await s.claim_one(now=2)
    await s.store.cancel_run(s.project.id, run.id, None, now=at(3))
    assert await everything(s, "runs", before=100) == 0
    await s.report(lease, "cancelled", now=4)
    assert await everything(s, "runs", before=100) == 1
    assert await count(s, "jobs") == 0


async def test_a_run_of_many_events_goes_bit_by_bit_and_its_stream_has_no_gaps_meanwhile(s, place):
    run = await finished(s, 1)
    assert len(await s.events(run)) > 4
    seen = []
    position = 0
    while position is not None:
        retired = await s.store.retire("runs", before=at(50), after=position, limit=2)
        position = retired.position
        seen.append(await count(s, "events"))
        if seen[-1]:
            assert [event.sequence for event in await s.events(run)] == list(range(1, seen[-1] + 1))
    assert seen[-1] == 0
    assert len(seen) > 2
    assert seen == sorted(seen, reverse=True)


async def test_jobs_without_a_run_go_by_themselves(s):
    run = await finished(s, 1)
    await s.write("UPDATE jobs SET run_seq = NULL, run_id = NULL, step_id = NULL")
    await s.write("DELETE FROM steps")
    waiting = await s.start("a", now=2)
    assert await everything(s, "jobs", before=100) == 1
    assert await count(s, "jobs_finished") == 0
    assert (await s.run(waiting)).status == "suspended"
    assert (await s.run(run)).status == "completed"
    assert await everything(s, "jobs", before=100) == 0


async def test_sessions_go_and_their_drains_with_them(s):
    ended, working, live = [await s.register(f"w-{number}") for number in (2, 3, 4)]
    await s.store.drain_sessions(s.project.id, DrainTarget(kind="session", value=ended.id))
    await s.store.drain_sessions(s.project.id, DrainTarget(kind="version", value="9"))
    await finished(s, 1)
    await s.start("a", now=1)
    await s.claim_one(now=1, session=working)
    await s.store.end_sessions(unseen_since=at(1), except_for=[live.id], now=at(2))
    assert await everything(s, "sessions", before=2) == 0
    assert await everything(s, "sessions", before=3, limit=1) == 2  # s.session, which finished a job, and `ended`
    kept = {row[0] for row in await s.read("SELECT id FROM sessions")}
    assert kept == {working.id, live.id}
    assert [drain.target.kind for drain in await s.store.drains(s.project.id)] == ["version"]


async def test_deltas_go_a_while_after_their_job_has_ended(s):
    leases = []
    for _ in range(2):
        await s.start("a", now=1)
        leases.append(await s.claim_one(now=1))
    for lease in leases:
        for sequence in range(3):
            chunk = DeltaChunk(
                project_id=s.project.id,
                job_id=lease.job.id,
                token_hash=hash_secret(lease.lease_token),
                last_sequence=sequence,
                items="[]",
            )
            assert await s.store.append_deltas([chunk]) == [True]
    await s.report(leases[0], now=10)
    assert await everything(s, "deltas", before=10) == 0
    assert await everything(s, "deltas", before=11, limit=2) == 3
    kept = await s.store.deltas(s.project.id, leases[1].job.id, after=START, limit=10)
    assert len(kept.chunks) == 3


async def test_what_shows_a_retired_job_shows_none(s):
    await finished(s, 1)
    (view,) = await s.store.sessions(s.project.id)
    assert view.last_job is not None
    await everything(s, "runs", before=100)
    (view,) = await s.store.sessions(s.project.id)
    assert view.last_job is None


async def test_the_service_deletes_in_small_transactions_and_goes_on_from_the_oldest(s, place):
    open_run = await s.start("a", now=0)
    await s.claim_one(now=0)
    for second in range(30):
        await finished(s, second + 1)
    told = []
    config = RetentionConfig(runs=1000.0, sessions=None, deltas=None, limit=30)
    service = Retention(s.store, config, lambda what, number: told.append((what, number)))
    asked = []
    retire = s.store.retire

    async def watched(what, **arguments):
        asked.append((what, arguments["after"]))
        return await retire(what, **arguments)

    s.store.retire = watched
    await service.run_once(at(1016))
    assert told == [("runs", 15)]
    assert len([what for what, _ in asked if what == "runs"]) >= 5
    await service.run_once(at(2000))
    assert told == [("runs", 15), ("runs", 15)]
    assert (await s.run(open_run)).status == "suspended"
    assert await count(s, "runs") == 1
    rules = set(audit.RULES.values())
    findings = await maintenance.check(place.url, None)
    assert [finding.sentence for finding in findings if finding.sentence in rules and finding.faults] == []


async def test_work_goes_on_while_the_past_is_deleted(s):
    for second in range(60):
        await finished(s, second + 1)
    service = Retention(s.store, RetentionConfig(runs=0.001, sessions=None, deltas=None, limit=20))
    deleting = asyncio.create_task(service.run_once(at(1000)))
    for second in range(20):
        run = await finished(s, 2000 + second)
        assert (await s.run(run)).status == "completed"
    await deleting
    assert await count(s, "runs") == 20
