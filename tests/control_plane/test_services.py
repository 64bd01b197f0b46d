"""The services on real stores. Rounds are run by hand; what runs by itself is waited for by what it does."""

import asyncio
import contextlib
import socket

import pytest

from control_plane import services
from control_plane.domain.store import Fired, JobClaimable, RunChanged, TimerArmed
from control_plane.errors import StoreUnavailable
from control_plane.services import (
    Pulse,
    PulseConfig,
    Reaper,
    ReaperConfig,
    Service,
    SessionSweeper,
    SessionSweeperConfig,
    Timers,
    TimersConfig,
    Wakeups,
    WakeupsConfig,
    WriteWatch,
    WriteWatchConfig,
)
from control_plane.store import postgres_queries, sqlite_queries
from service_manager.notify import Notifier
from tests.support.store_scenario import LEASE, action, at, scenario


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


class Counting(Service):
    """Every service has this shape; this one counts its rounds and fails when told to."""

    def __init__(self, store, interval=60.0):
        super().__init__(store, interval)
        self.rounds = asyncio.Queue()
        self.error = None

    async def run_once(self, now):
        self.rounds.put_nowait(now)
        if self.error is not None:
            raise self.error


async def test_the_first_round_comes_at_once_and_the_next_when_woken(s):
    service = Counting(s.store)
    await service.start()
    first = await service.rounds.get()
    service.wake()
    second = await service.rounds.get()
    assert first <= second <= s.store.now()
    await service.stop()
    await service.stop()


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), ValueError("a bug")])
async def test_a_bad_round_ends_no_service(s, error):
    service = Counting(s.store, interval=0.001)
    service.error = error
    await service.start()
    for _ in range(3):
        await service.rounds.get()
    await service.stop()


async def test_a_service_that_was_not_started_can_be_stopped(s):
    await Counting(s.store).stop()


async def test_the_reaper_sweeps_until_nothing_is_left(s):
    await s.publish("a", [action()])
    for _ in range(7):
        await s.start("a")
    leases = await s.claim(now=0)
    await Reaper(s.store, ReaperConfig(limit=3)).run_once(at(LEASE + 1))
    assert [(await s.job(lease)).error_type for lease in leases] == ["LeaseLapsed"] * 7


async def test_the_sweeper_writes_who_was_seen_and_ends_who_was_not(s):
    seen, cut_off, live = s.session, await s.register("w-2"), await s.register("w-3")
    sweeper = SessionSweeper(s.store, lambda: [seen.id], lambda: [live.id], SessionSweeperConfig(end_after=600))
    await sweeper.run_once(at(599))
    assert len(await s.store.sessions(s.project.id)) == 3
    await sweeper.run_once(at(601))
    views = {view.session.id: view.session for view in await s.store.sessions(s.project.id)}
    assert set(views) == {seen.id, live.id}
    assert views[seen.id].last_seen_at == at(601)
    assert (await s.store.session_by_token(s.project.id, cut_off.token_hash)).ended_at == at(601)


class Hand:
    """A clock that is set by hand: seconds, and what the store says at that moment."""

    def __init__(self, s, monkeypatch):
        self.seconds = 0.0
        monkeypatch.setattr(s.store, "now", lambda: at(self.seconds))

    def __call__(self):
        return self.seconds


async def test_a_reaper_that_overslept_takes_no_lease_before_its_holder_could_be_heard(s, monkeypatch):
    hand = Hand(s, monkeypatch)
    reaper = Reaper(s.store, ReaperConfig(overslept_after=15.0), seconds=hand)

    async def round_at(seconds):
        hand.seconds = seconds
        await reaper.run_once(at(seconds))

    await s.publish("a", [action()])
    for _ in range(2):
        await s.start("a")
    heard, silent = await s.claim(now=0)
    await round_at(0.0)
    await round_at(LEASE + 8)
    assert [(await s.job(lease)).status for lease in (heard, silent)] == ["claimed", "claimed"]
    await s.heartbeat(heard, now=LEASE + 9)
    await round_at(LEASE + 9)
    # In time as they are now, rounds take whom nobody hears when the grace is over.
    for seconds in range(10, 69):
        await round_at(LEASE + seconds)
    assert [(await s.job(lease)).error_type for lease in (heard, silent)] == [None, "LeaseLapsed"]


async def test_a_sweeper_that_overslept_ends_no_session_before_it_could_come_back(s, monkeypatch):
    hand = Hand(s, monkeypatch)
    sweeper = SessionSweeper(s.store, list, list, SessionSweeperConfig(end_after=600), seconds=hand)
    for seconds in (0, *range(700, 765, 5)):
        hand.seconds = seconds
        await sweeper.run_once(at(seconds))
        assert len(await s.store.sessions(s.project.id)) == (seconds < 700 + LEASE)


async def test_delayed_jobs_are_announced_when_they_are_due(s):
    await s.publish("a", [action(retry={"max_attempts": 3, "delay": "5s"})])
    await s.start("a")
    lease = await s.claim_one(now=1)
    heard = []
    wakeups = Wakeups(s.store, heard.extend, WakeupsConfig(interval=3600))
    await wakeups.run_once(at(1))
    await s.report(lease, "failed", error="Boom", now=2)
    await wakeups.run_once(at(6.9))
    assert heard == []
    await wakeups.run_once(at(7))
    assert [fact.job_id for fact in heard] == [lease.job.id]
    await wakeups.run_once(at(8))
    assert len(heard) == 1


async def test_more_due_jobs_than_a_round_announces_follow_in_the_next(s):
    await s.publish("a", [action(retry={"max_attempts": 3, "delay": "5s"})])
    for _ in range(5):
        await s.start("a")
    for number, lease in enumerate(await s.claim(now=1)):
        await s.report(lease, "failed", error="Boom", now=2 + number)
    heard = []
    wakeups = Wakeups(s.store, heard.extend, WakeupsConfig(interval=3600, limit=2))
    await wakeups.run_once(at(1))
    for _ in range(3):
        await wakeups.run_once(at(60))
    assert len({fact.job_id for fact in heard}) == 5


async def test_a_delayed_job_brings_the_next_round_forward(s):
    heard = asyncio.Queue()

    def listener(facts):
        for fact in facts:
            heard.put_nowait(fact)

    wakeups = Wakeups(s.store, listener, WakeupsConfig(interval=3600))
    await s.publish("a", [action(retry={"max_attempts": 3, "delay": "2s"})])
    run = await s.start("a")
    await wakeups.start()
    now = (s.store.now() - at(0)) / 1e6
    lease = await s.claim_one(now=now)
    s.facts.clear()
    await s.report(lease, "failed", error="Boom", now=(s.store.now() - at(0)) / 1e6)
    wakeups.notice(s.facts)
    fact = await asyncio.wait_for(heard.get(), 30)
    assert isinstance(fact, JobClaimable)
    assert fact.available_at <= s.store.now()
    await wakeups.stop()
    assert (await s.run(run)).status == "suspended"


async def test_a_stop_is_not_lost_that_comes_together_with_a_wake(s):
    wakeups = Wakeups(s.store, lambda facts: None, WakeupsConfig(interval=3600))
    await wakeups.start()
    async with asyncio.timeout(30):
        while wakeups._announced_until is None:  # noqa: ASYNC110 - a round is no event
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # its round is over; were it not, the stop would be heard all the same
    wakeups.wake()
    stopping = asyncio.ensure_future(wakeups.stop())
    stopped, _ = await asyncio.wait([stopping], timeout=20)
    stopping.cancel()
    assert stopped


NAP = {"key": "nap", "kind": "sleep", "config": {"duration": "300ms"}}


async def test_timers_fire_when_they_are_due_and_nothing_is_written_when_none_is(s, monkeypatch):
    await s.publish("a", [NAP])
    runs = [await s.start("a", now=number) for number in range(5)]
    timers = Timers(s.store, TimersConfig(limit=2))
    asked = []
    fire = s.store.fire_timers

    async def counted(**arguments):
        asked.append(arguments)
        return await fire(**arguments)

    monkeypatch.setattr(s.store, "fire_timers", counted)
    await timers.run_once(at(0.2))
    assert asked == []
    await timers.run_once(at(3.5))
    assert [(await s.run(run)).status for run in runs] == ["completed"] * 4 + ["suspended"]
    assert len(asked) == 2


async def test_a_timer_that_is_set_brings_the_next_round_forward(s):
    await s.publish("a", [NAP, {**NAP, "key": "again"}])
    timers = Timers(s.store, TimersConfig(interval=3600))
    await timers.start()
    run = await s.start("a", now=(s.store.now() - at(0)) / 1e6)
    timers.notice(s.facts)
    s.facts.clear()
    while (await s.run(run)).status != "completed":
        await s.hears(RunChanged)
        timers.notice([TimerArmed(due_at=await s.store.next_timer_at() or 0)])
    await timers.stop()


async def test_timers_whose_runs_are_being_decided_about_are_tried_again_soon(s, monkeypatch):
    await s.publish("a", [NAP])
    run = await s.start("a")
    fire, answers = s.store.fire_timers, [Fired(left=1)]

    async def busy_once(**arguments):
        return answers.pop() if answers else await fire(**arguments)

    monkeypatch.setattr(s.store, "fire_timers", busy_once)
    timers = Timers(s.store, TimersConfig(interval=3600))
    await timers.run_once(at(1))
    assert timers.pause() == TimersConfig().busy_pause
    await timers.run_once(at(1))
    assert (await s.run(run)).status == "completed"
    assert timers.pause() == 3600


@pytest.fixture
def heard(tmp_path):
    """What a service manager with a watchdog hears; its notifier."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.setblocking(False)
        environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000"}
        with contextlib.closing(Notifier.from_environment(environ)) as notifier:
            yield listening, notifier


def messages(listening):
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(listening.recv(4096).decode())
    return found


async def test_a_write_that_came_back_feeds_the_watchdog(s, heard):
    listening, notifier = heard
    await s.publish("a", [action()])
    for _ in range(3):
        await s.start("a")
    await s.claim(limit=1)
    pulse = Pulse(s.store, lambda: ["wsess_1"], notifier, PulseConfig())
    assert pulse.interval == 2.0
    await pulse.run_once(at(1))
    assert messages(listening) == [
        "WATCHDOG=1",
        "STATUS=serving: 1 worker session; 1 job in hand, 2 waiting; 3 open runs",
    ]


async def test_a_write_that_does_not_come_back_feeds_nothing(s, heard):
    listening, notifier = heard
    async with s.writes_held():
        round_ = asyncio.ensure_future(Pulse(s.store, list, notifier, PulseConfig()).run_once(at(1)))
        # The loop turns and reads are answered meanwhile.
        await s.store.load()
        assert messages(listening) == []
    await round_
    assert messages(listening)[0] == "WATCHDOG=1"


async def test_a_disk_that_is_full_is_said_and_is_no_reason_to_start_again(s, heard, monkeypatch):
    listening, notifier = heard

    async def full():
        raise StoreUnavailable("the store cannot write now: database or disk is full")

    monkeypatch.setattr(s.store, "ping", full)
    with pytest.raises(StoreUnavailable):
        await Pulse(s.store, list, notifier, PulseConfig()).run_once(at(1))
    assert messages(listening) == [
        "WATCHDOG=1",
        "STATUS=not serving: the store cannot write now: database or disk is full",
    ]


async def test_what_there_is_to_do_is_counted_so_far_and_no_further(s, heard, monkeypatch):
    listening, notifier = heard
    monkeypatch.setattr(services, "COUNTED_UP_TO", 2)
    for queries in (sqlite_queries, postgres_queries):
        monkeypatch.setattr(queries, "COUNTED_UP_TO", 2)
    await s.publish("a", [action()])
    for _ in range(3):
        await s.start("a")
    await Pulse(s.store, list, notifier, PulseConfig()).run_once(at(1))
    assert messages(listening)[1] == "STATUS=serving: 0 worker sessions; 0 jobs in hand, 2+ waiting; 2+ open runs"


async def test_a_write_that_does_not_come_back_stands_still(s):
    watch = WriteWatch(s.store, WriteWatchConfig(limit=0.0))
    await watch.run_once(at(0))
    assert not watch.stands_still()
    async with s.writes_held():
        writing = asyncio.create_task(watch.run_once(at(0)))
        async with asyncio.timeout(30):
            while not watch.stands_still():  # noqa: ASYNC110 - that nothing comes is no event
                await asyncio.sleep(0.01)
    await writing
    assert not watch.stands_still()


async def test_a_write_that_is_refused_came_back(s, monkeypatch):
    async def full():
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(s.store, "ping", full)
    watch = WriteWatch(s.store, WriteWatchConfig(limit=0.0))
    with pytest.raises(StoreUnavailable):
        await watch.run_once(at(0))
    assert not watch.stands_still()
