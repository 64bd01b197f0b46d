"""The control plane's unit under a real systemd."""

from collections.abc import Iterator

import pytest

from tests.support.real_systemd import Machine, message
from tests.systemd.conftest import API_KEY, BOOTSTRAP_KEY, CONTROL_PLANE, SUPERVISOR, clean, start_control_plane


@pytest.fixture
def fresh(machine: Machine) -> Iterator[Machine]:
    clean(machine, CONTROL_PLANE)
    yield machine
    clean(machine, CONTROL_PLANE)


def test_it_starts_writes_its_first_key_for_root_alone_and_stops(fresh: Machine) -> None:
    start_control_plane(fresh)
    assert fresh.show(CONTROL_PLANE, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    assert fresh.run("stat", "--format=%a", BOOTSTRAP_KEY).stdout == "600\n"
    assert fresh.run("cat", BOOTSTRAP_KEY).stdout.startswith("mbx_")
    assert fresh.run("runuser", "-u", "nobody", "--", "cat", BOOTSTRAP_KEY, check=False).returncode != 0
    fresh.run("systemctl", "stop", CONTROL_PLANE)
    assert fresh.show(CONTROL_PLANE, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert fresh.processes(CONTROL_PLANE) == []


def test_its_settings_come_from_a_file_of_the_operators(fresh: Machine) -> None:
    fresh.write("/etc/mobius/control-plane.env", "MOBIUS_LISTEN=127.0.0.1:8790\nMOBIUS_OPTIONS=--lease-duration 120s\n")
    start_control_plane(fresh)
    assert any("http://127.0.0.1:8790" in message(entry) for entry in fresh.journal(CONTROL_PLANE))
    command = f"/proc/{fresh.show(CONTROL_PLANE, 'MainPID')['MainPID']}/cmdline"
    assert "\0".join(["--lease-duration", "120s"]) in fresh.run("cat", command).stdout


def test_a_wrong_setting_is_said_once_and_not_tried_again(fresh: Machine) -> None:
    fresh.write("/etc/mobius/control-plane.env", "MOBIUS_LISTEN=0.0.0.0:8780\n")
    fresh.run("systemctl", "start", CONTROL_PLANE, check=False)
    fresh.wait_for(CONTROL_PLANE, lambda entry: "Failed with result" in message(entry))
    shown = fresh.show(CONTROL_PLANE, "ActiveState", "ExecMainStatus", "NRestarts")
    assert shown == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    assert any("--listen 0.0.0.0:8780" in message(entry) for entry in fresh.journal(CONTROL_PLANE))


def test_it_is_there_again_with_its_keys_after_a_crash(fresh: Machine) -> None:
    start_control_plane(fresh)
    key = fresh.run("cat", BOOTSTRAP_KEY).stdout
    fresh.run("kill", "-KILL", fresh.show(CONTROL_PLANE, "MainPID")["MainPID"])
    death = fresh.wait_for(CONTROL_PLANE, lambda entry: "Main process exited" in message(entry))
    fresh.wait_for(CONTROL_PLANE, lambda entry: '"listening"' in message(entry), after=death["__CURSOR"])
    assert fresh.run("cat", BOOTSTRAP_KEY).stdout == key


def test_it_stops_after_the_supervisor_when_everything_stops(fresh: Machine) -> None:
    """Both are stopped by one job, as they are when the machine goes down."""
    fresh.write("/run/systemd/system/everything.target", "[Unit]\nDescription=Everything\n")
    for unit in (SUPERVISOR, CONTROL_PLANE):
        fresh.write(f"/etc/systemd/system/{unit}.d/test.conf", "[Unit]\nPartOf=everything.target\n")
    fresh.run("systemctl", "daemon-reload")
    start_control_plane(fresh)
    fresh.run("install", "-D", "-m", "0600", BOOTSTRAP_KEY, API_KEY)
    fresh.write("/etc/mobius/pool.toml", '[control_plane]\napi_url = "http://127.0.0.1:8780"\n[[pool]]\nworkers = 1\n')
    fresh.run("systemctl", "start", SUPERVISOR, "everything.target")
    fresh.run("systemctl", "stop", "everything.target")
    fresh.run("systemctl", "stop", SUPERVISOR, CONTROL_PLANE)
    assert _time_of(fresh, SUPERVISOR, "Stopped ") < _time_of(fresh, CONTROL_PLANE, "Stopping ")


def _time_of(machine: Machine, unit: str, text: str) -> int:
    entries = [entry for entry in machine.journal(unit) if message(entry).startswith(text)]
    return int(entries[-1]["__MONOTONIC_TIMESTAMP"])
