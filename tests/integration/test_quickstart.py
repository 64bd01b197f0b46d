"""`make run`: the quickstart as a process, on a copy of its files with free ports and a state directory of its own."""

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.mobius_command import MobiusCommand
from tests.support.quickstart_copy import TIMEOUT, Copy, quickstart_copy, read_until


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes: list[psutil.Process]) -> None:
    """psutil knows a process by number and start time, so a reused number does not count."""
    assert processes
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    with quickstart_copy(tmp_path) as copy:
        yield copy


def events_of(output: str) -> list[list[str]]:
    """Every event line: time, run, step, type, and the rest."""
    return [line.split() for line in output.splitlines() if re.match(r"\d\d:\d\d:\d\d\.\d{3} ", line)]


def test_once_shows_the_retry_and_the_fan_out_and_leaves_nothing(copy: Copy) -> None:
    with copy.start("--once") as process:
        lines = read_until(process, "run.completed")
        processes = descendants(process)
        rest, errors = process.communicate(timeout=TIMEOUT)
    output = "".join(lines) + rest
    assert process.returncode == 0, f"{errors}\n{output}\n{copy.log()}"
    assert errors == ""
    assert_gone(processes)

    retry = [event for event in events_of(output) if event[1:3] == ["quickstart", "retry"]]
    kinds = [event[3] for event in retry]
    assert kinds.count("action.called") == 2
    assert kinds.count("action.retried") == 1
    assert kinds.count("action.result") == 1
    assert any("Hiccup" in " ".join(event) for event in retry)
    assert re.search(r"^quickstart +retry +completed +2 ", output, re.MULTILINE)

    workers = {}
    for label in ("quickstart", "quickstart-part"):
        (called,) = (event for event in events_of(output) if event[1:4] == [label, "work", "action.called"])
        (workers[label],) = (word for word in called if re.fullmatch(r"quickstart-\d", word))
    assert set(workers.values()) == {"quickstart-1", "quickstart-2"}
    assert "run quickstart completed" in output
    assert "run quickstart-part completed" in output
    assert re.search(r"^quickstart-1 executed: .+\nquickstart-2 executed: .+", output, re.MULTILINE)


def test_it_stays_up_until_ctrl_c_which_drains_and_a_second_start_reuses_what_is_there(copy: Copy) -> None:
    with copy.start() as process:
        output = "".join(read_until(process, "Everything keeps running"))
        assert f"MOBIUS_API_URL=http://127.0.0.1:{copy.ports[0]}" in output
        assert f"curl http://127.0.0.1:{copy.ports[1]}/metrics" in output
        assert "version 1 created and published" in output
        key_file = re.search(r"\$\(cat (.+)\)", output)
        assert key_file is not None
        assert Path(key_file[1]).read_text().startswith("mbx_")
        assert Path(key_file[1]).read_text().strip() not in output + copy.log()

        second = copy.run()
        assert second.returncode == 73
        assert f"another quickstart is running (process {process.pid}" in second.stderr
        assert len(second.stderr.splitlines()) == 1

        processes = descendants(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, errors) == (0, ""), copy.log()
        assert_gone(processes)

    again = copy.run("--once")
    assert again.returncode == 0, again.stderr + copy.log()
    assert again.stdout.count("version 1 is published already") == 2
    assert "run.completed" in again.stdout


def test_a_second_ctrl_c_shortens_the_drain(copy: Copy) -> None:
    copy.change('drain_timeout = "10s"', 'drain_timeout = "600s"')
    step = {"action_name": "quickstart.work", "parameters": {"label": "long", "milliseconds": 60_000}}
    long = {"handle": "long", "spec": {"steps": [{"key": "long", "kind": "action", "config": step}]}}
    with copy.start() as process:
        read_until(process, "Everything keeps running")
        key = (copy.state / "api-key").read_text().strip()
        command = MobiusCommand(f"http://127.0.0.1:{copy.ports[0]}", key, copy.state)
        assert command.run("automations", "create", "-", "--publish", stdin=json.dumps(long)).returncode == 0
        with command.start("automations", "start", "long", "--stream") as stream:
            read_until(stream, "action.called")
        processes = descendants(process)
        process.send_signal(signal.SIGINT)
        read_until(process, "draining")
        process.send_signal(signal.SIGINT)
        # The drain alone would take as long as the job, which is longer than we wait.
        process.communicate(timeout=TIMEOUT / 2)
        assert "grace=600.0" in copy.log()
        assert "grace=5.0" in copy.log()
        assert_gone(processes)


def test_ctrl_c_before_it_is_ready(copy: Copy) -> None:
    with copy.start() as process:
        read_until(process, "starting the control plane")
        processes = descendants(process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT)
        assert process.returncode == 130
        psutil.wait_procs(processes, timeout=20)
        assert not any(one.is_running() for one in processes)


def test_killed_with_9_it_leaves_nothing_running(copy: Copy) -> None:
    with copy.start() as process:
        read_until(process, "Everything keeps running")
        processes = descendants(process)
        process.kill()
        process.wait()
        assert_gone(processes)


@pytest.mark.parametrize(("index", "key"), [(0, "control_plane.listen"), (1, "supervisor.listen")])
def test_a_port_in_use(copy: Copy, index: int, key: str) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", copy.ports[index]))
        taken.listen()
        done = copy.run("--once")
    assert done.returncode == 73
    assert re.fullmatch(rf"mobius: cannot listen on 127\.0\.0\.1:{copy.ports[index]} .*{key} in .*\n", done.stderr)
    assert done.stdout == ""


def test_handlers_that_cannot_be_imported_are_said_at_once(copy: Copy) -> None:
    (copy.configs / "quickstart_handlers.py").write_text("import no_such_module_anywhere\n")
    done = copy.run("--once")
    assert done.returncode == 78
    assert "no_such_module_anywhere" in done.stderr


def test_a_file_that_is_not_there(copy: Copy) -> None:
    (copy.configs / "quickstart.toml").unlink()
    done = copy.run("--once")
    assert done.returncode == 78
    assert "name a pool file with --config" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("embedded = true", "embedded = false", "api-key"),
        ("workers = 2", "wrokers = 2", "did you mean `workers`"),
        ("[[pool]]", "[[pool", "expected a TOML file"),
    ],
)
def test_a_wrong_file(copy: Copy, old: str, new: str, says: str) -> None:
    copy.change(old, new)
    done = copy.run("--once")
    assert done.returncode == 78
    assert says in done.stderr
