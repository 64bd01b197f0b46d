import pytest

from control_plane.domain.model import DrainTarget
from control_plane.domain.store import SessionDrainLifted, SessionDrainRequested
from control_plane.errors import Invalid, NotFound
from tests.support.store_scenario import action, at, scenario


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


def instance(value):
    return DrainTarget(kind="worker_instance_id", value=value)


def version(value):
    return DrainTarget(kind="version", value=value)


async def requested(s, session):
    return (await s.store.session_by_token(s.project.id, session.token_hash)).drain_requested


async def test_one_session_is_drained_and_let_go_again(s):
    s.facts.clear()
    target = DrainTarget(kind="session", value=s.session.id)
    other = await s.register("w-2")
    await s.store.drain_sessions(s.project.id, target, now=at(5))
    await s.store.drain_sessions(s.project.id, target, now=at(6))
    assert s.announced(SessionDrainRequested) == [SessionDrainRequested(session_id=s.session.id)]
    (drain,) = await s.store.drains(s.project.id)
    assert (drain.target, drain.created_at) == (target, at(5))
    assert (await s.store.register_session(s.session)).drain_requested  # sticky
    assert not await requested(s, other)
    await s.store.update_session(s.session.id, draining=True)
    s.facts.clear()
    await s.store.undrain_sessions(s.project.id, target)
    assert s.announced(SessionDrainLifted) == [SessionDrainLifted(session_id=s.session.id)]
    row = await s.store.session_by_token(s.project.id, s.session.token_hash)
    assert (row.drain_requested, row.draining) == (False, False)
    assert await s.store.drains(s.project.id) == []


@pytest.mark.parametrize("target", [instance("w-2"), version("1.4")])
async def test_a_drain_counts_for_sessions_that_register_while_it_stands(s, target):
    first = await s.register("w-2", version="1.4")
    await s.store.drain_sessions(s.project.id, target)
    assert [await requested(s, each) for each in (first, s.session)] == [True, False]
    second = await s.register("w-2", version="1.4")
    assert second.drain_requested
    s.facts.clear()
    await s.store.undrain_sessions(s.project.id, target)
    assert [fact.session_id for fact in s.announced(SessionDrainLifted)] == [second.id]
    assert not (await s.register("w-2", version="1.4")).drain_requested


async def test_what_another_drain_names_goes_on_draining(s):
    session = await s.register("w-2", version="1.4")
    await s.store.drain_sessions(s.project.id, instance("w-2"))
    await s.store.drain_sessions(s.project.id, version("1.4"))
    s.facts.clear()
    await s.store.undrain_sessions(s.project.id, instance("w-2"))
    assert s.announced(SessionDrainLifted) == []
    assert await requested(s, session)
    assert [drain.target for drain in await s.store.drains(s.project.id)] == [version("1.4")]


async def test_drains_of_nobody_and_of_other_projects(s):
    elsewhere = await s.store.create_project("other", "Other")
    for target in (DrainTarget(kind="session", value=s.session.id), DrainTarget(kind="session", value="wsess_none")):
        with pytest.raises(NotFound):
            await s.store.drain_sessions(elsewhere.id, target)
    await s.store.drain_sessions(elsewhere.id, instance("w-1"))  # may come yet
    assert not await requested(s, s.session)
    with pytest.raises(NotFound):
        await s.store.undrain_sessions(s.project.id, instance("w-1"))
    await s.store.end_sessions(unseen_since=at(1), except_for=[], now=at(2))
    with pytest.raises(NotFound):
        await s.store.drain_sessions(s.project.id, DrainTarget(kind="session", value=s.session.id))


async def test_the_history_of_sessions_and_why_they_ended(s):
    drained, _, fresh, stale = [await s.register(f"w-{number}") for number in (2, 3, 4, 5)]
    await s.store.update_session(drained.id, draining=True)
    await s.store.update_session(drained.id, ended=True, now=at(10))
    await s.register("w-3", version="2")
    await s.store.sessions_seen({fresh.id: at(500)})
    await s.store.drain_sessions(s.project.id, instance("w-5"))
    await s.store.end_sessions(unseen_since=at(400), except_for=[stale.id], now=at(600))

    async def page(state, **arguments):
        found = await s.store.session_page(
            s.project.id, state=state, stale_before=at(450), **{"cursor": None, "limit": 50, **arguments}
        )
        return [view.session.worker_instance_id for view in found.items], found

    assert (await page("live"))[0] == ["w-4"]
    assert (await page("stale"))[0] == ["w-5"]
    assert (await page("draining"))[0] == ["w-5"]
    _, ended = await page("ended")
    assert [(view.session.worker_instance_id, view.session.end_reason) for view in ended.items] == [
        ("w-3", "unseen"),
        ("w-3", "superseded"),
        ("w-2", "drained"),
        ("w-1", "unseen"),
    ]
    assert ended.items[2].session.ended_at == at(10)
    everybody = (await page("all"))[0]
    assert everybody == ["w-3", "w-5", "w-4", "w-3", "w-2", "w-1"]
    first, found = await page("all", limit=4)
    rest, last = await page("all", limit=4, cursor=found.next_cursor)
    assert (first + rest, last.next_cursor) == (everybody, None)
    with pytest.raises(Invalid):
        await page("all", cursor="%%")
    renewed = await s.store.register_session(drained)
    assert (renewed.ended_at, renewed.end_reason) == (None, None)
    assert "w-2" not in (await page("ended"))[0]


async def test_a_page_of_sessions_has_their_jobs(s):
    await s.publish("a", [action("named", name="The step")])
    await s.start("a")
    lease = await s.claim_one()
    arguments = {"state": "live", "stale_before": 0, "cursor": None, "limit": 10}
    (view,) = (await s.store.session_page(s.project.id, **arguments)).items
    assert [job.id for job in view.current_jobs] == [lease.job.id]
    await s.report(lease, result={"n": 1})
    (view,) = (await s.store.session_page(s.project.id, **arguments)).items
    assert (view.current_jobs, view.last_job.id, view.last_job.result) == ([], lease.job.id, None)
