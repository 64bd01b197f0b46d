"""Queues that are paused, and limits on how many jobs run at once, on real stores. Time is fed."""

import asyncio

import pytest

from control_plane.domain.enqueue import NewJob
from control_plane.domain.model import Selector
from control_plane.domain.store import JobClaimable, Running
from control_plane.errors import NotFound
from control_plane.store.postgres_lanes import REREAD_AFTER
from tests.support.store_scenario import LEASE, PostgresPlace, action, at, scenario


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


def new(action_name="print", **fields):
    return NewJob(action_name=action_name, spec={"parameters": {}}, **fields)


async def say(s, name, *, now=0.0, **changes):
    return await s.store.update_queue(s.project.id, name, changes, now=at(now))


async def limit_action(s, name, most):
    await s.store.create_action(s.project.id, name, {"max_running": most}, now=at(0))


async def test_a_paused_queue_gives_out_nothing_until_it_is_resumed(s):
    ids = (await s.enqueue([new(queue="a"), new(queue="b"), new(queue="a")])).ids
    queue = await say(s, "a", paused=True, now=1)
    assert (queue.paused_at, queue.max_running) == (at(1), None)
    assert (await say(s, "a", paused=True, now=2)).paused_at == at(1)
    assert [lease.job.id for lease in await s.claim(now=2)] == [ids[1]]
    s.facts.clear()
    assert (await say(s, "a", paused=False, now=3)).paused_at is None
    assert [fact.job_id for fact in s.announced(JobClaimable)] == [ids[0], ids[2]]
    assert [lease.job.id for lease in await s.claim(now=3)] == [ids[0], ids[2]]


async def test_limits_and_pauses_count_for_a_claim_that_comes_with_new_jobs(s):
    await s.enqueue([new(), new(queue="a")])
    await s.claim(limit=2)
    await say(s, "default", max_running=3)
    await say(s, "a", paused=True)
    enqueued, first = await asyncio.gather(s.enqueue([new(), new(), new(queue="a"), new()], now=1), s.claim(now=1))
    leases = [*first, *(await s.claim(now=1))]
    assert [lease.job.id for lease in leases] == enqueued.ids[:2]


async def test_a_job_that_runs_stays_so_when_its_queue_is_paused_and_its_retry_waits(s):
    await s.enqueue([new(max_attempts=2), new()])
    first, second = await s.claim(now=1)
    await say(s, "default", paused=True)
    assert not (await s.heartbeat(first, now=2)).lost
    assert await s.report(second, now=2) == "accepted"
    assert await s.report(first, "failed", error="Boom", now=2) == "accepted"
    assert await s.claim(now=3) == []
    await say(s, "default", paused=False)
    assert len(await s.claim(now=3)) == 1


async def test_a_queue_can_be_paused_before_its_first_job_and_steps_wait_too(s):
    await say(s, "later", paused=True)
    await s.publish("a", [action()], settings={"queue": "later"})
    await s.start("a")
    assert await s.claim() == []
    await say(s, "later", paused=False)
    assert len(await s.claim()) == 1


async def test_a_queues_limit_counts_what_is_claimed(s):
    await s.enqueue([new(queue="a") for _ in range(5)] + [new(queue="b")])
    await say(s, "a", max_running=2)
    leases = await s.claim(now=1)
    assert sorted(lease.job.queue for lease in leases) == ["a", "a", "b"]
    assert await s.claim(now=1) == []
    held = next(lease for lease in leases if lease.job.queue == "a")
    s.facts.clear()
    await s.report(held, now=2)
    # The slot that is free is announced, so that nobody waits for the next look.
    assert {fact.queue for fact in s.announced(JobClaimable)} == {"a"}
    assert len(await s.claim(now=2)) == 1
    assert await s.claim(now=2) == []
    s.facts.clear()
    await say(s, "a", max_running=3)
    assert s.announced(JobClaimable)
    assert len(await s.claim(now=3)) == 1
    await say(s, "a", max_running=None)
    assert len(await s.claim(now=3)) == 1


@pytest.mark.parametrize("how", ["failed", "handed_back", "lapsed", "cancelled", "timed_out"])
async def test_however_a_job_leaves_the_next_one_is_announced(s, how):
    await say(s, "default", max_running=1)
    await s.enqueue([new(execution_timeout=20.0), new()])
    lease = await s.claim_one(now=1)
    assert await s.claim(now=1) == []
    s.facts.clear()
    if how == "failed":
        await s.report(lease, "failed", error="Boom", now=2)
    elif how == "handed_back":
        await s.report(lease, "failed", error="WorkerOverCapacity", now=2)
    elif how == "cancelled":
        await s.store.cancel_job(s.project.id, lease.job.id, None, now=at(2))
        assert s.announced(JobClaimable) == []
        await s.report(lease, "cancelled", now=2)
    elif how == "timed_out":
        await s.reap(22)
    else:
        await s.heartbeat(lease, now=1)
        await s.write("UPDATE jobs_claimed SET execution_deadline_at = execution_deadline_at * 2")
        await s.reap(LEASE * 3)
    assert s.announced(JobClaimable)
    assert len(await s.claim(now=LEASE * 3)) == 1


async def test_an_actions_limit_counts_over_queues(s):
    await limit_action(s, "heavy", 2)
    await s.enqueue([new("heavy", queue=f"q{number}") for number in range(4)] + [new("light", queue="q0")])
    leases = await s.claim(now=1)
    assert sorted(lease.job.action_name for lease in leases) == ["heavy", "heavy", "light"]
    await s.report(next(lease for lease in leases if lease.job.action_name == "heavy"), now=2)
    assert len(await s.claim(now=2)) == 1
    s.facts.clear()
    await s.store.update_action(s.project.id, "heavy", {"max_running": None}, now=at(3))
    assert s.announced(JobClaimable)
    assert len(await s.claim(now=3)) == 1


async def test_both_limits_count_together(s):
    await limit_action(s, "heavy", 2)
    await say(s, "a", max_running=3)
    await s.enqueue([new("heavy", queue="a") for _ in range(3)] + [new("light", queue="a") for _ in range(3)])
    names = sorted(lease.job.action_name for lease in await s.claim(now=1))
    assert names == ["heavy", "heavy", "light"]
    await s.store.delete_action(s.project.id, "heavy")
    assert await s.claim(now=2) == []


async def test_claims_at_the_same_time_share_a_limit(s):
    await say(s, "default", max_running=5)
    await s.enqueue([new() for _ in range(40)])
    claims = await asyncio.gather(*(s.claim(now=1, limit=3) for _ in range(10)))
    assert sum(len(leases) for leases in claims) == 5


async def test_priorities_and_selectors_count_within_limits(s):
    await say(s, "default", max_running=2)
    low = (await s.enqueue([new("a"), new("b")])).ids
    high = (await s.enqueue([new("a", priority=5)])).ids
    leases = await s.claim(now=1, selector=Selector(action_names=("a",)))
    assert [lease.job.id for lease in leases] == [*high, low[0]]
    assert await s.claim(now=1) == []


async def test_another_project_has_its_own_queues(s):
    other = await s.store.create_project("other", "Other")
    await s.store.update_queue(other.id, "default", {"paused": True, "max_running": 1})
    await s.enqueue([new(), new()])
    assert len(await s.claim()) == 2
    assert (await s.store.queue(s.project.id, "default")).queue.paused_at is None


async def test_what_is_in_the_queues(s):
    await s.enqueue([new(queue="a"), new("other", queue="a")], now=3)
    await s.enqueue([new(queue="a", delay=100.0), new(queue="b", delay=100.0)], now=1)
    await s.claim(now=4, limit=1)
    await say(s, "c", max_running=7)
    views = await s.store.queues(s.project.id, now=at(5))
    assert [(view.queue.name, view.pending, view.claimed, view.oldest_available_at) for view in views] == [
        ("a", 2, 1, at(3)),
        ("b", 1, 0, None),
        ("c", 0, 0, None),
    ]
    assert (await s.store.queue(s.project.id, "c")).queue.max_running == 7
    with pytest.raises(NotFound):
        await s.store.queue(s.project.id, "nothing")


async def test_what_holds_a_job_back(s):
    await s.enqueue([new("heavy", queue="a"), new("heavy", queue="a")])
    job = (await s.claim(limit=1))[0].job
    assert not (await s.store.hold(job)).limits
    await limit_action(s, "heavy", 1)
    await say(s, "a", max_running=4, paused=True)
    hold = await s.store.hold(job)
    assert hold.is_paused
    assert sorted(hold.limits, key=lambda limit: limit.kind) == [
        Running(kind="action", name="heavy", most=1, running=1),
        Running(kind="queue", name="a", most=4, running=1),
    ]


async def test_rules_survive_a_restart(place):
    async with scenario(place) as s:
        await say(s, "default", max_running=1)
        await s.enqueue([new(), new(queue="paused")])
        await say(s, "paused", paused=True)
        project, session = s.project, s.session
    async with scenario(place, prepared=False) as s:
        s.project, s.session = project, session
        assert len(await s.claim()) == 1
        await s.enqueue([new()])
        assert await s.claim() == []


async def test_a_limit_holds_across_replicas_and_its_end_reaches_all(cluster):
    place = PostgresPlace(cluster)
    async with scenario(place) as one, scenario(place, prepared=False) as two:
        two.project, two.session = one.project, one.session
        await one.enqueue([new() for _ in range(60)])
        await say(one, "default", max_running=7)
        await asyncio.sleep(REREAD_AFTER)  # the other replica has read the rules before: it believes them so long
        for now in range(1, 4):
            claims = await asyncio.gather(*(each.claim(now=now, limit=2) for _ in range(10) for each in (one, two)))
            leases = [lease for leases in claims for lease in leases]
            assert len(leases) == 7
            assert len({lease.job.id for lease in leases}) == 7
            await asyncio.gather(*(one.report(lease, now=now) for lease in leases))
        await say(one, "default", paused=True)
        await asyncio.sleep(REREAD_AFTER)
        assert await two.claim(now=5) == []
        two.facts.clear()
        await say(one, "default", paused=False, max_running=None)
        await two.hears(JobClaimable)
        assert len(await two.claim(now=6, limit=10)) == 10
    place.remove()


async def test_all_that_a_resumed_queue_has_is_announced_for_all_who_wait(s):
    await say(s, "default", paused=True)
    await s.enqueue([new() for _ in range(300)])
    s.facts.clear()
    await say(s, "default", paused=False)
    assert sum(fact.count for fact in s.announced(JobClaimable)) == 300
