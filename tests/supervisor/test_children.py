"""Real processes: made, heard, signalled, reaped. Each test waits for an event, never for a time."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from supervisor import facts
from supervisor.children import Children, Program, become_subreaper
from supervisor.evidence import children_of
from supervisor.output import Line
from supervisor.slots import (
    BecameReady,
    Booted,
    Died,
    Event,
    EvidenceKept,
    Examine,
    Examined,
    KeepEvidence,
    Kind,
    LoopBeat,
    SaidBye,
    Spawned,
    SpawnFailed,
)
from wire import pipe
from wire.lines import MAX_LINE

PROGRAM = Path(__file__).parent / "children" / "process.py"
PATIENCE = 30.0
EventT = TypeVar("EventT", bound=Event)


class Nursery:
    """Children, and everything that they told."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.facts: list[Any] = []
        self.lines: dict[str, list[bytes]] = {}
        self._printed = asyncio.Event()
        self.children = Children(
            asyncio.get_running_loop(),
            deliver=self.events.put_nowait,
            publish=self.facts.append,
            forward=self._forward,
            mold_of=lambda slot: f"mold:{slot}",
            unexplained=lambda: self.children.jobs.explain(out_of_memory=None),
        )

    def _forward(self, slot: str, _incarnation: int, lines: list[Line]) -> None:
        self.lines.setdefault(slot, []).extend(line.text for line in lines)
        self._printed.set()

    def start(self, behaviour: str, slot: str = "a", incarnation: int = 1, kind: Kind = "control_plane") -> None:
        program = Program(
            arguments=[sys.executable, "-u", str(PROGRAM), *behaviour.split()],
            environ={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROGRAM.parents[3])},
        )
        self.children.start(slot, incarnation, kind, program)

    async def wait_for(self, kind: type[EventT], slot: str | None = None) -> EventT:
        async with asyncio.timeout(PATIENCE):
            while True:
                event = await self.events.get()
                if isinstance(event, kind) and slot in (None, event.slot):
                    return event

    def waiting(self) -> list[Event]:
        """What was told and not waited for."""
        return [self.events.get_nowait() for _ in range(self.events.qsize())]

    async def line(self, number: int = 0, slot: str = "a") -> str:
        async with asyncio.timeout(PATIENCE):
            while len(self.lines.get(slot, [])) <= number:
                self._printed.clear()
                await self._printed.wait()
        return self.lines[slot][number].decode()


@pytest.fixture
async def nursery() -> AsyncIterator[Nursery]:
    become_subreaper()
    nursery = Nursery()
    before = children_of(os.getpid())
    yield nursery
    nursery.children.close()
    for pid in children_of(os.getpid()) - before:
        end_and_reap(pid)


def exists(pid: int) -> bool:
    """A process of that number, dead ones that nobody reaped included."""
    return Path(f"/proc/{pid}").exists()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def end_and_reap(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def wait_until_stopped(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def wait_until_dead(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def gone(pid: int) -> None:
    """Returns when a process that may be a stranger's has ended."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(PATIENCE):
                await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)


async def test_a_process_is_made_heard_drained_and_reaped(nursery: Nursery) -> None:
    nursery.start("obedient")
    spawned = await nursery.wait_for(Spawned)
    assert os.getsid(spawned.pid) == spawned.pid
    booted = await nursery.wait_for(Booted)
    assert (booted.slot, booted.incarnation, booted.build) == ("a", 1, "build")
    await nursery.wait_for(BecameReady)
    assert await nursery.line() == "at work"
    nursery.children.drain("a", 1, 12.0)
    bye = await nursery.wait_for(SaidBye)
    assert bye.bye.finished == 2
    died = await nursery.wait_for(Died)
    assert (died.exit_code, died.signal, died.output) == (0, None, ["at work", "drain 12"])
    assert died.noticed_at is not None
    assert not exists(spawned.pid)


async def test_everything_that_a_dead_process_said_is_told_before_its_death(nursery: Nursery) -> None:
    nursery.start("chatty_at_its_end")
    told: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        while not told or not isinstance(told[-1], Died):
            told.append(await nursery.events.get())
    beats = [event.beat.completed for event in told if isinstance(event, LoopBeat)]
    assert beats == list(range(1, 201))
    died = told[-1]
    assert isinstance(died, Died)
    assert died.exit_code == 3
    assert len(died.output) == 100
    assert died.output[-2:] == ["line 149", "last line without an end"]
    assert len(nursery.lines["a"]) == 151
    assert 0.0 <= died.jitter < 1.0


async def test_what_a_process_that_is_ready_says_wakes_nobody_and_is_heard_once_a_round(nursery: Nursery) -> None:
    nursery.start("beating 2")
    await nursery.wait_for(Booted)
    await nursery.wait_for(LoopBeat)
    await nursery.wait_for(LoopBeat)
    await nursery.wait_for(BecameReady)
    assert await nursery.line() == "three more"
    assert nursery.waiting() == []
    nursery.children.hear()
    assert [event.beat.completed for event in nursery.waiting() if isinstance(event, LoopBeat)] == [1, 2, 3]


async def test_a_process_that_is_not_ready_for_long_wakes_nobody_either(nursery: Nursery) -> None:
    nursery.start("beating 10")
    for _ in range(10):
        await nursery.wait_for(LoopBeat)
    assert await nursery.line() == "three more"
    assert nursery.waiting() == []
    nursery.children.hear()
    assert [type(event) for event in nursery.waiting()] == [BecameReady, LoopBeat, LoopBeat, LoopBeat]


async def test_a_process_that_says_too_much_does_not_hold_the_loop(nursery: Nursery) -> None:
    nursery.start("flooding_its_pipe")
    spawned = await nursery.wait_for(Spawned)
    assert await nursery.line() == "begins"
    nursery.children.hear()
    heard = [event for event in nursery.waiting() if isinstance(event, LoopBeat)]
    assert len(heard) <= 500
    os.kill(spawned.pid, signal.SIGKILL)
    await nursery.wait_for(Died)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
async def test_a_signal_is_told_as_what_it_was(nursery: Nursery, number: signal.Signals) -> None:
    nursery.start("waiting")
    spawned = await nursery.wait_for(Spawned)
    await nursery.wait_for(Booted)
    os.kill(spawned.pid, number)
    died = await nursery.wait_for(Died)
    assert (died.exit_code, died.signal) == (None, number)


async def test_many_deaths_at_once_are_all_seen(nursery: Nursery) -> None:
    for index in range(12):
        nursery.start("waiting", slot=f"s{index}")
    pids = [(await nursery.wait_for(Spawned)).pid for _ in range(12)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert {(await nursery.wait_for(Died)).slot for _ in range(12)} == {f"s{index}" for index in range(12)}


async def test_nonsense_on_the_pipe_is_refused_and_harms_nobody(nursery: Nursery) -> None:
    nursery.start("nonsense")
    await nursery.wait_for(Booted)
    (refused,) = [fact for fact in nursery.facts if isinstance(fact, facts.MessageRefused)]
    assert refused.slot == "a"


async def test_a_process_that_ignores_term_is_killed_with_its_group(nursery: Nursery) -> None:
    nursery.start("deaf")
    await nursery.wait_for(Booted)
    nursery.children.drain("a", 1, 1.0)
    nursery.children.kill("a", 1)
    assert (await nursery.wait_for(Died)).signal == signal.SIGKILL


async def test_a_stopped_process_is_continued_to_hear_its_order(nursery: Nursery) -> None:
    nursery.start("waiting")
    spawned = await nursery.wait_for(Spawned)
    await nursery.wait_for(Booted)
    os.kill(spawned.pid, signal.SIGSTOP)
    nursery.children.drain("a", 1, 1.0)
    await nursery.wait_for(Died)


async def test_a_grandchild_dies_with_the_child_and_is_reaped(nursery: Nursery) -> None:
    nursery.start("with_grandchild")
    spawned = await nursery.wait_for(Spawned)
    grandchild = int(await nursery.line())
    os.kill(spawned.pid, signal.SIGKILL)
    await nursery.wait_for(Died)
    await gone(grandchild)
    nursery.children.sweep(thorough=False)
    assert not exists(grandchild)


async def test_a_daemon_that_a_child_left_behind_is_found_ended_and_reaped(nursery: Nursery) -> None:
    nursery.start("with_daemon")
    spawned = await nursery.wait_for(Spawned)
    daemon = int(await nursery.line())
    os.kill(spawned.pid, signal.SIGKILL)
    await nursery.wait_for(Died)
    assert daemon in children_of(os.getpid())
    # It takes the kernel a while to end it, and it is told once however often it is found meanwhile.
    for _ in range(3):
        nursery.children.sweep(thorough=True)
    await gone(daemon)
    nursery.children.sweep(thorough=False)
    assert not exists(daemon)
    assert [fact.pid for fact in nursery.facts if isinstance(fact, facts.OrphanEnded)] == [daemon]


async def test_a_sweep_leaves_ordered_and_inherited_processes_alone() -> None:
    inherited = await asyncio.create_subprocess_exec(sys.executable, "-c", "import sys; sys.stdin.read()", stdin=-1)
    nursery = Nursery()
    nursery.start("waiting")
    await nursery.wait_for(Booted)
    nursery.children.sweep(thorough=True)
    assert inherited.returncode is None
    assert nursery.facts == []
    nursery.children.drain("a", 1, 1.0)
    await nursery.wait_for(Died)
    assert inherited.stdin is not None
    inherited.stdin.close()
    assert await inherited.wait() == 0


async def test_a_flood_of_output_blocks_nobody_and_long_lines_are_cut(nursery: Nursery) -> None:
    nursery.start("flooding")
    await nursery.wait_for(Booted)
    assert len(await nursery.line(302)) == 80_000 - 2 * MAX_LINE
    assert len(nursery.lines["a"][0]) == 1000


async def test_a_process_gets_what_it_needs_and_nothing_else(nursery: Nursery, tmp_path: Path) -> None:
    private = tmp_path / "private"
    fd = os.open(private, os.O_RDWR | os.O_CREAT)
    nursery.start("environment")
    died = await nursery.wait_for(Died)
    os.close(fd)
    names, first_files, files, kept = died.output
    assert set(names.split()) - {"LC_CTYPE"} == {"PATH", "PYTHONPATH"}
    assert first_files == "/dev/null pipe pipe socket"
    assert str(private) not in files
    assert kept == "True True"


async def test_a_program_that_is_not_there_raises_and_leaves_nothing_open(nursery: Nursery) -> None:
    before = open_files()
    with pytest.raises(OSError, match="No such file"):
        nursery.children.start("a", 1, "control_plane", Program(arguments=["/nonexistent"], environ={}))
    assert open_files() == before


async def test_evidence_names_the_kernels_view(nursery: Nursery) -> None:
    nursery.start("waiting")
    spawned = await nursery.wait_for(Spawned)
    await nursery.wait_for(Booted)
    os.kill(spawned.pid, signal.SIGSTOP)
    wait_until_stopped(spawned.pid)
    hung = facts.ChildHung(
        pool="",
        slot="a",
        incarnation=1,
        why="hung",
        silent_for=45.0,
        thread_silent_for=45.0,
        loop_silent=True,
        jobs_in_hand=1,
        session="registered",
    )
    nursery.children.keep_evidence(KeepEvidence(slot="a", incarnation=1, hung=hung))
    kept = await nursery.wait_for(EvidenceKept)
    assert (kept.hung.evidence.state, kept.hung.hang) == ("T", "stopped")
    assert any(line.startswith("State:") for line in kept.hung.evidence.status)
    silent = facts.ChildSilent(**{name: getattr(hung, name) for name in facts.ChildSilent.__struct_fields__})
    nursery.children.examine(Examine(slot="a", incarnation=1, silent=silent))
    examined = await nursery.wait_for(Examined)
    assert (examined.silent.evidence.state, examined.silent.hang) == ("T", "stopped")


# --- through a real mold -----------------------------------------------------------------------------------------


def child_settings(**fields: Any) -> pipe.ChildSettings:
    # Nobody listens on port 9: a child boots, and then tries to connect until it is told to stop.
    plain = {"worker_instance_id": "test", "api_url": "http://127.0.0.1:9", "project": "default", "api_key": "mbx_test"}
    return pipe.ChildSettings(**(plain | {"journal": "off"} | fields))


def start_mold(nursery: Nursery, tmp_path: Path, modules: list[str], incarnation: int = 1) -> None:
    program = Program(arguments=[sys.executable, "-P", "-u", "-m", "worker_child.mold"], environ=dict(os.environ))
    nursery.children.start("mold:rig", incarnation, "mold", program)
    nursery.children.instruct(
        "mold:rig",
        incarnation,
        pipe.MoldSettings(
            pool="rig",
            modules=modules,
            module_path=[str(tmp_path)],
            preload=True,
            stock_actions=True,
            environment_actions=False,
        ),
    )


async def test_a_mold_forks_children_that_are_ours(nursery: Nursery, tmp_path: Path) -> None:
    start_mold(nursery, tmp_path, [])
    await nursery.wait_for(BecameReady)
    nursery.children.fork("rig-1", 1, "mold:rig", child_settings())
    nursery.children.fork("rig-2", 1, "mold:rig", child_settings())
    booted = {(await nursery.wait_for(Booted)).slot for _ in range(2)}
    assert booted == {"rig-1", "rig-2"}
    nursery.children.sweep(thorough=True)
    nursery.children.kill("rig-1", 1)
    died = await nursery.wait_for(Died)
    assert (died.slot, died.signal) == ("rig-1", signal.SIGKILL)
    # From its first beat on, the loop of the other one takes orders.
    await nursery.wait_for(LoopBeat, "rig-2")
    nursery.children.drain("rig-2", 1, 1.0)
    assert (await nursery.wait_for(SaidBye)).slot == "rig-2"
    died = await nursery.wait_for(Died)
    assert (died.slot, died.exit_code) == ("rig-2", 0)


async def test_the_first_words_of_a_child_wait_for_its_announcement(nursery: Nursery) -> None:
    """A mold that announces many at once is read one message at a time; its children do not wait for that."""
    nursery.start("late_announcement", slot="mold:rig", kind="mold")
    await nursery.wait_for(BecameReady)
    nursery.children.fork("rig-1", 1, "mold:rig", child_settings())
    assert await nursery.line(slot="mold:rig") == "has spoken"
    assert nursery.waiting() == []
    settings = pipe.MoldSettings(
        pool="rig", modules=[], module_path=[], preload=True, stock_actions=True, environment_actions=False
    )
    nursery.children.instruct("mold:rig", 1, settings)
    told = [await nursery.events.get() for _ in range(2)]
    assert [(type(event), event.slot) for event in told] == [(Spawned, "rig-1"), (Booted, "rig-1")]


async def test_children_outlive_their_mold(nursery: Nursery, tmp_path: Path) -> None:
    start_mold(nursery, tmp_path, [])
    mold = await nursery.wait_for(Spawned)
    await nursery.wait_for(BecameReady)
    nursery.children.fork("rig-1", 1, "mold:rig", child_settings())
    await nursery.wait_for(Booted)
    os.kill(mold.pid, signal.SIGKILL)
    assert (await nursery.wait_for(Died)).slot == "mold:rig"
    await nursery.wait_for(LoopBeat)
    nursery.children.drain("rig-1", 1, 1.0)
    assert (await nursery.wait_for(Died)).exit_code == 0


async def test_a_spawn_that_its_mold_did_not_live_to_answer_is_told_as_failed(nursery: Nursery, tmp_path: Path) -> None:
    start_mold(nursery, tmp_path, [])
    mold = await nursery.wait_for(Spawned)
    await nursery.wait_for(BecameReady)
    os.kill(mold.pid, signal.SIGSTOP)
    nursery.children.fork("rig-1", 1, "mold:rig", child_settings())
    os.kill(mold.pid, signal.SIGKILL)
    failed = await nursery.wait_for(SpawnFailed)
    assert (failed.slot, failed.message) == ("rig-1", "the mold ended before it answered")


async def test_a_spawn_asked_of_a_mold_that_has_just_ended_is_told_as_failed(nursery: Nursery, tmp_path: Path) -> None:
    start_mold(nursery, tmp_path, [])
    mold = await nursery.wait_for(Spawned)
    await nursery.wait_for(BecameReady)
    before = open_files()
    os.kill(mold.pid, signal.SIGKILL)
    # It is dead, and the loop has had no turn to see that.
    wait_until_dead(mold.pid)
    nursery.children.fork("rig-1", 1, "mold:rig", child_settings())
    assert open_files() == before
    failed = await nursery.wait_for(SpawnFailed)
    assert (failed.slot, failed.message) == ("rig-1", "the mold ended before it answered")


async def test_a_spawn_can_be_abandoned_and_its_late_process_is_swept(nursery: Nursery, tmp_path: Path) -> None:
    start_mold(nursery, tmp_path, [])
    mold = await nursery.wait_for(Spawned)
    await nursery.wait_for(BecameReady)
    os.kill(mold.pid, signal.SIGSTOP)
    nursery.children.fork("rig-1", 1, "mold:rig", child_settings())
    nursery.children.abandon("rig-1", 1)
    assert (await nursery.wait_for(SpawnFailed)).slot == "rig-1"
    os.kill(mold.pid, signal.SIGCONT)
    # The mold forks in order: when the second is announced, the first one has been.
    nursery.children.fork("rig-2", 1, "mold:rig", child_settings())
    assert (await nursery.wait_for(Spawned)).slot == "rig-2"
    late = children_of(os.getpid())
    nursery.children.sweep(thorough=True)
    for fact in nursery.facts:
        assert isinstance(fact, facts.OrphanEnded)
        assert fact.pid in late
        await gone(fact.pid)
    assert len(children_of(os.getpid()) & late) >= 2
    nursery.children.kill("rig-2", 1)
    assert (await nursery.wait_for(Died)).slot == "rig-2"


async def test_a_module_that_is_missing_is_the_molds_last_word(nursery: Nursery, tmp_path: Path) -> None:
    start_mold(nursery, tmp_path, ["no_such_module"])
    bye = await nursery.wait_for(SaidBye)
    assert bye.bye.refused
    assert "no_such_module" in bye.bye.reason
    (failed,) = [fact for fact in nursery.facts if isinstance(fact, facts.HandlerImportFailed)]
    assert failed.message == bye.bye.reason
    assert (await nursery.wait_for(Died)).exit_code == 78


async def test_no_file_descriptor_is_left_after_many_lives(nursery: Nursery, tmp_path: Path) -> None:
    start_mold(nursery, tmp_path, [])
    await nursery.wait_for(BecameReady)
    before = open_files()
    for incarnation in range(1, 11):
        nursery.children.fork("rig-1", incarnation, "mold:rig", child_settings())
        await nursery.wait_for(Booted)
        nursery.children.kill("rig-1", incarnation)
        assert (await nursery.wait_for(Died)).incarnation == incarnation
    assert open_files() == before
