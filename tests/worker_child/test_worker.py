"""The worker's shell, in this process: what only it can get wrong."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.scripted_server import ScriptedServer, scripted_server
from tests.support.session_driver import claimed_job
from wire import codec, frames, pipe
from worker_child import journal as journal_module
from worker_child import transport
from worker_child import worker as worker_module
from worker_child.actions import Registry
from worker_child.backoff import Backoff
from worker_child.decisions import End
from worker_child.endpoint import endpoint
from worker_child.journal import Journal, Rewrite
from worker_child.journal_records import decode
from worker_child.parent import Parent
from worker_child.session import ActionTerms, Session, SessionSettings
from worker_child.transport import ApiKey
from worker_child.worker import Worker


class Rig:
    """A worker of three slots that talks to a scripted server."""

    def __init__(self, server: ScriptedServer, path: Path, mode: Any = "write") -> None:
        self.server = server
        self.registry = Registry()
        self.gate = asyncio.Event()
        self.started = asyncio.Semaphore(0)

        @self.registry.action("work")
        async def work() -> str:
            self.started.release()
            await self.gate.wait()
            return "done"

        settings = SessionSettings(
            worker_instance_id="rig-1",
            concurrency=3,
            queues=["default"],
            actions={"work": ActionTerms()},
            id_prefix="m",
        )
        self.session = Session(settings, Backoff(lambda: 0.0), time.monotonic())
        self.journal = Journal(path, mode)
        self.journal.recover(5)
        self.supervisor, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end = end
        spawn = pipe.Spawn(
            slot="default-1",
            incarnation=1,
            supervisor_pid=1,
            settings=pipe.ChildSettings(worker_instance_id="rig-1", api_url=server.url, project="default"),
        )
        parent = Parent(spawn, end, self.session.beat)
        key, where = ApiKey("mbx_key", None), endpoint(server.url, "default", "")
        self.worker = Worker(self.session, self.journal, self.registry, key, where, parent)
        self.running: asyncio.Task[End] = asyncio.ensure_future(self.worker.run())

    async def close(self) -> None:
        self.gate.set()
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self.running
        self.worker._runner.stop()
        self.journal.close()
        self.supervisor.close()
        self.end.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with scripted_server() as server:
        rig = Rig(server, tmp_path / "journal")
        yield rig
        await rig.close()


@pytest.mark.replaces_code
async def test_one_write_of_the_journal_and_one_of_the_socket_for_many_jobs(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.server.register()
    await rig.server.answer_claim(*(claimed_job(number) for number in (1, 2, 3)))
    for _ in range(3):
        await asyncio.wait_for(rig.started.acquire(), 20)
    writes: list[int] = []
    transmitted: list[int] = []
    write, transmit = journal_module._write_all, transport.Connection.transmit
    monkeypatch.setattr(journal_module, "_write_all", lambda file, data: (writes.append(file), write(file, data))[1])
    monkeypatch.setattr(
        transport.Connection, "transmit", lambda self, data: (transmitted.append(len(data)), transmit(self, data))[1]
    )
    rig.gate.set()
    for _ in range(3):
        await rig.server.receive(frames.Report)
    assert (len(writes), transmitted) == (1, [3])


async def test_the_journal_has_a_report_before_the_server_has(rig: Rig) -> None:
    rig.gate.set()
    await rig.server.register()
    await rig.server.answer_claim(claimed_job(1))
    await rig.server.receive(frames.Claim)
    report = await rig.server.receive(frames.Report)
    assert report.lease_token.encode() in rig.journal._path.read_bytes()


async def test_a_job_that_cannot_be_read_costs_no_other_of_its_frame(rig: Rig) -> None:
    rig.gate.set()
    await rig.server.register()
    claim = await rig.server.receive(frames.Claim)
    claimed = frames.Claimed(message_id=claim.message_id, jobs=[claimed_job(1), claimed_job(2), claimed_job(3)])
    said = msgspec.json.decode(codec.encode_to_worker(claimed))
    said["jobs"][1]["claim_attempt"] = "second"
    said["jobs"][2]["id"] = None
    await rig.server.connection.send(msgspec.json.encode(said).decode())
    refused = await rig.server.receive(frames.Report)
    await rig.server.receive(frames.Claim)
    assert (refused.job_id, refused.status, refused.error_type) == ("job-2", "failed", "UnreadableJob")
    assert str(refused.error_message).startswith("the worker cannot read the job: Expected `int`, got `str`")
    done = await rig.server.receive(frames.Report)
    assert (done.job_id, done.status) == ("job-1", "completed")


@pytest.mark.parametrize("suspends", [True, False])
async def test_the_journal_has_a_job_before_its_first_step(rig: Rig, *, suspends: bool) -> None:
    found: list[bytes] = []

    async def waits() -> None:
        found.append(rig.journal._path.read_bytes())
        await asyncio.sleep(0)

    async def does_not_wait() -> None:
        found.append(rig.journal._path.read_bytes())

    rig.registry.action("looks")(waits if suspends else does_not_wait)
    assert rig.registry.get("looks").suspends == suspends
    await rig.server.register()
    await rig.server.answer_claim(claimed_job(1, action="looks"))
    await rig.server.receive(frames.Claim)
    await rig.server.receive(frames.Report)
    assert [b"lease-1" in data for data in found] == [True]


async def test_short_jobs_that_came_together_are_reported_together(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    @rig.registry.action("short")
    async def short() -> None:
        pass

    await rig.server.register()
    transmitted: list[int] = []
    transmit = transport.Connection.transmit
    monkeypatch.setattr(
        transport.Connection, "transmit", lambda self, data: (transmitted.append(len(data)), transmit(self, data))[1]
    )
    await rig.server.answer_claim(*(claimed_job(number, action="short") for number in (1, 2, 3)))
    for _ in range(3):
        await rig.server.receive(frames.Report)
    assert transmitted[-1] == 3


@pytest.mark.replaces_code
async def test_with_fsync_nothing_is_sent_before_the_sync_and_one_sync_covers_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_server() as server:
        rig = Rig(server, tmp_path / "journal", "fsync")
        synced: list[float] = []
        sync = rig.journal.sync
        monkeypatch.setattr(rig.journal, "sync", lambda rewrite: (sync(rewrite), synced.append(time.monotonic())))
        await server.register()
        await server.answer_claim(*(claimed_job(number) for number in (1, 2, 3)))
        rig.gate.set()
        for _ in range(3):
            await server.receive(frames.Report)
            assert synced
        assert len(synced) == 1
        await rig.close()


async def test_the_last_running_job_waits_for_no_other_turn_of_the_loop(rig: Rig) -> None:
    await rig.server.register()
    await rig.server.answer_claim(claimed_job(1), claimed_job(2))
    for _ in range(2):
        await asyncio.wait_for(rig.started.acquire(), 20)
    runner, told = rig.worker._runner, []
    runner._finished = lambda *facts: (rig.worker._job_finished(*facts), told.append(len(rig.worker._finished)))
    await rig.server.receive(frames.Claim)
    rig.gate.set()
    for _ in range(2):
        await rig.server.receive(frames.Report)
    assert told == [1, 0], "the first waits for the second, the second for nobody"


async def test_a_job_that_is_cancelled_before_its_first_step_is_reported(rig: Rig) -> None:
    await rig.server.register()
    claim = await rig.server.receive(frames.Claim)
    claimed = frames.Claimed(message_id=claim.message_id, jobs=[claimed_job(1)])
    rig.worker.messages_received(
        [codec.encode_to_worker(frame) for frame in (claimed, frames.JobCancel(job_id="job-1"))]
    )
    await rig.server.receive(frames.Claim)
    report = await rig.server.receive(frames.Report)
    assert (report.job_id, report.status) == ("job-1", "cancelled")


@pytest.mark.replaces_code
async def test_a_suspend_drops_the_connection_and_connects_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.server.register()
    slept = worker_module._time_suspended() + 60
    monkeypatch.setattr(worker_module, "_time_suspended", lambda: slept)
    register = await rig.server.register()
    assert register.worker_session_token == "session"


async def test_a_watch_that_comes_far_too_late_counts_as_a_suspend(rig: Rig) -> None:
    await rig.server.register()
    rig.worker._watch_at -= worker_module.OVERSLEPT + 1
    await rig.server.register()


async def test_a_step_of_the_wall_clock_is_no_suspend(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.server.register()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    connection = rig.worker._connection
    rig.worker._watch()
    assert rig.worker._connection is connection is not None


async def test_bytes_that_do_not_get_away_end_the_connection(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.server.register()
    monkeypatch.setattr(transport.Connection, "is_stalled", lambda *_: True)
    rig.worker._watch()
    monkeypatch.undo()
    await rig.server.register()


@pytest.mark.replaces_code
async def test_what_a_failed_disk_missed_is_written_when_it_can_be(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.server.register()

    def full(_descriptor: int, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(journal_module, "_write_all", full)
        await rig.server.answer_claim(claimed_job(1))
        await rig.server.receive(frames.Claim)
        assert rig.journal.degraded
    assert b"lease-1" not in rig.journal._path.read_bytes()
    rig.worker._watch_journal(time.monotonic())
    assert rig.worker._syncing is not None
    await rig.worker._syncing
    assert not rig.journal.degraded
    assert b"lease-1" in rig.journal._path.read_bytes()
    rig.gate.set()
    assert (await rig.server.acknowledge_report()).status == "completed"


@pytest.mark.replaces_code
async def test_work_goes_on_while_the_journal_is_written_anew(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.server.register()
    await rig.server.answer_claim(claimed_job(1))
    await rig.server.receive(frames.Claim)
    monkeypatch.setattr(journal_module, "COMPACT_ABOVE", 0)
    disk_is_slow, write = threading.Event(), Rewrite.write
    monkeypatch.setattr(Rewrite, "write", lambda self: (disk_is_slow.wait(20), write(self))[1])
    rig.worker._watch_journal(time.monotonic())
    assert rig.worker._syncing is not None
    rig.gate.set()
    report = await rig.server.receive(frames.Report)
    assert not rig.worker._syncing.done()
    disk_is_slow.set()
    await rig.worker._syncing
    assert decode(rig.journal._path.read_bytes()).reported == [report]


async def test_a_disk_that_cannot_sync_stops_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_server() as server:
        rig = Rig(server, tmp_path / "journal", "fsync")
        await server.register()

        def broken(_: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as disk:
            disk.setattr(os, "fdatasync", broken)
            await server.answer_claim(claimed_job(1))
            rig.gate.set()
            await server.receive(frames.Claim)
            await server.receive(frames.Report)
            assert rig.journal.degraded
        rig.worker._watch_journal(time.monotonic())
        assert rig.worker._syncing is not None
        await rig.worker._syncing
        assert not rig.journal.degraded
        assert len(decode(rig.journal._path.read_bytes()).reported) == 1
        await rig.close()


@pytest.mark.replaces_code
async def test_a_bug_in_the_session_ends_the_process_instead_of_wedging_it(rig: Rig) -> None:
    await rig.server.register()
    rig.session.tick = lambda _: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    rig.worker._tick()
    with pytest.raises(ZeroDivisionError):
        await rig.running


async def test_a_repeated_report_is_not_queued_behind_unsent_bytes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.gate.set()
    await rig.server.register()
    await rig.server.answer_claim(claimed_job(1))
    await rig.server.receive(frames.Claim)
    await rig.server.receive(frames.Report)
    monkeypatch.setattr(transport.Connection, "unsent", 1)
    for decision in rig.session.tick(time.monotonic() + 11):
        rig.worker._perform[type(decision)](decision)
    assert rig.worker._outgoing == []
