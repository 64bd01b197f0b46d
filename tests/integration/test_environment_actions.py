"""Environment actions in a worker under a real supervisor: what reaches them, and what ends with them."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor import config as pool_file
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.mobius_command import MobiusCommand
from tests.support.supervisor_process import SupervisorProcess
from tests.support.worker_socket_server import WorkerSocketServer
from worker_child.actions import Registry
from worker_child.stock.environment import register

DOCUMENT = (Path(__file__).parents[2] / "docs" / "environment-actions.md").read_text()
BASH = "environment.bash"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WorkerSocketServer]:
    with WorkerSocketServer(tmp_path) as server:
        yield server


def supervising(tmp_path: Path, server: WorkerSocketServer, **settings: Any) -> SupervisorProcess:
    given = {"environment_actions": True, "restart": {"backoff_max": "200ms"}} | settings
    return SupervisorProcess(tmp_path / "supervisor", server, **given)  # type: ignore[arg-type]


def ended(pid: int) -> None:
    """Waits for the end of a process that is not ours."""
    try:
        psutil.Process(pid).wait(30)
    except psutil.NoSuchProcess:
        return


def test_a_pool_that_asks_has_them_and_is_warned(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor:
        warning = supervisor.wait_for("pool default: environment_actions", level="warning")
        workspace = tmp_path / "supervisor" / "state" / "workspaces" / "default"
        assert str(workspace) in warning["event"]
        server.offer("environment.files.write", {"path": "a/file", "content": "x"})
        assert server.wait_for_report()["result"]["bytes_written"] == 1
        assert (workspace / "a" / "file").read_text() == "x"
        server.offer(BASH, {"command": "cat a/file; env"})
        said = server.wait_for_report()["result"]["stdout"]
        assert said.startswith("x")
        assert "MOBIUS" not in said
        assert server.key_file.read_text().strip() not in said
        assert set(register_names()) <= set(server.registered[0]["action_names"])
        assert supervisor.terminate() == 0
        assert supervisor.leftovers() == []


def register_names() -> list[str]:
    registry = Registry()
    register(registry, Path("/nonexistent"))
    return registry.names()


def test_a_pool_that_does_not_ask_has_none_of_them(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server, environment_actions=False) as supervisor:
        supervisor.wait_for("ready", slot="default-1")
        assert [name for name in server.registered[0]["action_names"] if name.startswith("environment.")] == []
        assert list(supervisor.matching("pool default: environment_actions")) == []


def test_a_pool_can_leave_the_shell_out(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server, actions=["environment.files.read"]) as supervisor:
        supervisor.wait_for("pool default: environment_actions: jobs may change", level="warning")
        supervisor.wait_for("ready", slot="default-1")
        assert server.registered[0]["action_names"] == ["environment.files.read"]


def test_what_a_command_leaves_behind_in_a_session_of_its_own_is_ended_by_the_supervisor(
    tmp_path: Path, server: WorkerSocketServer
) -> None:
    with supervising(tmp_path, server) as supervisor:
        supervisor.wait_for("ready", slot="default-1")
        command = (
            "setsid bash -c 'echo $$ > child; exec sleep 600' & while [ ! -s child ]; do sleep 0.01; done; cat child"
        )
        server.offer(BASH, {"command": command})
        pid = int(server.wait_for_report()["result"]["stdout"])
        supervisor.wait_for("ended a process that nobody ordered")
        ended(pid)
        assert supervisor.terminate() == 0


def test_a_worker_that_dies_takes_its_commands_along(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor:
        supervisor.wait_for("ready", slot="default-1")
        workspace = tmp_path / "supervisor" / "state" / "workspaces" / "default"
        server.offer(BASH, {"command": "echo $PPID $$ > pids; sleep 600"})
        file = workspace / "pids"
        deadline = time.monotonic() + 60
        while not (file.exists() and file.read_text().endswith("\n")):
            assert time.monotonic() < deadline, supervisor.text()
            time.sleep(0.01)
        worker, command = (int(word) for word in file.read_text().split())
        psutil.Process(worker).kill()
        ended(command)
        supervisor.wait_for("ready", slot="default-1", incarnation=2)
        assert supervisor.terminate() == 0
        assert supervisor.leftovers() == []


async def test_the_command_line_has_them_with_a_workspace(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with ControlPlaneProcess(tmp_path) as plane:
        command = MobiusCommand(plane.url, plane.key, tmp_path)
        refused = await asyncio.to_thread(command.run, "worker", "--workspace", str(tmp_path / "nowhere"))
        assert refused.returncode == 78
        assert refused.stderr.startswith("mobius: --workspace: expected an existing directory")
        spec = {
            "handle": "write",
            "spec": {
                "steps": [
                    {
                        "key": "only",
                        "kind": "action",
                        "config": {
                            "action_name": "environment.files.write",
                            "parameters": {"path": "file", "content": "x"},
                        },
                    }
                ]
            },
        }

        done = command.run("automations", "create", "-", "--publish", stdin=json.dumps(spec))
        assert done.returncode == 0, done.stderr
        with command.start("worker", "--workspace", str(tmp_path / "here")):
            await asyncio.to_thread(command.json, "automations", "start", "write", "--wait")
        assert (tmp_path / "here" / "file").read_text() == "x"


# --- the documentation ------------------------------------------------------------------------------------------------


def test_the_documentation_has_every_action_with_every_parameter() -> None:
    registry = Registry()
    register(registry, Path("/nonexistent"))
    listed = dict(re.findall(r"^\| `(environment\.[a-z.]+)` \| (.*?) \|", DOCUMENT, re.MULTILINE))
    assert sorted(listed) == registry.names()
    for name, cell in listed.items():
        holder = registry.get(name).parameters_holder
        assert holder is not None
        (field,) = holder.__annotations__.values()
        assert re.findall(r"`(\w+)`", cell) == list(field.__struct_fields__), name


def test_the_pool_file_of_the_documentation_loads(tmp_path: Path) -> None:
    match = re.search(r"<!-- test: pool.toml -->\n```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert match is not None
    (tmp_path / "pool.toml").write_text(match[1])
    (tmp_path / "work").mkdir()
    (pool,) = pool_file.load(tmp_path / "pool.toml", {"HOME": str(tmp_path), "MOBIUS_API_KEY": "mbx_k"}).pool
    assert pool.workspace == str(tmp_path / "work")
    assert set(pool.actions) < set(register_names())
