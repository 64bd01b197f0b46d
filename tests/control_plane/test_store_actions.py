"""What is recorded of actions, and the jobs that are withheld because of it, on real stores. Time is fed."""

import pytest

from control_plane.domain.enqueue import NewJob
from control_plane.domain.store import JobEnded
from control_plane.errors import Conflict, NotFound
from tests.support.store_scenario import LEASE, action, at, plain, scenario

JSON = ("annotations", "input_schema", "output_schema", "tags")


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


def new(action_name, **fields):
    return NewJob(action_name=action_name, spec={"parameters": {}}, **fields)


async def record(s, name, **fields):
    return await s.store.create_action(s.project.id, name, fields, now=at(0))


async def test_records_are_made_changed_listed_and_forgotten(s):
    schema = {"type": "object"}
    first = await record(s, "a", title="A", annotations={"idempotent": True}, input_schema=schema, tags={"t": "1"})
    assert plain(await s.store.action(s.project.id, "a"), *JSON) == first
    assert (first.input_schema, first.only_once, first.created_at) == (schema, False, at(0))
    with pytest.raises(Conflict) as raised:
        await record(s, "a")
    assert raised.value.code == "name_taken"
    await record(s, "b")
    changes = {"annotations": {"read_only": True}, "description": "d", "max_running": 3}
    changed = await s.store.update_action(s.project.id, "a", changes, now=at(5))
    assert changed.annotations == {"idempotent": True, "read_only": True}
    assert (changed.title, changed.description, changed.max_running, changed.updated_at) == ("A", "d", 3, at(5))
    assert plain(await s.store.action(s.project.id, "a"), *JSON) == changed
    page = await s.store.actions(s.project.id, cursor=None, limit=1)
    assert [one.name for one in page.items] == ["b"]
    page = await s.store.actions(s.project.id, cursor=page.next_cursor, limit=1)
    assert ([plain(one, *JSON) for one in page.items], page.next_cursor) == ([changed], None)
    await s.store.delete_action(s.project.id, "a")
    for forgotten in (
        s.store.action(s.project.id, "a"),
        s.store.update_action(s.project.id, "a", {}),
        s.store.delete_action(s.project.id, "a"),
        s.store.action("proj_other", "b"),
    ):
        with pytest.raises(NotFound):
            await forgotten


async def test_only_what_is_recorded_as_not_idempotent_is_withheld_when_its_worker_is_lost(s):
    await record(s, "once", annotations={"idempotent": False})
    await record(s, "often", annotations={"idempotent": True})
    await record(s, "plain", annotations={"destructive": True})
    names = ("once", "often", "plain", "unknown")
    await s.enqueue([new(name, max_attempts=3) for name in names])
    other = await s.store.create_project("other", "Other")
    await s.store.create_action(other.id, "unknown", {"annotations": {"idempotent": False}})
    leases = {lease.job.action_name: lease for lease in await s.claim(now=1)}
    await s.reap(LEASE + 2)
    statuses = {name: (await s.job(lease)).status for name, lease in leases.items()}
    assert statuses == {"once": "failed", "often": "pending", "plain": "pending", "unknown": "pending"}
    job = await s.job(leases["once"])
    assert job.error_type == "LeaseLapsed"
    assert "recorded as not idempotent" in job.error_message
    assert await s.report(leases["once"], now=LEASE + 3) == "superseded"


@pytest.mark.parametrize(
    ("error", "status"), [("WorkerCrashed", "failed"), ("WorkerShutdown", "failed"), ("Boom", "pending")]
)
async def test_a_worker_that_tells_of_its_end_is_a_lost_one(s, error, status):
    await record(s, "once", annotations={"idempotent": False})
    await s.enqueue([new("once", max_attempts=3), new("other", max_attempts=3)])
    for lease in await s.claim(now=1):
        await s.report(lease, "failed", error=error, message="so", now=2)
        job = await s.job(lease)
        assert job.status == ("pending" if job.action_name == "other" else status)
    # What was never started costs nothing, whatever is recorded.
    await s.enqueue([new("once")], now=10)
    lease = (await s.claim(now=11))[-1]
    assert await s.report(lease, "failed", error="WorkerOverCapacity", now=12) == "handed_back"


async def test_a_worker_that_stops_in_the_middle_gives_back_only_what_may_run_twice(s):
    await record(s, "once", annotations={"idempotent": False})
    await s.enqueue([new("once", max_attempts=3), new("other", max_attempts=3)])
    leases = {lease.job.action_name: lease for lease in await s.claim(now=1)}
    for lease in leases.values():
        await s.report(lease, "cancelled", now=2)
    assert (await s.job(leases["other"])).status == "pending"
    withheld = await s.job(leases["once"])
    assert (withheld.status, withheld.error_type) == ("failed", "WorkerShutdown")
    assert "recorded as not idempotent" in withheld.error_message
    # Where the cancel was asked for, it is one.
    await s.enqueue([new("once", max_attempts=3)], now=3)
    (lease,) = [each for each in await s.claim(now=4) if each.job.action_name == "once"]
    await s.store.cancel_job(s.project.id, lease.job.id, None, now=at(5))
    await s.report(lease, "cancelled", now=6)
    assert (await s.job(lease)).status == "cancelled"


async def test_a_step_whose_job_is_withheld_fails_and_a_direct_job_can_be_put_back(s):
    await record(s, "once", annotations={"idempotent": False})
    await s.publish("a", [action(action_name="once", retry={"max_attempts": 3})])
    run = await s.start("a")
    await s.enqueue([new("once", max_attempts=3)])
    step_lease, direct = await s.claim(now=1)
    await s.reap(LEASE + 2)
    run = await s.run(run)
    assert (run.status, run.error_type) == ("failed", "LeaseLapsed")
    assert (await s.job(step_lease)).status == "failed"
    await s.store.retry_job(s.project.id, direct.job.id, now=at(LEASE + 3))
    assert (await s.claim_one(now=LEASE + 4)).job.id == direct.job.id


async def test_the_end_of_a_watched_job_is_announced_and_of_no_other(s):
    await s.enqueue([new("a", max_attempts=2), new("a")])
    first, second = await s.claim()
    s.store.watched_jobs.add(first.job.id)
    await s.report(second)
    await s.report(first, "failed", error="Boom")
    assert s.announced(JobEnded) == []
    await s.report(await s.claim_one())
    assert [fact.job_id for fact in s.announced(JobEnded)] == [first.job.id]
