import pytest

from control_plane.domain.deltas import START, DeltaChunk
from control_plane.errors import NotFound
from control_plane.keys import hash_secret
from tests.support.store_scenario import action, at, scenario


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        await made.publish("a", [action(retry={"max_attempts": 3})])
        yield made


def chunk(s, lease, last, items="[]", **fields):
    given = {
        "project_id": s.project.id,
        "job_id": lease.job.id,
        "token_hash": hash_secret(lease.lease_token),
        "last_sequence": last,
        "items": items,
    }
    return DeltaChunk(**(given | fields))


async def read(s, lease, after=START, limit=100):
    return await s.store.deltas(s.project.id, lease.job.id, after=after, limit=limit)


async def test_chunks_are_kept_in_order_while_their_lease_holds_the_job(s):
    await s.start("a")
    lease = await s.claim_one()
    assert (await read(s, lease)).newest is None
    items = '[[0,{"text":"\\u0000\\n"}]]'
    assert await s.store.append_deltas([chunk(s, lease, 0, items), chunk(s, lease, 9, "[[9,{}]]")], now=at(1)) == [
        True,
        True,
    ]
    assert await s.store.append_deltas([chunk(s, lease, 9, "[[9,{}]]")], now=at(1)) == [True]  # said twice, kept once
    page = await read(s, lease)
    assert (page.chunks, page.newest, page.ended) == ([(1, items), (1, "[[9,{}]]")], (1, 9), None)
    assert (await read(s, lease, after=(1, 0))).chunks == [(1, "[[9,{}]]")]
    assert (await read(s, lease, limit=1)).chunks == [(1, items)]
    await s.report(lease)
    page = await read(s, lease, after=(1, 9))
    assert (page.chunks, page.ended.status) == ([], "completed")


async def test_only_the_newest_lease_writes(s):
    await s.start("a")
    first = await s.claim_one()
    await s.store.append_deltas([chunk(s, first, 5)], now=at(1))
    await s.report(first, "failed", error="Oops", now=2)
    second = await s.claim_one(now=3)
    assert await s.store.append_deltas([chunk(s, first, 6), chunk(s, second, 0)], now=at(4)) == [False, True]
    page = await read(s, second)
    assert ([attempt for attempt, _ in page.chunks], page.newest) == ([1, 2], (2, 0))
    await s.report(second, now=5)
    assert await s.store.append_deltas([chunk(s, second, 1)], now=at(6)) == [False]


async def test_of_other_projects_and_of_nothing(s):
    await s.start("a")
    lease = await s.claim_one()
    other = await s.store.create_project("other", "Other")
    odd = [
        chunk(s, lease, 0, project_id=other.id),
        chunk(s, lease, 0, job_id="job_none"),
        chunk(s, lease, 0, token_hash=hash_secret("a guess")),
    ]
    assert await s.store.append_deltas(odd) == [False, False, False]
    with pytest.raises(NotFound):
        await s.store.deltas(other.id, lease.job.id, after=START, limit=1)
