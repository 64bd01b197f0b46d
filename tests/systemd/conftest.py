"""A machine with a real systemd, and the product installed on it as docs/systemd.md says."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_systemd import Machine, boot, incapable, why_not

REPOSITORY = Path(__file__).parents[2]
UNITS = REPOSITORY / "systemd"
HANDLERS = Path(__file__).with_name("handlers.py")
SUPERVISOR = "mobius-supervisor.service"
CONTROL_PLANE = "mobius-control-plane.service"
CONTROL_PLANE_PORT = 8780
API_KEY = "/etc/credstore/mobius-api-key"
BOOTSTRAP_KEY = "/var/lib/mobius-control-plane/bootstrap-key"
CHECKOUT = "/opt/checkout"
DEPENDENCIES = "/opt/dependencies"
INTERPRETER = "/opt/python"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
    """In continuous integration, a machine that can run these tests must run them."""
    report: Any = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true" and incapable() is None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must not be skipped here (uid 0, and unshare works): {reason}"
    return report


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(directory)]
    name = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split()[-1]
    return directory / name


@pytest.fixture(scope="session")
def booted(wheel: Path) -> Iterator[Machine]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    libraries = Path(sysconfig.get_path("purelib"))
    binds = [(wheel, f"/opt/{wheel.name}"), (libraries, DEPENDENCIES), (UNITS, f"{CHECKOUT}/systemd")]
    base = Path(sys.executable).resolve()
    prefix = Path(sys.base_prefix).resolve()
    if not base.is_relative_to("/usr"):
        # An interpreter in somebody's home cannot be executed by the units' users, and the units hide homes.
        binds.append((prefix, INTERPRETER))
        base = Path(INTERPRETER) / base.relative_to(prefix)
    with boot(binds) as machine:
        _install(machine, wheel.name, base)
        yield machine


def _install(machine: Machine, wheel: str, base: Path) -> None:
    """The package from its wheel, into a virtual environment in /opt/mobius; what it needs is there already."""
    if base.is_relative_to(INTERPRETER):
        # Its own library, not one of the distribution that has the same name.
        machine.write("/etc/ld.so.conf.d/00-interpreter.conf", f"{INTERPRETER}/lib\n")
        machine.run("/sbin/ldconfig")
    machine.run(str(base), "-m", "venv", "--without-pip", "/opt/mobius")
    python = "/opt/mobius/bin/python"
    environment = {**os.environ, "PYTHONPATH": DEPENDENCIES}
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    machine.run(*pip, "--root-user-action=ignore", f"/opt/{wheel}", env=environment)
    libraries = machine.run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    machine.write(f"{libraries}/dependencies.pth", f"{DEPENDENCIES}\n")
    machine.write("/opt/handlers/handlers.py", HANDLERS.read_text())
    install_units(machine)


def install_units(machine: Machine) -> None:
    """Both units as they are shipped."""
    for unit in UNITS.glob("*.service"):
        machine.write(f"/etc/systemd/system/{unit.name}", unit.read_text())
    machine.run("systemctl", "daemon-reload")


@pytest.fixture
def machine(booted: Machine) -> Machine:
    """The machine, with the supervisor's unit as it is shipped, stopped and without state."""
    clean(booted, SUPERVISOR)
    return booted


CLEAN = """
systemctl kill --signal=KILL $1.service 2>/dev/null
systemctl stop $1.service
systemctl reset-failed $1.service 2>/dev/null
set -e
rm -rf /etc/systemd/system/$1.service.d /var/lib/$1 /var/lib/private/$1 /etc/mobius /etc/credstore
systemctl daemon-reload
journalctl --quiet --rotate --vacuum-size=1
"""


def clean(machine: Machine, unit: str) -> None:
    """Stop a unit at once, and forget its drop-ins, its state and its configuration; and forget the whole log."""
    machine.run("sh", "-c", CLEAN, "sh", unit.removesuffix(".service"))


@pytest.fixture
def control_plane(machine: Machine) -> "ControlPlane":
    """The control plane's unit, running, with an automation for each of our handlers."""
    if machine.run("systemctl", "is-active", CONTROL_PLANE, check=False).returncode == 0:
        return ControlPlane(machine)
    machine.run("systemctl", "start", CONTROL_PLANE)
    control_plane = ControlPlane(machine)
    for name in ("hold", "hold-a-program", "exhaust-memory", "speak"):
        control_plane.publish(name, f"test.{name}".replace("-", "_"))
    return control_plane


def ask(
    machine: Machine, port: int, path: str, *, method: str = "GET", key: str = "", body: dict[str, Any] | None = None
) -> bytes:
    """The body of an answer of a server inside, which must be a success."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.sock = machine.connect(port)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"} if key else {}
    with contextlib.closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read()
    assert response.status < 300, text
    return text


def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    """Ask again and again, for what tells nobody when it changes. Raises AssertionError when it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"


class ControlPlane:
    """The machine's control plane, asked over HTTP from outside."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._key = machine.run("cat", BOOTSTRAP_KEY).stdout.strip()

    def publish(self, handle: str, action: str) -> None:
        """An automation with one step."""
        step = {"key": "only", "kind": "action", "config": {"action_name": action}}
        self._ask("POST", "automations", {"handle": handle, "name": handle})
        self._ask("POST", f"automations/{handle}/versions", {"spec": {"steps": [step]}})
        self._ask("POST", f"automations/{handle}/versions/1/publication")

    def start(self, handle: str) -> str:
        """Start a run; its id."""
        return str(self._json("POST", f"automations/{handle}/runs", {})["id"])

    def status(self, run: str) -> str:
        """Of a run, now."""
        return str(self._json("GET", f"runs/{run}")["status"])

    def attempts(self, run: str) -> list[int]:
        """Follow a run to its end, which must be a success; the attempt that each of its steps ended with."""
        self._ask("GET", f"runs/{run}/events.stream?since_sequence=0")
        assert self._json("GET", f"runs/{run}")["status"] == "completed"
        return [step["attempt"] for step in self._json("GET", f"runs/{run}/steps")["items"]]

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return json.loads(self._ask(method, path, body))

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        path = f"/v1/projects/default/{path}"
        return ask(self._machine, CONTROL_PLANE_PORT, path, method=method, key=self._key, body=body)
