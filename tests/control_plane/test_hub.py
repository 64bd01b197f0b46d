"""Which connections a committed fact concerns."""

import pytest

from control_plane.domain.model import Selector
from control_plane.domain.store import CancelRequested
from control_plane.errors import StoreUnavailable
from control_plane.hub import MOST_EARLY
from control_plane.session import StoreClaim
from tests.support.session_room import PROJECT, Room, claimable, hints, lease
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


def test_a_claim_is_promised_no_more_than_it_can_lease(room):
    workers = waiting(room, 2, slots=1000)
    room.committed(claimable(count=1000))
    assert asked(workers) == workers


def test_what_came_while_a_claim_was_answered_with_others_is_hinted(room):
    (worker,) = waiting(room, 1, slots=5)
    room.committed(claimable(1))
    room.coming(claimable(2, count=4))
    room.committed(claimable(2, count=4))
    worker.answer(StoreClaim, [lease(1)])
    assert [type(frame) for frame in worker.take()] == [frames.Claimed, frames.WorkAvailable]


def waiting(room, number, slots=1):
    """So many workers whose claims have found nothing."""
    workers = [room.worker(f"w-{index}", concurrency_limit=slots) for index in range(number)]
    for worker in workers:
        worker.claim(available_slots=slots)
        worker.answer(StoreClaim, [])
        worker.take()
    return workers


def asked(workers):
    return [worker for worker in workers if worker.questions]


def test_a_claim_that_waits_is_asked_for_while_its_job_is_stored_and_nobody_else_when_it_is(room):
    workers = waiting(room, 2)
    room.coming(claimable(1))
    (worker,) = asked(workers)
    room.committed(claimable(1))
    assert asked(workers) == [worker]
    worker.answer(StoreClaim, [lease(1)])
    assert [len(frame.jobs) for frame in worker.take()] == [1]
    assert asked(workers) == []
    room.coming(claimable(2))
    assert asked(workers) == [each for each in workers if each is not worker]


def test_a_claim_that_was_asked_for_too_early_is_asked_for_again(room):
    (worker,) = waiting(room, 1)
    room.coming(claimable(1))
    room.committed(claimable(1))
    worker.answer(StoreClaim, [])
    worker.answer(StoreClaim, [lease(1)])
    assert [len(frame.jobs) for frame in worker.take()] == [1]


def test_lease_tokens_are_used_again_while_nobody_can_have_got_one(room):
    (worker,) = waiting(room, 1)
    room.coming(claimable(1))
    first = worker.answer(StoreClaim, []).order
    assert first.with_new
    room.coming(claimable(2))
    second = worker.answer(StoreClaim, StoreUnavailable("away")).order
    assert second.lease_tokens == first.lease_tokens
    room.coming(claimable(3))
    third = worker.answer(StoreClaim, [lease(1)]).order
    worker.claim(message_id="c2", available_slots=1)
    fourth = worker.asked(StoreClaim).order
    assert not fourth.with_new
    tokens = [*first.lease_tokens, *third.lease_tokens, *fourth.lease_tokens]
    assert len(set(tokens)) == len(tokens)


def test_a_claim_that_found_nothing_before_its_job_was_stored_is_woken_by_it(room):
    (worker,) = waiting(room, 1)
    room.coming(claimable(1))
    worker.answer(StoreClaim, [])
    assert asked([worker]) == []
    room.committed(claimable(1))
    assert asked([worker]) == [worker]


def test_a_job_that_is_not_stored_leaves_the_claim_as_it_was(room):
    (worker,) = waiting(room, 1)
    room.coming(claimable(1))
    worker.answer(StoreClaim, [])
    assert (worker.take(), worker.questions) == ([], [])
    room.coming(claimable(2))
    assert asked([worker]) == [worker]


def test_jobs_beyond_what_was_asked_for_early_wake_the_others(room):
    workers = waiting(room, 3, slots=2)
    room.coming(claimable(1), claimable(2), claimable(3))
    assert len(asked(workers)) == 2
    room.committed(claimable(1, count=6))
    assert len(asked(workers)) == 3


def test_of_a_large_batch_the_first_jobs_are_asked_for_early_and_the_others_when_they_are_stored(room):
    workers = waiting(room, 3, slots=MOST_EARLY)
    room.coming(*(claimable(number) for number in range(MOST_EARLY + 10)))
    assert len(asked(workers)) == 1
    room.committed(claimable(1, count=MOST_EARLY + 10))
    assert len(asked(workers)) == 2


def test_a_claim_that_is_asked_for_early_for_one_kind_of_job_takes_no_other_kind_from_anybody(room):
    for_both, for_other = waiting(room, 2)
    for_other.connection._claim.selector = Selector(action_names=("other",))
    room.coming(claimable(1))
    assert asked([for_both, for_other]) == [for_both]
    # Somebody else's, and stored sooner.
    room.committed(claimable(2, action_name="other"))
    assert asked([for_both, for_other]) == [for_both, for_other]


def test_no_claim_is_asked_for_early_that_would_not_take_the_job(room):
    (worker,) = waiting(room, 1)
    busy = room.worker("w-busy")
    room.coming(claimable(1, environment_id="env_1"))
    assert asked([worker, busy]) == []
    assert hints(busy) == 0


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
