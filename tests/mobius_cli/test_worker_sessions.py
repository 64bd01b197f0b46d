import json

from mobius_cli.worker_sessions import _COLUMNS
from tests.support.mobius_command import MobiusCommand

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
