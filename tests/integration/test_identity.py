"""Who owns a worker_instance_id: a restarted worker at once, a second live process never."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import automations
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.supervisor_process import SupervisorProcess


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    with ControlPlaneProcess(tmp_path) as process:
        yield process


def instances(plane: ControlPlaneProcess) -> list[tuple[str, str]]:
    """The presence rows: id and status."""
    with plane.http() as http:
        items = automations.created(http.get("/v1/projects/default/worker-sessions"))["items"]
    return [(item["worker_instance_id"], item["instance_status"]) for item in items]


def test_a_killed_child_takes_its_identity_back_at_once(plane: ControlPlaneProcess, tmp_path: Path) -> None:
    with SupervisorProcess(tmp_path / "box", plane) as supervisor:
        supervisor.wait_for("ready", slot="default-1")
        os.kill(supervisor.wait_for("process started", slot="default-1")["pid"], signal.SIGKILL)
        supervisor.wait_for("ready", slot="default-1", incarnation=2, timeout=60)
        assert instances(plane) == [("box-1", "active")]


def test_a_killed_supervisor_gives_its_identity_to_the_next(plane: ControlPlaneProcess, tmp_path: Path) -> None:
    with SupervisorProcess(tmp_path / "box", plane) as supervisor:
        supervisor.wait_for("ready", slot="default-1")
        supervisor.kill()
        supervisor.start()
        supervisor.wait_for("ready", slot="default-1", count=2, timeout=60)
        assert instances(plane) == [("box-1", "active")]


def test_a_killed_control_plane_gives_every_worker_its_identity_back(
    plane: ControlPlaneProcess, tmp_path: Path
) -> None:
    with SupervisorProcess(tmp_path / "box", plane, workers=2) as supervisor:
        for slot in ("default-1", "default-2"):
            supervisor.wait_for("ready", slot=slot)
        plane.kill()
        plane.start()
        for slot in ("default-1", "default-2"):
            supervisor.wait_for("session.registered", slot=slot, count=2, timeout=60)
        assert sorted(instances(plane)) == [("box-1", "active"), ("box-2", "active")]


def test_a_second_live_process_is_refused_with_a_clear_word(plane: ControlPlaneProcess, tmp_path: Path) -> None:
    with SupervisorProcess(tmp_path / "box", plane) as supervisor:
        supervisor.wait_for("ready", slot="default-1")
        limits = {"identity_conflict": "4s"}
        with SupervisorProcess(tmp_path / "copy", plane, limits=limits) as copy:
            words = copy.wait_for("last words", slot="default-1", refused=True)
            assert "box-1" in words["reason"]
            assert "another" in words["reason"]
        assert instances(plane) == [("box-1", "active")]
        assert not list(supervisor.matching("process ended"))
