"""Which connections a committed fact concerns."""

import pytest

from control_plane.domain.store import CancelRequested
from control_plane.session import StoreClaim
from tests.support.session_room import PROJECT, Room, claimable, hints
from wire import frames


@pytest.fixture
def room():
    return Room()


def test_one_job_wakes_one_of_many_claims_and_the_next_another(room):
    workers = [room.worker(f"w-{index}") for index in range(3)]
    for worker in workers:
        worker.claim()
        worker.answer(StoreClaim, [])
    woken = []
    for number in range(3):
        room.committed(claimable(number))
        (worker,) = [each for each in workers if each.questions]
        worker.answer(StoreClaim, [])
        woken.append(worker)
    assert len(set(woken)) == 3


def test_as_many_claims_wake_as_the_jobs_need(room):
    workers = [room.worker(f"w-{index}", concurrency_limit=2) for index in range(4)]
    for worker in workers:
        worker.claim(available_slots=2)
        worker.answer(StoreClaim, [])
    room.committed(*(claimable(number) for number in range(3)))
    assert sum(bool(worker.questions) for worker in workers) == 2


def test_a_delayed_job_hints_nobody_before_its_time(room):
    worker = room.worker()
    room.committed(claimable(1, available_at=10_000_001))
    assert hints(worker) == 0


def test_a_cancel_reaches_the_holder_and_nobody_else(room):
    holder, other = room.worker("w-1"), room.worker("w-2")
    session_id = holder.connection.session.id
    room.committed(
        CancelRequested(project_id=PROJECT, job_id="job_1", session_id=session_id, reason="stop", requested_at=0),
        CancelRequested(project_id=PROJECT, job_id="job_2", session_id="wsess_gone", reason=None, requested_at=0),
    )
    assert holder.take() == [frames.JobCancel(job_id="job_1", reason="stop", requested_at="1970-01-01T00:00:00Z")]
    assert other.take() == []


def test_the_sweeper_hears_who_was_seen(room):
    one, two = room.worker("w-1"), room.worker("w-2")
    ids = [each.connection.session.id for each in (one, two)]
    assert room.hub.take_seen() == ids
    assert room.hub.take_seen() == []
    room.now += 5
    two.connection.seen(room.now)
    assert room.hub.take_seen() == [ids[1]]
    room.now += 5
    one.send(frames.Keepalive())
    one.close()
    assert room.hub.take_seen() == [ids[0]]
    assert room.hub.live_sessions() == [ids[1]]


def test_the_hub_forgets_connections(room):
    worker = room.worker()
    assert room.hub.connections() == [worker.connection]
    worker.close()
    assert room.hub.connections() == []
    room.committed(claimable(1))
    assert worker.take() == []
