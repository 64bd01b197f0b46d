"""The whole supervisor as a process, with real molds, children and sockets. Each wait is for a line of its log."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.gate import Gate
from tests.support.supervisor_process import ROOT, SupervisorProcess
from tests.support.worker_socket_server import WorkerSocketServer

PATIENCE = 30.0
BUSY = 8.0
"""Seconds that a busy machine may take for what is at once."""

COMMAND = [sys.executable, "-m", "supervisor"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WorkerSocketServer]:
    with WorkerSocketServer(tmp_path) as server:
        yield server


@contextlib.contextmanager
def supervising(tmp_path: Path, server: WorkerSocketServer, **settings: Any) -> Iterator[SupervisorProcess]:
    settings = {"workers": 2, "modules": ["tests.support.gate_handlers", "tests.supervisor.handlers"]} | settings
    with SupervisorProcess(tmp_path / "supervisor", server, **settings) as supervisor:  # type: ignore[arg-type]
        yield supervisor


def wait_until_ready(supervisor: SupervisorProcess, children: int = 2) -> None:
    for number in range(1, children + 1):
        supervisor.wait_for("ready", slot=f"default-{number}")


def pid_of(supervisor: SupervisorProcess, slot: str, incarnation: int = 1) -> int:
    return int(supervisor.wait_for("process started", slot=slot, incarnation=incarnation)["pid"])


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    assert alive == []


def run_command(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MOBIUS_")}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=plain | {"MOBIUS_API_KEY": "mbx_test"} | (environ or {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# --- lives -------------------------------------------------------------------------------------------------------


def test_children_work_under_identities_of_their_own(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor:
        wait_until_ready(supervisor)
        server.offer("print", {"message": "hello"})
        assert server.wait_for_report()["result"] == {"output": "hello"}
        assert {frame["worker_instance_id"] for frame in server.registered} == {"box-1", "box-2"}
        assert supervisor.terminate() == 0
        assert supervisor.leftovers() == []


def test_a_killed_child_is_replaced_at_once_and_the_other_one_is_left_alone(
    tmp_path: Path, server: WorkerSocketServer
) -> None:
    with supervising(tmp_path, server) as supervisor:
        wait_until_ready(supervisor)
        os.kill(pid_of(supervisor, "default-1"), signal.SIGKILL)
        died = supervisor.wait_for("process ended", slot="default-1")
        assert (died["cause"], died["signal"], died["self_made"]) == ("signal", 9, False)
        assert supervisor.wait_for("restart scheduled", slot="default-1")["delay"] == 0
        supervisor.wait_for("ready", slot="default-1", incarnation=2)
        assert list(supervisor.matching("process ended", slot="default-2")) == []
        assert [frame["worker_instance_id"] for frame in server.registered].count("box-1") == 2
        assert supervisor.terminate() == 0


def test_a_job_in_hand_is_finished_before_a_drain_ends(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Gate() as gate, supervising(tmp_path, server) as supervisor:
        wait_until_ready(supervisor)
        server.offer("test.gate", {"port": gate.port})
        visit = gate.knock()
        supervisor.family()
        supervisor.process.send_signal(signal.SIGTERM)
        supervisor.wait_for("stopping")
        # The idle one goes at once; the other one stays for its job.
        supervisor.wait_for("process ended", cause="drained", pool="default")
        assert supervisor.process.poll() is None
        visit.release("left")
        assert server.wait_for_report()["result"]["answer"] == "left"
        assert supervisor.process.wait(PATIENCE) == 0
        report = supervisor.wait_for("stopped")
        assert (report["finished"], report["cut_off"]) == (1, 0)
        wait_until_gone(supervisor.leftovers())


def test_ctrl_c_reaches_the_supervisor_alone_and_drains(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Gate() as gate, supervising(tmp_path, server) as supervisor:
        wait_until_ready(supervisor)
        server.offer("test.gate", {"port": gate.port})
        visit = gate.knock()
        supervisor.family()
        # A terminal sends SIGINT to the whole foreground group, and every child has a group of its own.
        os.killpg(supervisor.process.pid, signal.SIGINT)
        assert supervisor.wait_for("stopping")["why"] == "SIGINT"
        visit.release("left")
        assert server.wait_for_report()["result"]["answer"] == "left"
        assert supervisor.process.wait(PATIENCE) == 0
        wait_until_gone(supervisor.leftovers())


def test_sigquit_kills_and_the_exit_code_says_that_work_was_cut_off(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Gate() as gate, supervising(tmp_path, server) as supervisor:
        wait_until_ready(supervisor)
        server.offer("test.gate", {"port": gate.port})
        visit = gate.knock()
        supervisor.family()
        supervisor.process.send_signal(signal.SIGTERM)
        supervisor.wait_for("process ended", cause="drained", pool="default")
        supervisor.process.send_signal(signal.SIGQUIT)
        visit.wait_for_end()
        assert supervisor.process.wait(PATIENCE) == 75
        assert len(supervisor.wait_for("stopped")["killed"]) == 1
        wait_until_gone(supervisor.leftovers())


def test_children_do_not_outlive_a_killed_supervisor(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Gate() as gate, supervising(tmp_path, server) as supervisor:
        wait_until_ready(supervisor)
        server.offer("test.gate", {"port": gate.port})
        visit = gate.knock()
        supervisor.kill()
        visit.release("left")
        # The job in hand is finished and acknowledged all the same.
        assert server.wait_for_report()["result"]["answer"] == "left"
        wait_until_gone(supervisor.leftovers())


def test_a_killed_mold_is_replaced_and_its_children_live_on(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor:
        wait_until_ready(supervisor)
        os.kill(pid_of(supervisor, "mold:default"), signal.SIGKILL)
        supervisor.wait_for("ready", slot="mold:default", incarnation=2)
        os.kill(pid_of(supervisor, "default-2"), signal.SIGKILL)
        supervisor.wait_for("ready", slot="default-2", incarnation=2)
        assert list(supervisor.matching("process ended", slot="default-1")) == []
        assert supervisor.terminate() == 0
        assert supervisor.leftovers() == []


@pytest.mark.parametrize(("action", "expected"), [("test.stop_myself", "stopped"), ("test.block", "loop_blocked")])
def test_a_child_that_hangs_is_named_killed_with_evidence_and_replaced(
    tmp_path: Path, server: WorkerSocketServer, action: str, expected: str
) -> None:
    limits = {"silence": "1500ms", "kill_after": "3s"}
    with supervising(tmp_path, server, workers=1, limits=limits) as supervisor:
        wait_until_ready(supervisor, children=1)
        server.offer(action, {})
        supervisor.wait_for("event loop is silent", slot="default-1")
        hung = supervisor.wait_for("killing a process that hangs", slot="default-1")
        assert hung["hang"] == expected
        assert 3.0 <= hung["silent_for"] <= 3.0 + BUSY
        if expected == "loop_blocked":
            assert "in block" in hung["evidence"]["stacks"]
        else:
            assert "stopped" in hung["evidence"]["no_stacks"]
        assert supervisor.wait_for("process ended", slot="default-1")["cause"] == "hung"
        supervisor.wait_for("ready", slot="default-1", incarnation=2)
        assert supervisor.terminate() == 0


# --- with a control plane of its own -----------------------------------------------------------------------------


class Embedding:
    """Stands where a SupervisorProcess is told its control plane, and lets it run its own on a free port."""

    def __init__(self, directory: Path) -> None:
        self.key_file = directory / "key"
        # Bound and not listening: nobody else is given the port, and a server may share it.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.listen = f"127.0.0.1:{self._reserved.getsockname()[1]}"
        self.url = f"http://{self.listen}"

    def close(self) -> None:
        self._reserved.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[SupervisorProcess]:
    plane = Embedding(tmp_path)
    supervisor = SupervisorProcess(tmp_path / "supervisor", plane, workers=2)  # type: ignore[arg-type]
    text = supervisor.file.read_text()
    supervisor.file.write_text(
        text.replace("[supervisor]", f'embedded = true\nlisten = "{plane.listen}"\n[supervisor]')
    )
    with supervisor:
        yield supervisor
    plane.close()


def order_of(supervisor: SupervisorProcess, event: str) -> list[str]:
    return [entry["slot"] for entry in supervisor.matching(event) if entry["event"] == event]


def test_the_control_plane_comes_first_and_goes_last(embedded: SupervisorProcess) -> None:
    wait_until_ready(embedded)
    ready = order_of(embedded, "ready")
    assert set(ready[:2]) == {"control-plane", "mold:default"}
    assert embedded.terminate() == 0
    ended = order_of(embedded, "process ended")
    assert set(ended[:2]) == {"default-1", "default-2"}
    assert "control-plane" in ended[2:]
    assert embedded.leftovers() == []


def test_a_killed_control_plane_is_replaced_and_the_children_come_back_to_it(embedded: SupervisorProcess) -> None:
    wait_until_ready(embedded)
    os.kill(pid_of(embedded, "control-plane"), signal.SIGKILL)
    embedded.wait_for("ready", slot="control-plane", incarnation=2)
    for slot in ("default-1", "default-2"):
        embedded.wait_for("session.registered", slot=slot, count=2)
    assert [slot for slot in order_of(embedded, "process ended") if slot != "control-plane"] == []
    assert embedded.terminate() == 0
    assert embedded.leftovers() == []


def test_the_control_plane_does_not_outlive_a_killed_supervisor(embedded: SupervisorProcess) -> None:
    wait_until_ready(embedded)
    embedded.kill()
    wait_until_gone(embedded.leftovers())


def test_a_control_plane_that_cannot_listen_ends_the_start(tmp_path: Path, embedded: SupervisorProcess) -> None:
    wait_until_ready(embedded)
    second = tmp_path / "second.toml"
    text = embedded.file.read_text().replace('"state"', '"state-2"')
    second.write_text(text)
    done = run_command("-c", str(second))
    assert done.returncode == 73
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: control_plane.embedded: the control plane cannot start: --listen ")
    assert embedded.terminate() == 0


# --- what is seen from outside -----------------------------------------------------------------------------------


def test_the_http_endpoints_say_what_is(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server, supervisor={"listen": "127.0.0.1:0"}) as supervisor:
        address = supervisor.wait_for("serving")["address"]
        wait_until_ready(supervisor)
        with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE) as http:
            assert http.get("/healthz").text == "ok\n"
            assert http.get("/readyz").status_code == 200
            status = http.get("/status").json()
            assert (status["phase"], status["ready"], status["pools"][0]["working"]) == ("running", True, 2)
            metrics = http.get("/metrics").text
            assert 'mobius_pool_children{pool="default",state="ready"} 2.0' in metrics
            assert 'mobius_slot_spawns_total{pool="default",slot="default-1"} 1.0' in metrics
            assert "pid" not in {word.partition("=")[0] for word in metrics.replace("{", ",").split(",")}
            assert http.get("/nothing").status_code == 404
            assert http.post("/status").status_code == 405
            huge = http.get("/healthz", headers={"x": "y" * 100_000})
            assert huge.status_code == 400
            assert http.get("/healthz").status_code == 200
        assert supervisor.terminate() == 0


def test_readyz_is_503_while_no_child_works(tmp_path: Path, server: WorkerSocketServer) -> None:
    server.refuse_with = 503
    with supervising(tmp_path, server, workers=1, supervisor={"listen": "127.0.0.1:0"}) as supervisor:
        address = supervisor.wait_for("serving")["address"]
        supervisor.wait_for("process booted", slot="default-1")
        answer = httpx.get(f"http://{address}/readyz", timeout=PATIENCE)
        assert (answer.status_code, answer.text) == (503, "not ready: no child claims work\n")
        assert supervisor.terminate() == 0


def test_a_service_manager_is_told_when_it_is_ready_alive_and_stopping(
    tmp_path: Path, server: WorkerSocketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(PATIENCE)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    heard: list[str] = []

    def hear(text: str) -> None:
        while not any(text in one for one in heard):
            heard.append(told.recv(4096).decode())

    with supervising(tmp_path, server) as supervisor:
        hear("READY=1")
        hear("WATCHDOG=1")
        hear("STATUS=running: 2 of 2 workers ready")
        child = psutil.Process(pid_of(supervisor, "default-1"))
        assert "NOTIFY_SOCKET" not in child.environ()
        assert supervisor.terminate() == 0
        hear("STOPPING=1")
    told.close()


def test_the_key_is_nowhere_to_be_seen(tmp_path: Path, server: WorkerSocketServer) -> None:
    key = server.key_file.read_text().strip()
    with supervising(tmp_path, server, supervisor={"listen": "127.0.0.1:0"}) as supervisor:
        address = supervisor.wait_for("serving")["address"]
        wait_until_ready(supervisor)
        pages = [httpx.get(f"http://{address}/{page}", timeout=PATIENCE).text for page in ("metrics", "status")]
        seen = [" ".join(process.cmdline()) for process in supervisor.family()]
        assert supervisor.terminate() == 0
        assert all(key not in text for text in (*pages, *seen, supervisor.text()))


# --- starts that fail --------------------------------------------------------------------------------------------


def test_a_missing_module_ends_the_start_with_a_sentence(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server, modules=["no_such_module"]) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 78
        error = supervisor.wait_for("error: pool[0].modules: there is no module ")["event"]
        assert "no_such_module" in error
        assert server.registered == []


def test_a_second_supervisor_keeps_out_of_the_state_directory(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server) as supervisor:
        wait_until_ready(supervisor)
        second = run_command("-c", str(supervisor.file))
        assert second.returncode == 73
        assert second.stderr == (
            f"error: supervisor.state_dir: {supervisor.state} is in use by another supervisor; "
            "stop that one, or give this one a directory of its own\n"
        )
        assert supervisor.terminate() == 0


def test_a_port_that_is_taken(tmp_path: Path, server: WorkerSocketServer) -> None:
    taken = f"127.0.0.1:{server.port}"
    with supervising(tmp_path, server, supervisor={"listen": taken}) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 73
        supervisor.wait_for(f"error: supervisor.listen: cannot listen on {taken} (")
        assert server.registered == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[pool]]\ncuont = 2", "pool[0].cuont: unknown key; did you mean `workers`?"),
        ("[[pool]]\nworkers = 0", "pool[0].workers: expected a whole number from 1 to 1000, got 0"),
        ("[[pool]]\nworkers = 'x'", 'pool[0].workers: expected a whole number from 1 to 1000, got "x"'),
        ("[[pool]]\n[pool.limits]\nboot = 'soon'", "pool[0].limits.boot: expected a duration above zero in quotes"),
        ("[[pool]]\n[[pool]]", 'pool[1].name: expected a name of its own, got "default"'),
    ],
)
@pytest.mark.parametrize("arguments", [("check", "-c"), ("-c",)])
def test_a_bad_pool_file_is_refused_before_anything_starts(
    tmp_path: Path, text: str, problem: str, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(text)
    done = run_command(*arguments, str(path))
    assert done.returncode == 78
    assert done.stderr.startswith(f"error: {problem}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_check_says_what_would_run(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text("[control_plane]\napi_url = 'https://mobius.example'\n[[pool]]\nname = 'rig'\nworkers = 3")
    done = run_command("check", "-c", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "control plane: https://mobius.example\npool rig: 3 workers, 1 job in each, no modules\n"


EVERY_WAY_TO_FAIL = """
[control_plane]
api_url = 'https://mobius.example'
[[pool]]
name = "fine"
modules = ["fine"]
[[pool]]
name = "absent"
modules = ["there_is_no_such_module"]
[[pool]]
name = "restricted"
modules = ["fine"]
actions = ["no.such.action"]
[[pool]]
name = "ends"
modules = ["ends"]
[[pool]]
name = "hangs"
modules = ["hangs"]
limits = { boot = "3s" }
"""


def test_check_imports_the_modules_as_a_supervisor_would(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(EVERY_WAY_TO_FAIL)
    (tmp_path / "fine.py").write_text("print('at work')")
    (tmp_path / "ends.py").write_text("import os\nprint('no licence', flush=True)\nos._exit(3)")
    (tmp_path / "hangs.py").write_text("import threading\nthreading.Event().wait()")
    done = run_command("check", "-c", str(tmp_path / "pool.toml"))
    assert (done.returncode, done.stdout) == (78, "")
    problems = done.stderr.splitlines()
    assert problems[0].startswith("error: pool[1].modules: there is no module 'there_is_no_such_module'")
    assert problems[1].startswith("error: pool[2].actions: no handler is registered for 'no.such.action'")
    assert problems[2:] == [
        "error: pool[3].modules: the process that imports them ended (no licence)",
        "error: pool[4].modules: were not imported within 3s",
    ]


def test_check_notes_a_key_that_others_may_read(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text("[control_plane]\napi_url = 'https://mobius.example'\n[[pool]]\n")
    key = tmp_path / "api-key"
    key.write_text("mbx_" + "0" * 32)
    for mode, notes in ((0o644, 1), (0o600, 0)):
        key.chmod(mode)
        done = run_command("check", "-c", str(tmp_path / "pool.toml"), environ={"MOBIUS_API_KEY": ""})
        assert done.returncode == 0, done.stderr
        note = f"note: control_plane.api_key_file: other users of this machine may read {key}"
        assert done.stderr.count(note) == notes


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 64, "-c FILE is missing"),
        (("--nonsense",), 64, "No such option"),
        (("-c", "/nonexistent.toml"), 78, "error: /nonexistent.toml: the pool file cannot be read"),
        (("-c", "x.toml", "--workers", "0"), 64, "--workers"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], code: int, words: str) -> None:
    done = run_command(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_on_the_command_line_override_the_file(tmp_path: Path, server: WorkerSocketServer) -> None:
    with supervising(tmp_path, server, workers=2) as supervisor:
        assert supervisor.terminate() in (0, -signal.SIGTERM)
    two = supervisor.file.read_text().replace("[pool.limits]", "[[pool]]\nname = 'second'\n")
    supervisor.file.write_text(two)
    done = run_command("-c", str(supervisor.file), "--workers", "3")
    assert done.returncode == 78
    assert done.stderr.startswith("error: --workers: expected a pool file with one pool, but it has default, second")


def test_a_refused_worker_ends_a_supervisor_that_was_told_so(tmp_path: Path, server: WorkerSocketServer) -> None:
    server.refuse_with = 401
    document = {
        "control_plane": {"api_url": server.url, "api_key_file": str(server.key_file)},
        "supervisor": {"listen": "", "state_dir": str(tmp_path / "worker"), "instance_id": "box"},
        "pool": [{"name": "worker", "workers": 1}],
    }
    program = (
        "import json, sys, msgspec, pathlib\n"
        "from supervisor import config\n"
        "from supervisor.__main__ import run\n"
        f"document = json.loads({json.dumps(json.dumps(document))})\n"
        "found = config.build(document, pathlib.Path('/'), {})\n"
        "flags = dict(exit_when_refused=True, plain_instance_id=True, state_dir_numbered=True)\n"
        "sys.exit(run(msgspec.structs.replace(found, **flags)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 77, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "401" in last
    assert (tmp_path / "worker-1" / "supervisor.lock").exists()
