"""The supervisor is killed with -9: its children finish what they hold and go, and so does what they left behind."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.gate import Gate
from tests.support.supervisor_process import SupervisorProcess
from tests.support.worker_socket_server import WorkerSocketServer

PATIENCE = 30.0
GRACE, KILL_AFTER, BUSY = 2.0, 3.0, 15.0
SETTINGS: dict[str, Any] = {
    "limits": {"silence": "1500ms", "kill_after": f"{KILL_AFTER:g}s"},
    "supervisor": {"drain_timeout": f"{GRACE:g}s"},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WorkerSocketServer]:
    with WorkerSocketServer(tmp_path) as server:
        yield server


def supervising(tmp_path: Path, server: WorkerSocketServer, program: str) -> SupervisorProcess:
    modules = ["tests.support.gate_handlers", f"tests.integration.children.{program}"]
    return SupervisorProcess(tmp_path / "supervisor", server, modules=modules, concurrency=2, **SETTINGS)  # type: ignore[arg-type]


def test_what_is_in_hand_is_finished_and_grandchildren_go_with_their_child(
    tmp_path: Path, server: WorkerSocketServer
) -> None:
    with Gate() as gate, supervising(tmp_path, server, "forks_a_grandchild") as supervisor:
        supervisor.wait_for("ready", slot="default-1")
        server.offer("test.leave_behind", {})
        left = psutil.Process(server.wait_for_report()["result"]["pid"])
        server.offer("test.gate", {"port": gate.port})
        visit = gate.knock()
        supervisor.kill()
        assert psutil.Process(visit.says["pid"]).is_running()
        assert left.is_running()
        visit.release("in time")
        assert server.wait_for_report()["result"]["answer"] == "in time"
        _, alive = psutil.wait_procs([*supervisor.leftovers(), left], timeout=PATIENCE)
        assert alive == []


@pytest.mark.parametrize(
    ("program", "action"), [("blocks_the_loop", "test.block"), ("holds_the_gil", "test.hold_the_gil")]
)
def test_a_child_that_can_hear_nobody_ends_itself(
    tmp_path: Path, server: WorkerSocketServer, program: str, action: str
) -> None:
    """A timer in C that every beat of the loop sets anew: `kill_after` and the grace after the last of them."""
    with supervising(tmp_path, server, program) as supervisor:
        supervisor.wait_for("ready", slot="default-1")
        server.offer(action, {})
        silent = supervisor.wait_for("event loop is silent", slot="default-1")
        supervisor.kill()
        killed = time.monotonic()
        _, alive = psutil.wait_procs(supervisor.leftovers(), timeout=PATIENCE)
        assert alive == []
        assert time.monotonic() - killed <= KILL_AFTER + GRACE - silent["silent_for"] + BUSY


def test_a_mold_whose_import_hangs_goes_with_its_supervisor(tmp_path: Path, server: WorkerSocketServer) -> None:
    """It never looks at its pipe, and nobody else would ever end it."""
    with supervising(tmp_path, server, "hangs_at_import") as supervisor:
        started = supervisor.wait_for("process started", slot="mold:default")
        mold = psutil.Process(started["pid"])
        supervisor.kill()
        _, alive = psutil.wait_procs([mold], timeout=PATIENCE)
        assert alive == []


def test_a_child_that_beats_on_and_does_not_go_ends_itself(tmp_path: Path, server: WorkerSocketServer) -> None:
    """Its loop runs, so it would set its own timer anew for ever; without a supervisor it is set only once more."""
    with Gate() as gate, supervising(tmp_path, server, "deaf") as supervisor:
        supervisor.wait_for("ready", slot="default-1")
        server.offer("test.go_deaf", {})
        server.wait_for_report()
        server.offer("test.gate", {"port": gate.port})
        gate.knock()
        supervisor.kill()
        _, alive = psutil.wait_procs(supervisor.leftovers(), timeout=PATIENCE)
        assert alive == []
