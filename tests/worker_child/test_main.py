"""A whole child, forked from a real mold, against a scripted server over a real socket."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.child_process import Child, MoldProcess, mold_process
from tests.support.scripted_server import ScriptedServer, scripted_server
from tests.support.session_driver import claimed_job
from wire import frames, pipe
from worker_child import __main__ as child_program
from worker_child.actions import Registry
from worker_child.catalogue import NOTHING
from worker_child.endpoint import endpoint
from worker_child.journal import Journal
from worker_child.journal_records import Recovered
from worker_child.transport import ApiKey

HANDLERS = """
import os, signal, sys, threading, time
from worker_child import Context, action

@action("echo")
async def echo(params):
    print("echo", params, flush=True)
    return params

@action("hold", idempotent=True)
def hold(ctx: Context):
    ctx.cancelled.wait_in_thread(60)
    return {"stopped": True}

@action("die")
async def die():
    os.kill(os.getpid(), signal.SIGKILL)

@action("block")
async def block():
    print("blocking", flush=True)
    time.sleep(60)
"""


class Rig:
    """One mold, one server, and children between them."""

    def __init__(self, mold: MoldProcess, server: ScriptedServer) -> None:
        self.mold = mold
        self.server = server

    async def spawn(self, **settings: Any) -> Child:
        return await asyncio.to_thread(lambda: self.mold.spawn(**({"api_url": self.server.url} | settings)))

    async def registered(self, **settings: Any) -> Child:
        child = await self.spawn(**settings)
        await self.server.register()
        return child

    async def with_job(self, action: str, **settings: Any) -> Child:
        child = await self.registered(**settings)
        await self.server.answer_claim(claimed_job(1, action=action))
        await self.until(child, pipe.Beat, source="loop", jobs_in_hand=1)
        return child

    async def until(self, child: Child, kind: type[Any], **fields: Any) -> Any:
        return await asyncio.to_thread(child.heard_until, kind, **fields)

    async def exit_code(self, child: Child) -> int:
        return await asyncio.to_thread(self.mold.exit_code, child.pid)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    with mold_process(tmp_path) as mold:
        assert isinstance(await asyncio.to_thread(mold.settle, modules=["handlers"]), pipe.MoldReady)
        async with scripted_server() as server:
            yield Rig(mold, server)


async def test_a_job_from_claim_to_settled(rig: Rig) -> None:
    child = await rig.spawn(concurrency=2, queues=["default", "fast"], name="box", environment_id="env")
    register = await rig.server.register()
    assert (register.worker_instance_id, register.concurrency_limit, register.available_slots) == ("rig-1", 2, 2)
    assert (register.queues, register.name, register.environment_id) == (["default", "fast"], "box", "env")
    assert register.action_names == sorted(["echo", "hold", "die", "block", "print", "fail", "json", "time", "random"])
    hello = await rig.until(child, pipe.Hello)
    assert hello.slot == "default-1"
    await rig.until(child, pipe.Registered)
    await rig.until(child, pipe.Ready)
    job = claimed_job(1, action="echo")
    await rig.server.answer_claim(job)
    await rig.server.receive(frames.Claim)
    report = await rig.server.acknowledge_report()
    assert (report.job_id, report.lease_token, report.status, report.result) == ("job-1", "lease-1", "completed", {})
    await rig.until(child, pipe.Beat, source="loop", completed=1, jobs_in_hand=0, reports_waiting=0)
    assert "echo {}" in child.output()
    child.drain(10)
    await rig.server.receive(frames.Draining)
    await rig.server.send(frames.DrainingAck())
    bye = await rig.until(child, pipe.Bye)
    assert (bye.reason, bye.refused, bye.finished) == ("the supervisor asked for it", False, 0)
    assert await rig.exit_code(child) == 0


async def test_a_job_of_an_unknown_kind_is_refused_alone_and_its_neighbours_run(rig: Rig) -> None:
    await rig.registered(concurrency=3)
    strange = msgspec.structs.replace(claimed_job(1, action="echo"), kind="dream_execution")
    await rig.server.answer_claim(strange, claimed_job(2, action="echo"), claimed_job(3, action="nope"))
    reports = {}
    for _ in range(3):
        report = await rig.server.receive(frames.Report)
        reports[report.job_id] = (report.status, report.error_type)
    unknown = ("failed", "UnknownAction")
    assert reports == {"job-1": unknown, "job-2": ("completed", None), "job-3": unknown}


async def test_actions_can_be_restricted(rig: Rig) -> None:
    await rig.spawn(actions=["time", "echo"])
    assert (await rig.server.register()).action_names == ["echo", "time"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"actions": ["nope"]}, "actions: no handler is registered for 'nope'"),
        ({"api_url": "http://api.example.com"}, "would send the API key in clear text"),
        ({"api_url": "nonsense"}, "api_url: 'nonsense'"),
        ({"api_key": None}, "there is no API key"),
        ({"api_key": None, "api_key_file": "/nowhere/key"}, "api_key_file /nowhere/key: No such file"),
        ({"queues": []}, "queues: name at least one"),
        (
            {"models": ["ollama/llama3"]},
            "models: no provider is configured and no generator is registered for 'ollama/llama3'",
        ),
        ({"journal_path": ""}, "journal_path: is empty"),
        ({"api_key": "mbx_key.theirs", "project": "mine"}, "'mine' is not the project of the API key"),
    ],
)
async def test_settings_that_cannot_work_are_one_sentence_and_exit_78(
    rig: Rig, settings: dict[str, Any], sentence: str
) -> None:
    child = await rig.spawn(**settings)
    bye = await rig.until(child, pipe.Bye)
    assert sentence in bye.reason
    assert not bye.refused
    assert await rig.exit_code(child) == 78


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refused_credential_ends_it_with_77(rig: Rig, status: int) -> None:
    rig.server.refuse = [status]
    child = await rig.spawn()
    bye = await rig.until(child, pipe.Bye)
    assert bye.refused
    assert str(status) in bye.reason
    assert await rig.exit_code(child) == 77
    assert "mbx_test" not in bye.reason + child.output()


async def test_a_key_file_with_a_new_key_is_read_again_once(rig: Rig) -> None:
    file = rig.mold.home / "api-key"
    file.write_text("mbx_new")

    class Rotating(list[int]):
        """Revokes the first key, and puts the next one into place, when it is asked."""

        def pop(self, index: Any = -1) -> int:
            file.write_text(f"mbx_newer_{len(self)}")
            return super().pop(index)

    rig.server.refuse = Rotating([401])
    child = await rig.spawn(api_key=None, api_key_file=str(file))
    await rig.server.register()
    assert [key for _, key in rig.server.requests] == ["Bearer mbx_new", "Bearer mbx_newer_1"]
    child.drain(0.1)
    assert await rig.exit_code(child) == 0

    rig.server.refuse = Rotating([401, 401])
    child = await rig.spawn(api_key=None, api_key_file=str(file))
    assert (await rig.until(child, pipe.Bye)).refused
    assert await rig.exit_code(child) == 77


async def test_a_revoked_credential_ends_it_with_77(rig: Rig) -> None:
    child = await rig.registered()
    error = frames.ProtocolError(code="invalid_actor", message="revoked")
    await rig.server.send(frames.Error(error=error))
    assert (await rig.until(child, pipe.Bye)).refused
    assert await rig.exit_code(child) == 77


async def test_an_identity_that_stays_taken_ends_it_with_77(rig: Rig) -> None:
    child = await rig.spawn(identity_conflict=0.0)
    await rig.server.connected()
    register = await rig.server.receive(frames.Register)
    error = frames.ProtocolError(code="worker_instance_conflict", message="owned")
    await rig.server.send(frames.Error(message_id=register.message_id, error=error))
    bye = await rig.until(child, pipe.Bye)
    assert bye.refused
    assert "'rig-1' is in use by another live worker" in bye.reason
    assert await rig.exit_code(child) == 77


# --- jobs, connections and processes ----------------------------------------------------------------------------------


async def test_a_job_outlives_its_connection(rig: Rig) -> None:
    child = await rig.with_job("hold")
    rig.server.connection.transport.abort()
    register = await rig.server.register()
    assert (register.worker_session_token, register.available_slots) == ("session", 0)
    assert (await rig.server.receive(frames.Heartbeat)).lease_token == "lease-1"
    await rig.server.send(frames.JobCancel(job_id="job-1", reason="operator"))
    report = await rig.server.acknowledge_report()
    assert (report.lease_token, report.result) == ("lease-1", {"stopped": True})
    assert (await rig.until(child, pipe.Beat, source="loop", completed=1)).reconnects == 1


async def test_an_unacknowledged_report_is_sent_on_the_next_connection(rig: Rig) -> None:
    await rig.registered()
    await rig.server.answer_claim(claimed_job(1, action="echo"))
    first = await rig.server.receive(frames.Report)
    rig.server.connection.transport.abort()
    await rig.server.register()
    assert await rig.server.receive(frames.Report) == first


async def test_a_finished_report_survives_kill_9_and_the_box(rig: Rig) -> None:
    child = await rig.registered()
    await rig.server.answer_claim(claimed_job(1, action="echo"))
    first = await rig.server.receive(frames.Report)
    child.signal(signal.SIGKILL)
    assert await rig.exit_code(child) == -signal.SIGKILL
    await rig.registered(incarnation=2)
    again = await rig.server.acknowledge_report()
    assert (again.lease_token, again.status, again.result) == (first.lease_token, "completed", {})
    await rig.server.receive(frames.Claim)


async def test_jobs_of_a_crashed_predecessor_are_reported_before_the_first_claim(rig: Rig) -> None:
    child = await rig.registered()
    await rig.server.answer_claim(claimed_job(1, action="die"))
    assert await rig.exit_code(child) == -signal.SIGKILL
    end = pipe.PreviousEnd(incarnation=1, cause="signal", detail="killed by SIGKILL", self_made=True)
    successor = await rig.registered(incarnation=2, previous_end=end)
    report = await rig.server.acknowledge_report()
    assert (report.status, report.error_type, report.lease_token) == ("failed", "WorkerCrashed", "lease-1")
    assert "signal: killed by SIGKILL" in str(report.error_message)
    await rig.server.receive(frames.Claim)
    successor.drain(0.5)
    assert await rig.exit_code(successor) == 0
    await rig.registered(incarnation=3)
    await rig.server.receive(frames.Claim)


async def test_a_successor_waits_for_the_journal_of_its_predecessor(rig: Rig) -> None:
    child = await rig.with_job("hold")
    successor = await rig.spawn(incarnation=2)
    await rig.until(successor, pipe.Beat, source="loop", session="starting")
    child.signal(signal.SIGKILL)
    await rig.server.register()
    assert (await rig.server.receive(frames.Report)).error_type == "WorkerCrashed"


async def test_a_successor_that_waits_can_be_stopped(rig: Rig) -> None:
    await rig.with_job("hold")
    successor = await rig.spawn(incarnation=2)
    await rig.until(successor, pipe.Beat, source="loop")
    successor.signal(signal.SIGTERM)
    assert await rig.exit_code(successor) == 0


async def test_a_stop_that_comes_while_the_journal_is_read_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, url = asyncio.get_running_loop(), "http://127.0.0.1:1"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    settings = pipe.ChildSettings(
        worker_instance_id="rig-1",
        api_url=url,
        project="default",
        journal_path=str(tmp_path / "journal"),
    )
    spawn = pipe.Spawn(slot="default-1", incarnation=1, supervisor_pid=1, settings=settings)
    jobs, their_jobs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = child_program._Child(spawn, theirs, their_jobs)
    recover = Journal.recover

    def recover_and_be_stopped(journal: Journal, deadline: float) -> Recovered:
        recovered = recover(journal, deadline)
        loop.call_soon_threadsafe(child.stop, "SIGTERM was received")
        return recovered

    monkeypatch.setattr(Journal, "recover", recover_and_be_stopped)
    key, where = ApiKey("mbx_key", None), endpoint(url, "default", "")
    try:
        assert await asyncio.wait_for(child.live(Registry(), NOTHING, key, where), 20) == 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        child.parent.detach(loop)
        for end in (ours, theirs, jobs, their_jobs):
            end.close()


async def test_the_journal_is_empty_once_nothing_is_owed(rig: Rig) -> None:
    child = await rig.registered()
    await rig.server.answer_claim(claimed_job(1, action="echo"))
    await rig.server.acknowledge_report()
    await rig.until(child, pipe.Beat, source="loop", completed=1)
    child.drain(5)
    assert await rig.exit_code(child) == 0
    assert b"lease" not in (rig.mold.home / "rig-1.journal").read_bytes()


@pytest.mark.parametrize("mode", ["fsync", "off"])
async def test_the_other_modes_of_the_journal_work(rig: Rig, mode: str) -> None:
    await rig.registered(journal=mode, concurrency=3)
    await rig.server.answer_claim(*(claimed_job(number, action="echo") for number in (1, 2, 3)))
    reports = [await rig.server.acknowledge_report() for _ in range(3)]
    assert {report.job_id for report in reports} == {"job-1", "job-2", "job-3"}
    assert (rig.mold.home / "rig-1.journal").exists() is (mode == "fsync")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that is easily full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


@pytest.mark.parametrize("mode", ["write", "fsync"])
async def test_a_full_disk_stops_no_work_is_told_and_heals(rig: Rig, small_disk: Path, mode: str) -> None:
    journal = small_disk / "state" / "rig-1.journal"
    child = await rig.registered(journal=mode, journal_path=str(journal))
    await rig.until(child, pipe.Beat, source="loop", journal_degraded=False)
    ballast = fill(small_disk)
    for number in range(1, 12):
        # What is written last still fits into the page that the file has: it takes a few jobs until it does not.
        job = claimed_job(number, action="echo", spec={"parameters": {"text": "x" * 1000}})
        await rig.server.answer_claim(job)
        assert (await rig.server.acknowledge_report()).job_id == f"job-{number}"
    await rig.server.answer_claim(claimed_job(12, action="echo", spec={"parameters": {"text": "x" * 8000}}))
    owed = await rig.server.receive(frames.Report)
    await rig.until(child, pipe.Beat, source="loop", journal_degraded=True)
    assert "journal.degraded" in child.output()
    ballast.unlink()
    await rig.until(child, pipe.Beat, source="loop", journal_degraded=False)
    child.signal(signal.SIGKILL)
    assert await rig.exit_code(child) == -signal.SIGKILL
    await rig.registered(incarnation=2, journal=mode, journal_path=str(journal))
    again = await rig.server.acknowledge_report()
    assert (again.lease_token, again.result) == (owed.lease_token, {"text": "x" * 8000})


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["order", "signal", "death of the supervisor"])
async def test_a_drain_finishes_what_is_in_hand_by_every_way(rig: Rig, by: str) -> None:
    child = await rig.with_job("hold", drain_grace=30.0)
    if by == "order":
        child.drain(30)
    elif by == "signal":
        child.signal(signal.SIGTERM)
    else:
        child.channel.close()
    await rig.server.receive(frames.Draining)
    await rig.server.send(frames.JobCancel(job_id="job-1"))
    report = await rig.server.acknowledge_report()
    assert (report.status, report.result) == ("completed", {"stopped": True})
    assert await rig.exit_code(child) == 0


async def test_a_job_that_is_cut_off_goes_back(rig: Rig) -> None:
    (rig.mold.home / "stubborn.py").write_text(
        "import threading\nfrom worker_child import action\n"
        "@action('stubborn')\ndef stubborn(): threading.Event().wait(60)\n"
    )
    child = await rig.with_job("stubborn", modules=["stubborn"])
    child.drain(10)
    await rig.server.receive(frames.Draining)
    report = await rig.server.acknowledge_report()
    assert (report.status, report.error_type) == ("failed", "WorkerShutdown")
    bye = await rig.until(child, pipe.Bye)
    assert (bye.cut_off, bye.finished) == (1, 0)
    assert await rig.exit_code(child) == 0


async def test_the_death_of_the_supervisor_process_reaches_the_child(rig: Rig) -> None:
    child = await rig.registered(drain_grace=5.0)
    pidfd = os.pidfd_open(child.pid)
    try:
        rig.mold.supervisor.kill()
        gone = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, lambda: gone.done() or gone.set_result(None))
        await asyncio.wait_for(gone, 20)
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


async def test_a_blocked_loop_shows_in_the_beats(rig: Rig) -> None:
    child = await rig.registered()
    await rig.until(child, pipe.Beat, source="loop")
    await rig.server.answer_claim(claimed_job(1, action="block"))
    sources = [(await rig.until(child, pipe.Beat)).source for _ in range(5)]
    assert sources[-2:] == ["thread", "thread"]


async def test_a_child_that_hangs_for_good_ends_itself_with_its_stacks(rig: Rig) -> None:
    child = await rig.registered(hang_limit=1.5, drain_grace=0.5)
    await rig.until(child, pipe.Beat, source="loop")
    await rig.server.answer_claim(claimed_job(1, action="block"))
    assert await rig.exit_code(child) == 1
    output = child.output()
    assert "Timeout (0:00:02.2" in output
    assert "in block" in output


# --- a server that misbehaves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "not json",
        "{}",
        "[]",
        '{"type":"nope"}',
        '{"type":"jobs.claimed","jobs":5}',
        '{"type":"jobs.claimed","jobs":[{"id":"x"}]}',
        '{"type":"job.report.ack"}',
        '{"type":"worker.registered","worker_session_token":5,"lease":{}}',
        "[" * 100_000,
        b"\x00\x01",
    ],
)
async def test_what_is_no_frame_is_borne(rig: Rig, said: str | bytes) -> None:
    await rig.registered()
    await rig.server.connection.send(said)
    await rig.server.answer_claim(claimed_job(1, action="echo"))
    assert (await rig.server.acknowledge_report()).status == "completed"


async def test_frames_out_of_order_and_for_nobody_are_borne(rig: Rig) -> None:
    child = await rig.registered()
    for frame in (
        frames.ReportAck(job_id="nobody"),
        frames.HeartbeatAck(job_id="nobody", cancel=frames.CancelDirective(job_id="nobody")),
        frames.JobCancel(job_id="nobody"),
        frames.DrainingAck(),
        frames.GenerationDeltaAck(job_id="nobody", received_sequence=7),
        frames.Error(message_id="nobody", error=frames.ProtocolError(code="strange", message="strange")),
    ):
        await rig.server.send(frame)
    await rig.server.answer_claim(claimed_job(1, action="echo"))
    assert (await rig.server.acknowledge_report()).status == "completed"
    assert "Traceback" not in child.output()


async def test_a_frame_that_is_too_large_ends_only_the_conversation(rig: Rig) -> None:
    child = await rig.registered()
    with contextlib.suppress(ConnectionError):
        await rig.server.connection.send("x" * 2_000_000)
    await rig.server.register()
    await rig.server.answer_claim(claimed_job(1, action="echo"))
    await rig.server.acknowledge_report()
    await rig.until(child, pipe.Beat, source="loop", completed=1)


async def test_an_error_for_a_report_is_kept_as_a_dead_letter(rig: Rig) -> None:
    await rig.registered()
    await rig.server.answer_claim(claimed_job(1, action="echo"))
    report = await rig.server.receive(frames.Report)
    error = frames.ProtocolError(code="unknown_job", message="no such job")
    await rig.server.send(frames.Error(message_id=report.message_id, error=error))
    await rig.server.receive(frames.Claim)
    letters = rig.mold.home / "rig-1.journal.dead-letters"
    assert "no such job" in letters.read_text()
