"""A whole run, and then a search for every secret of it in everything that its processes have shown or stored."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from tests.support import automations
from tests.support.balancer import Balancer
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.mobius_command import MobiusCommand
from tests.support.supervisor_process import SupervisorProcess

WRONG_KEY = "mbx_" + "wr0ng" * 8
TOKENS = re.compile(rb'"(?:lease_token|worker_session_token)":"([^"]+)"')


class Outputs:
    """What was said, by who said it."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def ran(self, command: MobiusCommand, *arguments: str, **environment: str) -> str:
        """A command's output is kept, and returned."""
        done = command.run(*arguments, env=environment)
        self.texts[f"mobius {' '.join(arguments)} {list(environment)}"] = done.stdout + done.stderr
        return done.stdout + done.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def seen_of(process: psutil.Process) -> Iterator[tuple[str, str]]:
    """What other users see of a process, and what a dump of its environment would show."""
    who = f"{process.pid} {process.name()}"
    yield f"arguments of {who}", " ".join(process.cmdline())
    yield f"title of {who}", Path(f"/proc/{process.pid}/comm").read_text()
    yield f"environment of {who}", Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")


def test_no_secret_of_a_run_is_in_any_output(tmp_path: Path) -> None:
    heard: list[bytes] = []
    outputs = Outputs()
    key_file = tmp_path / "worker-key"
    with (
        ControlPlaneProcess(tmp_path / "plane", "--log-level", "debug") as plane,
        Balancer([plane.port], heard.append) as balancer,
        plane.http() as http,
    ):
        made = automations.created(
            http.post("/v1/projects/default/keys", json={"name": "fleet", "scopes": ["worker", "reader"]})
        )
        key_file.touch(mode=0o600)
        key_file.write_text(made["secret"])
        front = {"api_url": balancer.url, "api_key_file": str(key_file)}
        listen = {"listen": "127.0.0.1:0"}
        with SupervisorProcess(
            tmp_path / "box", plane, control_plane=front, supervisor=listen, workers=2
        ) as supervisor:
            supervisor.wait_for("ready", slot="default-2")
            address = supervisor.wait_for("serving")["address"]
            automations.publish(http, "a", [automations.action_step("one", "test.noop")])
            automations.publish(http, "b", [automations.action_step("one", "no.such.action")])
            for _ in range(3):
                run_id = automations.start(http, "a")
                assert [event["event_type"] for event in automations.stream(http, run_id)][-1] == "run.completed"
            command = MobiusCommand(plane.url, plane.key, tmp_path)
            for arguments in (("runs", "list"), ("worker-sessions", "list"), ("keys", "list"), ("runs", "get", run_id)):
                assert outputs.ran(command, *arguments, "--output", "json")
            assert "invalid_api_key" in outputs.ran(command, "runs", "list", MOBIUS_API_KEY=WRONG_KEY)
            outputs.ran(command, "runs", "list", MOBIUS_API_KEY=plane.key + ".elsewhere")
            outputs.ran(command, "runs", "get", "none")
            outputs.ran(command, "runs", "list", MOBIUS_API_URL=f"http://127.0.0.1:{free_port()}")
            for path in ("/metrics", "/v1/projects/default/runs", "/v1/projects/other/runs", "/nowhere"):
                outputs.texts[f"GET {path}"] = http.get(path).text
            for path in ("/metrics", "/status", "/readyz"):
                outputs.texts[f"GET {path} of the supervisor"] = httpx.get(f"http://{address}{path}").text
            for word in ("status", "check", "stacks"):
                done = supervisor.command(word)
                outputs.texts[f"mobius-supervisor {word}"] = done.stdout + done.stderr
            for process in (psutil.Process(plane.pid), psutil.Process(supervisor.process.pid), *supervisor.family()):
                outputs.texts.update(seen_of(process))
            # The workers learn that their key has ended, and their successors are refused with it.
            automations.created(http.post(f"/v1/projects/default/keys/{made['key']['id']}/revocations"))
            supervisor.wait_for("process ended", slot="default-1")
            supervisor.terminate()
            outputs.texts["log of the supervisor"] = supervisor.text()
        outputs.texts["log of the control plane"] = plane.log()
        assert "worker registered" in outputs.texts["log of the control plane"]
        tokens = {found.decode() for found in TOKENS.findall(b"".join(heard))}
        kinds = [token.partition("_")[0] for token in tokens]
        assert kinds.count("lease") >= 3
        assert kinds.count("wst") >= 2
        secrets = tokens | {plane.key, made["secret"], WRONG_KEY}
        plane.terminate()
    for who, text in outputs.texts.items():
        assert text.strip(), who
        assert not [secret for secret in secrets if secret in text], who
    # On disk: hashes in the store, and what stands in files of mode 0600 that are made for it.
    for path in tmp_path.rglob("*"):
        if path.is_file() and path not in (key_file, plane.key_file):
            content = path.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in content], path
