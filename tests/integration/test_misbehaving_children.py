"""Children that misbehave, one fault each: what the supervisor did about it, and by when. Each waits for a log line."""

import contextlib
import datetime as dt
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from supervisor.faults import SAME_FAULT_LIMIT
from supervisor.slots import DRAIN_MARGIN, EVIDENCE_PATIENCE, STALLED_BEATS
from tests.support.gate import Gate
from tests.support.supervisor_process import SupervisorProcess
from tests.support.worker_socket_server import WorkerSocketServer

PATIENCE = 30.0
ROUND = 1.0
"""Seconds within which a supervisor notices what only its own clock tells it."""

BUSY = 8.0
"""Seconds that a busy machine may take for what is at once."""

LIMITS = {"silence": "1500ms", "kill_after": "3s"}
SLOT = "default-1"
MOLD = "mold:default"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WorkerSocketServer]:
    with WorkerSocketServer(tmp_path) as server:
        yield server


@contextlib.contextmanager
def supervising(
    tmp_path: Path, server: WorkerSocketServer, *children: str, **settings: Any
) -> Iterator[SupervisorProcess]:
    modules = ["tests.support.gate_handlers", *(f"tests.integration.children.{name}" for name in children)]
    defaults: dict[str, Any] = {"modules": modules, "limits": LIMITS, "restart": {"backoff_max": "200ms"}}
    with SupervisorProcess(tmp_path / "supervisor", server, **defaults | settings) as supervisor:  # type: ignore[arg-type]
        yield supervisor


def seconds_between(first: dict[str, Any], second: dict[str, Any]) -> float:
    times = [dt.datetime.fromisoformat(entry["timestamp"]) for entry in (first, second)]
    return (times[1] - times[0]).total_seconds()


def record(supervisor: SupervisorProcess, slot: str = SLOT) -> dict[str, Any]:
    """The slot's newest exit record. Written before the next process of the slot says a word, but by a thread."""
    supervisor.wait_for("process ended", slot=slot)
    for path in sorted((supervisor.state / "exits" / slot).glob("*.json"), reverse=True):
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    raise AssertionError("there is no exit record")


def lives_on(supervisor: SupervisorProcess, server: WorkerSocketServer, incarnation: int = 2) -> None:
    """The slot is filled again and does its work; the supervisor stops cleanly and leaves nothing behind."""
    supervisor.wait_for("ready", slot=SLOT, incarnation=incarnation)
    server.offer("print", {"message": "still here"})
    while server.wait_for_report().get("result") != {"output": "still here"}:
        pass
    assert supervisor.terminate() == 0
    assert supervisor.leftovers() == []


# --- hangs -------------------------------------------------------------------------------------------------------


def hangs(
    tmp_path: Path, server: WorkerSocketServer, program: str, action: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Silence is named at `silence`, the process killed at `kill_after`, with evidence; the slot lives on."""
    with supervising(tmp_path, server, program) as supervisor:
        supervisor.wait_for("ready", slot=SLOT)
        server.offer(action, {})
        silent = supervisor.wait_for("event loop is silent", slot=SLOT)
        hung = supervisor.wait_for("killing a process that hangs", slot=SLOT)
        died = supervisor.wait_for("process ended", slot=SLOT)
        assert 1.5 <= silent["silent_for"] <= 1.5 + BUSY
        assert silent["hang"]
        assert 3.0 <= hung["silent_for"] <= 3.0 + BUSY
        assert seconds_between(hung, died) <= BUSY
        assert (died["cause"], died["signal"]) == ("hung", signal.SIGKILL)
        # At once: it had been ready, and it is its first failure.
        assert supervisor.wait_for("restart scheduled", slot=SLOT)["delay"] == 0
        lives_on(supervisor, server)
        return hung, record(supervisor)


def test_blocks_the_loop(tmp_path: Path, server: WorkerSocketServer) -> None:
    hung, kept = hangs(tmp_path, server, "blocks_the_loop", "test.block")
    assert hung["hang"] == "loop_blocked"
    assert hung["jobs_in_hand"] == 1
    assert "blocks_the_loop.py" in hung["evidence"]["stacks"]
    assert kept["cause"] in ("hung", "drained")


def test_holds_the_gil(tmp_path: Path, server: WorkerSocketServer) -> None:
    hung, _ = hangs(tmp_path, server, "holds_the_gil", "test.hold_the_gil")
    assert hung["hang"] == "interpreter_stuck"
    assert hung["evidence"]["state"] == "R"
    assert "in hold_the_gil" in hung["evidence"]["stacks"]


def test_stopped_by_sigstop(tmp_path: Path, server: WorkerSocketServer) -> None:
    hung, _ = hangs(tmp_path, server, "stops_itself", "test.stop_myself")
    assert hung["hang"] == "stopped"
    assert hung["evidence"]["state"] == "T"
    assert "stopped" in hung["evidence"]["no_stacks"]


def test_silent(tmp_path: Path, server: WorkerSocketServer) -> None:
    hung, _ = hangs(tmp_path, server, "silent", "test.go_silent")
    # The thread still beats, so it is the loop that nothing is heard of.
    assert hung["hang"] == "loop_blocked"
    assert "in run\n" in hung["evidence"]["stacks"]


@pytest.mark.replaces_code
def test_stands_still(tmp_path: Path, server: WorkerSocketServer) -> None:
    """Both beats come, and say that the session owes a step: named at `silence`, ended at `kill_after`."""
    with supervising(tmp_path, server, "stands_still") as supervisor:
        supervisor.wait_for("ready", slot=SLOT)
        server.offer("test.stand_still", {})
        server.wait_for_report()
        stalled = supervisor.wait_for("event loop runs and the session does not get on", slot=SLOT)
        hung = supervisor.wait_for("killing a process that hangs", slot=SLOT)
        died = supervisor.wait_for("process ended", slot=SLOT)
        assert 1.5 <= stalled["stalled_for"] <= hung["lasted"]
        assert 3.0 <= hung["lasted"] <= 3.0 + STALLED_BEATS + BUSY
        assert (hung["hang"], hung["session"], hung["jobs_in_hand"]) == ("not_progressing", "registered", 0)
        assert "owed a step" in hung["detail"]
        assert "in run\n" in hung["evidence"]["stacks"]
        assert (died["cause"], died["signal"]) == ("hung", signal.SIGKILL)
        lives_on(supervisor, server)


def test_a_control_plane_that_hears_nothing_is_no_fault_of_the_children(tmp_path: Path) -> None:
    """It takes connections and answers none; the children try again and again, and none of them is touched."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as deaf:
        plane = SimpleNamespace(url=f"http://127.0.0.1:{deaf.getsockname()[1]}", key_file=tmp_path / "key")
        plane.key_file.write_text("mbx_0123456789abcdef0123456789abcdef\n")
        plane.key_file.chmod(0o600)
        with supervising(tmp_path, plane, workers=2) as supervisor:  # type: ignore[arg-type]
            # After the connection's own fifteen seconds, which are five times `kill_after`.
            for slot in (SLOT, "default-2"):
                supervisor.wait_for("session.disconnected", slot=slot)
            for event in ("event loop runs", "killing", "process ended"):
                assert list(supervisor.matching(event)) == []
            assert supervisor.terminate() == 0


def test_the_exit_record_has_everything(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server, "blocks_the_loop") as supervisor:
        supervisor.wait_for("ready", slot=SLOT)
        server.offer("test.block", {})
        supervisor.wait_for("ready", slot=SLOT, incarnation=2)
        assert supervisor.terminate() == 0
        (path, *_) = sorted((supervisor.state / "exits" / SLOT).glob("*.json"))
        assert path.stat().st_mode & 0o777 == 0o600
        kept = json.loads(path.read_text())
    assert (kept["slot"], kept["incarnation"], kept["cause"], kept["signal"]) == (SLOT, 1, "hung", 9)
    assert kept["beat"]["session"] == "registered"
    assert kept["hang"]["jobs_in_hand"] == 1
    assert "in block" in kept["hang"]["evidence"]["stacks"]
    assert any(line.startswith("State:") for line in kept["hang"]["evidence"]["status"])
    assert "in block" in kept["silence"]["evidence"]["stacks"]
    assert 0 < len(kept["output"]) <= 100


def test_deaf(tmp_path: Path, server: WorkerSocketServer) -> None:
    """It has its grace, then evidence is kept and it is killed: a stop never waits for one child."""
    with Gate() as gate, supervising(tmp_path, server, "deaf", supervisor={"drain_timeout": "1s"}) as supervisor:
        supervisor.wait_for("ready", slot=SLOT)
        server.offer("test.go_deaf", {})
        server.wait_for_report()
        server.offer("test.gate", {"port": gate.port})
        gate.knock()
        # The exit code of a stop that cut a job off.
        assert supervisor.terminate() == 75
        stopping = supervisor.wait_for("stopping")
        hung = supervisor.wait_for("killing a process that hangs", slot=SLOT)
        died = supervisor.wait_for("process ended", slot=SLOT)
        assert seconds_between(stopping, died) <= 1.0 + DRAIN_MARGIN + EVIDENCE_PATIENCE + ROUND + BUSY
        assert (hung["why"], hung["hang"], died["cause"]) == ("killed", "not_progressing", "killed")
        assert "in run\n" in hung["evidence"]["stacks"]
        assert supervisor.wait_for("stopped")["killed"] == [SLOT]
        assert supervisor.leftovers() == []


def test_killed_by_order(tmp_path: Path, server: WorkerSocketServer) -> None:
    """Who kills in a hurry has a reason: it is in the evidence, which is kept first and counts as no hang."""
    with Gate() as gate, supervising(tmp_path, server) as supervisor:
        supervisor.wait_for("ready", slot=SLOT)
        server.offer("test.gate", {"port": gate.port})
        gate.knock()
        supervisor.process.send_signal(signal.SIGQUIT)
        killed = supervisor.wait_for("killing a process as ordered", slot=SLOT)
        assert "in run\n" in killed["evidence"]["stacks"]
        assert "hang" not in killed
        assert supervisor.process.wait(PATIENCE) == 75
        kept = record(supervisor)
        assert (kept["cause"], kept["hang"]["ordered"]) == ("killed", True)


def test_ignores_term(tmp_path: Path, server: WorkerSocketServer) -> None:
    """The order over the pipe says the same, so nothing is killed."""
    with supervising(tmp_path, server, "ignores_term") as supervisor:
        supervisor.wait_for("ready", slot=SLOT)
        server.offer("test.ignore_term", {})
        server.wait_for_report()
        assert supervisor.terminate() == 0
        died = supervisor.wait_for("process ended", slot=SLOT)
        assert (died["cause"], died["exit_code"]) == ("drained", 0)
        assert seconds_between(supervisor.wait_for("stopping"), died) <= ROUND + BUSY


# --- boot --------------------------------------------------------------------------------------------------------


def test_dies_at_boot(tmp_path: Path, server: WorkerSocketServer) -> None:
    """Back-off from the first death on, never giving up; the crash loop is named with what it says."""
    with supervising(tmp_path, server, "dies_at_boot", preload=False) as supervisor:
        loop = supervisor.wait_for("crash loop", slot=SLOT)
        assert (loop["times"], loop["how"]) == (SAME_FAULT_LIMIT, "exit code 3")
        assert loop["says"].endswith("the licence has run out")
        delays = [entry["delay"] for entry in supervisor.matching("restart scheduled", slot=SLOT)]
        assert len(delays) >= SAME_FAULT_LIMIT - 1
        assert all(0 <= delay <= 0.2 for delay in delays)
        supervisor.wait_for("process ended", slot=SLOT, count=SAME_FAULT_LIMIT + 2)
        for words in (["status"], ["status", SLOT]):
            told = supervisor.command(*words).stdout
            assert "times in a row the same: exit code 3; it says: " in told
            assert "the licence has run out" in told
        assert supervisor.terminate() == 0


def test_hangs_at_import(tmp_path: Path, server: WorkerSocketServer) -> None:
    """The mold has its boot deadline like everybody else; no child is ever asked for meanwhile."""
    with supervising(tmp_path, server, "hangs_at_import", limits=LIMITS | {"boot": "2s"}) as supervisor:
        started = supervisor.wait_for("process started", slot=MOLD)
        hung = supervisor.wait_for("killing a process that hangs", slot=MOLD)
        assert hung["silent_for"] >= 2.0  # since it was asked for, which is before it is there
        assert seconds_between(started, hung) <= 2.0 + EVIDENCE_PATIENCE + BUSY
        assert (hung["why"], hung["hang"]) == ("boot_timeout", "not_progressing")
        assert 'hangs_at_import.py", line' in hung["evidence"]["stacks"]
        assert supervisor.wait_for("process ended", slot=MOLD)["cause"] == "boot_timeout"
        supervisor.wait_for("process started", slot=MOLD, incarnation=2)
        assert list(supervisor.matching("process started", slot=SLOT)) == []
        assert supervisor.terminate() == 0


def test_hangs_at_import_in_the_child_itself(tmp_path: Path, server: WorkerSocketServer) -> None:
    """It has the time that a process has to boot, not that of a silent loop; its stacks say where it stands."""
    settings: dict[str, Any] = {"preload": False, "limits": LIMITS | {"boot": "5s"}}
    with supervising(tmp_path, server, "hangs_at_import", **settings) as supervisor:
        hung = supervisor.wait_for("killing a process that hangs", slot=SLOT)
        assert hung["lasted"] >= 5.0
        assert hung["why"] == "boot_timeout"
        assert 'hangs_at_import.py", line' in hung["evidence"]["stacks"]
        assert list(supervisor.matching("event loop is silent")) == []
        assert supervisor.wait_for("process ended", slot=SLOT)["cause"] == "boot_timeout"
        supervisor.terminate()


def test_a_mold_that_stands_still(tmp_path: Path, server: WorkerSocketServer) -> None:
    """It does not beat: it is found out by the worker that is asked of it, and the next mold forks that one."""
    with supervising(tmp_path, server) as supervisor:
        mold = supervisor.wait_for("process started", slot=MOLD)["pid"]
        child = supervisor.wait_for("process started", slot=SLOT)["pid"]
        supervisor.wait_for("ready", slot=SLOT)
        os.kill(mold, signal.SIGSTOP)
        os.kill(child, signal.SIGKILL)
        hung = supervisor.wait_for("killing a process that hangs", slot=MOLD)
        assert (hung["hang"], hung["evidence"]["state"]) == ("stopped", "T")
        assert hung["detail"] == "it was asked for a worker and did not answer"
        assert 3.0 <= hung["lasted"] <= 3.0 + BUSY
        died = supervisor.wait_for("process ended", slot=MOLD)
        assert (died["cause"], died["signal"]) == ("hung", signal.SIGKILL)
        # The second one is the worker that nobody forked.
        lives_on(supervisor, server, incarnation=3)


# --- ends --------------------------------------------------------------------------------------------------------


def test_exits_with_0(tmp_path: Path, server: WorkerSocketServer) -> None:
    """Without last words even code 0 is the child's own doing."""
    with supervising(tmp_path, server, "exits_with_0") as supervisor:
        supervisor.wait_for("ready", slot=SLOT)
        server.offer("test.exit_0", {})
        died = supervisor.wait_for("process ended", slot=SLOT)
        assert (died["cause"], died["exit_code"], died["self_made"]) == ("exit", 0, True)
        ready = supervisor.wait_for("ready", slot=SLOT, incarnation=2)
        assert seconds_between(died, ready) <= ROUND + BUSY
        lives_on(supervisor, server)


HARMLESS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
SELF_MADE = {signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV}


def test_dies_by_every_signal(tmp_path: Path, server: WorkerSocketServer) -> None:
    """Each is seen at once and called by its name; only what a process does to itself counts against it."""
    deadly = sorted(set(signal.Signals) - HARMLESS - STOPPING)
    with supervising(tmp_path, server, "dies_by_signal") as supervisor:
        for incarnation, number in enumerate(deadly, start=1):
            supervisor.wait_for("ready", slot=SLOT, incarnation=incarnation)
            server.offer("test.die", {"signal": number})
            died = supervisor.wait_for("process ended", slot=SLOT, incarnation=incarnation)
            assert (died["cause"], died["signal"]) == ("signal", number), number.name
            assert died["self_made"] is (number in SELF_MADE), number.name
        assert len(deadly) > 20
        lives_on(supervisor, server, len(deadly) + 1)


# --- what they leave, and what they take ---------------------------------------------------------------------------


def test_forks_a_grandchild(tmp_path: Path, server: WorkerSocketServer) -> None:
    """What a handler leaves behind dies with its child, even from a session of its own."""
    with supervising(tmp_path, server, "forks_a_grandchild") as supervisor:
        child = supervisor.wait_for("process started", slot=SLOT)["pid"]
        supervisor.wait_for("ready", slot=SLOT)
        server.offer("test.leave_behind", {})
        left = psutil.Process(server.wait_for_report()["result"]["pid"])
        assert left.is_running()
        os.kill(child, signal.SIGKILL)
        died = supervisor.wait_for("process ended", slot=SLOT)
        ended = supervisor.wait_for("ended a process that nobody ordered")
        assert ended["pid"] == left.pid
        assert seconds_between(died, ended) <= ROUND + BUSY
        left.wait(PATIENCE)
        lives_on(supervisor, server)


def test_fills_its_output(tmp_path: Path, server: WorkerSocketServer) -> None:
    """Output is read at once and never in the way of a beat, so the child is neither blocked nor called silent."""
    with supervising(tmp_path, server, "fills_its_output") as supervisor:
        supervisor.wait_for("ready", slot=SLOT)
        server.offer("test.print_a_lot", {})
        assert server.wait_for_report()["result"] == {"written": 16 * 1024 * 1024}
        lives_on(supervisor, server, incarnation=1)
        assert list(supervisor.matching("event loop is silent")) == []
        assert list(supervisor.matching("killing a process that hangs")) == []


def test_leaks_memory(tmp_path: Path, server: WorkerSocketServer) -> None:
    """Exchanged for a fresh child when it holds too much, as planned: the fresh one is ready first, nothing failed."""
    limits = LIMITS | {"max_memory": "64MiB"}
    with supervising(tmp_path, server, "leaks_memory", limits=limits) as supervisor:
        supervisor.wait_for("ready", slot=SLOT)
        server.offer("test.leak", {"mebibytes": 80})
        recycling = supervisor.wait_for("recycling", slot=SLOT)
        assert recycling["reason"] == "memory"
        assert recycling["private_memory"] > 80 * 1024 * 1024
        ready = supervisor.wait_for("ready", slot="default-2")
        died = supervisor.wait_for("process ended", slot=SLOT)
        assert seconds_between(ready, died) >= 0
        assert (died["cause"], died["self_made"]) == ("drained", False)
        assert list(supervisor.matching("restart scheduled")) == []
        assert supervisor.terminate() == 0


def test_runs_on(tmp_path: Path, server: WorkerSocketServer) -> None:
    """A thread that cannot be ended: its job is reported without it, and the process that it holds is replaced."""
    with supervising(tmp_path, server, "runs_on") as supervisor:
        supervisor.wait_for("ready", slot=SLOT)
        server.offer("test.run_on", {})
        report = server.wait_for_report()
        assert (report["status"], report["error_type"]) == ("failed", "TimeoutError")
        supervisor.wait_for("job.runs_on", slot=SLOT, job_id="job_1")
        assert supervisor.wait_for("recycling", slot=SLOT)["reason"] == "overdue"
        ready = supervisor.wait_for("ready", slot="default-2")
        died = supervisor.wait_for("process ended", slot=SLOT)
        assert seconds_between(ready, died) >= 0
        assert (died["cause"], died["exit_code"]) == ("drained", 0)
        server.offer("print", {"message": "the slot is free"})
        assert server.wait_for_report()["result"] == {"output": "the slot is free"}
        assert supervisor.terminate() == 0
        assert supervisor.leftovers() == []


@pytest.fixture
def little_memory() -> Iterator[Callable[[], None]]:
    """This process is in a cgroup with 160 MiB, of whichever version there is, until what is yielded is called."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    name = f"mobius-test-{os.getpid()}"
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":", 2)[2] for line in groups if "memory" in line.split(":")[1].split(",")), None)
    base = v1 / own.lstrip("/") if own is not None else v2 / groups[0].split(":", 2)[2].lstrip("/")
    group = base / name
    try:
        group.mkdir()
        (group / ("memory.max" if own is None else "memory.limit_in_bytes")).write_text(str(160 * 1024 * 1024))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    (group / "cgroup.procs").write_text(str(os.getpid()))

    def leave() -> None:
        (base / "cgroup.procs").write_text(str(os.getpid()))

    yield leave
    leave()
    group.rmdir()


def test_out_of_memory(tmp_path: Path, server: WorkerSocketServer, little_memory: Callable[[], None]) -> None:
    """The kernel's kill is told from a person's by the unit's counter, and counts as the child's own doing."""
    with supervising(tmp_path, server, "leaks_memory", workers=2) as supervisor:
        little_memory()
        supervisor.wait_for("ready", slot=SLOT)
        supervisor.wait_for("ready", slot="default-2")
        os.kill(supervisor.wait_for("process started", slot="default-2")["pid"], signal.SIGKILL)
        by_a_person = supervisor.wait_for("process ended", slot="default-2")
        assert (by_a_person["cause"], by_a_person["self_made"]) == ("signal", False)
        supervisor.wait_for("ready", slot="default-2", incarnation=2)
        server.offer("test.leak", {"mebibytes": 400})
        died = supervisor.wait_for("process ended", cause="out_of_memory")
        assert (died["signal"], died["self_made"]) == (signal.SIGKILL, True)
        supervisor.wait_for("ready", slot=died["slot"], incarnation=died["incarnation"] + 1)
        assert supervisor.terminate() == 0


def test_out_of_memory_in_the_process_of_a_job(
    tmp_path: Path, server: WorkerSocketServer, little_memory: Callable[[], None]
) -> None:
    """It is the job's process that goes, before its worker; the job is told, and nothing is replaced."""
    modules = ["tests.support.gate_handlers", "tests.support.isolated_handlers"]
    with supervising(tmp_path, server, modules=modules, workers=2) as supervisor, Gate() as gate:
        little_memory()
        supervisor.wait_for("ready", slot=SLOT)
        supervisor.wait_for("ready", slot="default-2")
        by_a_person = server.offer("isolated.wait", {"port": gate.port})
        os.kill(gate.knock().says["pid"], signal.SIGKILL)
        report = server.wait_for_report()
        assert (report["job_id"], report["error_type"]) == (by_a_person, "HandlerCrashed")
        assert report["error_message"].endswith("was ended by signal 9 (SIGKILL)")
        server.offer("isolated.hog", {"bytes": 400 * 1024 * 1024})
        report = server.wait_for_report()
        assert (report["status"], report["error_type"]) == ("failed", "HandlerOutOfMemory")
        assert supervisor.wait_for("process of a job ended", cause="out_of_memory")["signal"] == signal.SIGKILL
        server.offer("print", {"message": "still here"})
        assert server.wait_for_report()["result"] == {"output": "still here"}
        assert list(supervisor.matching("process ended")) == []
        assert supervisor.terminate() == 0
