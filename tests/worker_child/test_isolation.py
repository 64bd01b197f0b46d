"""The worker's side of processes for jobs. Supervisor and process are played by the test, over real sockets."""

import asyncio
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.session_driver import claimed_job
from wire import pipe
from worker_child import isolation, job_messages
from worker_child.actions import Context
from worker_child.decisions import Outcome
from worker_child.isolation import JobProcesses

DEADLINE = 20.0


class Played:
    """A process as its three descriptors."""

    def __init__(self, order: pipe.JobFork, descriptors: list[int]) -> None:
        self.order = order
        channel, self.life_line, self.output = descriptors
        self.channel = socket.socket(fileno=channel)
        self.channel.settimeout(DEADLINE)

    def start(self) -> job_messages.Start:
        head = self.channel.recv(job_messages.HEAD, socket.MSG_WAITALL)
        message = job_messages.to_process(self.channel.recv(job_messages.length(head), socket.MSG_WAITALL))
        assert isinstance(message, job_messages.Start)
        return message

    def say(self, data: bytes) -> None:
        self.channel.sendall(data)

    def is_let_go(self) -> bool:
        """Waits for the end of the life line."""
        return os.read(self.life_line, 1) == b""

    def end(self) -> None:
        self.channel.close()
        for descriptor in (self.life_line, self.output):
            if descriptor >= 0:
                os.close(descriptor)
        self.life_line = self.output = -1


class Room:
    """One worker's processes, and the supervisor's end."""

    def __init__(self) -> None:
        self.supervisor, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.supervisor.settimeout(DEADLINE)
        self.processes = JobProcesses(theirs)
        self.played: list[Played] = []

    def run(self, number: int = 1) -> asyncio.Task[Outcome]:
        job = claimed_job(number, action="work")
        return asyncio.ensure_future(self.processes.run(number, job, Context(job, "rig-1", 1234.5)))

    async def asked(self) -> Played:
        def receive() -> Played:
            data, descriptors, _, _ = socket.recv_fds(self.supervisor, pipe.MAX_MESSAGE, 10)
            order = pipe.decode_job_order(data)
            assert isinstance(order, pipe.JobFork)
            return Played(order, descriptors)

        self.played.append(await asyncio.to_thread(receive))
        return self.played[-1]

    async def order(self) -> Any:
        return pipe.decode_job_order(await asyncio.to_thread(self.supervisor.recv, pipe.MAX_MESSAGE))

    def tell(self, news: pipe.JobNews) -> None:
        self.supervisor.send(pipe.encode(news))

    async def ends(self, played: Played, **how: Any) -> None:
        played.end()
        self.tell(pipe.JobEnded(**{"number": played.order.number, "exit_code": 0, "signal": None} | how))


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    room = Room()
    yield room
    room.processes.close()
    room.supervisor.close()
    for played in room.played:
        played.end()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def within(task: "asyncio.Task[Outcome]") -> Outcome:
    return await asyncio.wait_for(task, DEADLINE)


async def test_a_job_goes_over_and_its_outcome_comes_back(room: Room) -> None:
    running = room.run()
    played = await room.asked()
    assert (played.order.number, played.order.job_id, played.order.action) == (1, "job-1", "work")
    start = await asyncio.to_thread(played.start)
    assert (start.job.id, start.worker_instance_id, start.times_out_at) == ("job-1", "rig-1", 1234.5)
    played.say(job_messages.framed(job_messages.Finished(status="completed", result=b'{"a":1}')))
    await room.ends(played)
    outcome = await within(running)
    assert (outcome.status, msgspec.json.decode(outcome.result)) == ("completed", {"a": 1})
    assert room.processes._processes == {}


async def test_the_slot_is_kept_until_the_process_is_reaped(room: Room) -> None:
    running = room.run()
    played = await room.asked()
    await asyncio.to_thread(played.start)
    played.say(job_messages.framed(job_messages.Finished(status="failed", error_type="Oops", error_message="no")))
    played.end()
    await asyncio.wait([running], timeout=0.2)
    assert not running.done()
    room.tell(pipe.JobEnded(number=1, exit_code=0, signal=None))
    assert await within(running) == Outcome(status="failed", error_type="Oops", error_message="no")


@pytest.mark.parametrize(
    ("how", "error_type", "sentence"),
    [
        ({"exit_code": None, "signal": 11}, "HandlerCrashed", "ended by signal 11 (SIGSEGV)"),
        ({"exit_code": None, "signal": 40}, "HandlerCrashed", "ended by signal 40 (a signal without a name)"),
        ({"exit_code": 3}, "HandlerCrashed", "ended with exit code 3"),
        ({"exit_code": None, "signal": 9, "out_of_memory": True}, "HandlerOutOfMemory", "for want of memory"),
        ({"exit_code": None, "signal": 9, "out_of_memory": None}, "HandlerCrashed", "(SIGKILL), by whom is unknown"),
        ({"exit_code": None, "signal": 9, "killed": True}, "HandlerCrashed", "killed by the supervisor"),
    ],
)
async def test_a_death_without_last_words_is_attributed(
    room: Room, how: dict[str, Any], error_type: str, sentence: str
) -> None:
    running = room.run()
    await room.ends(await room.asked(), **how)
    outcome = await within(running)
    assert (outcome.status, outcome.error_type) == ("failed", error_type)
    assert sentence in str(outcome.error_message)


@pytest.mark.parametrize(
    "words",
    [
        b"\xff\xff\xff\xff and so on",
        struct.pack("<I", 5) + b"\xc1\xc1\xc1\xc1\xc1",
        struct.pack("<I", 50) + b"cut off",
        job_messages.framed(job_messages.Finished(status="completed", result=b"[1]")),
        job_messages.framed(job_messages.Finished(status="completed", result=b'{"a":')),
        job_messages.framed(job_messages.Finished(status="completed")),
        job_messages.framed(job_messages.LeaseLost()),
    ],
)
async def test_a_process_out_of_its_mind_fails_its_job_alone(room: Room, words: bytes) -> None:
    running = room.run()
    played = await room.asked()
    await asyncio.to_thread(played.start)
    played.say(words)
    await room.ends(played)
    outcome = await within(running)
    assert (outcome.status, outcome.error_type) == ("failed", "HandlerCrashed")


async def test_what_could_not_be_made_goes_back_at_no_cost(room: Room) -> None:
    running = room.run()
    played = await room.asked()
    played.end()
    room.tell(pipe.JobForkFailed(number=1, message="no memory"))
    outcome = await within(running)
    assert (outcome.status, outcome.error_type) == ("failed", "WorkerOverCapacity")
    assert str(outcome.error_message).endswith(": no memory")


async def test_without_a_supervisor_nothing_is_started(room: Room) -> None:
    room.supervisor.close()
    assert (await within(room.run())).error_type == "WorkerOverCapacity"


async def test_without_descriptors_nothing_is_started(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_flags: int) -> None:
        raise OSError(24, "Too many open files")

    before = open_files()
    monkeypatch.setattr(isolation.os, "pipe2", none_left)
    outcome = await within(room.run())
    assert (outcome.error_type, "Too many open files" in str(outcome.error_message)) == ("WorkerOverCapacity", True)
    assert open_files() == before


async def test_a_stop_is_the_supervisors_to_carry_out(room: Room) -> None:
    running = room.run()
    played = await room.asked()
    room.processes.stop(1, 10.0)
    assert await room.order() == pipe.JobStop(number=1, grace=10.0)
    await room.ends(played, exit_code=None, signal=int(signal.SIGTERM))
    assert "signal 15 (SIGTERM)" in str((await within(running)).error_message)
    # Nobody is left to be stopped.
    room.processes.stop(1, 10.0)
    room.processes.lose_lease(1)


async def test_without_a_supervisor_a_stop_lets_go_and_the_end_of_the_conversation_counts(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = room.run()
    played = await room.asked()
    seen = asyncio.Event()
    process = room.processes._processes[1]
    known = process.orphaned
    monkeypatch.setattr(process, "orphaned", lambda: (known(), seen.set()))
    room.supervisor.close()
    await asyncio.wait_for(seen.wait(), DEADLINE)
    room.processes.stop(1, 10.0)
    assert await asyncio.to_thread(played.is_let_go)
    played.end()
    assert "ended unseen" in str((await within(running)).error_message)


async def test_what_it_finished_without_a_supervisor_counts(room: Room) -> None:
    running = room.run()
    played = await room.asked()
    await asyncio.to_thread(played.start)
    room.supervisor.close()
    played.say(job_messages.framed(job_messages.Finished(status="completed", result=b"{}")))
    played.end()
    assert (await within(running)).status == "completed"


async def test_last_words_count_even_if_the_process_did_not_hear_us_out(room: Room) -> None:
    running = room.run()
    played = await room.asked()
    await asyncio.to_thread(played.start)
    room.processes.lose_lease(1)
    played.say(job_messages.framed(job_messages.Finished(status="completed", result=b"{}")))
    await room.ends(played)
    assert (await within(running)).status == "completed"


async def test_something_left_behind_that_holds_the_conversation_open_is_not_waited_for(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "LAST_WORDS", 0.05)
    running = room.run()
    await room.asked()
    room.tell(pipe.JobEnded(number=1, exit_code=1, signal=None))
    assert (await within(running)).error_type == "HandlerCrashed"


async def test_a_flood_of_output_is_taken_in_pieces_with_the_job_on_each_line(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    running = room.run()
    played = await room.asked()
    lines = [f"line {number}" for number in range(5000)]
    start = await asyncio.to_thread(played.start)
    entry = '{"event": "an entry"}'
    text = "\n".join([*lines, "", "x" * 80_000, entry + start.log_mark, entry, "no end"])

    def print_all() -> None:
        rest = memoryview(text.encode())
        while rest:
            rest = rest[os.write(played.output, rest) :]

    await asyncio.to_thread(print_all)
    await room.ends(played)
    await within(running)
    entries = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    printed = [entry for entry in entries if entry.get("stream") == "output"]
    assert [entry["event"] for entry in printed[:5000]] == lines
    assert {entry["job_id"] for entry in printed} == {"job-1"}
    assert [len(entry["event"]) for entry in printed[5000:]] == [32768, 32768, 80_000 - 65_536, len(entry), 6]
    assert entries.count({"event": "an entry"}) == 1
