"""The control plane's unit under a real systemd."""

from collections.abc import Iterator

import pytest

from tests.support.real_systemd import Machine, message
from tests.systemd.conftest import (
    API_KEY,
    BOOTSTRAP_KEY,
    CONTROL_PLANE,
    CONTROL_PLANE_PORT,
    SUPERVISOR,
    ControlPlane,
    ask,
    clean,
    until,
)


@pytest.fixture
def fresh(machine: Machine) -> Iterator[Machine]:
    clean(machine, CONTROL_PLANE)
    yield machine
    clean(machine, CONTROL_PLANE)


def test_it_starts_writes_its_first_key_for_root_alone_and_stops(fresh: Machine) -> None:
    fresh.run("systemctl", "start", CONTROL_PLANE)
    # Whoever was started after it finds it listening.
    assert ask(fresh, CONTROL_PLANE_PORT, "/readyz")
    assert fresh.show(CONTROL_PLANE, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    assert fresh.run("stat", "--format=%a", BOOTSTRAP_KEY).stdout == "600\n"
    assert fresh.run("cat", BOOTSTRAP_KEY).stdout.startswith("mbx_")
    assert fresh.run("runuser", "-u", "nobody", "--", "cat", BOOTSTRAP_KEY, check=False).returncode != 0
    fresh.run("systemctl", "stop", CONTROL_PLANE)
    assert fresh.show(CONTROL_PLANE, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert fresh.processes(CONTROL_PLANE) == []


def add_setting(machine: Machine, setting: str) -> None:
    machine.write(f"/etc/systemd/system/{CONTROL_PLANE}.d/test.conf", f"[Service]\n{setting}\n")
    machine.run("systemctl", "daemon-reload")


def with_a_run(machine: Machine) -> tuple[ControlPlane, str]:
    """A run that waits for a worker."""
    machine.run("systemctl", "start", CONTROL_PLANE)
    control_plane = ControlPlane(machine)
    control_plane.publish("kept", "print")
    return control_plane, control_plane.start("kept")


def test_it_says_what_there_is_to_do(fresh: Machine) -> None:
    with_a_run(fresh)
    fresh.run("systemctl", "restart", CONTROL_PLANE)
    expected = "serving: 0 worker sessions; 0 jobs in hand, 1 waiting; 1 open run"
    until(lambda: fresh.show(CONTROL_PLANE, "StatusText")["StatusText"] == expected)


def test_the_watchdog_replaces_one_that_stands_still_and_nothing_is_lost(fresh: Machine) -> None:
    add_setting(fresh, "WatchdogSec=3s")
    control_plane, run = with_a_run(fresh)
    began = int(fresh.show(CONTROL_PLANE, "ActiveEnterTimestampMonotonic")["ActiveEnterTimestampMonotonic"])
    fed = "WatchdogTimestampMonotonic"
    # More than once within the limit, so it lives by being fed.
    until(lambda: int(fresh.show(CONTROL_PLANE, fed)[fed]) > began + 3_000_000)
    main = fresh.show(CONTROL_PLANE, "MainPID", "NRestarts")
    assert main["NRestarts"] == "0"
    fresh.run("kill", "-STOP", main["MainPID"])
    bark = fresh.wait_for(CONTROL_PLANE, lambda entry: "Watchdog timeout" in message(entry))
    fresh.wait_for(CONTROL_PLANE, lambda entry: "Fatal Python error: Aborted" in message(entry))
    fresh.wait_for(CONTROL_PLANE, lambda entry: message(entry).startswith("Started "), after=bark["__CURSOR"])
    assert fresh.show(CONTROL_PLANE, "MainPID")["MainPID"] != main["MainPID"]
    assert control_plane.status(run) == "suspended"


def test_its_settings_come_from_a_file_of_the_operators(fresh: Machine) -> None:
    fresh.write("/etc/mobius/control-plane.env", "MOBIUS_LISTEN=127.0.0.1:8790\nMOBIUS_OPTIONS=--lease-duration 120s\n")
    fresh.run("systemctl", "start", CONTROL_PLANE)
    assert any("http://127.0.0.1:8790" in message(entry) for entry in fresh.journal(CONTROL_PLANE))
    command = f"/proc/{fresh.show(CONTROL_PLANE, 'MainPID')['MainPID']}/cmdline"
    assert "\0".join(["--lease-duration", "120s"]) in fresh.run("cat", command).stdout


def test_a_wrong_setting_is_said_once_and_not_tried_again(fresh: Machine) -> None:
    fresh.write("/etc/mobius/control-plane.env", "MOBIUS_LISTEN=0.0.0.0:8780\n")
    assert fresh.run("systemctl", "start", CONTROL_PLANE, check=False).returncode != 0
    shown = fresh.show(CONTROL_PLANE, "ActiveState", "ExecMainStatus", "NRestarts")
    assert shown == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    (said,) = [entry for entry in fresh.journal(CONTROL_PLANE) if "--listen 0.0.0.0:8780" in message(entry)]
    assert said["PRIORITY"] == "3"


def test_it_is_there_again_with_its_keys_after_a_crash(fresh: Machine) -> None:
    control_plane, run = with_a_run(fresh)
    key = fresh.run("cat", BOOTSTRAP_KEY).stdout
    fresh.run("kill", "-KILL", fresh.show(CONTROL_PLANE, "MainPID")["MainPID"])
    death = fresh.wait_for(CONTROL_PLANE, lambda entry: "Main process exited" in message(entry))
    fresh.wait_for(CONTROL_PLANE, lambda entry: message(entry).startswith("Started "), after=death["__CURSOR"])
    assert fresh.run("cat", BOOTSTRAP_KEY).stdout == key
    assert control_plane.status(run) == "suspended"


CHOSEN_KEY = "mbx_" + "c7" * 16


def test_its_first_key_may_be_a_credential(fresh: Machine) -> None:
    fresh.write("/etc/credstore/mobius-bootstrap-key", f"{CHOSEN_KEY}\n", "0600")
    fresh.run("systemctl", "start", CONTROL_PLANE)
    assert fresh.run("test", "-e", BOOTSTRAP_KEY, check=False).returncode == 1
    assert ask(fresh, CONTROL_PLANE_PORT, "/v1/projects/default", key=CHOSEN_KEY)
    main = fresh.show(CONTROL_PLANE, "MainPID")["MainPID"]
    places = [f"/proc/{main}/environ", f"/proc/{main}/cmdline"]
    assert fresh.run("grep", "--fixed-strings", CHOSEN_KEY, *places, check=False).returncode == 1
    assert all(CHOSEN_KEY not in str(entry) for entry in fresh.journal(CONTROL_PLANE))


def test_a_key_file_among_the_credentials_is_private_enough(fresh: Machine) -> None:
    fresh.write("/etc/credstore/elsewhere", f"{CHOSEN_KEY}\n", "0600")
    command = (
        "/opt/mobius/bin/mobius-control-plane serve --store sqlite://%S/mobius-control-plane/control-plane.db "
        "--bootstrap-key-file %d/key"
    )
    add_setting(fresh, f"LoadCredential=key:elsewhere\nExecStart=\nExecStart={command}")
    fresh.run("systemctl", "start", CONTROL_PLANE)
    assert ask(fresh, CONTROL_PLANE_PORT, "/v1/projects/default", key=CHOSEN_KEY)


def test_the_password_of_its_store_is_a_credential(fresh: Machine) -> None:
    """Of a database that is not there: it is asked all the same, again and again, and never with a word about files."""
    fresh.write("/etc/credstore/mobius-store-password", "s3cret-of-the-store\n", "0600")
    fresh.write("/etc/mobius/control-plane.env", "MOBIUS_STORE=postgresql://mobius@127.0.0.1:1/mobius\n")
    fresh.run("systemctl", "start", "--no-block", CONTROL_PLANE)
    said = fresh.wait_for(CONTROL_PLANE, lambda entry: "cannot be reached" in message(entry))
    assert said["PRIORITY"] == "3"
    fresh.wait_for(CONTROL_PLANE, lambda entry: "status=69" in message(entry))
    fresh.wait_for(CONTROL_PLANE, lambda entry: "Scheduled restart job" in message(entry))
    assert all("s3cret" not in str(entry) for entry in fresh.journal(CONTROL_PLANE))


def test_its_log_has_fields(fresh: Machine) -> None:
    fresh.run("systemctl", "start", CONTROL_PLANE)
    listening = fresh.wait_for(CONTROL_PLANE, lambda entry: message(entry).startswith("listening "))
    expected = {
        "_TRANSPORT": "journal",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "mobius-control-plane",
        "MOBIUS_EVENT": "listening",
        "MOBIUS_URL": "http://127.0.0.1:8780",
    }
    assert expected.items() <= listening.items()


def test_it_stops_after_the_supervisor_when_everything_stops(fresh: Machine) -> None:
    """Both are stopped by one job, as they are when the machine goes down."""
    fresh.write("/run/systemd/system/everything.target", "[Unit]\nDescription=Everything\n")
    for unit in (SUPERVISOR, CONTROL_PLANE):
        fresh.write(f"/etc/systemd/system/{unit}.d/test.conf", "[Unit]\nPartOf=everything.target\n")
    fresh.run("systemctl", "daemon-reload")
    fresh.run("systemctl", "start", CONTROL_PLANE)
    fresh.run("install", "-D", "-m", "0600", BOOTSTRAP_KEY, API_KEY)
    fresh.write("/etc/mobius/pool.toml", '[control_plane]\napi_url = "http://127.0.0.1:8780"\n[[pool]]\nworkers = 1\n')
    fresh.run("systemctl", "start", SUPERVISOR, "everything.target")
    fresh.run("systemctl", "stop", "everything.target")
    fresh.run("systemctl", "stop", SUPERVISOR, CONTROL_PLANE)
    assert _time_of(fresh, SUPERVISOR, "Stopped ") < _time_of(fresh, CONTROL_PLANE, "Stopping ")


def _time_of(machine: Machine, unit: str, text: str) -> int:
    entries = [entry for entry in machine.journal(unit) if message(entry).startswith(text)]
    return int(entries[-1]["__MONOTONIC_TIMESTAMP"])
