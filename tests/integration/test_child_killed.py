"""`kill -9` of a child in mid-job: the slot lives, the job is done by another attempt, the zombie changes nothing."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import automations
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.gate import Gate
from tests.support.raw_worker import RawWorker
from tests.support.supervisor_process import SupervisorProcess
from worker_child.journal_records import decode as read_journal


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    with ControlPlaneProcess(tmp_path) as process:
        yield process


def test_the_job_is_done_again_and_the_zombie_is_acknowledged(plane: ControlPlaneProcess, tmp_path: Path) -> None:
    with Gate() as gate, SupervisorProcess(tmp_path / "box", plane) as supervisor, plane.http() as http:
        step = automations.action_step("hold", "test.gate", {"port": gate.port}, retry={"max_attempts": 3})
        automations.publish(http, "held", [step])
        run = automations.start(http, "held")
        first = gate.knock()
        journal = read_journal((supervisor.state / "journals" / "default-1.journal").read_bytes())
        (claimed,) = journal.claimed
        assert claimed.job_id == first.says["job_id"]

        os.kill(first.says["pid"], signal.SIGKILL)

        supervisor.wait_for("ready", slot="default-1", incarnation=2)
        second = gate.knock()
        assert second.says["job_id"] == first.says["job_id"]
        assert second.says["attempt"] == 2
        assert second.says["pid"] != first.says["pid"]
        assert second.says["worker"] == first.says["worker"] == "box-1"

        with RawWorker(plane) as zombie:
            zombie.register("zombie")
            late = {"type": "job.report", "message_id": "late", "job_id": claimed.job_id, "result": {"from": "zombie"}}
            ack = zombie.ask(late | {"lease_token": claimed.lease_token}, "job.report.ack")
            assert ack["job_id"] == claimed.job_id
            assert ack["message_id"] == "late"

        second.release("finished by the second attempt")
        finished = automations.finish(http, run)
        assert finished["status"] == "completed"
        assert finished["result"]["hold"]["answer"] == "finished by the second attempt"
        (record,) = automations.steps(http, run)
        assert record["attempt"] == 2
        types = automations.event_types(http, run)
        assert types.count("action.result") == 1
        assert types.count("action.called") == 2
        (failed,) = [e for e in automations.events(http, run) if e["event_type"] == "action.failed"]
        assert failed["payload"]["error"]["type"] == "WorkerCrashed"
        assert "9" in failed["payload"]["error"]["message"]


def test_without_a_journal_the_lease_lapses_and_another_child_does_it(tmp_path: Path) -> None:
    arguments = ("--lease-duration", "3s", "--heartbeat-cadence", "1s")
    with (
        ControlPlaneProcess(tmp_path, *arguments) as plane,
        Gate() as gate,
        SupervisorProcess(tmp_path / "box", plane, workers=2, journal="off") as supervisor,
        plane.http() as http,
    ):
        step = automations.action_step("hold", "test.gate", {"port": gate.port}, retry={"max_attempts": 2})
        automations.publish(http, "held", [step])
        run = automations.start(http, "held")
        first = gate.knock()
        os.kill(first.says["pid"], signal.SIGKILL)
        second = gate.knock()
        assert second.says["attempt"] == 2
        second.release()
        assert automations.finish(http, run)["status"] == "completed"
        assert automations.event_types(http, run).count("action.result") == 1
        assert supervisor.terminate() == 0
