import gc
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import codec, frames
from wire.codec import LocalFrameError, RemoteFrameError

LEASE = frames.Lease(lease_duration_seconds=60, heartbeat_cadence_seconds=20)
JOB = frames.ClaimedJob(
    id="job_1",
    kind="action_execution",
    origin="automation_action_step",
    executor_kind="customer_worker",
    queue="default",
    spec={"parameters": {"message": "hello"}},
    lease_token="lease",
    claim_attempt=1,
    lease_duration_seconds=60,
    heartbeat_cadence_seconds=20,
    action_name="print",
)

FROM_WORKER = [
    frames.Register(
        worker_instance_id="rig-1", concurrency_limit=2, models=[frames.ModelCapability(provider="p", model="m")]
    ),
    frames.Ready(available_slots=0),
    frames.Claim(message_id="m1", available_slots=1, queues=["default"]),
    frames.Heartbeat(job_id="job_1", lease_token="lease"),
    frames.Report(job_id="job_1", lease_token="lease", status="failed", error_type="Error", error_message="no"),
    frames.GenerationDelta(job_id="job_1", lease_token="lease", sequence=0, delta={"text": "a"}),
    frames.Draining(),
    frames.Keepalive(),
]

FROM_SERVER = [
    frames.Registered(worker_session_token="t", lease=LEASE),
    frames.Claimed(jobs=[JOB]),
    frames.WorkAvailable(),
    frames.HeartbeatAck(job_id="job_1", cancel=frames.CancelDirective(job_id="job_1", reason=frames.LEASE_LOST)),
    frames.ReportAck(job_id="job_1", duplicate=True),
    frames.GenerationDeltaAck(job_id="job_1", received_sequence=3),
    frames.JobCancel(job_id="job_1", reason="run cancelled"),
    frames.DrainingAck(),
    frames.Drain(),
    frames.Keepalive(),
    frames.Error(error=frames.ProtocolError(code="invalid_frame", message="no")),
]

DEEP = b'{"a":' * (codec.MAX_DEPTH_TO_SERVER) + b"1" + b"}" * codec.MAX_DEPTH_TO_SERVER

CONTRACT_TYPES = {
    "to server": {
        "worker.register",
        "worker.ready",
        "jobs.claim",
        "job.heartbeat",
        "job.report",
        "generation.delta",
        "worker.draining",
        "keepalive",
    },
    "to worker": {
        "worker.registered",
        "jobs.claimed",
        "work.available",
        "job.heartbeat.ack",
        "job.report.ack",
        "generation.delta.ack",
        "job.cancel",
        "worker.draining.ack",
        "worker.drain",
        "keepalive",
        "error",
    },
}


def test_the_unions_are_the_frames_of_the_contract() -> None:
    assert {frames.frame_type(frame) for frame in FROM_WORKER} == CONTRACT_TYPES["to server"]
    assert {frames.frame_type(frame) for frame in FROM_SERVER} == CONTRACT_TYPES["to worker"]
    assert {type(frame) for frame in FROM_WORKER} == set(frames.FROM_WORKER)
    assert {type(frame) for frame in FROM_SERVER} == set(frames.FROM_SERVER)


@pytest.mark.parametrize("frame", FROM_WORKER, ids=frames.frame_type)
def test_a_worker_frame_survives_the_trip(frame: Any) -> None:
    assert codec.decode_from_worker(codec.encode_to_server(frame)) == frame


@pytest.mark.parametrize("frame", FROM_SERVER, ids=frames.frame_type)
def test_a_server_frame_survives_the_trip(frame: Any) -> None:
    assert codec.decode_from_server(codec.encode_to_worker(frame)) == frame


@pytest.mark.parametrize("frame", [*FROM_WORKER, *FROM_SERVER], ids=frames.frame_type)
def test_what_is_not_set_is_not_sent(frame: Any) -> None:
    encode = codec.encode_to_server if type(frame) in frames.FROM_WORKER else codec.encode_to_worker
    assert b"null" not in encode(frame)


def test_work_available_has_no_field_at_all() -> None:
    assert json.loads(codec.encode_to_worker(frames.WorkAvailable())) == {"type": "work.available"}


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (frames.Register(worker_instance_id=""), "worker_instance_id"),
        (frames.Claim(available_slots=-1), "available_slots"),
        (frames.Report(job_id="j", lease_token="t", status="lost"), "status"),  # type: ignore[arg-type]
        (frames.Report(job_id="j", lease_token="t", result={"x": object()}), "object"),
        (frames.Drain(), "direction"),
        (frames.Report(job_id="j", lease_token="t", result={"x": "y" * codec.MAX_FRAME_TO_SERVER}), "limit"),
    ],
)
def test_a_wrong_frame_never_leaves(frame: Any, complaint: str) -> None:
    with pytest.raises(LocalFrameError, match=complaint):
        codec.encode_to_server(frame)


def test_a_frame_to_a_worker_stays_under_the_limit() -> None:
    with pytest.raises(LocalFrameError, match="limit"):
        codec.encode_to_worker(frames.JobCancel(job_id="j", reason="y" * codec.MAX_FRAME_TO_WORKER))


def test_unknown_fields_origins_and_kinds_are_accepted() -> None:
    job = json.loads(codec.encode_to_worker(frames.Claimed(jobs=[JOB])))
    job["added"] = {"later": 1}
    job["jobs"][0] |= {"origin": "something_new", "kind": "new_kind", "another": True}
    decoded = codec.decode_from_server(json.dumps(job))
    assert isinstance(decoded, frames.Claimed)
    assert (decoded.jobs[0].origin, decoded.jobs[0].kind) == ("something_new", "new_kind")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "truncated"),
        (b"not json", "malformed"),
        (b"[]", "object"),
        (b"{}", "type"),
        (b'{"type":"nope"}', "nope"),
        (b'{"type":"job.heartbeat","job_id":"j"}', "lease_token"),
        (b'{"type":"job.heartbeat","job_id":7,"lease_token":"t"}', "job_id"),
        (b'{"type":"job.report","result":{"x":' + b"[" * 100_000, "nested"),
        (b'{"type":"job.report","job_id":"j","lease_token":"t","status":"completed","result":' + DEEP + b"}", "nested"),
        (b'{"type":"worker.drain"}', "worker.drain"),
        (b'{"type":"keepalive","message_id":"\xff"}', "utf-8"),
    ],
)
def test_a_remote_fault_is_said_to_be_remote(data: bytes, complaint: str) -> None:
    with pytest.raises(RemoteFrameError, match=f"(?i){complaint}"):
        codec.decode_from_worker(data)


def test_a_remote_fault_names_the_message_it_answers() -> None:
    with pytest.raises(RemoteFrameError) as caught:
        codec.decode_from_worker(b'{"type":"job.report","message_id":"m7"}')
    assert caught.value.message_id == "m7"


def test_a_message_id_that_no_answer_can_carry_is_not_echoed() -> None:
    with pytest.raises(RemoteFrameError, match="message_id") as caught:
        codec.decode_from_worker(b'{"type":"jobs.claim","message_id":"%s"}' % (b"x" * 257))
    assert caught.value.message_id is None


@pytest.mark.parametrize("seconds", [2**63, 10**400])
def test_a_number_that_is_no_time_is_refused(seconds: int) -> None:
    lease = b'{"lease_duration_seconds":60,"heartbeat_cadence_seconds":%d}' % seconds
    with pytest.raises(RemoteFrameError, match="heartbeat_cadence_seconds"):
        codec.decode_from_server(b'{"type":"worker.registered","worker_session_token":"t","lease":%s}' % lease)
    with pytest.raises(RemoteFrameError, match="concurrency_limit"):
        codec.decode_from_worker(
            b'{"type":"worker.register","worker_instance_id":"w","concurrency_limit":%d}' % seconds
        )


def test_a_worker_says_no_more_slots_than_there_may_be() -> None:
    frame = b'{"type":"worker.register","worker_instance_id":"w","message_id":"m","concurrency_limit":%d}'
    most = codec.decode_from_worker(frame % frames.MOST_CONCURRENT)
    assert isinstance(most, frames.Register)
    assert most.concurrency_limit == frames.MOST_CONCURRENT
    with pytest.raises(RemoteFrameError, match=r"<= 10000 - at `\$.concurrency_limit`") as caught:
        codec.decode_from_worker(frame % (frames.MOST_CONCURRENT + 1))
    assert caught.value.message_id == "m"


def test_a_frame_above_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(RemoteFrameError, match="limit"):
        codec.decode_from_worker(b" " * (codec.MAX_FRAME_TO_SERVER + 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated_frames(draw: st.DrawFn) -> bytes:
    """A valid frame with a field dropped, replaced or renamed, or with its bytes cut or flipped."""
    frame = draw(st.sampled_from([*FROM_WORKER, *FROM_SERVER]))
    fields = json.loads(codec._encoder.encode(frame))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(fields))) if fields else "type"
        match draw(st.sampled_from(["drop", "replace", "rename"])):
            case "drop":
                fields.pop(name, None)
            case "replace":
                fields[name] = draw(json_values)
            case "rename":
                fields[draw(st.text(max_size=8))] = fields.pop(name, None)
    data = bytearray(json.dumps(fields).encode())
    for _ in range(draw(st.integers(0, 3))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()) | mutated_frames())
def test_only_remote_frame_error_comes_out(data: bytes) -> None:
    for decode, union in (
        (codec.decode_from_worker, frames.FROM_WORKER),
        (codec.decode_from_server, frames.FROM_SERVER),
    ):
        try:
            frame = decode(data)
        except RemoteFrameError:
            continue
        assert isinstance(frame, union)


@given(st.text())
def test_only_remote_frame_error_comes_out_of_text(data: str) -> None:
    for decode in (codec.decode_from_worker, codec.decode_from_server):
        with pytest.raises(RemoteFrameError):
            decode(data)


def crowded(kind: str = "job.report", **fields: str) -> bytes:
    """A frame of some megabytes of empty lists."""
    names = "".join(f'"{name}":"{value}",' for name, value in fields.items())
    return f'{{"type":"{kind}",{names}"result":{{"x":['.encode() + b"[]," * codec.MAX_ELEMENTS + b"[]]}}"


def test_a_result_with_too_much_in_it_fails_its_job_without_being_read() -> None:
    report = codec.decode_from_worker(crowded(job_id="job_1", lease_token="lease", message_id="m1"))
    assert isinstance(report, frames.Report)
    assert (report.message_id, report.job_id, report.lease_token) == ("m1", "job_1", "lease")
    assert (report.status, report.error_type, report.result) == ("failed", "ResultTooLarge", None)
    assert "1000000 values" in str(report.error_message)


@pytest.mark.parametrize("kind", ["jobs.claim", "job.report", "nonsense"])
def test_any_other_frame_with_too_much_in_it_is_refused(kind: str) -> None:
    with pytest.raises(codec.RemoteFrameError, match="more than 1000000 values") as refusal:
        codec.decode_from_worker(crowded(kind, message_id="m1"))
    assert refusal.value.message_id == "m1"


def test_the_garbage_collector_is_left_as_it_was() -> None:
    large = codec.encode_to_server(frames.Report(job_id="j", lease_token="l", result={"x": "y" * 100_000}))
    assert gc.isenabled()
    codec.decode_from_worker(large)
    assert gc.isenabled()
    gc.disable()
    try:
        codec.decode_from_worker(large)
        assert not gc.isenabled()
    finally:
        gc.enable()


def claimed_text(*jobs: dict[str, Any]) -> bytes:
    return json.dumps({"type": "jobs.claimed", "message_id": "m-1", "jobs": jobs}).encode()


def test_of_claimed_jobs_those_that_can_be_read_are() -> None:
    sound = json.loads(msgspec.json.encode(JOB))
    odd, nameless = sound | {"id": "odd", "claim_attempt": "first"}, sound | {"id": 7}
    data = claimed_text(sound, odd, nameless)
    with pytest.raises(codec.RemoteFrameError):
        codec.decode_from_server(data)
    found = codec.claimed_in_part(data)
    assert found is not None
    claimed, unreadable = found
    assert claimed == frames.Claimed(message_id="m-1", jobs=[JOB])
    assert [(one.job_id, one.lease_token) for one in unreadable] == [("odd", JOB.lease_token), (None, None)]
    assert unreadable[0].reason == "Expected `int`, got `str` - at `$.claim_attempt`"


@pytest.mark.parametrize("data", [b'{"type":"jobs.claimed"}', b'{"type":"keepalive","jobs":[]}', b"[", b'{"jobs":[1]}'])
def test_what_is_no_answer_to_a_claim_has_no_parts(data: bytes) -> None:
    assert codec.claimed_in_part(data) is None
