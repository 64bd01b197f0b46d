"""Reports of leases that the process remembers: they read nothing, and what has changed since finds them out."""

import asyncio

import pytest

from control_plane.domain.enqueue import NewJob
from control_plane.store import postgres_held
from control_plane.store.postgres_facts import Facts
from tests.support.store_scenario import LEASE, action, at, scenario
from wire.frames import Report


@pytest.fixture
async def s(postgres_place):
    async with scenario(postgres_place) as made:
        yield made


@pytest.fixture
def loaded(monkeypatch):
    """Keys of the jobs that were loaded for a decision."""
    keys = []
    load = Facts.load_jobs

    async def counted(self, connection, seqs):
        keys.extend(seqs)
        await load(self, connection, seqs)

    monkeypatch.setattr(Facts, "load_jobs", counted)
    return keys


async def leases(s, number=1, **fields):
    await s.enqueue([NewJob(action_name="print", spec={"parameters": {}}, **fields)] * number)
    return await s.claim(limit=number)


def completed(lease, **fields):
    return Report(job_id=lease.job.id, lease_token=lease.lease_token, **fields)


async def test_jobs_that_complete_are_not_read(s, loaded):
    found = await leases(s, 20)
    said = [completed(lease, result={"n": n}) for n, lease in enumerate(found)]
    outcomes = await asyncio.gather(
        *(s.store.reports(s.project.id, said[n : n + 5], now=at(0)) for n in range(0, 20, 5))
    )
    assert {outcome.verdict for each in outcomes for outcome in each} == {"accepted"}
    assert loaded == []
    for n, lease in enumerate(found):
        job = await s.job(lease)
        assert (job.status, job.result, job.claim_attempt) == ("completed", {"n": n}, 1)
        assert (job.session_id, job.claimed_at) == (s.session.id, lease.job.claimed_at)
    (view,) = await s.store.sessions(s.project.id)
    assert view.last_job.id in {lease.job.id for lease in found}


async def test_what_is_said_twice_and_what_fails_take_the_long_way(s, loaded):
    twice, failed = await leases(s, 2, max_attempts=2)
    said = [completed(twice), completed(failed, status="failed", error_type="E"), completed(twice)]
    outcomes = await s.store.reports(s.project.id, said, now=at(0))
    assert [outcome.verdict for outcome in outcomes] == ["accepted", "accepted", "duplicate"]
    assert len(set(loaded)) == 2
    assert (await s.job(failed)).status == "pending"
    # The job is leased anew; the lease that failed is not remembered beside it.
    again = await s.claim_one()
    assert await s.report(failed, now=1) == "duplicate"
    assert await s.report(again, now=1) == "accepted"


async def test_a_lease_that_another_process_has_taken_back_changes_nothing(s, loaded):
    (lease,) = await leases(s, max_attempts=2)
    async with scenario(s.place, prepared=False) as other:
        other.project, other.session = s.project, s.session
        await other.reap(LEASE + 1)
        newer = await other.claim_one(now=LEASE + 2)
        assert await s.report(lease, now=LEASE + 3) == "superseded"
        assert loaded
        assert (await s.job(lease)).status == "claimed"
        assert await other.report(newer, now=LEASE + 4) == "accepted"


async def test_a_lapsed_lease_that_nobody_has_claimed_is_still_accepted(s, loaded):
    (lease,) = await leases(s, max_attempts=2)
    await s.reap(LEASE + 1)
    assert (await s.job(lease)).status == "pending"
    assert await s.report(lease, now=LEASE + 2) == "accepted"
    assert (await s.job(lease)).status == "completed"


async def test_a_job_that_is_to_be_cancelled_is_read(s, loaded):
    (lease,) = await leases(s)
    await s.store.cancel_job(s.project.id, lease.job.id, "stop", now=at(0))
    loaded.clear()
    assert await s.report(lease, now=1) == "accepted"
    assert len(loaded) == 1
    job = await s.job(lease)
    assert (job.status, job.cancel_reason) == ("completed", "stop")


async def test_steps_are_not_remembered_and_move_their_runs(s):
    await s.publish("a", [action()])
    run = await s.start("a")
    assert await s.report(await s.claim_one(), now=1) == "accepted"
    assert (await s.run(run)).status == "completed"


async def test_only_so_many_are_remembered_and_no_other_project_reports_them(s, monkeypatch):
    monkeypatch.setattr(postgres_held, "MOST_HELD", 3)
    found = await leases(s, 5)
    held = s.store._known.held
    assert len(held._jobs) == 3
    assert all(job.spec == {} for _, job in held._jobs.values())
    assert held.take("proj_other", completed(found[-1])) is None
    for lease in found:
        assert await s.report(lease, now=1) == "accepted"
    assert held._jobs == {}


@pytest.mark.parametrize(("moment", "verdict"), [("before", "accepted"), ("after", "duplicate")])
async def test_a_report_whose_answer_was_lost_is_told_what_is_recorded(s, monkeypatch, moment, verdict):
    (lease,) = await leases(s)
    write = postgres_held.Finishing.write

    async def lost(self, connection):
        monkeypatch.setattr(postgres_held.Finishing, "write", write)
        if moment == "after":
            await write(self, connection)
        raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(postgres_held.Finishing, "write", lost)
    assert await s.report(lease, result={"n": 1}, now=1) == verdict
    job = await s.job(lease)
    assert (job.status, job.result, job.completed_at) == ("completed", {"n": 1}, at(1))
