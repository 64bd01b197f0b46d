"""Several replicas on one database: who is there, what they tell each other, and what becomes of those that go."""

import asyncio
from contextlib import asynccontextmanager
from itertools import count

import asyncpg
import pytest

from control_plane.domain.model import DrainTarget
from control_plane.domain.store import (
    CancelRequested,
    JobClaimable,
    RunChanged,
    SessionContested,
    SessionDrainLifted,
    SessionDrainRequested,
    SessionTaken,
)
from control_plane.store import postgres_replicas
from tests.support.store_scenario import LEASE, PostgresPlace, action, at, scenario


@pytest.fixture
def place(cluster):
    made = PostgresPlace(cluster)
    yield made
    made.remove()


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event to wait on
            await asyncio.sleep(0.01)


def knows(one, two):
    return two.store.replicas.id in one.store.replicas._peers and one.store.replicas._connection is not None


@asynccontextmanager
async def replicas(place, **terms):
    """Two that know each other."""
    async with scenario(place, **terms) as one, scenario(place, prepared=False, **terms) as two:
        two.project, two.session = one.project, one.session
        two.numbers = count(1_000_000)
        await until(lambda: knows(one, two) and knows(two, one))
        yield one, two


async def listening_backend(s):
    return s.store.replicas._connection.get_server_pid()


# --- hints


async def test_what_one_replica_commits_another_hears(place):
    async with replicas(place) as (one, two):
        await one.publish("a", [action()])
        run = await one.start("a")
        heard = await two.hears(JobClaimable)
        assert (heard.project_id, heard.queue, heard.action_name) == (one.project.id, "default", "print")
        assert (await two.hears(RunChanged)).run_id == run.id
        # The lane is new to the other replica, and known at once.
        lease = await two.claim_one(session=await two.register("w-2"))
        await one.store.cancel_run(one.project.id, run.id, "stop")
        cancel = await two.hears(CancelRequested)
        assert (cancel.job_id, cancel.reason) == (lease.job.id, "stop")
        await one.store.drain_sessions(one.project.id, DrainTarget(kind="session", value=two.session.id))
        assert (await two.hears(SessionDrainRequested)).session_id == two.session.id


async def test_a_replica_alone_tells_nobody(place):
    async with scenario(place) as s:
        await s.publish("a", [action()])
        await s.start("a")
        assert not s.store.replicas._gathered


async def test_a_replica_that_stops_is_gone_at_once_for_those_that_come(place):
    async with scenario(place) as one:
        gone = one.store.replicas.id
    async with scenario(place, prepared=False) as two:
        assert gone not in two.store.replicas._peers
        assert [row[0] for row in await two.read("SELECT id FROM replicas WHERE stopped_at IS NULL")] == [
            two.store.replicas.id
        ]


async def test_a_listener_that_was_cut_off_catches_up(place):
    async with replicas(place) as (one, two):
        await one.publish("a", [action()])
        run = await one.start("a", now=(one.store.now() - at(0)) / 1e6)
        session = await two.register("w-2")
        lease = await two.claim_one(session=session, now=(one.store.now() - at(0)) / 1e6)
        two.facts.clear()
        pid = await listening_backend(two)
        one.store.replicas._peers.clear()  # what follows is told to nobody
        await one.store.cancel_run(one.project.id, run.id, "stop")
        await one.store.drain_sessions(one.project.id, DrainTarget(kind="session", value=session.id))
        await one.write(f"SELECT pg_terminate_backend({pid})")
        heard = set()  # each at least once: whoever catches up cannot know what was said before
        async with asyncio.timeout(60):
            while heard != {CancelRequested, SessionDrainRequested}:
                heard.add(type(await two.hears((CancelRequested, SessionDrainRequested))))
        # The cut may arrive after a word of the other, who has heard of this one again in its beat.
        await until(lambda: knows(two, one) and two.store.replicas._connection.get_server_pid() != pid)
        assert (await two.heartbeat(lease, now=(one.store.now() - at(0)) / 1e6)).cancel_requested


async def test_a_drain_that_nobody_told_of_is_found_now_and_then(place, monkeypatch):
    monkeypatch.setattr(postgres_replicas, "BEAT_INTERVAL", 0.05)
    async with replicas(place) as (one, two):
        session = await two.register("w-2")
        two.facts.clear()
        await one.write(f"UPDATE sessions SET drain_requested = true WHERE id = '{session.id}'")
        assert (await two.hears(SessionDrainRequested)).session_id == session.id
        await until(lambda: two.store.replicas._beats > 20)
        assert two.announced(SessionDrainRequested) == []


async def test_a_lifted_drain_that_nobody_told_of_is_found_too(place, monkeypatch):
    monkeypatch.setattr(postgres_replicas, "BEAT_INTERVAL", 0.05)
    async with replicas(place) as (one, two):
        session = await two.register("w-2", version="1.4")
        target = DrainTarget(kind="version", value="1.4")
        await one.store.drain_sessions(one.project.id, target)
        assert (await two.hears(SessionDrainRequested)).session_id == session.id
        one.store.replicas._peers.clear()  # nobody is told
        two.facts.clear()
        await one.store.undrain_sessions(one.project.id, target)
        assert (await two.hears(SessionDrainLifted)).session_id == session.id
        assert (await two.register("w-3", version="1.4")).drain_requested is False


async def test_a_registration_and_a_drain_on_two_replicas_never_miss_each_other(place):
    async with replicas(place) as (one, two):
        for number in range(20):
            target = DrainTarget(kind="worker_instance_id", value=f"r-{number}")
            session, _ = await asyncio.gather(
                two.register(f"r-{number}"), one.store.drain_sessions(one.project.id, target)
            )
            row = await one.store.session_by_token(one.project.id, session.token_hash)
            assert row.drain_requested


async def test_a_listener_that_hears_nothing_is_replaced(place, monkeypatch):
    monkeypatch.setattr(postgres_replicas, "BEAT_INTERVAL", 0.05)
    monkeypatch.setattr(postgres_replicas, "GONE_AFTER", 1.0)
    async with scenario(place) as s:
        await until(lambda: s.store.replicas._connection is not None)
        deaf = s.store.replicas._connection
        async with s.store.replicas._sending:
            await deaf.execute("UNLISTEN *")
        await until(lambda: s.store.replicas._connection not in (None, deaf))
        heard_at = s.store.replicas._heard_at
        await until(lambda: s.store.replicas._heard_at > heard_at)


# --- sessions


async def test_a_worker_that_is_alive_elsewhere_keeps_its_identity(place, monkeypatch):
    monkeypatch.setattr(postgres_replicas, "CONTEST_TIMEOUT", 30.0)
    async with replicas(place) as (one, two):
        session = await one.register("w-1")
        asking = asyncio.ensure_future(two.store.contest(one.project.id, "w-1"))
        contested = await one.hears(SessionContested)
        assert contested.session_id == session.id
        await one.store.answer_contest(contested.contest_id, alive=True)
        assert await asking
        asking = asyncio.ensure_future(two.store.contest(one.project.id, "w-1"))
        await one.store.answer_contest((await one.hears(SessionContested)).contest_id, alive=False)
        assert not await asking
        # Nobody owns these: never seen, our own, draining.
        assert not await two.store.contest(one.project.id, "w-9")
        assert not await one.store.contest(one.project.id, "w-1")
        await one.store.update_session(session.id, draining=True)
        assert not await two.store.contest(one.project.id, "w-1")


async def test_a_replica_that_does_not_answer_does_not_keep_an_identity(place, monkeypatch):
    monkeypatch.setattr(postgres_replicas, "CONTEST_TIMEOUT", 0.2)
    async with replicas(place) as (one, two):
        await one.register("w-1")
        assert not await two.store.contest(one.project.id, "w-1")
    async with scenario(place, prepared=False) as three:
        # Its replica is gone: nobody is asked, nobody is waited for.
        monkeypatch.setattr(postgres_replicas, "CONTEST_TIMEOUT", 3600.0)
        assert not await three.store.contest(one.project.id, "w-1")


async def test_a_worker_that_goes_to_another_replica_is_let_go_by_the_first(place):
    async with replicas(place) as (one, two):
        session = await one.register("w-1")
        moved = await two.store.register_session(session, now=at(5))
        assert moved.id == session.id
        taken = await one.hears(SessionTaken)
        assert (taken.session_id, taken.before) == (session.id, at(5))


async def test_whoever_takes_an_identity_over_is_told_to_the_replica_of_its_predecessor(place):
    async with replicas(place) as (one, two):
        old = await one.register("w-7")
        new = await two.register("w-7")
        assert (await one.hears(SessionTaken)).session_id == old.id
        assert (await one.store.session_by_token(one.project.id, old.token_hash)).superseded
        assert not (await one.store.session_by_token(one.project.id, new.token_hash)).superseded


async def test_a_session_that_went_unnoticed_is_let_go_when_it_is_said_to_be_seen(place):
    async with replicas(place) as (one, two):
        kept, moved = await one.register("w-1"), await one.register("w-2")
        two.store.replicas._peers.clear()  # the first replica is told nothing
        await two.store.register_session(moved)
        one.facts.clear()
        await one.store.sessions_seen({kept.id: at(9), moved.id: at(9)})
        assert [fact.session_id for fact in one.announced(SessionTaken)] == [moved.id]


async def test_each_replica_ends_its_own_sessions_and_those_of_replicas_that_are_gone(place):
    async with replicas(place) as (one, two):
        await one.register("w-1")
        await two.register("w-2")
        assert await two.store.end_sessions(unseen_since=at(10), except_for=[], now=at(10)) == 1
        live = {view.session.worker_instance_id for view in await one.store.sessions(one.project.id)}
        assert live == {"w-1"}
    async with scenario(place, prepared=False) as three:
        assert await three.store.end_sessions(unseen_since=at(10), except_for=[], now=at(10)) == 1


# --- leases


async def test_the_leases_of_a_replica_that_has_gone_get_one_lease_duration_more(place):
    async with replicas(place) as (one, two):
        await one.publish("a", [action()])
        await one.start("a")
        own = await one.register("w-1")
        await one.claim_one(session=own, now=0)
        await one.store.close()
        assert (await two.reap(LEASE + 1)).leases_lapsed == 0
        assert (await two.reap(2 * LEASE - 1)).leases_lapsed == 0
        assert (await two.reap(2 * LEASE)).leases_lapsed == 1


async def test_a_worker_that_has_just_come_back_may_heartbeat_before_its_lease_lapses(place):
    async with replicas(place) as (one, two):
        await one.publish("a", [action(retry={"max_attempts": 2})])
        await one.start("a")
        session = await one.register("w-1")
        lease = await one.claim_one(session=session, now=0)
        await two.store.register_session(session, now=at(LEASE - 5))
        assert (await two.reap(LEASE + 1)).leases_lapsed == 0
        assert not (await two.heartbeat(lease, now=LEASE + 5)).lost
        # From the next sign of life on it is a lease like any other.
        assert (await two.reap(2 * LEASE + 4)).leases_lapsed == 0
        assert (await two.reap(2 * LEASE + 5)).leases_lapsed == 1


async def test_every_replica_sweeps_and_nothing_is_swept_twice(place):
    async with replicas(place) as (one, two):
        await one.publish("a", [action(retry={"max_attempts": 2})])
        for _ in range(30):
            await one.start("a")
        leases = await one.claim(limit=30, now=0)
        swept = await asyncio.gather(*(s.reap(LEASE + 1) for s in (one, two) for _ in range(4)))
        assert sum(reaped.leases_lapsed for reaped in swept) == 30
        again = await two.claim(limit=30, now=LEASE + 2)
        assert {lease.job.id for lease in again} == {lease.job.id for lease in leases}
        assert {lease.job.attempts_charged for lease in again} == {1}


async def test_hints_are_gathered_sent_between_transactions_and_wait_for_no_disk(place, monkeypatch):
    """Inside a transaction a NOTIFY would keep every other commit of the database waiting."""
    sent = []
    execute = asyncpg.Connection.execute

    async def watched(self, query, *arguments, **options):
        if "pg_notify" in query:
            sent.append((self.is_in_transaction(), await self.fetchval("SHOW synchronous_commit")))
        return await execute(self, query, *arguments, **options)

    async with replicas(place) as (one, two):
        await one.publish("a", [action()])
        two.facts.clear()
        monkeypatch.setattr(asyncpg.Connection, "execute", watched)
        runs = await asyncio.gather(*(one.start("a") for _ in range(200)))
        unheard = {run.id for run in runs}
        while unheard:
            unheard.discard((await two.hears(RunChanged)).run_id)
    assert sent
    assert set(sent) == {(False, "off")}
    assert len(sent) < len(runs) / 4


async def test_every_replica_fires_timers_and_none_fires_twice(place):
    nap = {"key": "nap", "kind": "sleep", "config": {"duration": "1s"}}
    async with replicas(place) as (one, two):
        await one.publish("a", [nap, {**nap, "key": "again"}])
        runs = [await one.start("a") for _ in range(12)]
        for second in (1, 2):
            while await one.store.next_timer_at() == at(second):
                await asyncio.gather(*(s.store.fire_timers(limit=5, now=at(second)) for s in (one, two)))
        for run in runs:
            types = await one.event_types(run)
            assert types.count("step.completed") == 2
            assert types[-1] == "run.completed"


@pytest.mark.parametrize("concurrency", ["queue", "replace"])
async def test_of_an_automation_that_takes_turns_one_run_goes_on_whatever_replica_starts_it(place, concurrency):
    async with replicas(place) as (one, two):
        await one.publish("a", [action()], concurrency=concurrency)
        runs = []

        async def busy(s):
            for _ in range(6):
                runs.append(await s.start("a"))
                await s.store.fire_timers(limit=9, now=at(0))
                for lease in await s.claim(limit=1):
                    await s.report(lease)
                (open_runs,) = await s.read("SELECT count(*) FROM runs WHERE status = 'suspended'")
                assert open_runs[0] <= 1

        await asyncio.gather(busy(one), busy(two))
        for _ in range(12):
            await one.fire(0)
            for lease in await one.claim():
                await one.report(lease)
        assert {(await one.run(run)).status for run in runs} <= {"completed", "cancelled"}
        assert await one.read("SELECT * FROM run_turns") == []
        assert await one.store.next_timer_at() is None
