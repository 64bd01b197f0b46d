"""A job that ends its worker: it is found among innocents, convicted only when it was alone, and parked in the end."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import automations
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.gate import Gate, Visit
from tests.support.supervisor_process import SupervisorProcess

SLOT = "default-1"
QUICKLY = {"backoff_min": "10ms", "backoff_max": "100ms"}


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    with ControlPlaneProcess(tmp_path) as process:
        yield process


def publish(http: httpx.Client, handle: str, action: str, gate: Gate) -> None:
    step = automations.action_step("step", action, {"port": gate.port}, retry={"max_attempts": 10})
    automations.publish(http, handle, [step])


def errors(http: httpx.Client, run: str) -> list[dict[str, str]]:
    """Type and message of the run's failed attempts."""
    events = [event for event in automations.events(http, run) if event["event_type"] == "action.failed"]
    return [event["payload"]["error"] for event in events]


def failures(http: httpx.Client, run: str) -> list[str]:
    """The types alone."""
    return [error["type"] for error in errors(http, run)]


def held_against(supervisor: SupervisorProcess) -> dict[str, int]:
    """Job id -> convictions, as the box remembers them."""
    files = (supervisor.state / "journals" / "suspects").glob("*.json")
    suspects = [json.loads(file.read_text()) for file in files]
    return {suspect["job_id"]: len(suspect["convictions"]) for suspect in suspects}


def test_a_job_that_segfaults_beside_innocents(plane: ControlPlaneProcess, tmp_path: Path) -> None:
    with (
        Gate() as gate,
        SupervisorProcess(tmp_path / "box", plane, concurrency=3, restart=QUICKLY) as supervisor,
        plane.http() as http,
    ):
        publish(http, "innocent", "test.gate", gate)
        publish(http, "guilty", "test.bomb", gate)
        innocents = [automations.start(http, "innocent"), automations.start(http, "innocent")]
        first = [gate.knock(), gate.knock()]
        guilty = automations.start(http, "guilty")
        bomb = gate.knock()
        bomb_id = bomb.says["job_id"]
        assert {visit.says["pid"] for visit in [*first, bomb]} == {bomb.says["pid"]}

        bomb.release()

        supervisor.wait_for("ready", slot=SLOT, incarnation=2)
        visits: list[Visit] = []
        while len(visits) < 5:
            visit = gate.knock()
            visits.append(visit)
            assert gate.is_quiet(0.2), "a suspect runs alone"
            if len(visits) == 1:
                assert set(held_against(supervisor).values()) <= {0, 1}
            visit.release("done")
        assert sorted(visit.says["job_id"] == bomb_id for visit in visits) == [False, False, True, True, True]
        assert len({visit.says["pid"] for visit in visits if visit.says["job_id"] == bomb_id}) == 3

        for run in innocents:
            assert automations.finish(http, run)["status"] == "completed"
            assert failures(http, run) == ["WorkerCrashed"], "charged with what it was beside, and with nothing else"
        failed = automations.finish(http, guilty)
        assert failed["status"] == "failed"
        assert failures(http, guilty) == ["WorkerCrashed"] * 3 + ["PoisonJob"]
        evidence = errors(http, guilty)[-1]["message"]
        assert evidence.count("of default-1") == 3, evidence
        assert evidence.count("signal 11") == 3, evidence
        assert held_against(supervisor) == {bomb_id: 3}
        assert supervisor.terminate() == 0


def test_an_operators_kill_a_drain_and_a_restart_count_against_nobody(
    plane: ControlPlaneProcess, tmp_path: Path
) -> None:
    with (
        Gate() as gate,
        SupervisorProcess(tmp_path / "box", plane, supervisor={"drain_timeout": "2s"}, restart=QUICKLY) as supervisor,
        plane.http() as http,
    ):
        publish(http, "held", "test.gate", gate)
        run = automations.start(http, "held")
        for incarnation in range(2, 7):
            visit = gate.knock()
            if incarnation % 2:
                os.kill(visit.says["pid"], signal.SIGTERM)
            else:
                os.kill(visit.says["pid"], signal.SIGKILL)
            supervisor.wait_for("ready", slot=SLOT, incarnation=incarnation)
        gate.knock().release("done")
        assert automations.finish(http, run)["status"] == "completed"
        assert set(failures(http, run)) == {"WorkerCrashed", "WorkerShutdown"}
        assert held_against(supervisor) == {}
