"""The machine that the other tests of this folder run on: it is what it says, and it leaves nothing behind."""

import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.real_systemd import BootError, CommandError, Machine, boot, incapable, message, remove_group, why_not

REPOSITORY = Path(__file__).parents[2]

BOOT_AND_WAIT = """
import sys, time
from tests.support.real_systemd import boot
with boot() as machine:
    print(machine.pid, flush=True)
    sys.stdin.read()
"""

SKIPPED = """
import pytest
def test_skipped():
    pytest.skip("for a reason")
"""


@pytest.fixture
def capable() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


def groups(owner: int) -> list[Path]:
    """The control groups of the machines that a process has booted."""
    return list(Path("/sys/fs/cgroup").glob(f"**/real-systemd-{owner}-*"))


def test_systemd_is_the_first_process_and_has_a_journal(machine: Machine) -> None:
    assert machine.run("cat", "/proc/1/comm").stdout == "systemd\n"
    assert machine.run("systemctl", "is-system-running").stdout == "running\n"
    machine.write("/run/systemd/system/greeting.service", "[Service]\nType=oneshot\nExecStart=echo hello\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "greeting.service")
    assert "hello" in [message(entry) for entry in machine.journal("greeting.service")]


def test_what_is_written_inside_stays_inside(machine: Machine) -> None:
    machine.write("/usr/local/share/written-inside", "")
    assert not Path("/usr/local/share/written-inside").exists()


def test_it_has_a_network_of_its_own(machine: Machine) -> None:
    assert machine.run("cat", "/proc/net/dev").stdout.count(":") == 1


def test_a_command_that_fails_says_so(machine: Machine) -> None:
    with pytest.raises(CommandError, match="ls /absent ended with 2"):
        machine.run("ls", "/absent")


def test_nothing_is_left_behind(capable: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = groups(os.getpid())
    with boot() as machine:
        pid = machine.pid
        assert len(groups(os.getpid())) > len(before)
        machine.write("/run/systemd/system/long.service", "[Service]\nExecStart=sleep 1000\n")
        machine.run("systemctl", "start", "long.service")
    assert groups(os.getpid()) == before
    assert list(tmp_path.iterdir()) == []
    assert not Path(f"/proc/{pid}").exists()


def test_a_machine_dies_with_the_test_that_booted_it(capable: None, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BOOT_AND_WAIT]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        init = os.pidfd_open(int(test.stdout.readline()))
        test.kill()
    assert select.select([init], [], [], 10)[0]
    os.close(init)
    for group in groups(test.pid):
        remove_group(group)


def test_a_machine_that_does_not_boot_says_why(capable: None, tmp_path: Path) -> None:
    before = groups(os.getpid())
    with pytest.raises(BootError, match="absent"), boot([(tmp_path / "absent", "/opt/absent")]):
        pass
    assert groups(os.getpid()) == before


@pytest.mark.parametrize(
    ("ci", "outcome"),
    [("true", "failed" if incapable() is None else "skipped"), ("", "skipped")],
    ids=["in continuous integration", "elsewhere"],
)
def test_continuous_integration_does_not_accept_a_skip_where_it_need_not_be(
    tmp_path: Path, ci: str, outcome: str
) -> None:
    """The same hook, in a run of pytest of its own."""
    (tmp_path / "conftest.py").write_text("from tests.systemd.conftest import pytest_runtest_makereport\n")
    (tmp_path / "test_one.py").write_text(SKIPPED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert f"1 {outcome}" in result.stdout, result.stdout + result.stderr
