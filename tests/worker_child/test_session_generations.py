"""The session's part in generations: models on offer, deltas, and what becomes of both when a connection is lost."""

import math

import pytest

from tests.support.session_driver import SessionDriver, claimed_generation, claimed_job, model
from wire import frames
from worker_child.decisions import Announce, Note, Send, StartJob
from worker_child.session import ActionTerms

GENERATE_ONLY = {"actions": {}, "models": ("p/m",)}


def generating(**fields):
    driver = SessionDriver(**{"models": ("p/m",), **fields}).register()
    return driver.claim_answered(claimed_generation(1))


def register_of(driver):
    frames_sent = [decision.frame for decision in driver.history if isinstance(decision, Send)]
    return next(frame for frame in frames_sent if isinstance(frame, frames.Register))


def texts(sent):
    return [(delta.sequence, delta.delta["text"]) for delta in sent]


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_are_registered_and_claimed_with():
    driver = SessionDriver(models=("p/m", "q/n")).register()
    assert register_of(driver).models == [model("p/m"), model("q/n")]
    assert driver.last_claim().models == [model("p/m"), model("q/n")]
    assert driver.last_claim().action_names == ["work"]


def test_without_models_no_frame_speaks_of_them():
    driver = SessionDriver().register()
    assert register_of(driver).models is None
    assert driver.last_claim().models is None


def test_models_alone_are_claimed_with_an_empty_list_of_actions():
    driver = SessionDriver(**GENERATE_ONLY).register()
    assert (driver.last_claim().action_names, driver.last_claim().models) == ([], [model("p/m")])


def test_saturated_actions_leave_the_models_in_the_claim():
    driver = SessionDriver(concurrency=3, actions={"work": ActionTerms(concurrency=1)}, models=("p/m",)).register()
    driver.claim_answered(claimed_job(1))
    assert (driver.last_claim().action_names, driver.last_claim().models) == ([], [model("p/m")])


def test_a_worker_that_has_nothing_to_offer_yet_claims_nothing_but_is_ready():
    driver = SessionDriver(actions={}).register()
    assert (register_of(driver).available_slots, register_of(driver).models) == (0, None)
    assert driver.sent(frames.Claim) == []
    assert Announce("ready") in driver.decided
    driver.receive(frames.WorkAvailable())
    assert driver.sent(frames.Claim) == []


def test_models_that_come_are_announced_and_claimed_with():
    driver = SessionDriver(actions={}).register()
    driver.took(driver.session.models_changed([model("p/m")], driver.now))
    (ready,) = driver.sent(frames.Ready)
    assert (ready.action_names, ready.models, ready.available_slots) == ([], [model("p/m")], 1)
    assert driver.last_claim().models == [model("p/m")]


def test_models_that_go_leave_the_next_claim_and_never_an_empty_one():
    driver = SessionDriver(models=("p/m",)).register()
    driver.took(driver.session.models_changed([], driver.now))
    assert driver.sent(frames.Ready)[0].models == []
    driver.claim_answered()
    driver.receive(frames.WorkAvailable())
    assert (driver.last_claim().action_names, driver.last_claim().models) == (["work"], [])
    driver = SessionDriver(**GENERATE_ONLY).register()
    driver.took(driver.session.models_changed([], driver.now))
    (ready,) = driver.sent(frames.Ready)
    assert (ready.available_slots, ready.action_names, ready.models) == (0, None, None)
    driver.claim_answered()
    driver.receive(frames.WorkAvailable())
    assert driver.sent(frames.Claim) == []


def test_models_that_stay_are_not_spoken_of_again():
    driver = SessionDriver(models=("p/m",)).register()
    assert driver.session.models_changed([model("p/m")], driver.now) == []


def test_models_that_change_while_disconnected_are_in_the_next_register():
    driver = SessionDriver(models=("p/m",)).register().lose()
    assert driver.session.models_changed([model("p/n")], driver.now) == []
    assert driver.connect().sent(frames.Register)[0].models == [model("p/n")]


def test_a_generation_is_taken_counted_and_journaled_by_its_model():
    driver = generating()
    (start,) = driver.of(StartJob)
    assert start.job.kind == "llm_generation"
    assert driver.session.outstanding()[0][0].action == "p/m"
    driver.finish()
    assert driver.session.beat(driver.now).actions["p/m"].completed == 1


# --- deltas -----------------------------------------------------------------------------------------------------------


def test_a_delta_is_sent_at_once_and_the_next_ones_when_its_bytes_have_left():
    driver = generating()
    (delta,) = driver.produce("a")
    assert (delta.job_id, delta.lease_token, delta.sequence, delta.delta) == ("job-1", "lease-1", 0, {"text": "a"})
    assert driver.session.awaits_written
    assert driver.produce("b", "c") == []
    assert texts(driver.written()) == [(1, "bc")]
    assert driver.written() == []
    assert not driver.session.awaits_written


def test_a_server_that_acknowledges_gets_one_delta_at_a_time():
    driver = generating()
    driver.produce("a")
    driver.written()
    assert driver.acknowledge_delta(0) == []
    assert texts(driver.produce("b")) == [(1, "b")]
    driver.written()
    assert driver.produce("c", "d") == []
    assert texts(driver.acknowledge_delta(1)) == [(2, "cd")]


def test_an_acknowledgement_that_does_not_come_holds_up_for_a_second():
    driver = generating()
    driver.produce("a")
    driver.written()
    driver.acknowledge_delta(0)
    driver.produce("b")
    driver.written()
    driver.produce("c")
    assert driver.session.next_deadline() == driver.now + 1.0
    assert driver.wait(0.9).sent(frames.GenerationDelta) == []
    assert texts(driver.wait(0.2).sent(frames.GenerationDelta)) == [(2, "c")]


def test_what_is_left_of_a_generation_comes_before_its_report():
    driver = generating()
    driver.produce("a", "b")
    driver.finish()
    sent = [send.frame for send in driver.of(Send)]
    assert texts(sent[:1]) == [(1, "b")]
    assert isinstance(sent[1], frames.Report)


def test_after_a_reconnect_what_was_not_acknowledged_is_sent_again_as_it_was():
    driver = generating()
    driver.produce("a")
    driver.written()
    driver.acknowledge_delta(0)
    driver.produce("b")
    driver.written()
    driver.produce("c")
    driver.lose()
    assert driver.produce("d") == []
    assert driver.session.next_deadline() < math.inf
    driver.register()
    assert texts(driver.sent(frames.GenerationDelta)) == [(1, "b"), (2, "cd")]
    driver.written()
    assert texts(driver.produce("e")) == [(3, "e")]


def test_a_generation_that_ended_while_disconnected_sends_its_deltas_then_its_report_then_claims():
    driver = generating()
    driver.produce("a")
    driver.lose()
    driver.produce("b")
    driver.finish()
    assert driver.of(Send) == []
    driver.register()
    kinds = [type(send.frame) for send in driver.of(Send)]
    assert kinds == [frames.GenerationDelta, frames.GenerationDelta, frames.Report]
    assert texts(driver.sent(frames.GenerationDelta)) == [(0, "a"), (1, "b")]
    driver.acknowledge_delta(1)
    report = driver.sent(frames.Report) or driver.session.outstanding()[1]
    driver.acknowledge(report[0])
    assert driver.session.outstanding() == ([], [])


def test_deltas_that_were_acknowledged_after_the_end_are_not_repeated():
    driver = generating()
    driver.produce("a")
    driver.finish()
    driver.acknowledge_delta(0)
    driver.lose().register()
    assert driver.sent(frames.GenerationDelta) == []
    assert len(driver.sent(frames.Report)) == 1


def test_a_newer_lease_is_what_later_deltas_carry():
    driver = generating()
    driver.produce("a")
    driver.written()
    driver.receive(frames.Claimed(jobs=[claimed_generation(1, token="lease-2", claim_attempt=2)]))
    assert [delta.lease_token for delta in driver.produce("b")] == ["lease-2"]


def test_acknowledgements_of_nothing_change_nothing():
    driver = generating()
    assert driver.acknowledge_delta(10**18) == []
    assert driver.acknowledge_delta(-5, number="unknown") == []
    assert texts(driver.produce("a")) == [(0, "a")]


def test_deltas_of_nobody_are_dropped():
    driver = generating()
    driver.finish()
    assert driver.produce("late") == []
    assert driver.produce("late", execution=99) == []


def test_what_nobody_takes_for_too_long_is_left_out_and_said_once():
    driver = generating()
    driver.lose()
    notes = []
    for _ in range(40):
        driver.produce("x" * 60_000)
        notes += driver.of(Note)
    assert [note.event for note in notes] == ["session.deltas_skipped"]


@pytest.mark.parametrize("event", ["drain", "server"])
def test_a_draining_worker_still_streams(event):
    driver = generating()
    if event == "drain":
        driver.drain()
    else:
        driver.receive(frames.Drain())
    assert texts(driver.produce("a")) == [(0, "a")]
