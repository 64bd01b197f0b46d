"""What the unit files say, judged by systemd's own tools and by what must never change in them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from supervisor.config import Duration, Supervisor
from tests.support.real_systemd import Machine
from tests.systemd.conftest import UNITS

SUPERVISOR = UNITS / "mobius-supervisor.service"
CONTROL_PLANE = UNITS / "mobius-control-plane.service"
DROP_INS = UNITS / "mobius-supervisor.service.d"

THRESHOLD = 25
"""The highest exposure that passes, in tenths."""


def settings(path: Path) -> dict[str, list[str]]:
    """Every setting with its values in order; sections do not matter, for no key is in two."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().replace("\\\n", " ").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def exposure(directory: Path, unit: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("install the Debian package systemd")
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={THRESHOLD}"]
    return subprocess.run([*command, str(directory / unit)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("unit", [SUPERVISOR, CONTROL_PLANE], ids=lambda unit: unit.stem)
def test_a_unit_as_it_is_shipped_is_hardened(tmp_path: Path, unit: Path) -> None:
    shutil.copy(unit, tmp_path)
    result = exposure(tmp_path, unit.name)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("names", [["relaxed.conf"], ["gpu.conf"], ["relaxed.conf", "gpu.conf"]], ids="+".join)
def test_the_drop_ins_stay_within_the_same_bound(tmp_path: Path, names: list[str]) -> None:
    shutil.copy(SUPERVISOR, tmp_path)
    target = tmp_path / DROP_INS.name
    target.mkdir()
    for name in names:
        shutil.copy(DROP_INS / name, target)
    result = exposure(tmp_path, SUPERVISOR.name)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_unit_that_is_not_hardened_would_be_noticed(tmp_path: Path) -> None:
    lines = SUPERVISOR.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("Protect", "Private", "Restrict", "SystemCall"))]
    (tmp_path / SUPERVISOR.name).write_text("\n".join(kept))
    assert exposure(tmp_path, SUPERVISOR.name).returncode != 0


def test_systemd_has_no_complaint_about_the_units_and_the_drop_ins(machine: Machine) -> None:
    for name in ("relaxed.conf", "gpu.conf"):
        text = (DROP_INS / name).read_text()
        machine.write(f"/etc/systemd/system/{DROP_INS.name}/{name}", text)
    units = [f"/etc/systemd/system/{path.name}" for path in (SUPERVISOR, CONTROL_PLANE)]
    result = machine.run("systemd-analyze", "verify", *units)
    assert result.stdout + result.stderr == ""


def test_what_keeps_work_from_being_lost_is_in_the_supervisors_unit() -> None:
    unit = settings(SUPERVISOR)
    expected = {
        "Type": "notify",
        "ExecStop": "/bin/kill -TERM $MAINPID",
        "KillMode": "control-group",
        "KillSignal": "SIGCONT",
        "WatchdogSignal": "SIGTERM",
        "OOMPolicy": "continue",
        "Restart": "always",
        "RestartPreventExitStatus": "64 78",
        "StartLimitIntervalSec": "0",
        "Wants": "network-online.target",
    }
    assert {key: " ".join(unit[key]) for key in expected} == expected
    assert "network-online.target" in unit["After"]


def test_the_timeouts_are_above_what_they_wait_for() -> None:
    (stop,), (watchdog,) = (settings(SUPERVISOR)[f"{name}Sec"] for name in ("TimeoutStop", "Watchdog"))
    assert Duration.parse(stop) >= Supervisor().drain_timeout + 30
    assert Duration.parse(watchdog) >= 30


def test_nothing_but_the_two_units_and_the_drop_ins_is_shipped() -> None:
    shipped = sorted(str(path.relative_to(UNITS)) for path in UNITS.rglob("*") if path.is_file())
    assert shipped == [
        "mobius-control-plane.service",
        "mobius-supervisor.service",
        "mobius-supervisor.service.d/gpu.conf",
        "mobius-supervisor.service.d/relaxed.conf",
    ]
