"""Everything that a server can say wrongly, generated from the frames themselves: the worker says so in its log, ends
that conversation at the most, and works on."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from websockets.exceptions import ConnectionClosed

from tests.support.child_process import Child, MoldProcess, mold_process
from tests.support.scripted_server import DEADLINE, ScriptedServer, scripted_server
from tests.support.session_driver import claimed_job
from wire import frames, pipe
from wire.codec import MAX_FRAME_TO_WORKER, decode_from_worker

LEASE = frames.Lease(lease_duration_seconds=60, heartbeat_cadence_seconds=20)
SOUND: dict[type[Struct], Struct] = {
    frames.Registered: frames.Registered(message_id="m", worker_session_token="token", lease=LEASE),
    frames.Claimed: frames.Claimed(message_id="m", jobs=[claimed_job("of-nobody")]),
    frames.WorkAvailable: frames.WorkAvailable(),
    frames.HeartbeatAck: frames.HeartbeatAck(
        message_id="m", job_id="job-of-nobody", cancel=frames.CancelDirective(job_id="job-of-nobody", reason="r")
    ),
    frames.ReportAck: frames.ReportAck(message_id="m", job_id="job-of-nobody", duplicate=True),
    frames.GenerationDeltaAck: frames.GenerationDeltaAck(message_id="m", job_id="job-of-nobody", received_sequence=3),
    frames.JobCancel: frames.JobCancel(message_id="m", job_id="job-of-nobody", reason="r", requested_at="now"),
    frames.DrainingAck: frames.DrainingAck(message_id="m"),
    frames.Drain: frames.Drain(message_id="m"),
    frames.Keepalive: frames.Keepalive(message_id="m"),
    frames.Error: frames.Error(message_id="m", error=frames.ProtocolError(code="code", message="text")),
}
"""One sound frame of each kind, with every field set."""

WRONG_VALUES: list[Any] = [None, True, -7, 1.5, "text", [], {}, [{}], 2**70]


def wire(frame: Struct) -> dict[str, Any]:
    return dict(json.loads(msgspec.json.encode(frame)))


def is_sound(said: Any) -> bool:
    try:
        msgspec.convert(said, frames.FromServer)
    except msgspec.ValidationError:
        return False
    return True


def mutations(frame: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each field left out, and each with every wrong value, also inside of what a frame holds."""
    for field, value in frame.items():
        yield f"without {field}", {key: one for key, one in frame.items() if key != field}
        for wrong in WRONG_VALUES:
            yield f"{field}={wrong!r}"[:40], frame | {field: wrong}
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and field != "spec":
            for what, changed in mutations(inner):
                yield f"{field}.{what}", frame | {field: [changed] if isinstance(value, list) else changed}


def wrong_frames(kind: type[Struct]) -> list[tuple[str, dict[str, Any]]]:
    """Those that are no frames."""
    return [(what, said) for what, said in mutations(wire(SOUND[kind])) if not is_sound(said)]


NONSENSE: list[tuple[str, str | bytes]] = [
    ("no JSON", "nonsense"),
    ("nothing", ""),
    ("half a frame", '{"type":"keepalive"'),
    ("two frames", '{"type":"keepalive"}{"type":"keepalive"}'),
    ("a list", "[]"),
    ("null", "null"),
    ("no type", "{}"),
    ("an unknown type", '{"type":"worker.dance"}'),
    ("a type of the other side", '{"type":"jobs.claim"}'),
    ("the type twice", '{"type":"keepalive","type":"nope"}'),
    ("binary", b"\x00\x01"),
    ("binary JSON", b'{"type":"keepalive"}'),
    ("deep", '{"type":"keepalive","extra":' + "[" * 100_000 + "]" * 100_000 + "}"),
    ("deep where it counts", '{"type":"jobs.claimed","jobs":' + "[" * 100_000 + "]" * 100_000 + "}"),
    ("deep in a spec", '{"type":"jobs.claimed","jobs":[{"spec":' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}]}"),
    ("a huge number", '{"type":"generation.delta.ack","job_id":"j","received_sequence":' + "9" * 5000 + "}"),
    ("huge", json.dumps({"type": "keepalive", "extra": "x" * MAX_FRAME_TO_WORKER})),
]


HURRY = """
from worker_child import backoff, session
backoff.FIRST = backoff.CAP = 0.05
session.REGISTER_DEADLINE = session.REPORT_AGAIN = 0.5
session.CLAIM_DEADLINE_FLOOR = 1.0
"""


class Rig:
    """A worker that is told wrong things, and shown to work after each."""

    def __init__(self, server: ScriptedServer, child: Child) -> None:
        self.server = server
        self.child = child
        self.log = ""
        self._claim: str | None = None
        self._jobs = 0

    async def register(self, **terms: int) -> None:
        await self.server.register(**terms)
        self._claim = None

    async def say(self, said: str | bytes) -> None:
        """Something, on whatever connection there is."""
        try:
            await self.server.connection.send(said)
        except ConnectionClosed:
            await self.register()
            await self.server.connection.send(said)

    async def works(self) -> None:
        """One job from claim to acknowledged report, on this connection or the next."""
        self._jobs += 1
        job = claimed_job(f"check-{self._jobs}", action="time")
        done = given = False
        while not done:
            try:
                if self._claim is not None and not given:
                    claim, self._claim, given = self._claim, None, True
                    await self.server.send(frames.Claimed(message_id=claim, jobs=[job]))
                outcome = await self._hear(job.id)
                done = outcome == "completed"
                # Handed back: what nobody asked for had taken its slot.
                given = given and outcome != "failed"
            except ConnectionClosed:
                await self.register()
                # What was given with the connection's end may have been lost with it: it is given again.
                given = False

    async def _hear(self, job_id: str) -> str | None:
        """The next frame; the status of this job, if it is its report."""
        async with asyncio.timeout(DEADLINE):
            frame = decode_from_worker(await self.server.connection.recv())
        if isinstance(frame, frames.Claim):
            self._claim = frame.message_id
        elif isinstance(frame, frames.Report):
            await self.server.send(frames.ReportAck(message_id=frame.message_id, job_id=frame.job_id))
            return frame.status if frame.job_id == job_id else None
        return None

    def logged(self, *events: str) -> int:
        """How many more of these events are in its log than when it was last looked at."""
        new = self.child.output()
        self.log += new
        return sum(new.count(f'"{event}"') for event in events)


@pytest.fixture(scope="module")
def mold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MoldProcess]:
    home = tmp_path_factory.mktemp("wrong-frames")
    (home / "hurry.py").write_text(HURRY)
    with mold_process(home) as mold:
        assert isinstance(mold.settle(modules=["hurry"]), pipe.MoldReady)
        yield mold


@pytest.fixture
async def rig(mold: MoldProcess, tmp_path: Path) -> AsyncIterator[Rig]:
    async with scripted_server() as server:
        journal = str(tmp_path / "rig-1.journal")
        child = await asyncio.to_thread(lambda: mold.spawn(api_url=server.url, journal_path=journal))
        yield Rig(server, child)
        child.signal(signal.SIGKILL)
        await asyncio.to_thread(mold.exit_code, child.pid)


def test_no_frame_is_forgotten() -> None:
    assert set(SOUND) == set(frames.FROM_SERVER)
    for kind, sound in SOUND.items():
        unset = [field for field in kind.__struct_fields__ if getattr(sound, field) is None]
        assert not unset, (kind, unset)
    assert all(wrong_frames(kind) for kind in SOUND if kind.__struct_fields__)


@pytest.mark.parametrize("kind", [kind for kind in SOUND if kind.__struct_fields__], ids=lambda kind: kind.__name__)
async def test_frames_with_something_wrong_in_them(rig: Rig, kind: type[Struct]) -> None:
    await rig.register()
    await rig.works()
    rig.logged()
    for what, said in wrong_frames(kind):
        await rig.say(json.dumps(said))
        await rig.works()
        assert rig.logged("session.bad_frame", "session.unreadable_job") >= 1, what


@pytest.mark.parametrize(("what", "said"), NONSENSE, ids=[what.replace(" ", "-") for what, _ in NONSENSE])
async def test_what_is_no_frame_at_all(rig: Rig, what: str, said: str | bytes) -> None:
    await rig.register()
    await rig.works()
    rig.logged()
    await rig.say(said)
    await rig.works()
    tolerated = what == "deep"
    assert rig.logged("session.bad_frame", "session.disconnected") >= 1 or tolerated


@pytest.mark.parametrize("kind", [kind for kind in SOUND if kind is not frames.Drain], ids=lambda kind: kind.__name__)
async def test_sound_frames_that_nobody_asked_for(rig: Rig, kind: type[Struct]) -> None:
    """Before the worker is registered, out of order, and again and again."""
    said = json.dumps(wire(SOUND[kind]) | {"a_field": "of the future"})
    await rig.server.connected()
    await rig.say(said)
    await rig.say(said)
    await rig.server.receive(frames.Register)
    rig.server.connection.transport.abort()
    await rig.register()
    await rig.works()
    for _ in range(3):
        await rig.say(said)
        await rig.works()


async def test_a_drain_that_comes_first_is_a_drain(rig: Rig) -> None:
    await rig.server.connected()
    await rig.server.receive(frames.Register)
    await rig.server.send(frames.Drain())
    await rig.server.send(frames.Registered(worker_session_token="token", lease=LEASE))
    await rig.server.receive(frames.Draining)


async def test_a_registration_that_is_never_answered_is_made_again(rig: Rig) -> None:
    await rig.server.connected()
    await rig.server.receive(frames.Register)
    await rig.register()
    await rig.works()


async def test_a_claim_that_is_never_answered_ends_its_connection(rig: Rig) -> None:
    await rig.register(lease=2, cadence=1)
    await rig.server.receive(frames.Claim)
    await rig.register()
    await rig.works()
    assert "the claim was not answered in time" in rig.child.output()


async def test_a_report_that_is_never_answered_is_sent_again(rig: Rig) -> None:
    await rig.register()
    await rig.server.answer_claim(claimed_job(1, action="time"))
    report = await rig.server.receive(frames.Report)
    assert await rig.server.receive(frames.Report) == report
    await rig.server.send(frames.ReportAck(message_id=report.message_id, job_id=report.job_id))
    await rig.works()


async def test_an_error_for_a_report_settles_it_and_keeps_it(rig: Rig, tmp_path: Path) -> None:
    await rig.register()
    await rig.server.answer_claim(claimed_job(1, action="time"))
    report = await rig.server.receive(frames.Report)
    error = frames.ProtocolError(code="unknown_job", message="there is no such job")
    await rig.server.send(frames.Error(message_id=report.message_id, error=error))
    await rig.works()
    assert rig.logged("report.refused") == 1
    letter = json.loads((tmp_path / "rig-1.journal.dead-letters").read_text())
    assert (letter["job_id"], letter["code"], letter["status"]) == ("job-1", "unknown_job", "completed")


async def test_an_error_for_a_registration_ends_its_connection(rig: Rig) -> None:
    await rig.server.connected()
    register = await rig.server.receive(frames.Register)
    error = frames.ProtocolError(code="store_unavailable", message="later")
    await rig.server.send(frames.Error(message_id=register.message_id, error=error))
    await rig.register()
    await rig.works()


async def test_an_error_for_a_claim_releases_it(rig: Rig) -> None:
    await rig.register(lease=2, cadence=1)
    claim = await rig.server.receive(frames.Claim)
    error = frames.ProtocolError(code="invalid_frame", message="no")
    await rig.server.send(frames.Error(message_id=claim.message_id, error=error))
    await rig.works()
    assert rig.logged("session.disconnected") == 0
