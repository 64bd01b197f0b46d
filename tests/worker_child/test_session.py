"""Every obligation of a worker (contract, "Obligations of a worker" and "Words on the wire"), under a virtual clock."""

import math

import msgspec
import pytest

from tests.support.session_driver import DONE, SessionDriver, claimed_job
from wire import frames, pipe
from worker_child.backoff import AT_ONCE, MAX_AGE
from worker_child.decisions import (
    Announce,
    CancelJob,
    ClearSuspect,
    Connect,
    DeadLetter,
    DropConnection,
    End,
    JournalClaimed,
    JournalReported,
    JournalSettled,
    LoseLease,
    Note,
    Outcome,
    Ping,
    Send,
    StartJob,
)
from worker_child.session import (
    CONNECT_DEADLINE,
    TRANSITIONS,
    ActionTerms,
    Event,
    SessionError,
    State,
)
from worker_child.solitude import PATIENCE

FAILED = Outcome(status="failed", error_type="ValueError", error_message="no")

REFUSED_CELLS = {
    (State.WAITING, Event.OPENED),
    (State.WAITING, Event.ACCEPTED),
    (State.WAITING, Event.LOST),
    (State.CONNECTING, Event.RETRY),
    (State.CONNECTING, Event.ACCEPTED),
    (State.REGISTERING, Event.RETRY),
    (State.REGISTERING, Event.OPENED),
    (State.REGISTERED, Event.RETRY),
    (State.REGISTERED, Event.OPENED),
    (State.DRAINING, Event.RETRY),
    (State.DRAINING, Event.OPENED),
    *((State.ENDED, event) for event in Event),
}


def with_job(*, concurrency: int = 1, idempotent: bool = False) -> SessionDriver:
    driver = SessionDriver(concurrency=concurrency, actions={"work": ActionTerms(idempotent=idempotent)})
    return driver.register().claim_answered(claimed_job(1))


# --- the table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_cell_of_the_table_is_a_transition_or_refused(state: State, event: Event) -> None:
    driver = SessionDriver()
    driver.session.state = state
    if (state, event) in REFUSED_CELLS:
        with pytest.raises(SessionError, match=f"{event} cannot happen while {state}"):
            driver.session._move(event)
        assert driver.session.state is state
    else:
        driver.session._move(event)
        assert driver.session.state is TRANSITIONS[state, event]


# --- registering ----------------------------------------------------------------------------------------------------


def test_it_connects_at_once_and_registers_without_a_token() -> None:
    driver = SessionDriver(concurrency=3)
    assert driver.took(driver.session.tick(driver.now)).of(Connect)
    driver.took(driver.session.connected(driver.now))
    (register,) = driver.sent(frames.Register)
    assert (register.worker_session_token, register.available_slots, register.concurrency_limit) == (None, 3, 3)
    assert (register.queues, register.action_names) == (["default"], ["work"])


def test_a_reconnect_sends_the_token_and_honest_slots() -> None:
    driver = SessionDriver(concurrency=3).register(token="secret")
    driver.claim_answered(claimed_job(1), claimed_job(2))
    driver.finish(1)
    driver.lose().connect()
    (register,) = driver.sent(frames.Register)
    assert register.worker_session_token == "secret"
    assert register.available_slots == 1, "one job runs, one report is not acknowledged"


def test_the_newest_token_is_sent() -> None:
    driver = SessionDriver().register(token="first")
    driver.lose().register(token="second")
    driver.lose().connect()
    assert driver.sent(frames.Register)[0].worker_session_token == "second"


def test_an_unanswered_register_drops_the_connection() -> None:
    driver = SessionDriver().connect()
    assert not driver.wait(29).of(DropConnection)
    assert driver.wait(1).of(DropConnection)
    assert driver.session.state is State.WAITING


def test_a_refused_register_is_tried_again_with_back_off() -> None:
    driver = SessionDriver().connect()
    register = driver.sent(frames.Register)[0]
    assert driver.error("busy", register.message_id).of(DropConnection)
    assert driver.session.next_deadline() == driver.now + 2


def test_the_supervisor_learns_of_the_registration_and_of_the_first_claim_only_once() -> None:
    driver = SessionDriver().register()
    assert driver.of(Announce) == [Announce("registered"), Announce("ready")]
    driver.lose().register()
    assert driver.of(Announce) == [Announce("registered")]


# --- claims ---------------------------------------------------------------------------------------------------------


def test_one_claim_is_outstanding_at_a_time() -> None:
    driver = SessionDriver(concurrency=2).register()
    assert driver.sent(frames.Claim)[0].available_slots == 2
    assert not driver.receive(frames.WorkAvailable()).sent(frames.Claim)
    driver.claim_answered(claimed_job(1))
    assert [claim.available_slots for claim in driver.sent(frames.Claim)] == [1]


@pytest.mark.parametrize(("cadence", "deadline"), [(20, 40), (5, 30)])
def test_an_unanswered_claim_drops_the_socket_after_twice_the_cadence_or_thirty_seconds(
    cadence: int, deadline: int
) -> None:
    driver = SessionDriver().register(cadence=cadence)
    assert not driver.wait(deadline - 0.1).of(DropConnection)
    assert driver.wait(0.2).of(DropConnection)
    driver.register()
    assert driver.sent(frames.Claim), "the next connection claims again"


def test_an_empty_claim_is_followed_by_the_next_after_one_cadence() -> None:
    driver = SessionDriver().register(cadence=20).claim_answered()
    assert not driver.sent(frames.Claim)
    assert not driver.wait(19.9).sent(frames.Claim)
    assert driver.wait(0.2).sent(frames.Claim)


def test_work_available_ends_the_pause_after_an_empty_claim() -> None:
    driver = SessionDriver().register().claim_answered()
    assert driver.receive(frames.WorkAvailable()).sent(frames.Claim)


def test_a_freed_slot_ends_the_pause_after_an_empty_claim() -> None:
    driver = SessionDriver(concurrency=2).register().claim_answered(claimed_job(1))
    driver.claim_answered()
    assert not driver.sent(frames.Claim)
    assert driver.acknowledge(driver.finish()).sent(frames.Claim)


def test_a_hint_that_crosses_an_open_claim_counts_when_that_comes_back_empty() -> None:
    driver = SessionDriver().register()
    driver.receive(frames.WorkAvailable()).claim_answered()
    assert driver.sent(frames.Claim)
    assert not driver.claim_answered().sent(frames.Claim), "one hint, one more claim"


def test_an_error_releases_the_claim_it_answers_and_no_other() -> None:
    driver = SessionDriver().register()
    claim = driver.last_claim()
    driver.error("internal", "something else")
    assert not driver.receive(frames.WorkAvailable()).sent(frames.Claim)
    assert not driver.error("internal", claim.message_id).sent(frames.Claim)
    assert driver.wait(20).sent(frames.Claim)


def test_no_claim_while_no_slot_is_free() -> None:
    driver = with_job()
    assert not driver.receive(frames.WorkAvailable()).sent(frames.Claim)


def test_an_answer_without_a_message_id_answers_the_claim() -> None:
    driver = SessionDriver().register()
    assert driver.receive(frames.Claimed(jobs=[claimed_job(1)])).of(StartJob)
    assert driver.acknowledge(driver.finish()).sent(frames.Claim)


def test_slots_that_are_freed_together_are_claimed_together() -> None:
    driver = SessionDriver(concurrency=3).register()
    driver.claim_answered(*(claimed_job(number) for number in (1, 2, 3)))
    reports = [driver.finish(execution) for execution in (1, 2, 3)]
    acks = [frames.ReportAck(message_id=report.message_id, job_id=report.job_id) for report in reports]
    driver.took(driver.session.frames_received(acks, driver.now))
    assert [claim.available_slots for claim in driver.sent(frames.Claim)] == [3]


def test_frames_that_came_with_the_one_that_ended_the_connection_are_not_heard() -> None:
    driver = SessionDriver().connect()
    refused = frames.Error(message_id="m-1", error=frames.ProtocolError(code="busy", message="no"))
    lease = frames.Lease(lease_duration_seconds=60, heartbeat_cadence_seconds=20)
    accepted = frames.Registered(worker_session_token="late", lease=lease)
    driver.took(driver.session.frames_received([refused, accepted], driver.now))
    assert driver.of(DropConnection)
    assert driver.session.state is State.WAITING


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_a_job_is_journalled_before_it_is_started() -> None:
    driver = with_job()
    kinds = [type(decision) for decision in driver.decided]
    assert kinds.index(JournalClaimed) < kinds.index(StartJob)
    assert driver.of(JournalClaimed) == [JournalClaimed("job-1", "lease-1", "work")]


def test_a_job_too_many_is_handed_back_at_once() -> None:
    driver = SessionDriver().register().claim_answered(claimed_job(1), claimed_job(2))
    assert [start.job.id for start in driver.of(StartJob)] == ["job-1"]
    (report,) = driver.sent(frames.Report)
    assert (report.job_id, report.lease_token, report.status) == ("job-2", "lease-2", "failed")
    assert report.error_type == "WorkerOverCapacity"
    assert driver.session.beat(driver.now).handed_back == 1
    driver.acknowledge(report)
    assert not driver.sent(frames.Claim), "a hand-back holds no slot, so it frees none"


def test_the_same_claimed_frame_twice_starts_the_job_once() -> None:
    driver = SessionDriver(concurrency=2).register()
    driver.claim_answered(claimed_job(1))
    driver.claim_answered(claimed_job(1))
    assert not driver.of(StartJob)
    assert not driver.sent(frames.Report)
    assert not driver.sent(frames.Claim), "an answer with nothing new is as good as empty"


def test_a_job_in_hand_that_is_leased_again_runs_on_under_the_newer_lease() -> None:
    driver = with_job(concurrency=2)
    driver.claim_answered(claimed_job(1, token="newer", claim_attempt=2))
    assert not driver.of(StartJob)
    assert driver.of(JournalClaimed) == [JournalClaimed("job-1", "newer", "work")]
    assert driver.of(JournalSettled) == [JournalSettled("lease-1")]
    assert driver.finish().lease_token == "newer"


def test_a_finished_job_that_is_leased_again_is_reported_again_and_not_done_again() -> None:
    driver = with_job(concurrency=2)
    driver.finish()
    driver.claim_answered(claimed_job(1, token="newer", claim_attempt=2))
    assert not driver.of(StartJob)
    (report,) = driver.sent(frames.Report)
    assert (report.lease_token, report.status, report.result) == ("newer", "completed", {"ok": True})


def test_a_failed_job_that_is_leased_again_is_done_again() -> None:
    driver = with_job(concurrency=2)
    driver.finish(outcome=FAILED)
    driver.claim_answered(claimed_job(1, token="newer", claim_attempt=2))
    assert [start.job.lease_token for start in driver.of(StartJob)] == ["newer"]


# --- heartbeats, cancellation and lost leases -------------------------------------------------------------------------


def test_every_job_in_hand_is_heartbeaten_once_a_cadence() -> None:
    driver = SessionDriver(concurrency=2).register()
    driver.claim_answered(claimed_job(1), claimed_job(2, heartbeat_cadence_seconds=5))
    beats = [frame.job_id for frame in driver.wait(20).sent(frames.Heartbeat)]
    assert sorted(beats) == ["job-1", "job-2", "job-2", "job-2", "job-2"]


def test_no_heartbeat_after_the_job_ended() -> None:
    driver = with_job()
    driver.finish()
    assert not driver.wait(60).sent(frames.Heartbeat)


def test_jobs_are_heartbeaten_at_once_on_the_next_connection() -> None:
    driver = with_job(concurrency=2)
    driver.lose().register()
    assert [frame.lease_token for frame in driver.sent(frames.Heartbeat)] == ["lease-1"]


@pytest.mark.parametrize("by", ["heartbeat", "frame"])
def test_a_cancel_reaches_the_job_by_both_ways_and_once(by: str) -> None:
    driver = with_job()
    cancel: frames.FromServer = frames.JobCancel(job_id="job-1", reason="operator")
    if by == "heartbeat":
        cancel = frames.HeartbeatAck(job_id="job-1", cancel=frames.CancelDirective(job_id="job-1", reason="operator"))
    assert driver.receive(cancel).of(CancelJob) == [CancelJob(1, "operator")]
    assert not driver.receive(cancel).of(CancelJob)
    report = driver.finish(outcome=Outcome(status="cancelled"))
    assert (report.status, report.error_type) == ("cancelled", None)


def test_a_cancel_for_a_job_that_is_not_here_does_nothing() -> None:
    assert with_job().receive(frames.JobCancel(job_id="other")).decided == []


@pytest.mark.parametrize(("idempotent", "cancelled"), [(False, [CancelJob(1, "lease_lost")]), (True, [])])
def test_a_lease_lost_by_word_of_the_server_stops_the_job_unless_it_is_idempotent(
    idempotent: bool, cancelled: list[CancelJob]
) -> None:
    driver = with_job(idempotent=idempotent)
    directive = frames.CancelDirective(job_id="job-1", reason="lease_lost")
    driver.receive(frames.HeartbeatAck(job_id="job-1", cancel=directive))
    assert driver.of(LoseLease) == [LoseLease(1)]
    assert driver.of(CancelJob) == cancelled
    assert not driver.wait(30).sent(frames.Heartbeat), "that lease is gone"


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_lease_is_lost_when_no_heartbeat_is_answered_for_its_duration(idempotent: bool) -> None:
    driver = with_job(idempotent=idempotent)
    driver.wait(20).receive(frames.HeartbeatAck(job_id="job-1"))
    assert not driver.wait(59).of(LoseLease)
    driver.wait(2)
    assert driver.of(LoseLease) == [LoseLease(1)]
    assert bool(driver.of(CancelJob)) is not idempotent
    assert driver.wait(20).sent(frames.Heartbeat), "the server may still know the lease"


def test_a_lease_is_lost_without_a_connection_too() -> None:
    driver = with_job()
    driver.lose()
    assert not [d for d in driver.wait(59).decided if isinstance(d, LoseLease)]
    assert driver.took(driver.session.tick(driver.now + 1)).of(LoseLease)


# --- reports --------------------------------------------------------------------------------------------------------


def test_a_report_is_journalled_before_it_is_sent_and_settled_by_its_acknowledgement() -> None:
    driver = with_job()
    report = driver.finish()
    assert [type(decision) for decision in driver.decided] == [JournalReported, Send]
    assert driver.acknowledge(report).of(JournalSettled) == [JournalSettled("lease-1")]
    assert driver.session.outstanding() == ([], [])


def test_an_acknowledgement_without_a_message_id_settles_by_job() -> None:
    driver = with_job()
    driver.finish()
    assert driver.receive(frames.ReportAck(job_id="job-1")).of(JournalSettled)


def test_acknowledgements_without_a_message_id_settle_the_reports_of_all_leases_of_a_job() -> None:
    reports = [frames.Report(job_id="job-1", lease_token=token) for token in ("older", "newer")]
    driver = SessionDriver(leftover=reports).register()
    for _ in reports:
        driver.receive(frames.ReportAck(job_id="job-1"))
    assert driver.session.outstanding()[1] == []


def test_an_acknowledgement_of_something_else_settles_nothing() -> None:
    driver = with_job()
    driver.finish()
    assert not driver.receive(frames.ReportAck(message_id="other", job_id="job-1")).of(JournalSettled)
    assert not driver.receive(frames.ReportAck(job_id="other")).of(JournalSettled)
    assert driver.session.beat(driver.now).reports_waiting == 1


def test_a_report_is_sent_again_every_ten_seconds_with_the_same_id() -> None:
    driver = with_job()
    report = driver.finish()
    assert driver.wait(9.9).sent(frames.Report) == []
    assert driver.wait(20.2).sent(frames.Report) == [report, report, report]
    assert all(send.repeated for send in driver.of(Send) if isinstance(send.frame, frames.Report))


def test_a_report_is_sent_again_after_every_register_and_before_the_claim() -> None:
    driver = with_job(concurrency=2)
    driver.lose()
    report = driver.finish()
    assert not driver.sent(frames.Report), "there is no connection to send it over"
    driver.register()
    kinds = [type(send.frame) for send in driver.of(Send)]
    assert driver.sent(frames.Report) == [report]
    assert kinds.index(frames.Report) < kinds.index(frames.Claim)


def test_a_slot_frees_with_the_acknowledgement() -> None:
    driver = with_job()
    report = driver.finish()
    assert driver.session.free_slots == 0
    assert driver.acknowledge(report).sent(frames.Claim)[0].available_slots == 1


def test_a_slot_frees_after_one_lease_duration_without_one_and_the_report_is_sent_on() -> None:
    driver = with_job()
    report = driver.finish()
    assert not driver.wait(59.9).sent(frames.Claim)
    assert driver.wait(0.2).sent(frames.Claim)
    assert driver.wait(10).sent(frames.Report) == [report]
    driver.acknowledge(report)
    assert driver.session.free_slots == 1, "the slot was free already"


def test_an_error_settles_the_report_it_answers_into_the_dead_letters() -> None:
    driver = with_job()
    report = driver.finish()
    driver.error("unknown_job", report.message_id)
    assert driver.of(DeadLetter) == [DeadLetter(report, "unknown_job", "no")]
    assert driver.sent(frames.Claim), "its slot is free"
    assert driver.acknowledge(report).decided == []


def test_leftovers_of_an_earlier_process_are_sent_before_the_first_claim() -> None:
    crashed = frames.Report(job_id="job-9", lease_token="old", status="failed", error_type="WorkerCrashed")
    driver = SessionDriver(leftover=[crashed])
    assert driver.connect().sent(frames.Register)[0].available_slots == 1, "a leftover holds no slot"
    driver.receive(
        frames.Registered(
            worker_session_token="t", lease=frames.Lease(lease_duration_seconds=60, heartbeat_cadence_seconds=20)
        )
    )
    kinds = [type(send.frame) for send in driver.of(Send)]
    assert kinds == [frames.Report, frames.Claim]
    (report,) = driver.sent(frames.Report)
    assert (report.error_type, report.lease_token) == ("WorkerCrashed", "old")
    assert driver.acknowledge(report).of(JournalSettled) == [JournalSettled("old")]


def test_an_outcome_for_a_job_that_was_cut_off_is_ignored() -> None:
    driver = with_job()
    driver.drain(grace=10).wait(8)
    assert driver.took(driver.session.job_finished(1, DONE, driver.now)).decided == []


# --- saturated actions ------------------------------------------------------------------------------------------------


def test_saturated_actions_leave_the_claim_and_come_back() -> None:
    driver = SessionDriver(concurrency=3, actions={"work": ActionTerms(), "rare": ActionTerms(concurrency=1)})
    first = driver.register().last_claim()
    assert (first.action_names, first.available_slots) == (["rare", "work"], 1), "no more than `rare` has room for"
    driver.claim_answered(claimed_job(1, action="rare"))
    assert (driver.last_claim().action_names, driver.last_claim().available_slots) == (["work"], 2)
    driver.claim_answered()
    assert driver.acknowledge(driver.finish(1)).sent(frames.Claim)[0].action_names == ["rare", "work"]


def test_when_every_action_is_saturated_there_is_no_claim_instead_of_an_empty_list() -> None:
    driver = SessionDriver(concurrency=3, actions={"rare": ActionTerms(concurrency=1)}).register()
    driver.claim_answered(claimed_job(1, action="rare"))
    assert not driver.sent(frames.Claim)
    assert not driver.wait(120).sent(frames.Claim)


def test_a_job_of_a_saturated_action_is_handed_back() -> None:
    driver = SessionDriver(concurrency=3, actions={"rare": ActionTerms(concurrency=1)}).register()
    driver.claim_answered(claimed_job(1, action="rare"), claimed_job(2, action="rare"))
    assert [report.error_type for report in driver.sent(frames.Report)] == ["WorkerOverCapacity"]


def test_code_that_outlives_its_outcome_keeps_its_slot_until_it_returns() -> None:
    driver = with_job()
    driver.took(driver.session.job_abandoned(1, FAILED, driver.now))
    (report,) = driver.sent(frames.Report)
    assert not driver.acknowledge(report).sent(frames.Claim)
    assert driver.session.free_slots == 0
    assert driver.took(driver.session.code_returned(1, driver.now)).sent(frames.Claim)


# --- the connection ---------------------------------------------------------------------------------------------------


def test_reconnects_back_off_and_health_resets_them() -> None:
    driver = SessionDriver(jitter=1.0)
    delays = []
    for _ in range(3):
        driver.register().lose()
        delays.append(driver.session.next_deadline() - driver.now)
    assert delays == pytest.approx([2, 4, 8])
    driver.register().claim_answered()
    driver.wait(31).lose()
    assert driver.session.next_deadline() - driver.now == pytest.approx(2)


def test_a_keepalive_is_answered_and_never_begun() -> None:
    driver = SessionDriver().register()
    assert driver.receive(frames.Keepalive(message_id="k")).sent(frames.Keepalive) == [frames.Keepalive(message_id="k")]
    driver.claim_answered()
    assert not driver.wait(120).sent(frames.Keepalive)


def test_a_silent_connection_is_pinged_and_then_dropped() -> None:
    driver = with_job()
    start = driver.now
    driver.now = start + 15
    assert driver.took(driver.session.tick(driver.now)).of(Ping)
    driver.now = start + 40
    assert driver.took(driver.session.tick(driver.now)).of(DropConnection)


def test_anything_read_moves_the_read_deadline() -> None:
    driver = with_job()
    assert not driver.wait(300).of(DropConnection)


def test_a_suspend_drops_the_socket_and_connects_at_once() -> None:
    driver = with_job()
    driver.took(driver.session.suspended(driver.now))
    assert driver.of(DropConnection)
    assert driver.took(driver.session.tick(driver.now)).of(Connect)


def test_a_server_that_goes_away_is_come_back_to_at_once_but_not_again_and_again() -> None:
    driver = SessionDriver().register()
    driver.took(driver.session.connection_lost("closed with code 1012", driver.now, going_away=True))
    assert driver.session.next_deadline() <= driver.now + AT_ONCE
    driver.register()
    driver.took(driver.session.connection_lost("closed with code 1012", driver.now, going_away=True))
    assert driver.session.next_deadline() > driver.now + AT_ONCE


def old(driver: SessionDriver) -> SessionDriver:
    """Its connection has served its time, during which every claim was answered at once, but the last."""
    driver.now += MAX_AGE
    driver.session.last_read = driver.now
    return driver.took(driver.session.tick(driver.now))


def test_an_old_connection_is_exchanged_at_once_when_no_claim_is_open() -> None:
    driver = with_job()
    assert not driver.session._claim_id
    assert [drop.reason for drop in old(driver).of(DropConnection)] == ["the connection has served its time"]
    assert driver.took(driver.session.tick(driver.now)).of(Connect)
    [register] = driver.took(driver.session.connected(driver.now)).sent(frames.Register)
    assert (register.worker_session_token, register.available_slots) == ("session-1", 0)


def test_an_old_connection_waits_for_the_answer_to_its_claim() -> None:
    driver = SessionDriver(concurrency=2).register()
    driver.session._claim_deadline = math.inf
    assert not old(driver).of(DropConnection)
    driver.claim_answered(claimed_job(1))
    assert driver.of(StartJob)
    assert driver.of(DropConnection)
    assert not driver.sent(frames.Claim)


def test_a_suspend_while_waiting_changes_nothing() -> None:
    driver = SessionDriver().register().lose()
    assert driver.took(driver.session.suspended(driver.now)).decided == []


def test_frames_that_are_none_are_borne_and_too_many_end_the_conversation() -> None:
    driver = SessionDriver().register()
    for _ in range(9):
        assert not driver.took(driver.session.garbage_received("bad", None, driver.now)).of(DropConnection)
    assert driver.took(driver.session.garbage_received("bad", None, driver.now)).of(DropConnection)


def test_a_frame_now_and_then_that_is_none_ends_nothing() -> None:
    driver = SessionDriver().register()
    for _ in range(50):
        driver.wait(13)
        assert not driver.took(driver.session.garbage_received("bad", None, driver.now)).of(DropConnection)


def test_an_answer_that_is_no_frame_releases_the_claim() -> None:
    driver = SessionDriver().register()
    driver.took(driver.session.garbage_received("bad", driver.last_claim().message_id, driver.now))
    assert driver.wait(20).sent(frames.Claim)


def test_what_is_lost_is_told_with_its_address() -> None:
    driver = SessionDriver(address="wss://api.example.com/v1/workers/socket").register()
    [note] = driver.lose("gone").of(Note)
    assert note.event == "session.disconnected"
    assert note.fields["address"] == "wss://api.example.com/v1/workers/socket"
    assert note.fields["reason"] == "gone"


def test_frames_that_come_while_disconnected_are_ignored() -> None:
    driver = SessionDriver().register().lose()
    assert driver.receive(frames.Keepalive()).decided == []


# --- terminal errors --------------------------------------------------------------------------------------------------


def test_invalid_actor_ends_the_worker() -> None:
    (end,) = SessionDriver().register().error("invalid_actor").of(End)
    assert end.refused
    assert "credential" in end.reason


def test_a_key_that_has_ended_is_exchanged_for_the_one_in_its_file() -> None:
    driver = SessionDriver(key_file=True).register()
    for _ in range(2):  # and again at the next rotation
        assert driver.error("invalid_actor").of(DropConnection)
        assert not driver.of(End)
        assert driver.wait(0.0).of(Connect)
        assert not driver.took(driver.session.upgrade_refused("401", driver.now, key_changed=True)).of(End)
        driver.register()
    driver.error("invalid_actor")
    driver.wait(0.0)
    (end,) = driver.took(driver.session.upgrade_refused("401", driver.now, key_changed=False)).of(End)
    assert end.refused


def test_a_server_that_disowns_and_lets_in_again_is_believed_the_second_time() -> None:
    driver = SessionDriver(key_file=True).register()
    assert driver.error("invalid_actor").of(DropConnection)
    driver.register()
    (end,) = driver.error("invalid_actor").of(End)
    assert end.refused


def test_other_errors_are_only_noted() -> None:
    driver = SessionDriver().register()
    assert not driver.error("something").of(End)
    assert driver.session.state is State.REGISTERED


def test_an_identity_conflict_is_retried_until_it_has_lasted() -> None:
    driver = SessionDriver(identity_conflict=180.0)
    driver.connect()
    started, attempts = driver.now, 0
    while not driver.error("worker_instance_conflict").of(End):
        assert driver.of(DropConnection)
        driver.connect()
        attempts += 1
    assert driver.now - started == pytest.approx(180.0)
    assert 5 <= attempts <= 12
    assert driver.of(End)[0].refused
    assert "'rig-1'" in driver.of(End)[0].reason


def test_an_identity_conflict_that_passes_is_forgotten() -> None:
    driver = SessionDriver(identity_conflict=10.0)
    driver.connect().error("worker_instance_conflict")
    driver.register().claim_answered()
    driver.wait(100)
    assert not driver.error("worker_instance_conflict").of(End)


def test_a_refused_upgrade_is_final_unless_the_key_file_changed_once() -> None:
    driver = SessionDriver()
    driver.took(driver.session.tick(driver.now))
    assert not driver.took(driver.session.upgrade_refused("401", driver.now, key_changed=True)).of(End)
    assert driver.took(driver.session.tick(driver.now)).of(Connect), "at once, with the new key"
    (end,) = driver.took(driver.session.upgrade_refused("401", driver.now, key_changed=True)).of(End)
    assert end == End("401", refused=True)


def test_a_refused_upgrade_with_the_same_key_is_final_at_once() -> None:
    driver = SessionDriver()
    driver.took(driver.session.tick(driver.now))
    assert driver.took(driver.session.upgrade_refused("404", driver.now, key_changed=False)).of(End)
    assert driver.session.next_deadline() == math.inf
    assert driver.took(driver.session.tick(driver.now + 1e6)).decided == []


# --- drains -----------------------------------------------------------------------------------------------------------


def test_a_drain_claims_no_more_finishes_and_ends() -> None:
    driver = with_job(concurrency=2)
    assert driver.drain().sent(frames.Draining)
    assert not driver.receive(frames.WorkAvailable()).sent(frames.Claim)
    driver.receive(frames.DrainingAck())
    report = driver.finish()
    assert not driver.of(End), "the report is not acknowledged yet"
    assert driver.acknowledge(report).of(End) == [End("asked to", refused=False)]


def test_the_report_of_a_drain_is_of_the_drain_alone() -> None:
    driver = with_job(concurrency=2)
    driver.acknowledge(driver.finish())
    driver.claim_answered(claimed_job(2))
    driver.drain()
    assert driver.session.counts_of_drain == {}
    driver.finish(execution=2)
    assert driver.session.counts_of_drain == {"completed": 1}
    assert driver.session.counts["completed"] == 2


def test_jobs_that_arrive_after_the_drain_are_handed_back() -> None:
    driver = SessionDriver(concurrency=2).register().drain()
    assert not driver.of(End), "the open claim may still be answered with jobs"
    driver.claim_answered(claimed_job(1))
    (report,) = driver.sent(frames.Report)
    assert report.error_type == "WorkerOverCapacity"
    assert driver.acknowledge(report).of(End)


def test_a_drained_worker_waits_only_briefly_for_an_open_claim() -> None:
    driver = SessionDriver().register().drain()
    assert not driver.wait(1.9).of(End)
    assert driver.wait(0.2).of(End)


def test_an_acknowledged_drain_with_nothing_in_hand_ends_at_once() -> None:
    assert SessionDriver().register().drain().receive(frames.DrainingAck()).of(End)


def test_a_drain_without_a_connection_and_with_nothing_in_hand_ends_at_once() -> None:
    assert SessionDriver().drain().of(End)
    assert SessionDriver().register().lose().drain().of(End)


def test_a_drain_without_a_connection_reconnects_to_deliver_what_is_owed() -> None:
    driver = with_job()
    driver.lose()
    report = driver.finish()
    assert not driver.drain().of(End)
    driver.register()
    assert driver.sent(frames.Report) == [report]
    assert driver.sent(frames.Draining)
    assert not driver.sent(frames.Claim)
    assert driver.acknowledge(report).of(End)


def test_at_the_end_of_the_grace_jobs_are_cut_off_and_reported_and_then_it_ends() -> None:
    driver = with_job()
    driver.drain(grace=30)
    assert not driver.wait(27.9).of(CancelJob)
    driver.wait(0.2)
    assert driver.of(CancelJob) == [CancelJob(1, "shutdown")]
    assert [(r.status, r.error_type) for r in driver.sent(frames.Report)] == [("failed", "WorkerShutdown")]
    assert driver.session.counts["cut_off"] == 1
    assert not driver.of(End)
    assert driver.wait(2).of(End), "the report is in the journal; the supervisor's patience is over"


def test_a_second_drain_shortens_the_grace_and_never_lengthens_it() -> None:
    driver = with_job()
    driver.drain(grace=30).drain(grace=100)
    assert driver.session._drain_ends_at == driver.now + 30
    driver.drain(grace=5)
    assert driver.session._drain_ends_at == driver.now + 5


def test_a_signal_does_not_overrule_the_grace_of_an_order() -> None:
    driver = with_job()
    driver.took(driver.session.drain(30, "SIGTERM", driver.now, ordered=False))
    driver.drain(grace=300)
    driver.took(driver.session.drain(30, "SIGTERM", driver.now, ordered=False))
    assert driver.session._drain_ends_at == driver.now + 300


def test_a_drain_by_the_server_stays_connected_finishes_and_does_not_end() -> None:
    driver = with_job(concurrency=2)
    assert driver.receive(frames.Drain()).sent(frames.Draining)
    assert driver.session.beat(driver.now).session == "draining"
    driver.acknowledge(driver.finish())
    driver.receive(frames.DrainingAck()).claim_answered()
    assert not [d for d in driver.wait(600).decided if isinstance(d, End | DropConnection)]
    assert not driver.sent(frames.Claim)


def test_a_drain_by_the_server_lasts_for_as_long_as_the_server_repeats_it() -> None:
    driver = SessionDriver().register().receive(frames.Drain()).lose().register()
    assert driver.receive(frames.Drain()).sent(frames.Draining)
    assert driver.session.state is State.DRAINING
    driver.claim_answered()
    assert not driver.wait(60).sent(frames.Claim)
    lifted = driver.lose().register()
    assert lifted.sent(frames.Claim)
    assert driver.session.state is State.REGISTERED


def test_a_drain_of_our_own_is_not_lifted_by_a_new_connection() -> None:
    driver = with_job(concurrency=2).drain(grace=300).lose().register()
    assert driver.sent(frames.Draining)
    assert not driver.sent(frames.Claim)


def test_a_worker_that_the_server_drains_from_the_start_counts_as_ready() -> None:
    driver = SessionDriver().connect()
    driver.receive(frames.Drain())
    driver.receive(
        frames.Registered(
            worker_session_token="t", lease=frames.Lease(lease_duration_seconds=60, heartbeat_cadence_seconds=20)
        )
    )
    assert Announce("ready") in driver.of(Announce)


# --- the beat ---------------------------------------------------------------------------------------------------------


def test_the_beat_says_what_the_session_does() -> None:
    driver = with_job(concurrency=2)
    driver.wait(7)
    beat = driver.session.beat(driver.now)
    assert (beat.session, beat.jobs_in_hand, beat.reconnects) == ("registered", 1, 0)
    assert (beat.oldest_job_age, beat.last_acknowledgement_age) == (7, 7)
    driver.finish(outcome=FAILED)
    driver.lose().register()
    beat = driver.session.beat(driver.now)
    assert (beat.failed, beat.completed, beat.jobs_in_hand, beat.reports_waiting, beat.reconnects) == (1, 0, 0, 1, 1)


# --- what the supervisor is told -----------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [(), ("upgrade",), ("upgrade", "register"), ("refusal",)], ids="-".join)
def test_a_control_plane_that_does_not_answer_is_no_stall(answers: tuple[str, ...]) -> None:
    """It hears nothing at all, or upgrades, or registers besides, or refuses connections; for two hours."""
    driver = SessionDriver()
    seen = set()
    for _ in range(7200):
        driver.wait(1)
        seen.add(driver.session.state)
        if driver.session.state is State.CONNECTING and "refusal" in answers:
            driver.lose()
        if driver.session.state is State.CONNECTING and "upgrade" in answers:
            driver.took(driver.session.connected(driver.now))
        if driver.session.state is State.REGISTERING and "register" in answers:
            terms = frames.Lease(lease_duration_seconds=60, heartbeat_cadence_seconds=20)
            driver.receive(frames.Registered(worker_session_token="session", lease=terms))
        assert driver.session.stalled_for(driver.now) == 0.0
    assert {State.WAITING, State.CONNECTING} <= seen


def test_a_deadline_that_nobody_serves_is_a_stall() -> None:
    driver = SessionDriver().register()
    due = driver.session.next_deadline()
    assert driver.session.beat(due).stalled_for == 0.0
    assert driver.session.beat(due + 50.0).stalled_for == 50.0


def test_a_claim_that_is_not_made_is_a_stall() -> None:
    driver = SessionDriver().register()
    driver.session._claim_answered()
    assert driver.session.stalled_for(driver.now + 12.0) == 12.0
    driver.session._pause_claims(driver.now)
    assert driver.session.stalled_for(driver.now + 12.0) == 0.0


def test_an_end_that_does_not_come_is_a_stall() -> None:
    driver = SessionDriver().register()
    driver.error("invalid_actor")
    assert driver.session.stalled_for(driver.now + 9.0) == 9.0


def test_a_connection_that_is_neither_opened_nor_refused_is_given_up() -> None:
    driver = SessionDriver()
    driver.took(driver.session.tick(driver.now))
    assert driver.session.state is State.CONNECTING
    driver.wait(CONNECT_DEADLINE)
    (dropped,) = driver.of(DropConnection)
    assert dropped.reason == "not connected within 30 s"
    assert driver.session.state is State.WAITING


def test_jobs_are_counted_by_action_and_duration() -> None:
    driver = with_job()
    driver.wait(0.3)
    driver.finish(1)
    counts = driver.session.beat(driver.now).actions["work"]
    assert (counts.completed, counts.failed, counts.seconds) == (1, 0, pytest.approx(0.3))
    assert counts.durations.index(1) == pipe.DURATION_BUCKETS.index(0.5)


def test_a_server_cannot_make_up_names_of_actions() -> None:
    session = with_job().session
    session.settings = msgspec.structs.replace(
        session.settings, actions={f"action-{number}": ActionTerms() for number in range(100)}
    )
    session._tally("made up", "completed", 1.0)
    for number in range(100):
        session._tally(f"action-{number}", "failed", 1.0)
    told = session.beat(0.0).actions
    assert len(told) <= pipe.MOST_ACTIONS
    assert told[pipe.OTHER_ACTIONS].completed == 1
    assert sum(counts.failed for counts in told.values()) == 100
    beat = pipe.Beat(slot="x" * 80, incarnation=10**9, source="loop", actions=told)
    assert len(pipe.encode(beat)) < pipe.MAX_MESSAGE


# --- suspects of having ended a process -------------------------------------------------------------------------------


def with_suspects(*jobs: frames.ClaimedJob, suspects: tuple[str, ...] = ("job-1",)) -> SessionDriver:
    """Three slots; these jobs have come with the first claim."""
    driver = SessionDriver(concurrency=3).register()
    driver.session.solitude.suspects = dict.fromkeys(suspects)
    return driver.claim_answered(*jobs)


def started(driver: SessionDriver) -> list[str]:
    return [start.job.id for start in driver.of(StartJob)]


def test_a_suspect_runs_alone_and_nothing_is_claimed_beside_it() -> None:
    driver = with_suspects(claimed_job(1), claimed_job(2))
    assert started(driver) == ["job-1"]
    assert [(report.job_id, report.error_type) for report in driver.sent(frames.Report)] == [
        ("job-2", "WorkerOverCapacity")
    ]
    assert not driver.sent(frames.Claim)
    assert driver.session.free_slots == 0
    report = driver.finish(1)
    assert [clear.job_id for clear in driver.of(ClearSuspect)] == ["job-1"]
    assert [claim.available_slots for claim in driver.acknowledge(report).sent(frames.Claim)] == [3]


def test_a_suspect_waits_under_its_lease_until_it_is_alone() -> None:
    driver = with_suspects(claimed_job(2), claimed_job(1), claimed_job(3))
    assert started(driver) == ["job-2"]
    assert [report.job_id for report in driver.sent(frames.Report)] == ["job-3"]
    assert [job.job_id for job in driver.session.outstanding()[0]] == ["job-2"], "what waits cannot end the process"
    beaten = {beat.job_id for beat in driver.wait(21).sent(frames.Heartbeat)}
    assert beaten == {"job-1", "job-2"}
    driver.finish(1)
    assert [claimed.job_id for claimed in driver.of(JournalClaimed)] == started(driver) == ["job-1"]


def test_suspects_run_one_after_the_other() -> None:
    driver = with_suspects(claimed_job(1), suspects=("job-1", "job-2"))
    driver.receive(frames.Claimed(jobs=[claimed_job(2)]))
    assert [report.error_type for report in driver.sent(frames.Report)] == ["WorkerOverCapacity"]
    driver = with_suspects(suspects=("job-1", "job-2"))
    driver.receive(frames.Claimed(jobs=[claimed_job(3)]))
    driver.receive(frames.Claimed(jobs=[claimed_job(1)]))
    assert not started(driver)
    driver.finish(1)
    assert started(driver) == ["job-1"]


def test_a_suspect_is_not_waited_with_for_ever_and_not_again_soon() -> None:
    driver = with_suspects(claimed_job(2), claimed_job(1))
    driver.receive(frames.HeartbeatAck(job_id="job-1")).receive(frames.HeartbeatAck(job_id="job-2"))
    driver.wait(30).receive(frames.HeartbeatAck(job_id="job-1")).receive(frames.HeartbeatAck(job_id="job-2"))
    driver.wait(PATIENCE - 29)
    handed = [report for report in driver.sent(frames.Report) if report.error_type == "WorkerOverCapacity"]
    assert handed[0].job_id == "job-1"
    assert driver.sent(frames.Claim), "the other slots are used again"
    driver.claim_answered(claimed_job(1, token="again"))
    assert driver.sent(frames.Report)[0].lease_token == "again"
    assert not driver.of(StartJob)


def test_a_suspect_that_waits_can_be_cancelled_and_loses_its_lease() -> None:
    driver = with_suspects(claimed_job(2), claimed_job(1))
    driver.receive(frames.JobCancel(job_id="job-1"))
    assert [(report.job_id, report.status) for report in driver.sent(frames.Report)] == [("job-1", "cancelled")]
    assert driver.sent(frames.Claim)
    driver = with_suspects(claimed_job(2), claimed_job(1))
    lost = frames.CancelDirective(job_id="job-1", reason="lease_lost")
    driver.receive(frames.HeartbeatAck(job_id="job-1", cancel=lost))
    assert not driver.sent(frames.Report)
    assert driver.sent(frames.Claim)
    driver = with_suspects(claimed_job(2), claimed_job(1, lease_duration_seconds=30)).lose()
    driver.wait(31)
    assert [report.job_id for report in driver.session.outstanding()[1]] == []
    assert "job-1" not in driver.session._by_id


def test_a_suspect_that_waits_goes_back_at_no_cost_when_the_worker_drains() -> None:
    driver = with_suspects(claimed_job(2), claimed_job(1)).drain()
    assert [(report.job_id, report.error_type) for report in driver.sent(frames.Report)] == [
        ("job-1", "WorkerOverCapacity")
    ]


def test_a_suspect_that_waits_and_is_leased_anew_starts_under_the_new_lease() -> None:
    driver = with_suspects(claimed_job(2), claimed_job(1))
    driver.receive(frames.Claimed(jobs=[claimed_job(1, token="newer")]))
    assert not driver.of(JournalSettled)
    driver.finish(1)
    assert [claimed.lease_token for claimed in driver.of(JournalClaimed)] == ["newer"]
    assert [start.job.lease_token for start in driver.of(StartJob)] == ["newer"]


def test_a_suspect_does_not_begin_beside_code_that_did_not_return() -> None:
    driver = with_suspects(claimed_job(2), claimed_job(1))
    driver.took(driver.session.job_abandoned(1, DONE, driver.now))
    assert not driver.of(StartJob)
    driver.took(driver.session.code_returned(1, driver.now))
    assert started(driver) == ["job-1"]


def test_a_suspect_whose_code_does_not_return_is_not_cleared() -> None:
    driver = with_suspects(claimed_job(1))
    driver.took(driver.session.job_abandoned(1, DONE, driver.now))
    assert not driver.of(ClearSuspect)
    assert driver.session.solitude.alone is None


def test_poison_is_refused_with_its_reason_and_never_started() -> None:
    driver = SessionDriver(concurrency=3).register()
    driver.session.solitude.suspects = {"job-1": "it ended three processes"}
    driver.claim_answered(claimed_job(1), claimed_job(2))
    [report] = driver.sent(frames.Report)
    assert (report.job_id, report.status, report.error_type) == ("job-1", "failed", "PoisonJob")
    assert report.error_message == "it ended three processes"
    assert [reported.report for reported in driver.of(JournalReported)] == [report]
    assert started(driver) == ["job-2"]
