"""Every command against a real supervisor with real children. Each wait is for a command's end or a line of the log."""

import contextlib
import json
import os
import pty
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from tests.support.gate import Gate
from tests.support.supervisor_process import ROOT, SupervisorProcess, pool_file
from tests.support.worker_socket_server import WorkerSocketServer

PATIENCE = 60.0
HANDLERS = {"modules": ["tests.support.gate_handlers", "tests.supervisor.handlers"]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WorkerSocketServer]:
    with WorkerSocketServer(tmp_path) as server:
        yield server


class Operated(SupervisorProcess):
    """A supervisor of which all children are ready, and its operator."""

    def __init__(self, tmp_path: Path, server: WorkerSocketServer, **settings: Any) -> None:
        self.server = server
        self.settings = {"workers": 2, **HANDLERS} | settings
        super().__init__(tmp_path / "supervisor", server, **self.settings)  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        super().__enter__()
        for number in range(1, self.settings["workers"] + 1):
            self.wait_for("ready", slot=f"default-{number}")
        return self

    def change_file(self, **settings: Any) -> None:
        pool_file(self.file.parent, self.server, **(self.settings | settings))  # type: ignore[arg-type]

    def status(self) -> dict[str, Any]:
        done = self.command("status", "--output", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def children(self) -> dict[str, dict[str, Any]]:
        return {slot["slot"]: slot for slot in self.status()["slots"] if slot["kind"] == "child"}

    def pids(self) -> dict[str, int]:
        return {name: slot["pid"] for name, slot in self.children().items()}

    def wait_until_exchanged(self, *gone: str) -> None:
        for slot in gone:
            self.wait_for("process ended", slot=slot, cause="drained")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MOBIUS_")}
    return subprocess.run(
        [sys.executable, "-m", "supervisor", *words],
        cwd=ROOT,
        env=plain,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# --- looking -----------------------------------------------------------------------------------------------------


def test_status_shows_everything_to_its_own_user_alone(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server) as operated:
        socket = operated.file.parent / "run" / "control.sock"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        told = operated.command("status")
        assert told.returncode == 0
        headline, titles, *rows = told.stdout.splitlines()
        assert headline == "running, ready: default 2 of 2"
        assert titles.split()[:4] == ["SLOT", "STATE", "HEALTH", "SESSION"]
        assert [row.split()[0] for row in rows] == ["mold:default", "default-1", "default-2"]
        status = operated.status()
        assert status["pools"] == [{"pool": "default", "workers": 2, "working": 2, "rolling": False}]
        assert operated.pids()["default-1"] == operated.wait_for("process started", slot="default-1")["pid"]
        assert operated.terminate() == 0
        assert not socket.exists()


def test_status_of_a_slot_has_its_output_and_how_its_last_process_ended(
    tmp_path: Path, server: WorkerSocketServer
) -> None:
    with Operated(tmp_path, server) as operated:
        os.kill(operated.pids()["default-2"], signal.SIGKILL)
        operated.wait_for("ready", slot="default-2", incarnation=2)
        detail = json.loads(operated.command("status", "default-2", "--output", "json").stdout)
        assert detail["status"]["incarnation"] == 2
        assert detail["last_exit"]["signal"] == 9
        text = operated.command("status", "default-2").stdout
        assert "last exit:" in text
        assert "signal: 9" in text
        unknown = operated.command("status", "default-9")
        assert (unknown.returncode, unknown.stdout) == (66, "")
        assert "default-9: is no slot of this supervisor, which has mold:default, default-1" in unknown.stderr
        operated.terminate()
        operated.start()
        operated.wait_for("ready", slot="default-2", incarnation=1, count=2)
        before = json.loads(operated.command("status", "default-2", "--output", "json").stdout)
        assert before["last_exit"]["cause"] == "drained", "of the time before this supervisor"


def test_status_tells_what_is_wrong_with_a_worker_while_it_is(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server, limits={"silence": "2s", "kill_after": "10m"}) as operated:
        assert {child["health"] for child in operated.children().values()} == {"ok"}
        pid = operated.pids()["default-2"]
        os.kill(pid, signal.SIGSTOP)
        assert operated.wait_for("event loop is silent", slot="default-2")["hang"] == "stopped"
        (row,) = [line for line in operated.command("status").stdout.splitlines() if line.startswith("default-2")]
        assert "stopped" in row.split()
        detail = json.loads(operated.command("status", "default-2", "--output", "json").stdout)
        assert (detail["status"]["health"], detail["silence"]["evidence"]["state"]) == ("stopped", "T")
        assert "its event loop is silent:" in operated.command("status", "default-2").stdout
        os.kill(pid, signal.SIGCONT)
        operated.wait_for("event loop is heard again", slot="default-2")
        assert operated.children()["default-2"]["health"] == "ok"
        assert operated.pids()["default-2"] == pid
        assert operated.terminate() == 0


def test_top_looks_again_and_again(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server) as operated:
        done = operated.command("top", "--count", "2", "--interval", "0.1")
        assert (done.returncode, done.stderr) == (0, "")
        assert "default-2" in done.stdout


def test_top_on_a_terminal(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server) as operated:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "supervisor", "-c", str(operated.file), "top", "--count", "1"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=theirs, env=os.environ | {"COLUMNS": "160"})
        os.close(theirs)
        shown = b""
        # Linux ends the reading of a terminal that nobody writes to any more with an error.
        with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as terminal:
            while piece := terminal.read(4096):
                shown += piece
        assert process.wait(PATIENCE) == 0
        assert b"default-2" in shown
        assert shown.index(b"\x1b[?1049h") < shown.index(b"\x1b[?1049l")


def test_stacks_of_a_child_whose_event_loop_is_blocked(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server, workers=1, limits={"silence": "1s", "kill_after": "60s"}) as operated:
        server.offer("test.block", {})
        operated.wait_for("event loop is silent", slot="default-1")
        done = operated.command("stacks", "default-1")
        assert done.returncode == 0, done.stderr
        assert "in block" in done.stdout
        assert "most recent call first" in done.stdout
        assert operated.command("stacks", "nobody").returncode == 66


# --- reload ------------------------------------------------------------------------------------------------------


def test_a_reload_exchanges_children_and_finishes_what_they_hold(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Gate() as gate, Operated(tmp_path, server) as operated:
        server.offer("test.gate", {"port": gate.port})
        visit = gate.knock()
        operated.change_file(concurrency=3)
        done = operated.command("reload")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "pool default: roll (changed: concurrency); new mold",
            "  default-1: restart rolling, its replacement ready first",
            "  default-2: restart rolling, its replacement ready first",
            "adopted",
        ]
        visit.release("left")
        assert server.wait_for_report()["result"]["answer"] == "left"
        operated.wait_until_exchanged("default-1", "default-2", "mold:default")
        operated.wait_for("ready", slot="default-4")
        names = [frame["worker_instance_id"] for frame in server.registered]
        assert sorted(names) == ["box-1", "box-2", "box-3", "box-4"]
        assert {frame["concurrency_limit"] for frame in server.registered[2:]} == {3}
        # No old child ended before its replacement was ready.
        events = [(line["event"], line.get("slot")) for line in operated.lines if line.get("slot")]
        assert events.index(("ready", "default-3")) < events.index(("last words", "default-1"))
        assert operated.terminate() == 0
        assert operated.leftovers() == []


def test_a_reload_takes_over_new_code(tmp_path: Path, server: WorkerSocketServer) -> None:
    code = "from worker_child import action\n\n@action('test.version')\ndef version():\n    return {{'version': {}}}\n"
    (tmp_path / "versioned.py").write_text(code.format(1))
    with Operated(tmp_path, server, workers=1, modules=["versioned"], module_path=[str(tmp_path)]) as operated:
        server.offer("test.version", {})
        assert server.wait_for_report()["result"] == {"version": 1}
        # Of another size, so that no cache of the import system takes the one for the other.
        (tmp_path / "versioned.py").write_text(code.format(22))
        assert operated.command("reload").returncode == 0
        operated.wait_until_exchanged("default-1")
        server.offer("test.version", {})
        assert server.wait_for_report()["result"] == {"version": 22}


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server) as operated:
        before = operated.pids()
        operated.change_file(workers=1)
        done = operated.command("reload", "--dry-run")
        assert done.returncode == 0
        assert "  default-2: drain" in done.stdout.splitlines()
        operated.change_file(supervisor={"state_dir": "elsewhere"})
        refused = operated.command("reload", "--dry-run")
        assert refused.returncode == 78
        assert refused.stderr.startswith("error: supervisor.state_dir: ")
        assert operated.pids() == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modules": ["there_is_no_such_module"]}, "modules: there is no module 'there_is_no_such_module'"),
        ({"actions": ["no.such.action"]}, "actions: no handler is registered for 'no.such.action'"),
    ],
)
def test_a_dry_run_tries_the_modules_and_no_child(
    tmp_path: Path, server: WorkerSocketServer, change: dict[str, Any], sentence: str
) -> None:
    with Operated(tmp_path, server) as operated:
        before = operated.pids()
        tried = operated.command("reload", "--dry-run")
        assert tried.returncode == 0, tried.stderr
        assert tried.stdout.splitlines()[-1] == "nothing was changed; the modules can be imported"
        operated.wait_for("process ended", slot="mold:default:2", incarnation=1)
        operated.change_file(**change)
        failed = operated.command("reload", "--dry-run")
        assert failed.returncode == 78
        assert failed.stderr.startswith(f"error: it would be aborted: mold:default:2: {sentence}")
        assert operated.pids() == before
        assert operated.status()["reload"] == ""
        assert len(server.registered) == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"workers": 0}, "error: pool[0].workers: expected a whole number from 1 to 1000, got 0"),
        ({"supervisor": {"state_dir": "elsewhere"}}, "error: supervisor.state_dir: expected the value"),
        ({"modules": ["there_is_no_such_module"]}, "error: aborted: mold:default:2: "),
        ({"actions": ["no.such.action"]}, "error: aborted: mold:default:2: actions: "),
    ],
)
def test_a_reload_that_cannot_work_is_refused_and_nothing_changes(
    tmp_path: Path, server: WorkerSocketServer, change: dict[str, Any], sentence: str
) -> None:
    with Operated(tmp_path, server) as operated:
        before = operated.pids()
        operated.change_file(**change)
        done = operated.command("reload")
        assert (done.returncode, done.stderr.startswith(sentence)) == (78, True), done.stderr
        operated.change_file()
        # The next one is refused no more, and children from before have worked until now.
        assert operated.pids().items() >= before.items()
        assert operated.command("reload").returncode == 0
        assert operated.process.poll() is None


def test_a_new_child_that_is_never_ready_is_given_up_after_boot(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server, limits={"boot": "3s"}) as operated:
        before = operated.pids()
        # Refused for now and not for good: the new child goes on trying, and the old ones keep their sockets.
        server.refuse_with = 503
        done = operated.command("reload")
        assert done.returncode == 78
        assert "default-3: not ready within 3s" in done.stderr
        assert operated.wait_for("reload aborted")["problem"] == "default-3: not ready within 3s"
        assert operated.pids().items() >= before.items()


def test_only_one_reload_at_a_time(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server) as operated:
        server.refuse_with = 503
        operated.process.send_signal(signal.SIGHUP)
        operated.wait_for("reload: trying")
        for words in (["reload"], ["scale", "default", "3"], ["restart", "default-1"], ["drain", "default-1"]):
            done = operated.command(*words)
            assert (done.returncode, "a reload is under way" in done.stderr) == (75, True), words
        # Looking is always possible, trying is not.
        assert operated.children()["default-3"]["plan"] == "on trial"
        dry = operated.command("reload", "--dry-run")
        assert (dry.returncode, "the modules were not tried: a reload is under way" in dry.stderr) == (75, True)
        assert dry.stdout.startswith("pool default: roll")
        # A stop goes before everything.
        assert operated.terminate() == 0
        assert operated.leftovers() == []


def test_sighup_reloads_and_the_log_says_how_it_went(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server) as operated:
        operated.process.send_signal(signal.SIGHUP)
        operated.wait_for("reload adopted")
        operated.wait_until_exchanged("default-1", "default-2")
        operated.file.write_text("nonsense = [")
        operated.process.send_signal(signal.SIGHUP)
        assert "expected a TOML file" in operated.wait_for("reload refused")["problems"][0]
        assert operated.terminate() == 0
        assert operated.leftovers() == []


def test_a_pool_file_that_would_be_waited_for_for_ever_is_refused(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server) as supervisor:
        supervisor.file.unlink()
        os.mkfifo(supervisor.file)
        supervisor.process.send_signal(signal.SIGHUP)
        assert "Not a regular file" in supervisor.wait_for("reload refused")["problems"][0]
        assert supervisor.terminate() == 0
        assert supervisor.leftovers() == []


def test_a_supervisor_from_flags_has_nothing_to_reload(tmp_path: Path, server: WorkerSocketServer) -> None:
    command = ["worker", "--queues", "default", "--api-url", server.url, "--api-key-file", str(server.key_file)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mobius_cli", *command],
        cwd=ROOT,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path), "MOBIUS_PROJECT": "default"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if '"ready"' in line and "worker-1" in line and "mold" not in line:
                break
        state = tmp_path / "mobius" / "worker-1"
        (tmp_path / "where.toml").write_text(f'[supervisor]\nruntime_dir = "{state}"\n')
        done = run("-c", str(tmp_path / "where.toml"), "reload")
        assert (done.returncode, "started from flags" in done.stderr) == (78, True)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


# --- one slot, one pool ------------------------------------------------------------------------------------------


def test_scale_up_and_down(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server) as operated:
        done = operated.command("scale", "default", "4")
        assert done.returncode == 0, done.stderr
        assert {name: slot["state"] for name, slot in operated.children().items()} == {
            f"default-{number}": "ready" for number in range(1, 5)
        }
        assert operated.command("scale", "default", "1").returncode == 0
        assert list(operated.children()) == ["default-1"]
        unknown = operated.command("scale", "nobody", "1")
        assert (unknown.returncode, unknown.stderr) == (
            66,
            "error: nobody: is no pool of this supervisor, which has pool default\n",
        )
        assert operated.command("scale", "default", "0").returncode == 64


def test_drain_reports_and_keeps_the_slot_empty_until_it_is_restarted(
    tmp_path: Path, server: WorkerSocketServer
) -> None:
    with Operated(tmp_path, server) as operated:
        server.offer("print", {"message": "hello"})
        server.wait_for_report()
        done = operated.command("drain", "default-1")
        other = operated.command("drain", "default-2")
        assert (done.returncode, other.returncode) == (0, 0)
        # What was finished before is no part of the report.
        assert done.stdout == "default-1: drained; 0 jobs finished, 0 handed back, 0 cut off\n"
        assert {slot["plan"] for slot in operated.children().values()} == {"held"}
        back = operated.command("restart", "default-1")
        assert (back.returncode, back.stdout) == (0, "default-1: restarted\n")
        assert operated.children()["default-1"]["state"] == "ready"
        assert operated.children()["default-2"]["state"] == "empty"


def test_a_drain_that_cuts_a_job_off_says_so(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Gate() as gate, Operated(tmp_path, server, workers=1, supervisor={"drain_timeout": "500ms"}) as operated:
        server.offer("test.gate", {"port": gate.port})
        visit = gate.knock()
        done = operated.command("drain", "default-1")
        visit.wait_for_end()
        assert (done.returncode, "1 cut off" in done.stdout) == (75, True), done.stdout + done.stderr


def test_restart_of_a_slot_and_of_a_pool(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server) as operated:
        before = operated.pids()
        done = operated.command("restart", "default-1")
        assert done.returncode == 0, done.stderr
        after = operated.pids()
        assert list(after) == ["default-2", "default-3"]
        assert after["default-2"] == before["default-2"]
        assert operated.command("restart", "default").returncode == 0
        assert not set(operated.pids().values()) & set(after.values())
        assert operated.command("restart", "mold:default").returncode == 66
        assert operated.terminate() == 0
        assert operated.leftovers() == []


def test_what_a_slot_that_is_gone_could_not_report_is_reported_by_the_next_child(
    tmp_path: Path, server: WorkerSocketServer
) -> None:
    with Gate() as gate, Operated(tmp_path, server, workers=1) as operated:
        server.offer("test.gate", {"port": gate.port})
        visit = gate.knock()
        child = psutil.Process(operated.pids()["default-1"])
        child.suspend()
        operated.kill()
        child.kill()
        visit.wait_for_end()
        psutil.wait_procs([child], timeout=PATIENCE)
        journals = operated.state / "journals"
        (journals / "default-1.journal").rename(journals / "default-7.journal")
        operated.start()
        report = server.wait_for_report()
        assert (report["status"], report["error_type"]) == ("failed", "WorkerCrashed")
        assert operated.wait_for("a journal was left")["journal"] == "default-7.journal"
        assert [path.name for path in journals.glob("*.journal")] == ["default-1.journal"]


# --- who may, and whom -------------------------------------------------------------------------------------------


def test_without_a_supervisor_the_command_says_so(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('[supervisor]\nruntime_dir = "run"\n[[pool]]\n')
    done = run("-c", str(tmp_path / "pool.toml"), "status")
    assert done.returncode == 69
    assert done.stderr.startswith(f"error: {tmp_path}/run/control.sock: no supervisor takes commands there")


def test_two_supervisors_never_share_a_control_socket(tmp_path: Path, server: WorkerSocketServer) -> None:
    with Operated(tmp_path, server) as operated:
        operated.change_file(supervisor={"state_dir": "other"})
        second = run("-c", str(operated.file))
        assert second.returncode == 73
        assert "supervisor.runtime_dir: " in second.stderr
        assert "is in use by another supervisor" in second.stderr
        assert operated.command("status").returncode == 0
