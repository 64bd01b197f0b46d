"""`pip install --upgrade` under a running supervisor: what runs goes on, nothing of the new package is started."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli

from supervisor.facts import REPLACED
from tests.support.supervisor_process import ROOT, SupervisorProcess
from tests.support.worker_socket_server import WorkerSocketServer

PACKAGES = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WorkerSocketServer]:
    with WorkerSocketServer(tmp_path) as server:
        yield server


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Our packages, copied, so that they can be replaced."""
    copy = tmp_path / "package"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def kill(supervisor: SupervisorProcess, slot: str, incarnation: int = 1) -> None:
    started = supervisor.wait_for("process started", slot=slot, incarnation=incarnation)
    next(member for member in supervisor.family() if member.pid == started["pid"]).kill()
    supervisor.wait_for("process ended", slot=slot, incarnation=incarnation)


def test_what_runs_goes_on_until_nothing_is_left(tmp_path: Path, server: WorkerSocketServer, package: Path) -> None:
    supervisor = SupervisorProcess(
        tmp_path / "supervisor",
        server,
        environment={"PYTHONPATH": str(package)},
        root=package,
        workers=2,
        modules=["my_handlers"],
        module_path=[str(package)],
        limits={"silence": "10s"},
    )
    (package / "my_handlers.py").touch()
    with supervisor:
        for number in (1, 2):
            supervisor.wait_for("ready", slot=f"default-{number}")
        (package / "wire" / "build.py").touch()
        # Its mold is of the old package, so a place is filled as ever.
        kill(supervisor, "default-1")
        supervisor.wait_for("ready", slot="default-1", incarnation=2)
        reload = supervisor.command("reload")
        assert reload.returncode == 78
        assert REPLACED in reload.stderr
        assert supervisor.wait_for(REPLACED)["slot"] == "mold:default:2"
        again = supervisor.command("reload", "--dry-run")
        assert (again.returncode, again.stderr) == (78, f"error: {REPLACED}\n")
        assert REPLACED in supervisor.command("status").stdout
        kill(supervisor, "mold:default")
        # The next one is not used either. It says so by itself; what it would fork is not there to say anything.
        supervisor.wait_for("process ended", slot="mold:default", incarnation=2, cause="drained")
        assert supervisor.command("restart", "default").returncode == 78
        assert supervisor.command("scale", "default", "3").returncode == 78
        kill(supervisor, "default-2")
        assert supervisor.process.poll() is None
        kill(supervisor, "default-1", incarnation=2)
        assert supervisor.process.wait(30) == 75
        supervisor.wait_for(f"error: no worker is left, and {REPLACED}")
        assert not list(supervisor.matching("process started", slot="default-2", incarnation=2))
