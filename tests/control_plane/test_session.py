"""The server's end of a worker socket under a virtual clock: no socket, no store, every answer given by hand."""

import pytest
from msgspec.structs import replace

from control_plane.domain.model import Selector
from control_plane.domain.store import (
    HeartbeatOutcome,
    ReportOutcome,
    SessionContested,
    SessionDrainLifted,
    SessionDrainRequested,
    SessionTaken,
)
from control_plane.errors import Conflict, StoreUnavailable
from control_plane.hub import MOST_MEMORY
from control_plane.keys import hash_secret
from control_plane.session import (
    POLICY_VIOLATION,
    REMEMBERED_ANSWERS,
    REMEMBERED_CLAIMS,
    REPLACED,
    TRY_AGAIN_LATER,
    AnswerContest,
    Close,
    ClosePeer,
    PingPeer,
    StoreClaim,
    StoreContest,
    StoreHeartbeat,
    StoreRegister,
    StoreReports,
    StoreUpdateSession,
)
from tests.support.session_room import CADENCE, PROJECT, Room, Worker, claimable, hints, lease
from wire import frames
from wire.codec import MAX_FRAME_TO_WORKER, RemoteFrameError, encode_to_worker
from wire.verdicts import OVER_CAPACITY


@pytest.fixture
def room():
    return Room()


# --- registration


def test_a_worker_registers(room):
    worker = Worker(room)
    worker.send(
        frames.Register(
            worker_instance_id="w-1",
            message_id="m1",
            concurrency_limit=4,
            name="Box",
            version="1",
            queues=["a"],
            action_names=["print"],
            models=[frames.ModelCapability(provider="ollama", model="llama3")],
            environment_id="env_1",
            capabilities=["x"],
        )
    )
    asked = worker.asked(StoreRegister).session
    assert asked.selector == Selector(
        queues=("a",), action_names=("print",), models=(("ollama", "llama3"),), environment_id="env_1"
    )
    assert (asked.concurrency_limit, asked.api_key_id, asked.token_hash) == (4, "key_1", hash_secret("session token 1"))
    worker.store_agrees()
    assert worker.take() == [
        frames.Registered(
            message_id="m1",
            worker_session_token="session token 1",
            lease=frames.Lease(lease_duration_seconds=60, heartbeat_cadence_seconds=20),
        )
    ]


def test_nothing_goes_before_the_registration(room):
    worker = Worker(room)
    worker.claim("c1")
    (error,) = worker.take()
    assert (error.error.code, error.message_id) == ("not_registered", "c1")
    assert worker.questions == []


def test_a_second_registration_of_one_connection_is_an_error(room):
    worker = room.worker()
    worker.send(frames.Register(worker_instance_id="w-2", message_id="again"))
    assert worker.take()[0].error.code == "already_registered"


def test_what_is_no_frame_is_told_and_the_conversation_goes_on(room):
    worker = room.worker()
    worker.perform(worker.connection.receive_error(RemoteFrameError("bad " * 1000, "m"), room.now))
    (error,) = worker.take()
    assert (error.error.code, error.message_id, len(error.error.message)) == ("invalid_frame", "m", 500)
    worker.claim()
    assert worker.asked(StoreClaim)


@pytest.mark.parametrize(
    "names",
    [
        {"queues": ["a", "b\0"]},
        {"action_names": ["\0"]},
        {"models": [frames.ModelCapability(provider="p", model="m\0")]},
        {"models": [frames.ModelCapability(provider="p\0", model="m")]},
    ],
)
def test_names_that_no_store_could_look_for_are_refused_before_it_is_asked(room, names):
    worker = Worker(room)
    worker.send(frames.Register(worker_instance_id="w-1", message_id="m", **names))
    assert worker.take()[0].error.code == "invalid_frame"
    assert worker.questions == []
    worker.register()
    worker.take()
    for kind in (frames.Ready, frames.Claim):
        worker.send(kind(message_id="m", available_slots=1, **names))
        (error,) = worker.take()
        assert (error.error.code, error.message_id) == ("invalid_frame", "m")
    assert worker.questions == []
    assert worker.connection.session.selector == Selector()
    worker.claim()
    assert worker.asked(StoreClaim).order.selector == Selector()


def test_names_that_are_too_much_to_list_are_refused(room):
    worker = Worker(room)
    worker.send(frames.Register(worker_instance_id="w-1", message_id="m", action_names=["x" * 256] * 300))
    (error,) = worker.take()
    assert error.error.message == "the worker's names have 76803 characters together; at most 65536 may be"
    assert worker.questions == []
    worker.register(action_names=["x" * 60] * 1000)
    assert worker.connection.session is not None


def test_a_keepalive_is_not_answered(room):
    worker = room.worker()
    worker.send(frames.Keepalive(message_id="k"))
    assert worker.take() == []


def test_a_store_that_is_away_at_the_registration_says_try_later(room):
    worker = Worker(room)
    worker.send(frames.Register(worker_instance_id="w-1", message_id="r"))
    worker.answer(StoreRegister, StoreUnavailable("gone"))
    assert worker.take()[0].error.code == "store_unavailable"
    assert worker.closed[0].code == TRY_AGAIN_LATER
    assert room.hub.owner(PROJECT, "w-1") is None


# --- identity


def test_an_owned_identity_is_refused_when_its_owner_answers(room):
    owner = room.worker("w-1")
    rival = Worker(room)
    rival.send(frames.Register(worker_instance_id="w-1", message_id="r"))
    assert rival.asked(PingPeer).connection is owner.connection
    rival.answer(PingPeer, True)
    (error,) = rival.take()
    assert (error.error.code, error.message_id) == ("worker_instance_conflict", "r")
    assert [type(each) for each in rival.closed] == [Close]
    assert rival.closed[0].code == POLICY_VIOLATION
    rival.claim()
    assert rival.take() == []
    rival.close()
    assert room.hub.owner(PROJECT, "w-1") is owner.connection


def test_an_owner_that_does_not_answer_loses_the_identity(room):
    owner = room.worker("w-1")
    rival = Worker(room)
    rival.send(frames.Register(worker_instance_id="w-1"))
    rival.answer(PingPeer, False)
    assert rival.closed == [
        ClosePeer(connection=owner.connection, code=REPLACED, reason="another process took over the identity")
    ]
    rival.store_agrees()
    assert isinstance(rival.take()[0], frames.Registered)
    owner.close()
    assert room.hub.owner(PROJECT, "w-1") is rival.connection


def test_of_two_rivals_for_a_dead_owners_identity_one_wins(room):
    room.worker("w-1")
    first, second = Worker(room), Worker(room)
    for rival in (first, second):
        rival.send(frames.Register(worker_instance_id="w-1"))
    first.answer(PingPeer, False)
    second.answer(PingPeer, False)
    assert second.asked(PingPeer).connection is first.connection
    second.answer(PingPeer, True)
    assert second.take()[0].error.code == "worker_instance_conflict"


def test_an_identity_is_free_as_soon_as_its_socket_is_gone(room):
    room.worker("w-1").close()
    assert room.worker("w-1").token is not None


def test_identities_of_two_projects_do_not_meet(room):
    room.worker("w-1")
    other = Worker(room, project="proj_2")
    other.register("w-1")
    assert isinstance(other.take()[0], frames.Registered)


def test_the_same_process_takes_its_session_to_a_new_socket(room):
    old = room.worker("w-1")
    new = Worker(room)
    new.register("w-1", worker_session_token=old.token)
    assert new.connection.session.id == old.connection.session.id
    assert new.token == old.token
    assert [(each.connection, each.code) for each in new.closed] == [(old.connection, REPLACED)]
    old.close()
    assert room.hub.owner(PROJECT, "w-1") is new.connection
    assert room.hub.live_sessions() == [new.connection.session.id]


@pytest.mark.parametrize("alive", [True, False])
def test_where_others_serve_the_store_they_are_asked_for_the_owner_of_an_identity(alive):
    worker = Worker(Room(replicated=True))
    worker.send(frames.Register(worker_instance_id="w-1", message_id="m1"))
    assert [type(each) for each in worker.questions] == [StoreContest]
    asked = worker.answer(StoreContest, alive)
    assert (asked.project_id, asked.worker_instance_id) == (PROJECT, "w-1")
    if alive:
        (error,) = worker.take()
        assert (error.error.code, error.message_id) == (frames.WORKER_INSTANCE_CONFLICT, "m1")
        assert worker.closed[0].code == POLICY_VIOLATION
    else:
        worker.store_agrees()
        assert [type(frame) for frame in worker.take()] == [frames.Registered]


def test_others_are_not_asked_about_a_process_that_is_known():
    room = Room(replicated=True)
    first = Worker(room)
    first.send(frames.Register(worker_instance_id="w-1"))
    first.answer(StoreContest, False)
    first.store_agrees()
    first.close()
    again = Worker(room)
    again.register("w-1", worker_session_token=first.token)
    assert again.connection.session.id == first.connection.session.id


def test_a_rival_that_came_while_others_were_asked_is_pinged():
    room = Room(replicated=True)
    slow, quick = Worker(room), Worker(room)
    for worker in (slow, quick):
        worker.send(frames.Register(worker_instance_id="w-1"))
    quick.answer(StoreContest, False)
    quick.store_agrees()
    slow.answer(StoreContest, False)
    assert slow.asked(PingPeer).connection is quick.connection


def test_a_session_that_another_process_has_taken_is_closed_here_unless_it_has_come_back(room):
    worker = room.worker()
    since = worker.connection.session.last_seen_at
    session_id = worker.connection.session.id
    room.committed(SessionTaken(session_id=session_id, before=since))
    assert worker.closed == []
    room.committed(SessionTaken(session_id=session_id, before=since + 1))
    assert worker.closed == [Close(code=REPLACED, reason=worker.closed[0].reason)]
    # Its identity is free at once.
    assert room.worker().connection.session.id != session_id


def test_a_contested_session_is_asked_whether_it_answers(room):
    worker = room.worker()
    room.committed(SessionContested(session_id=worker.connection.session.id, contest_id="contest"))
    assert worker.answer(AnswerContest, None).contest_id == "contest"
    room.committed(SessionContested(session_id="wsess_elsewhere", contest_id="contest"))
    assert worker.questions == []


def test_a_superseded_token_is_refused(room):
    old = room.worker("w-1")
    key = hash_secret(old.token)
    room.rows[key] = replace(room.rows[key], superseded=True)
    old.close()
    zombie = Worker(room)
    zombie.register("w-1", worker_session_token=old.token)
    assert zombie.take()[0].error.code == "worker_instance_conflict"
    assert zombie.closed[0].code == POLICY_VIOLATION


def test_a_session_superseded_while_it_registers_is_refused(room):
    worker = Worker(room)
    worker.send(frames.Register(worker_instance_id="w-1"))
    worker.answer(StoreRegister, Conflict("session_superseded", "gone"))
    assert worker.take()[0].error.code == "worker_instance_conflict"
    assert room.hub.owner(PROJECT, "w-1") is None


@pytest.mark.parametrize("token", ["unknown", ""])
def test_an_unknown_token_is_as_good_as_none(room, token):
    worker = Worker(room)
    worker.register("w-1", worker_session_token=token)
    assert worker.token == "session token 1"


def test_a_token_of_another_identity_is_as_good_as_none(room):
    one = room.worker("w-1")
    two = Worker(room)
    two.register("w-2", worker_session_token=one.token)
    assert two.connection.session.id != one.connection.session.id


def test_a_draining_session_owns_nothing(room):
    old = room.worker("w-1")
    old.send(frames.Draining(message_id="d"))
    new = room.worker("w-1")
    assert new.connection.session.id != old.connection.session.id
    assert not old.closed
    room.rows[hash_secret(old.token)] = old.connection.session
    again = Worker(room)
    again.register("w-1", worker_session_token=old.token)
    assert again.connection.session.id == old.connection.session.id
    assert room.hub.owner(PROJECT, "w-1") is new.connection


# --- claims


def test_a_claim_is_answered_with_jobs(room):
    worker = room.worker(concurrency_limit=4)
    worker.claim("c1", available_slots=2)
    order = worker.asked(StoreClaim).order
    assert (order.limit, len(set(order.lease_tokens)), order.session_id) == (2, 2, worker.connection.session.id)
    worker.answer(StoreClaim, [lease(1), lease(2)])
    (claimed,) = worker.take()
    assert claimed.message_id == "c1"
    assert [each.id for each in claimed.jobs] == ["job_1", "job_2"]


@pytest.mark.parametrize(
    ("dialect", "origin", "run_id", "step_id"),
    [
        ("automations", "automation_action_step", "run_1", "step_1"),
        ("loops", "loop_action_step", "run_1", "step_1"),
        ("org", "loop_action_step", None, None),
    ],
)
def test_a_claimed_job_speaks_the_dialect(room, dialect, origin, run_id, step_id):
    worker = Worker(room, dialect)
    worker.register("w-1")
    worker.take()
    worker.claim()
    worker.answer(StoreClaim, [lease(1)])
    assert worker.take()[0].jobs == [
        frames.ClaimedJob(
            id="job_1",
            kind="action_execution",
            origin=origin,
            executor_kind="customer_worker",
            queue="default",
            action_name="print",
            spec={
                "parameters": {"message": "hi"},
                "mobius": {"deadline_at": "2025-11-22T00:27:14Z", "max_attempts": 3, "idempotency_key": "job_1"},
            },
            lease_token="secret 1",
            claim_attempt=1,
            lease_duration_seconds=60,
            heartbeat_cadence_seconds=20,
            run_id=run_id,
            step_id=step_id,
        )
    ]


def test_a_claim_is_held_open_for_one_cadence_then_answered_empty(room):
    worker = room.worker()
    worker.claim("c1")
    worker.answer(StoreClaim, [])
    worker.wait(CADENCE - 0.1)
    assert worker.take() == []
    worker.wait(0.2)
    assert worker.take() == [frames.Claimed(message_id="c1", jobs=[])]


def test_an_open_claim_asks_again_now_and_then_whatever_the_hints_say(room):
    worker = room.worker()
    worker.claim("c1")
    worker.answer(StoreClaim, [])
    room.now = worker.connection.next_deadline()
    worker.perform(worker.connection.tick(room.now))
    worker.answer(StoreClaim, [lease(1)])
    assert len(worker.take()[0].jobs) == 1


def test_a_new_job_wakes_an_open_claim(room):
    worker = room.worker()
    worker.claim("c1")
    worker.answer(StoreClaim, [])
    room.committed(claimable(1))
    worker.answer(StoreClaim, [lease(1)])
    assert worker.take()[0].message_id == "c1"


def test_a_job_that_comes_while_an_ending_claim_is_asked_for_is_hinted(room):
    worker = room.worker()
    worker.claim("c1")
    worker.wait(CADENCE)
    room.committed(claimable(1))
    worker.answer(StoreClaim, [])
    assert worker.take() == [frames.Claimed(message_id="c1", jobs=[]), frames.WorkAvailable()]


def test_a_message_id_is_repeated_only_by_a_frame_of_its_kind(room):
    worker = room.worker()
    worker.claim("m")
    worker.answer(StoreClaim, [lease(1)])
    claimed = worker.take()
    worker.send(frames.Report(job_id="job_1", lease_token="secret 1", message_id="m"))
    worker.answer(StoreReports, [ReportOutcome(verdict="accepted")])
    assert worker.take()[0] == frames.ReportAck(message_id="m", job_id="job_1")
    worker.claim("m")
    assert worker.take() == claimed


def test_a_job_that_comes_while_the_store_is_asked_is_asked_for_again(room):
    worker = room.worker()
    worker.claim("c1")
    room.committed(claimable(1))
    worker.answer(StoreClaim, [])
    worker.answer(StoreClaim, [lease(1)])
    assert len(worker.take()[0].jobs) == 1


def test_claims_without_slots_and_of_draining_workers_are_answered_empty_at_once(room):
    worker = room.worker()
    worker.claim("c1", available_slots=0)
    assert worker.take() == [frames.Claimed(message_id="c1", jobs=[])]
    worker.send(frames.Draining(message_id="d"))
    worker.take()
    worker.claim("c2")
    assert worker.take() == [frames.Claimed(message_id="c2", jobs=[])]
    assert not [each for each in worker.questions if isinstance(each, StoreClaim)]


def test_a_second_claim_ends_the_first(room):
    worker = room.worker()
    worker.claim("c1")
    worker.answer(StoreClaim, [])
    worker.claim("c2")
    assert worker.take() == [frames.Claimed(message_id="c1", jobs=[])]


def test_jobs_for_a_claim_that_was_overtaken_are_not_lost(room):
    worker = room.worker()
    worker.claim("c1")
    worker.claim("c2")
    first, second = worker.questions
    worker.perform(worker.connection.answered(first.question, [lease(1)], room.now))
    worker.perform(worker.connection.answered(second.question, [lease(2)], room.now))
    assert [(frame.message_id, frame.jobs[0].id) for frame in worker.take()] == [("c1", "job_1"), ("c2", "job_2")]


def test_a_claim_says_what_it_is_for(room):
    worker = room.worker(queues=["a"], action_names=["x", "y"])
    worker.claim(action_names=["y"])
    assert worker.asked(StoreClaim).order.selector == Selector(queues=("a",), action_names=("y",))
    worker.answer(StoreClaim, [])
    room.committed(claimable(1, queue="a", action_name="x"), claimable(2, queue="b", action_name="y"))
    assert worker.questions == []
    room.committed(claimable(3, queue="a", action_name="y"))
    assert worker.asked(StoreClaim)


def test_jobs_that_could_not_be_sent_any_more_go_back(room):
    worker = room.worker()
    worker.claim()
    worker.close()
    worker.answer(StoreClaim, [lease(1), lease(2)])
    reports = worker.asked(StoreReports).reports
    assert [(each.job_id, each.lease_token, each.error_type) for each in reports] == [
        ("job_1", "secret 1", "WorkerOverCapacity"),
        ("job_2", "secret 2", "WorkerOverCapacity"),
    ]
    assert worker.take() == []


def test_a_claim_outlives_an_outage_of_the_store(room):
    worker = room.worker()
    worker.claim("c1")
    worker.answer(StoreClaim, StoreUnavailable("gone"))
    assert worker.take() == []
    room.now += 1
    worker.perform(worker.connection.tick(room.now))
    worker.answer(StoreClaim, [lease(1)])
    assert worker.take()[0].message_id == "c1"


def test_a_frame_of_claimed_jobs_stays_below_a_megabyte(room):
    worker = room.worker(concurrency_limit=100)
    worker.claim(available_slots=100)
    limit = worker.asked(StoreClaim).order.byte_limit
    size = 10_000
    spec = {"parameters": {"x": "y" * (size - 1024 - 30)}}
    worker.answer(StoreClaim, [lease(number, spec=spec) for number in range(limit // size)])
    (frame,) = worker.take()
    assert len(encode_to_worker(frame)) < MAX_FRAME_TO_WORKER


# --- hints


def test_idle_workers_are_hinted_at_every_job_that_they_could_run_and_once_a_commit(room):
    worker = room.worker()
    deaf = room.worker("w-2", queues=["other"])
    room.committed(claimable(1), claimable(2))
    assert (hints(worker), hints(deaf)) == (1, 0)
    room.committed(claimable(3))
    assert (hints(worker), hints(deaf)) == (1, 0), "it may not have understood the first one"
    worker.claim()
    worker.answer(StoreClaim, [lease(1)])
    worker.take()
    room.committed(claimable(3))
    assert hints(worker) == 0, "its only slot is taken"


def test_a_slot_that_frees_is_hinted(room):
    worker = room.worker()
    worker.claim()
    worker.answer(StoreClaim, [lease(1)])
    worker.send(frames.Report(job_id="job_1", lease_token="secret 1", message_id="p"))
    worker.take()
    worker.answer(StoreReports, [ReportOutcome(verdict="accepted")])
    assert worker.take() == [frames.ReportAck(message_id="p", job_id="job_1"), frames.WorkAvailable()]


def test_an_idle_worker_is_hinted_at_least_once_a_cadence(room):
    worker = room.worker()
    worker.wait(CADENCE)
    first = hints(worker)
    worker.wait(3 * CADENCE)
    assert (first, hints(worker)) == (1, 3)


def test_a_worker_that_says_that_it_is_ready_is_hinted(room):
    worker = room.worker()
    worker.send(frames.Ready(available_slots=0))
    assert hints(worker) == 0
    worker.send(frames.Ready(available_slots=1))
    assert hints(worker) == 1
    worker.send(frames.Ready(queues=["gpu"]))
    assert worker.asked(StoreUpdateSession).selector == Selector(queues=("gpu",))
    room.committed(claimable(1))
    room.committed(claimable(2, queue="gpu"))
    assert hints(worker) == 2


# --- reports and heartbeats


@pytest.mark.parametrize(
    ("verdict", "duplicate"), [("accepted", None), ("superseded", None), ("handed_back", None), ("duplicate", True)]
)
def test_every_report_is_acknowledged(room, verdict, duplicate):
    worker = room.worker()
    worker.send(
        frames.Report(
            message_id="p", job_id="job_1", lease_token="t", status="failed", error_type="Boom", error_message="x"
        )
    )
    question = worker.answer(StoreReports, [ReportOutcome(verdict=verdict)])
    assert (question.project_id, question.reports[0].status, question.reports[0].error_type) == (
        PROJECT,
        "failed",
        "Boom",
    )
    assert worker.take()[0] == frames.ReportAck(message_id="p", job_id="job_1", duplicate=duplicate)


def test_a_report_for_an_unknown_job_is_an_error_then_an_acknowledgement(room):
    worker = room.worker()
    worker.send(frames.Report(message_id="p", job_id="job_9", lease_token="t"))
    worker.answer(StoreReports, [ReportOutcome(verdict="unknown")])
    error, ack = worker.take()
    assert (error.error.code, error.message_id) == ("unknown_job", "p")
    assert ack == frames.ReportAck(message_id="p", job_id="job_9")


def test_a_report_that_the_store_could_not_take_is_not_answered_and_may_come_again(room):
    worker = room.worker()
    report = frames.Report(message_id="p", job_id="job_1", lease_token="t")
    worker.send(report)
    worker.answer(StoreReports, StoreUnavailable("gone"))
    assert worker.take() == []
    worker.send(report)
    worker.answer(StoreReports, [ReportOutcome(verdict="accepted")])
    assert worker.take()[0].job_id == "job_1"


@pytest.mark.parametrize(
    ("outcome", "cancel"),
    [
        (HeartbeatOutcome(lost=False), None),
        (HeartbeatOutcome(lost=True), frames.CancelDirective(job_id="job_1", reason="lease_lost")),
        (
            HeartbeatOutcome(lost=False, cancel_requested=True, cancel_reason="stop", cancel_requested_at=0),
            frames.CancelDirective(job_id="job_1", reason="stop", requested_at="1970-01-01T00:00:00Z"),
        ),
        (
            HeartbeatOutcome(lost=False, cancel_requested=True, cancel_requested_at=0),
            frames.CancelDirective(job_id="job_1", requested_at="1970-01-01T00:00:00Z"),
        ),
    ],
)
def test_heartbeats(room, outcome, cancel):
    worker = room.worker()
    worker.send(frames.Heartbeat(message_id="h", job_id="job_1", lease_token="t"))
    worker.answer(StoreHeartbeat, outcome)
    assert worker.take() == [frames.HeartbeatAck(message_id="h", job_id="job_1", cancel=cancel)]


def test_deltas_are_acknowledged_and_handed_on(room):
    worker = room.worker()
    worker.send(
        frames.GenerationDelta(message_id="g", job_id="job_1", lease_token="t", sequence=7, delta={"text": "x"})
    )
    assert worker.take() == [frames.GenerationDeltaAck(message_id="g", job_id="job_1", received_sequence=7)]
    (taken,) = worker.closed
    assert (taken.project_id, taken.job_id, taken.lease_token) == (worker.connection.peer.project_id, "job_1", "t")
    assert (taken.sequence, taken.delta) == (7, {"text": "x"})


def test_a_handed_back_job_is_not_offered_to_that_session_for_a_second(room):
    worker = room.worker(concurrency_limit=2)
    worker.claim(available_slots=2)
    worker.answer(StoreClaim, [lease(1)])
    worker.claim("more", available_slots=1)
    worker.answer(StoreClaim, [])
    worker.send(frames.Report(job_id="job_1", lease_token="t", status="failed", error_type="WorkerOverCapacity"))
    room.committed(claimable(1))
    worker.answer(StoreReports, [ReportOutcome(verdict="handed_back")])
    assert not worker.questions
    worker.wait(0.9)
    worker.take()
    worker.claim("again", available_slots=1)
    assert worker.asked(StoreClaim).order.excluded == ("job_1",)
    worker.answer(StoreClaim, [])
    room.now += 0.2
    worker.perform(worker.connection.tick(room.now))
    assert worker.answer(StoreClaim, [lease(1)]).order.excluded == ()


# --- repeated messages


def test_a_repeated_message_is_not_applied_twice_but_answered_again(room):
    worker = room.worker()
    beat = frames.Heartbeat(message_id="h", job_id="job_1", lease_token="t")
    worker.send(beat)
    worker.send(beat)
    assert len(worker.questions) == 1
    worker.answer(StoreHeartbeat, HeartbeatOutcome(lost=False))
    worker.send(beat)
    assert worker.questions == []
    first, second = worker.take()
    assert first == second


def test_answers_are_remembered_across_reconnects(room):
    worker = room.worker()
    report = frames.Report(message_id="p", job_id="job_1", lease_token="t")
    worker.send(report)
    worker.answer(StoreReports, [ReportOutcome(verdict="accepted")])
    worker.close()
    again = Worker(room)
    again.register("w-1", worker_session_token=worker.token)
    again.take()
    again.send(report)
    assert again.take() == [frames.ReportAck(message_id="p", job_id="job_1")]


def test_a_new_process_does_not_meet_the_answers_of_the_old(room):
    worker = room.worker()
    beat = frames.Heartbeat(message_id="1", job_id="job_1", lease_token="t")
    worker.send(beat)
    worker.answer(StoreHeartbeat, HeartbeatOutcome(lost=False))
    worker.close()
    again = room.worker()
    again.send(beat)
    assert again.asked(StoreHeartbeat)


def test_the_memory_is_bounded(room):
    worker = room.worker(concurrency_limit=1000)
    memory = worker.connection._memory
    for number in range(REMEMBERED_ANSWERS + 10):
        worker.send(frames.Heartbeat(message_id=f"h{number}", job_id="job_1", lease_token="t"))
        worker.answer(StoreHeartbeat, HeartbeatOutcome(lost=False))
    assert len(memory.answers) == REMEMBERED_ANSWERS
    for number in range(REMEMBERED_CLAIMS + 3):
        worker.claim(f"c{number}", available_slots=1)
        worker.answer(StoreClaim, [lease(number)])
    kept = [each for answer in memory.answers.values() for each in answer if isinstance(each, frames.Claimed)]
    assert len(kept) == REMEMBERED_CLAIMS


def test_sessions_that_have_left_keep_few_bytes_and_the_newest_remembers(room):
    for number in range(30):
        worker = room.worker(f"w{number}", concurrency_limit=1000)
        for claim in range(REMEMBERED_CLAIMS + 1):
            worker.claim(f"c{claim}", available_slots=1)
            worker.answer(StoreClaim, [lease(number, spec={"parameters": {"x": "x" * 900_000}})])
        worker.close()
    size = worker.connection._memory.bytes
    assert REMEMBERED_CLAIMS * 900_000 < size < (REMEMBERED_CLAIMS + 1) * 900_000
    assert MOST_MEMORY - size < room.hub._left_bytes <= MOST_MEMORY
    assert sum(memory.bytes for memory, _ in room.hub._left.values()) == room.hub._left_bytes
    again = room.worker("w29", concurrency_limit=1000, worker_session_token=worker.token)
    assert again.connection._memory.bytes == size
    assert room.hub._left_bytes <= MOST_MEMORY - size


def test_a_report_for_an_unknown_job_excludes_nothing(room):
    worker = room.worker()
    report = frames.Report(message_id="r", job_id="j", lease_token="t", status="failed", error_type=OVER_CAPACITY)
    worker.send(report)
    worker.answer(StoreReports, [ReportOutcome(verdict="unknown")])
    assert not worker.connection._memory.excluded


# --- cancel, drain, the end


def test_a_drain_is_sticky_and_ends_the_open_claim(room):
    worker = room.worker()
    worker.claim("c")
    worker.answer(StoreClaim, [])
    room.committed(SessionDrainRequested(session_id=worker.connection.session.id))
    assert worker.take() == [frames.Drain(), frames.Claimed(message_id="c", jobs=[])]
    room.committed(claimable(1))
    worker.wait(2 * CADENCE)
    assert worker.take() == []
    room.rows[hash_secret(worker.token)] = worker.connection.session
    worker.close()
    again = Worker(room)
    again.register("w-1", worker_session_token=worker.token)
    assert [type(frame) for frame in again.take()] == [frames.Registered, frames.Drain]


def test_a_lifted_drain_has_the_worker_register_anew(room):
    worker = room.worker()
    room.committed(SessionDrainLifted(session_id=worker.connection.session.id))
    assert worker.closed == []
    room.committed(SessionDrainRequested(session_id=worker.connection.session.id))
    worker.send(frames.Draining(message_id="d"))
    worker.answer(StoreUpdateSession, None)
    room.committed(SessionDrainLifted(session_id=worker.connection.session.id))
    assert [close.code for close in worker.closed] == [1012]
    worker.close()
    assert worker.questions == []  # its row does not end: it comes back
    again = Worker(room)
    again.register("w-1", worker_session_token=worker.token)
    assert [type(frame) for frame in again.take()] == [frames.Registered]


def test_a_draining_worker_is_acknowledged_recorded_and_left_alone(room):
    worker = room.worker()
    worker.claim("c")
    worker.answer(StoreClaim, [])
    worker.send(frames.Draining(message_id="d"))
    assert worker.take() == [frames.Claimed(message_id="c", jobs=[])]
    assert worker.answer(StoreUpdateSession, None).draining is True
    assert worker.take() == [frames.DrainingAck(message_id="d")]
    room.committed(claimable(1))
    worker.wait(2 * CADENCE)
    assert worker.take() == []
    worker.close()
    assert worker.asked(StoreUpdateSession).ended is True


def test_a_worker_that_is_only_cut_off_keeps_its_row(room):
    worker = room.worker()
    worker.close()
    assert worker.questions == []
    assert worker.connection.next_deadline() is None
