"""Requests for processes of jobs, over real sockets: refused, passed on, told. The mold is played by the test."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisor import facts
from supervisor.control_messages import JobProcessStatus
from supervisor.job_processes import JobProcesses, Owner
from tests.supervisor.test_children import end_and_reap, exists, wait_until_stopped
from wire import pipe

DEADLINE = 20.0


class Room:
    """One child's end, one mold's end, and what is between them."""

    def __init__(self, most: int = 2) -> None:
        loop = asyncio.get_running_loop()
        self.facts: list[Any] = []
        self.asked, self.over = asyncio.Event(), asyncio.Event()
        self.child, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.molds_end, self.mold = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.replacement: socket.socket | None = None
        self.jobs = JobProcesses(
            loop, publish=self._publish, unexplained=self.asked.set, mold_of=lambda _slot: self.replacement
        )
        self.jobs.attach(Owner(("rig-1", 3), theirs, most, self.molds_end))
        for end in (self.child, self.mold):
            end.setblocking(False)

    def _publish(self, fact: Any) -> None:
        self.facts.append(fact)
        if isinstance(fact, facts.JobProcessEnded):
            self.over.set()

    def ask(self, number: int = 1, descriptors: int = 3) -> None:
        given = [os.open(os.devnull, os.O_RDONLY) for _ in range(descriptors)]
        order = pipe.JobFork(number=number, job_id=f"job_{number}", action="work")
        try:
            socket.send_fds(self.child, [pipe.encode(order)], given)
        finally:
            for descriptor in given:
                os.close(descriptor)

    async def news(self) -> Any:
        async with asyncio.timeout(DEADLINE):
            data = await asyncio.get_running_loop().sock_recv(self.child, pipe.MAX_MESSAGE)
        return pipe.decode_job_news(data)

    async def order(self) -> pipe.SpawnJob:
        """What the mold is asked, with its descriptors."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self.mold.fileno(), readable.set)
        async with asyncio.timeout(DEADLINE):
            await readable.wait()
        loop.remove_reader(self.mold.fileno())
        data, descriptors, _, _ = socket.recv_fds(self.mold, pipe.MAX_MESSAGE, 10)
        assert len(descriptors) == 3
        for descriptor in descriptors:
            os.close(descriptor)
        order = pipe.decode_to_mold(data)
        assert isinstance(order, pipe.SpawnJob)
        return order

    def spawned(self, order: pipe.SpawnJob, code: str = "import signal; signal.pause()") -> int:
        """A process for it, as the mold would announce it."""
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ, setsid=True)
        self.jobs.announced(
            pipe.JobSpawned(slot=order.slot, incarnation=order.incarnation, number=order.number, pid=pid)
        )
        return pid


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    room = Room()
    before = open_files()
    yield room
    pids = room.jobs.pids
    room.jobs.close()
    for pid in pids:
        end_and_reap(pid)
    assert open_files() == before - 1, "the child's pipe is closed, and nothing else was opened for good"
    for end in (room.child, room.molds_end, room.mold):
        end.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_request_is_passed_on_and_the_end_comes_back(room: Room) -> None:
    room.ask()
    order = await room.order()
    assert (order.slot, order.incarnation, order.number, order.supervisor_pid) == ("rig-1", 3, 1, os.getpid())
    assert room.jobs.unannounced == {("rig-1", 3, 1)}
    asked = JobProcessStatus(job_id="job_1", action="work", pid=None, state="asked", age=0.0)
    assert [msgspec.structs.replace(one, age=0.0) for one in room.jobs.of("rig-1", time.monotonic())] == [asked]
    assert room.jobs.of("rig-2", 0.0) == []
    pid = room.spawned(order, "raise SystemExit(7)")
    assert [(one.pid, one.state) for one in room.jobs.of("rig-1", time.monotonic())] == [(pid, "running")]
    assert (room.jobs.unannounced, room.jobs.pids) == (set(), {pid})
    assert await room.news() == pipe.JobEnded(number=1, exit_code=7, signal=None)
    assert room.jobs.pids == set()
    started, ended = room.facts
    assert (started.pool, started.slot, started.job_id, started.pid) == ("rig", "rig-1", "job_1", pid)
    assert (ended.cause, ended.exit_code) == ("exit", 7)


async def test_more_than_the_childs_concurrency_are_refused(room: Room) -> None:
    for number in (1, 2, 3):
        room.ask(number)
    refused = await room.news()
    assert (refused.number, "as many as its concurrency allows" in refused.message) == (3, True)
    assert [fact.job_id for fact in room.facts if isinstance(fact, facts.JobProcessRefused)] == ["job_3"]
    room.spawned(await room.order(), "")
    assert (await room.news()).number == 1
    room.ask(4)
    await room.order()
    assert (await room.order()).number == 4


@pytest.mark.parametrize("descriptors", [0, 2])
async def test_a_request_without_its_descriptors_is_refused(room: Room, descriptors: int) -> None:
    room.ask(descriptors=descriptors)
    assert "file descriptors came along" in (await room.news()).message


async def test_words_that_make_no_sense_change_nothing(room: Room) -> None:
    before = open_files()
    socket.send_fds(room.child, [b"\xc1 nonsense"], [0, 1, 2])
    room.ask()
    await room.order()
    assert isinstance(room.facts[0], facts.MessageRefused)
    assert open_files() == before


async def test_without_its_mold_the_one_of_the_pool_is_asked_and_none_is_said(room: Room) -> None:
    room.molds_end.close()
    room.ask(1)
    assert "the mold is not there" in (await room.news()).message
    room.replacement, room.mold = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    room.molds_end = room.replacement
    room.ask(2)
    assert (await room.order()).number == 2


async def test_a_mold_that_ends_before_it_answers_is_said(room: Room) -> None:
    room.ask()
    await room.order()
    room.jobs.mold_gone(room.molds_end)
    assert (await room.news()) == pipe.JobForkFailed(number=1, message="the mold ended before it answered")
    assert room.jobs.unannounced == set()


async def test_a_fork_that_failed_is_said(room: Room) -> None:
    room.ask()
    order = await room.order()
    failed = pipe.JobSpawnFailed(slot=order.slot, incarnation=3, number=1, message="no memory")
    room.jobs.not_made(failed)
    assert (await room.news()) == pipe.JobForkFailed(number=1, message="no memory")


async def test_a_number_that_is_no_child_of_ours_is_refused(room: Room) -> None:
    room.ask()
    order = await room.order()
    room.jobs.announced(pipe.JobSpawned(slot=order.slot, incarnation=3, number=1, pid=1))
    assert "pid 1 is no child of ours" in (await room.news()).message


async def test_a_stop_ends_it_and_a_stopped_process_too(room: Room) -> None:
    room.ask()
    pid = room.spawned(await room.order())
    os.kill(pid, signal.SIGSTOP)
    wait_until_stopped(pid)
    room.child.send(pipe.encode(pipe.JobStop(number=1, grace=20.0)))
    assert await room.news() == pipe.JobEnded(number=1, exit_code=None, signal=int(signal.SIGTERM))


async def test_after_the_grace_it_is_killed_with_evidence(room: Room) -> None:
    room.ask()
    reader, writer = os.pipe()
    deaf = f"import os, signal; signal.signal(15, 1); os.write({writer}, b'x'); signal.pause()"
    os.set_inheritable(writer, True)
    pid = room.spawned(await room.order(), deaf)
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 1) == b"x"
    os.close(reader)
    room.child.send(pipe.encode(pipe.JobStop(number=1, grace=0.0)))
    ended = await room.news()
    assert ended == pipe.JobEnded(number=1, exit_code=None, signal=int(signal.SIGKILL), killed=True)
    (killed,) = [fact for fact in room.facts if isinstance(fact, facts.JobProcessKilled)]
    assert killed.pid == pid
    assert any(line.startswith("State:") for line in killed.evidence.status)
    assert room.facts[-1].cause == "killed"


@pytest.mark.parametrize(("verdict", "cause"), [(True, "out_of_memory"), (False, "signal"), (None, "signal")])
async def test_a_kill_that_is_not_ours_is_explained_before_it_is_told(
    room: Room, verdict: bool | None, cause: str
) -> None:
    room.ask()
    os.kill(room.spawned(await room.order()), signal.SIGKILL)
    async with asyncio.timeout(DEADLINE):
        await room.asked.wait()
    assert room.jobs.unjudged == 1
    room.jobs.explain(out_of_memory=verdict)
    assert await room.news() == pipe.JobEnded(
        number=1, exit_code=None, signal=int(signal.SIGKILL), out_of_memory=verdict
    )
    assert (room.jobs.unjudged, room.facts[-1].cause) == (0, cause)


async def test_it_is_killed_with_its_child_and_reaped(room: Room) -> None:
    room.ask()
    pid = room.spawned(await room.order())
    room.jobs.owner_gone(("rig-1", 3))
    async with asyncio.timeout(DEADLINE):
        await room.over.wait()
    assert (room.jobs.pids, exists(pid)) == (set(), False)
    assert room.facts[-1].cause == "killed"


async def test_a_child_that_does_not_listen_is_told_when_it_does(room: Room) -> None:
    room.molds_end.shutdown(socket.SHUT_RDWR)
    orders = 0
    try:
        while True:
            # It asks and asks, and never reads what it is told.
            room.ask(orders)
            orders += 1
            await asyncio.sleep(0)
    except BlockingIOError:
        pass
    for number in range(orders):
        assert (await room.news()).number == number
