"""docs/systemd.md: its commands install what runs, and it knows every setting that it should."""

import re
from collections.abc import Iterator

import pytest

from tests.support.real_systemd import Machine, message
from tests.systemd.conftest import CHECKOUT, CONTROL_PLANE, REPOSITORY, SUPERVISOR, UNITS, clean, install_units

PAGE = (REPOSITORY / "docs" / "systemd.md").read_text()


def snippet(name: str) -> str:
    match = re.search(rf"<!-- test: {re.escape(name)} -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None, name
    return match[1]


@pytest.fixture
def bare(machine: Machine) -> Iterator[Machine]:
    """Without our units."""
    clean(machine, CONTROL_PLANE)
    machine.run("sh", "-c", "rm /etc/systemd/system/mobius-*.service && systemctl daemon-reload")
    yield machine
    machine.run("systemctl", "disable", SUPERVISOR, CONTROL_PLANE, check=False)
    install_units(machine)
    clean(machine, CONTROL_PLANE)


def test_the_commands_of_the_page_install_what_works(bare: Machine) -> None:
    def follow(name: str) -> None:
        bare.run("sh", "-e", "-c", f"cd {CHECKOUT}\n{snippet(name)}")

    follow("control plane")
    follow("key")
    follow("supervisor")
    follow("check")
    bare.wait_for(SUPERVISOR, lambda entry: message(entry).startswith("ready") and "slot=default-2" in message(entry))
    for unit in (SUPERVISOR, CONTROL_PLANE):
        assert bare.run("systemctl", "is-enabled", unit).stdout == "enabled\n"


def test_the_page_explains_every_setting_of_the_drop_ins() -> None:
    text = "".join(path.read_text() for path in UNITS.rglob("*.conf"))
    keys = {match[1] for match in re.finditer(r"(?m)^#?([A-Z]\w+)=", text)}
    assert {key for key in keys if f"{key}=" not in PAGE} == {"DevicePolicy"}
