"""What a handler may do under the supervisor's unit, and which drop-in gives it what it lacks."""

import json
import re
from pathlib import Path

import pytest

from tests.support.real_systemd import Machine, message
from tests.systemd.conftest import UNITS

UNIT = "mobius-supervisor.service"
DROP_INS = f"/etc/systemd/system/{UNIT}.d"
PROBE = Path(__file__).with_name("sandbox_probe.py")

USER_ID = "977"

RUN_THE_PROBE = """[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStop=
ExecStart=
ExecStart=/opt/mobius/bin/python /opt/sandbox_probe.py
"""

UNIT_ALONE = {
    "executable_memory": "Operation not permitted",
    "change_owner": "Operation not permitted",
    "setgid_bit": "Operation not permitted",
    "processor_affinity": "Operation not permitted",
    "network_interfaces": "Address family not supported by protocol",
    "build_a_sandbox": "Operation not permitted",
    "read_home_directories": "Permission denied",
    "write_elsewhere": "Read-only file system",
    "write_home": "works",
    "write_temporary_files": "works",
    "write_shared_memory": "works",
    "reach_the_network": "works",
    "start_programs": "works",
    "see_other_users_processes": "No such file or directory",
    "kernel_facts": "works",
    "open_a_gpu": "No such file or directory",
}

RELAXED = UNIT_ALONE | {
    "executable_memory": "works",
    "change_owner": "works",
    "processor_affinity": "works",
    "network_interfaces": "works",
    "read_home_directories": "works",
}

SANDBOXES = RELAXED | {"build_a_sandbox": "works"}

GPU = UNIT_ALONE | {
    "executable_memory": "works",
    "processor_affinity": "works",
    "network_interfaces": "works",
    "open_a_gpu": "works",
}


@pytest.fixture
def gpu_node(machine: Machine) -> None:
    """A node where ROCm's would be, of a device that is always there, and the group that opens such nodes."""
    machine.run("sh", "-c", "test -e /dev/kfd || mknod -m 0660 /dev/kfd c 1 5")
    machine.run("groupadd", "--system", "--force", "render")
    machine.run("chgrp", "render", "/dev/kfd")


@pytest.mark.parametrize(
    ("drop_in", "uncommented", "expected"),
    [
        (None, False, UNIT_ALONE),
        ("relaxed.conf", False, RELAXED),
        ("relaxed.conf", True, SANDBOXES),
        ("gpu.conf", False, GPU),
    ],
    ids=["the unit alone", "relaxed.conf", "relaxed.conf with sandboxes", "gpu.conf"],
)
def test_what_a_handler_may_do(
    machine: Machine, gpu_node: None, drop_in: str | None, uncommented: bool, expected: dict[str, str]
) -> None:
    if drop_in is not None:
        text = (UNITS / f"{UNIT}.d" / drop_in).read_text()
        machine.write(f"{DROP_INS}/{drop_in}", re.sub(r"(?m)^#(?=[A-Z]\w+=)", "", text) if uncommented else text)
    assert probe(machine) == [expected]


def test_a_system_user_of_the_units_name_is_used_and_inherits_the_state(machine: Machine) -> None:
    probe(machine)
    file = "/var/lib/mobius-supervisor/file"
    assert machine.run("stat", "--format=%a %u", file).stdout != f"600 {USER_ID}\n"
    machine.run("useradd", "--system", "--uid", USER_ID, "mobius-supervisor")
    try:
        assert len(probe(machine)) == 2
    finally:
        machine.run("userdel", "mobius-supervisor")
    assert machine.run("stat", "--format=%a %u", file).stdout == f"600 {USER_ID}\n"


def probe(machine: Machine) -> list[dict[str, str]]:
    """Run the probe in the place of the supervisor; what it printed, each time that it ran."""
    machine.write("/opt/sandbox_probe.py", PROBE.read_text())
    machine.write(f"{DROP_INS}/probe.conf", RUN_THE_PROBE)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", UNIT)
    lines = [message(entry) for entry in machine.journal(UNIT)]
    return [json.loads(line.removeprefix("probed")) for line in lines if line.startswith("probed")]
