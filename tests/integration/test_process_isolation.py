"""Actions with a process for each job, under a real supervisor: what one can do to others, and how it ends."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.gate import Gate
from tests.support.supervisor_process import SupervisorProcess
from tests.support.worker_socket_server import WorkerSocketServer

SLOT = "default-1"
MODULES = ["tests.support.gate_handlers", "tests.support.isolated_handlers"]
SHORT_GRACE = [*MODULES, "tests.integration.children.short_grace"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WorkerSocketServer]:
    with WorkerSocketServer(tmp_path) as server:
        yield server


@contextlib.contextmanager
def supervising(tmp_path: Path, server: WorkerSocketServer, **settings: Any) -> Iterator[SupervisorProcess]:
    defaults: dict[str, Any] = {"modules": MODULES, "concurrency": 4, "restart": {"backoff_max": "200ms"}}
    with SupervisorProcess(tmp_path / "supervisor", server, **defaults | settings) as supervisor:  # type: ignore[arg-type]
        supervisor.wait_for("ready", slot=SLOT)
        yield supervisor


def report(server: WorkerSocketServer, job_id: str) -> dict[str, Any]:
    """The report on this job; others are not expected meanwhile."""
    found = server.wait_for_report()
    assert found["job_id"] == job_id, found
    return found


def worker_pid(supervisor: SupervisorProcess) -> int:
    pid: int = next(supervisor.matching("process started", slot=SLOT))["pid"]
    return pid


def wait_until_asked_for(supervisor: SupervisorProcess, job_id: str) -> None:
    """The supervisor has been asked for the job's process."""
    deadline = time.monotonic() + 20
    asked: list[str] = []
    while job_id not in asked:
        assert time.monotonic() < deadline, asked
        status = json.loads(supervisor.command("status", SLOT, "--output", "json").stdout)
        asked = [process["job_id"] for process in status["job_processes"]]


def stops_cleanly(supervisor: SupervisorProcess) -> None:
    """Nothing is left over, and the worker that there was in the beginning was there to the end."""
    assert supervisor.terminate() == 0
    assert supervisor.leftovers() == []
    assert [entry["incarnation"] for entry in supervisor.matching("process started", slot=SLOT)] == [1]


def ended(pid: int) -> bool:
    """Whether the process is gone, or waits to be reaped, within what a busy machine may take."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            process.wait(timeout=0.1)
        except psutil.NoSuchProcess:
            return True
        except psutil.TimeoutExpired:
            continue
    return False


def test_a_job_runs_in_a_process_of_its_own_with_all_that_a_handler_has(
    tmp_path: Path, server: WorkerSocketServer
) -> None:
    with supervising(tmp_path, server) as supervisor:
        result = report(server, server.offer("isolated.echo", {"deep": [1, {"a": None}]}))["result"]
        assert result["params"] == {"deep": [1, {"a": None}]}
        assert result["pid"] != worker_pid(supervisor)
        # A child of the supervisor, never of the worker; leader of its own session and group.
        assert (result["parent"], result["leads"]) == (supervisor.process.pid, True)
        assert (result["attempt"], result["key"], result["worker"], result["deadline"]) == (1, "job_1", "box-1", False)
        result = report(server, server.offer("isolated.echo_sync", {"a": 1}))["result"]
        assert result == {"params": {"a": 1}, "deadline": True}
        assert report(server, server.offer("isolated.big", {"bytes": 500_000}))["result"] == {"output": "x" * 500_000}
        ends = [supervisor.wait_for("process of a job ended", count=count)["cause"] for count in (1, 2, 3)]
        assert ends == ["finished"] * 3
        stops_cleanly(supervisor)


def test_what_the_mold_does_not_import_the_process_does(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server, preload=False) as supervisor:
        assert report(server, server.offer("isolated.echo", {"a": 1}))["result"]["params"] == {"a": 1}
        stops_cleanly(supervisor)


@pytest.mark.parametrize(
    ("action", "parameters", "error_type", "sentence", "cause"),
    [
        ("isolated.segfault", {}, "HandlerCrashed", "was ended by signal 11 (SIGSEGV)", "signal"),
        ("isolated.exit", {"code": 7}, "HandlerCrashed", "ended with exit code 7 before the handler had ret", "exit"),
        ("isolated.exit", {"code": 0}, "HandlerCrashed", "ended with exit code 0 before", "finished"),
        ("isolated.leave_properly", {}, "SystemExit", "no licence", "finished"),
    ],
)
def test_its_death_is_its_jobs_failure_and_harms_no_neighbour(
    tmp_path: Path,
    server: WorkerSocketServer,
    action: str,
    parameters: dict[str, int],
    error_type: str,
    sentence: str,
    cause: str,
) -> None:
    with supervising(tmp_path, server) as supervisor, Gate() as gate:
        # One neighbour in the worker itself, one in a process of its own.
        beside = server.offer("test.gate", {"port": gate.port})
        first = gate.knock()
        isolated = server.offer("isolated.wait", {"port": gate.port})
        second = gate.knock()
        failed = report(server, server.offer(action, parameters))
        assert (failed["status"], failed["error_type"]) == ("failed", error_type)
        assert sentence in failed["error_message"]
        assert supervisor.wait_for("process of a job ended", action=action)["cause"] == cause
        first.release()
        assert report(server, beside).get("status", "completed") == "completed"
        server.cancel(isolated)
        second.wait_for_end()
        assert report(server, isolated)["status"] == "cancelled"
        stops_cleanly(supervisor)


def test_the_stacks_of_a_crash_and_all_that_is_written_are_in_the_log_under_the_job(
    tmp_path: Path, server: WorkerSocketServer
) -> None:
    with supervising(tmp_path, server) as supervisor:
        report(server, server.offer("isolated.talk", {}))
        for event, stream in (
            ("through the context", None),
            ("through a library", None),
            ("printed", "output"),
            ("written without an end", "output"),
        ):
            entry = supervisor.wait_for(event, slot=SLOT, job_id="job_1", action="isolated.talk", attempt=1)
            assert entry.get("stream") == stream
        report(server, server.offer("isolated.segfault", {}))
        supervisor.wait_for("Fatal Python error: Segmentation fault", slot=SLOT, job_id="job_2")
        supervisor.wait_for("  File", contains="in segfault", job_id="job_2")
        report(server, server.offer("isolated.flood", {"lines": 3000}))
        supervisor.wait_for("2999", slot=SLOT, job_id="job_3")
        assert [entry["event"] for entry in supervisor.matching("", job_id="job_3", stream="output")] == [
            str(number) for number in range(3000)
        ]
        stops_cleanly(supervisor)


def test_a_cancel_is_a_signal(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor, Gate() as gate:
        job = server.offer("isolated.wait", {"port": gate.port})
        visit = gate.knock()
        server.cancel(job)
        visit.wait_for_end()
        cancelled = report(server, job)
        assert (cancelled["status"], cancelled.get("error_type")) == ("cancelled", None)
        supervisor.wait_for("told to stop True", slot=SLOT, job_id=job)
        assert supervisor.wait_for("process of a job ended")["cause"] == "finished"
        stops_cleanly(supervisor)


def test_a_timeout_is_one_too_and_reaches_a_plain_function(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor, Gate() as gate:
        job = server.offer("isolated.wait_sync", {"port": gate.port})
        gate.knock().wait_for_end()
        failed = report(server, job)
        assert (failed["status"], failed["error_type"]) == ("failed", "TimeoutError")
        assert "within its timeout of 1 s" in failed["error_message"]
        assert supervisor.wait_for("process of a job ended")["cause"] == "finished"
        stops_cleanly(supervisor)


def test_what_does_not_stop_is_killed_with_its_group_after_its_stacks_are_kept(
    tmp_path: Path, server: WorkerSocketServer
) -> None:
    with supervising(tmp_path, server, modules=SHORT_GRACE) as supervisor, Gate() as gate:
        job = server.offer("isolated.stubborn", {"port": gate.port})
        visit = gate.knock()
        visit.wait_for_end()
        failed = report(server, job)
        assert (failed["status"], failed["error_type"]) == ("failed", "TimeoutError")
        killing = supervisor.wait_for("killing the process of a job", job_id=job, pid=visit.says["pid"])
        assert killing["evidence"]["state"] == "S"
        assert any(str(visit.says["child"]) in line for line in killing["evidence"]["children"])
        supervisor.wait_for("  File", contains="in stubborn", job_id=job)
        assert supervisor.wait_for("process of a job ended", job_id=job)["cause"] == "killed"
        assert ended(visit.says["child"])
        # Its slot is free again, and nothing had to be replaced for it.
        report(server, server.offer("isolated.noop", {}))
        assert list(supervisor.matching("recycling")) == []
        stops_cleanly(supervisor)


def test_a_lost_lease_shows_in_its_context(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor, Gate() as gate:
        job = server.offer("isolated.sees_its_lease", {"port": gate.port})
        visit = gate.knock()
        server.lose_lease(job)
        supervisor.wait_for("session.lease_lost", job_id=job)
        visit.release()
        assert report(server, job)["result"] == {"output": True}
        stops_cleanly(supervisor)


@pytest.mark.parametrize("action", ["isolated.wait", "isolated.hold_the_gil"])
def test_it_ends_with_its_worker(tmp_path: Path, server: WorkerSocketServer, action: str) -> None:
    with supervising(tmp_path, server) as supervisor, Gate() as gate:
        job = server.offer(action, {"port": gate.port})
        visit = gate.knock()
        os.kill(worker_pid(supervisor), signal.SIGKILL)
        visit.wait_for_end()
        assert ended(visit.says["pid"])
        # And the job is known to have been in hand.
        supervisor.wait_for("ready", slot=SLOT, incarnation=2)
        assert report(server, job)["error_type"] == "WorkerCrashed"
        assert supervisor.terminate() == 0
        assert supervisor.leftovers() == []


def test_its_worker_finishes_it_when_the_supervisor_is_gone(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor, Gate() as gate:
        job = server.offer("isolated.sees_its_lease", {"port": gate.port})
        visit = gate.knock()
        supervisor.kill()
        assert psutil.pid_exists(visit.says["pid"])
        visit.release()
        assert report(server, job)["result"] == {"output": False}
        assert all(ended(member.pid) for member in supervisor.leftovers())


@pytest.mark.parametrize("action", ["isolated.wait", "isolated.hold_the_gil", "isolated.stubborn"])
def test_it_does_not_outlive_worker_and_supervisor(tmp_path: Path, server: WorkerSocketServer, action: str) -> None:
    """Whatever it does: the worker's grace is over, it lets go, and the kernel does the rest."""
    grace = {"drain_timeout": "1s"}
    with supervising(tmp_path, server, supervisor=grace) as supervisor, Gate() as gate:
        server.offer(action, {"port": gate.port})
        visit = gate.knock()
        supervisor.kill()
        visit.wait_for_end()
        assert ended(visit.says["pid"])
        assert ended(visit.says.get("child", visit.says["pid"]))
        assert all(ended(member.pid) for member in supervisor.leftovers())


def test_a_drain_waits_for_it(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor, Gate() as gate:
        job = server.offer("isolated.sees_its_lease", {"port": gate.port})
        visit = gate.knock()
        supervisor.process.send_signal(signal.SIGTERM)
        supervisor.wait_for("session.drain", slot=SLOT)
        visit.release()
        assert report(server, job)["result"] == {"output": False}
        assert supervisor.process.wait(30) == 0
        assert supervisor.wait_for("stopped")["cut_off"] == 0


def test_a_mold_that_is_away_costs_no_attempt(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor:
        mold = next(supervisor.matching("process started", slot="mold:default"))["pid"]
        os.kill(mold, signal.SIGSTOP)
        job = server.offer("isolated.noop", {})
        wait_until_asked_for(supervisor, job)
        os.kill(mold, signal.SIGKILL)
        back = report(server, job)
        assert (back["status"], back["error_type"]) == ("failed", "WorkerOverCapacity")
        assert "no process could be made for the handler" in back["error_message"]
        supervisor.wait_for("ready", slot="mold:default", incarnation=2)
        assert report(server, server.offer("isolated.noop", {})).get("status", "completed") == "completed"
        stops_cleanly(supervisor)


def test_a_stream_of_them_neither_hides_what_is_left_behind_nor_is_mistaken_for_it(
    tmp_path: Path, server: WorkerSocketServer
) -> None:
    with supervising(tmp_path, server) as supervisor, Gate() as gate:
        jobs = {server.offer("isolated.noop", {}) for _ in range(20)}
        jobs.add(server.offer("isolated.leave_behind", {"port": gate.port}))
        left_behind = gate.knock()
        jobs |= {server.offer("isolated.noop", {}) for _ in range(60)}
        reports = [server.wait_for_report() for _ in jobs]
        assert {one["job_id"] for one in reports} == jobs
        assert {one.get("status", "completed") for one in reports} == {"completed"}
        left_behind.wait_for_end()
        supervisor.wait_for("ended a process that nobody ordered", pid=left_behind.says["pid"])
        assert len(list(supervisor.matching("ended a process that nobody ordered"))) == 1
        stops_cleanly(supervisor)
