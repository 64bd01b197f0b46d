import json
import subprocess
from pathlib import Path

import pytest

from mobius_cli.worker_sessions import _COLUMNS
from tests.support import automations
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.gate import Gate
from tests.support.mobius_command import MOBIUS, MobiusCommand

ROOT = Path(__file__).resolve().parent.parent.parent
ROW = {
    "worker_instance_id": "box-1",
    "instance_status": "active",
    "busy_job_count": 1,
    "concurrency_limit": 4,
    "queues": ["a", "b"],
    "action_names": [f"action-{number}" for number in range(9)],
    "models": [{"provider": "ollama", "model": "llama3"}],
    "current_jobs": [{"action": "resize", "run_id": "run_1"}],
}


def test_a_row() -> None:
    cells = {title: cell(ROW) for title, cell in _COLUMNS}
    assert cells["WORKER"] == "box-1"
    assert cells["BUSY"] == "1/4"
    assert cells["QUEUES"] == "a, b"
    assert cells["ACTIONS"].endswith("action-5 and 3 more")
    assert cells["MODELS"] == "ollama/llama3"
    assert cells["IN HAND"] == "resize (run_1)"


def test_a_row_without_queues_takes_from_all() -> None:
    assert {title: cell({}) for title, cell in _COLUMNS}["QUEUES"] == "(all)"


def test_nobody_is_there(command: MobiusCommand) -> None:
    done = command.run("worker-sessions", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "no worker is connected to project 'default'\n"
    answer = json.loads(command.run("worker-sessions", "list", "--output", "json").stdout)
    assert answer == {"items": [], "totals": {"active_instances": 0, "busy": 0, "slots": 0, "stale": 0}}


def test_a_drain_that_is_waited_for_and_undone(plane: ControlPlaneProcess, command: MobiusCommand) -> None:
    flags = ["--modules", "tests.support.gate_handlers", "--module-path", str(ROOT), "--instance-id", "box-9"]
    with Gate() as gate, command.start("worker", *flags), plane.http() as http:
        automations.publish(http, "held", [automations.action_step("hold", "test.gate", {"port": gate.port})])
        first = automations.start(http, "held")
        visit = gate.knock()
        late = command.run("worker-sessions", "drain", "--instance-id", "box-9", "--wait", "--timeout", "10ms")
        assert (late.returncode, late.stdout) == (1, "")
        assert "1 job still in hand; the drain goes on" in late.stderr
        waiting = subprocess.Popen(
            [MOBIUS, "worker-sessions", "drain", "--instance-id", "box-9", "--wait"],
            env=command.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "1 job left in hand\n"
        visit.release()
        said, _ = waiting.communicate(timeout=30)
        assert (waiting.returncode, said) == (0, "instance box-9: 1 session, 0 jobs left in hand\n")
        assert automations.finish(http, first)["status"] == "completed"

        listed = command.run("worker-sessions", "list-drains").stdout
        assert listed.splitlines()[1].startswith("instance box-9")
        [row] = command.json("worker-sessions", "list", "--state", "draining")
        assert row["worker_instance_id"] == "box-9"
        second = automations.start(http, "held")
        undone = command.run("worker-sessions", "undrain", "--instance-id", "box-9")
        assert undone.stdout == "instance box-9: 1 session may claim again\n"
        gate.knock().release()
        assert automations.finish(http, second)["status"] == "completed"
        assert command.run("worker-sessions", "undrain", "--instance-id", "box-9").returncode == 66


@pytest.mark.parametrize("arguments", [[], ["wsess_1", "--version", "2"], ["wsess_1", "--timeout", "5s"]])
def test_what_cannot_be_meant(command: MobiusCommand, arguments: list[str]) -> None:
    assert command.run("worker-sessions", "drain", *arguments).returncode == 64


def test_the_history(command: MobiusCommand) -> None:
    table = command.run("worker-sessions", "list", "--state", "all")
    assert table.returncode == 0
    assert isinstance(command.json("worker-sessions", "list", "--state", "all"), list)
