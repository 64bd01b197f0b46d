import json
import os
import signal
import socket
from pathlib import Path

import pytest

from mobius_cli.__main__ import run
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.mobius_command import MobiusCommand

HANDLERS = """
import os
from worker_child import Context, action

@action("mine.who")
def who(ctx: Context) -> dict[str, object]:
    return {"instance": ctx.worker_instance_id, "pid": os.getpid(), "key_seen": "MOBIUS_API_KEY" in os.environ}
"""


def publish(command: MobiusCommand, handle: str, action: str, **parameters: object) -> None:
    config = {"action_name": action, "parameters": parameters}
    spec = {"steps": [{"key": "only", "kind": "action", "config": config}]}
    done = command.run("automations", "create", "-", "--publish", stdin=json.dumps({"handle": handle, "spec": spec}))
    assert done.returncode == 0, done.stderr


def result(command: MobiusCommand, handle: str) -> dict[str, object]:
    """What the only step gave: a run waits until there is a worker, so this does too."""
    answer = command.json("automations", "start", handle, "--wait")
    return answer["result"]["only"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--concurrency", "2", "--workers", "2"], 64, "one process with N jobs in flight"),
        (["--concurrency", "0"], 64, "--concurrency"),
        (["--workers", "0"], 64, "--workers"),
        (["--queues", ""], 64, "--queues: expected a list of one or more queue names"),
        (["--queues", "a,,b"], 64, "--queues"),
        (["--models", "llama3"], 64, "--models: expected a list of `provider/model` names, got 'llama3'"),
        (["--provider", "lab"], 64, "--provider: expected NAME=API+URL, got 'lab'"),
        (["--provider", "lab=openai"], 64, "--provider: expected NAME=API+URL"),
        (["--provider", "lab=grpc+http://127.0.0.1"], 78, '--provider lab: expected one of "ollama", "openai"'),
        (["--provider", "lab=openai+http://h?q"], 78, "--provider lab: expected a URL"),
        (["--provider-key-file", "lab"], 64, "--provider-key-file: expected NAME=FILE, got 'lab'"),
        (["--provider-key-file", "ollama=/nowhere"], 78, "--provider-key-file ollama: expected a readable file"),
        (["--instance-id", "with space"], 64, "--instance-id: expected at most 200"),
        (["--modules", "nowhere.py"], 78, "--modules: expected an existing file"),
        (["--modules", "not-a-module"], 64, "--modules: expected a list of Python modules"),
        (["--module-path", "/nonexistent"], 64, "--module-path: '/nonexistent' is no directory"),
        (["--listen", "nowhere"], 64, "--listen: expected an address and a port"),
    ],
)
def test_wrong_flags(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MOBIUS_API_KEY", "mbx_k")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert run(["worker", *arguments]) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env", "says"), [({"MOBIUS_QUEUES": "a,,b"}, "MOBIUS_QUEUES"), ({"MOBIUS_LOG_LEVEL": "loud"}, "MOBIUS_LOG_LEVEL")]
)
def test_wrong_variables(command: MobiusCommand, env: dict[str, str], says: str) -> None:
    done = command.run("worker", env=env)
    assert done.returncode == 78
    assert says in done.stderr


def test_a_key_that_is_refused_ends_the_worker(command: MobiusCommand) -> None:
    done = command.run("worker", env={"MOBIUS_API_KEY": "mbx_" + "w" * 32})
    assert done.returncode == 77
    assert "mbx_w" not in done.stdout + done.stderr


def test_a_module_that_is_missing(command: MobiusCommand) -> None:
    done = command.run("worker", "--modules", "no_such_module_anywhere")
    assert done.returncode == 78
    assert done.stderr.splitlines()[-1] == (
        "mobius: --modules: there is no module 'no_such_module_anywhere': put its directory into --module-path, "
        "or install it"
    )


def test_an_action_that_nobody_registers(command: MobiusCommand) -> None:
    done = command.run("worker", "--actions", "paint")
    assert done.returncode == 78
    assert done.stderr.splitlines()[-1].startswith("mobius: --actions: no handler is registered for 'paint'")


def test_one_process_has_exactly_its_identity_and_our_handlers(command: MobiusCommand, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HANDLERS)
    publish(command, "who", "mine.who")
    flags = ["--modules", "mine", "--module-path", str(tmp_path), "--concurrency", "3", "--name", "The one"]
    with command.start("worker", "--instance-id", "box-7", *flags) as worker:
        said = result(command, "who")
        assert (said["instance"], said["key_seen"]) == ("box-7", False)
        assert said["pid"] != worker.pid
        answer = command.json("worker-sessions", "list")
        (row,) = answer["items"]
        assert (row["worker_instance_id"], row["name"], row["concurrency_limit"]) == ("box-7", "The one", 3)
        assert row["queues"] == ["default"]
        assert {"print", "fail", "json", "time", "random", "mine.who"} == set(row["action_names"])
        shown = command.run("worker-sessions", "list")
        assert shown.stdout.splitlines()[1].split()[:4] == ["box-7", "The", "one", "active"]
        assert "1 active" in shown.stderr
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(int(str(said["pid"])), 0)


def test_several_workers_are_several_rows(command: MobiusCommand) -> None:
    publish(command, "now", "time")
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = ["--workers", "2", "--instance-id", "pair", "--actions", "time", "--listen", address]
        with command.start("worker", *flags, env={"MOBIUS_QUEUES": "default,other"}):
            result(command, "now")
            rows = [row for row in command.json("worker-sessions", "list")["items"] if not row["stale"]]
            # The second may still be on its way when the first has done the job.
            ids = {row["worker_instance_id"] for row in rows}
            assert ids
            assert ids <= {"pair-1", "pair-2"}
            for row in rows:
                assert (row["queues"], row["action_names"]) == (["default", "other"], ["time"])


def test_the_key_can_come_from_a_file(command: MobiusCommand, plane: ControlPlaneProcess) -> None:
    publish(command, "again", "time")
    with command.start("worker", "--api-key-file", str(plane.key_file), env={"MOBIUS_API_KEY": ""}):
        assert result(command, "again")
