"""SIGTERM with jobs in hand: no new claims, what is in hand is finished and acknowledged, and nothing is left."""

import signal
import time
from pathlib import Path

import pytest

from tests.support import automations
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.gate import Gate
from tests.support.supervisor_process import SupervisorProcess


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_jobs_in_hand_finish_and_new_ones_wait(tmp_path: Path, number: signal.Signals) -> None:
    with (
        ControlPlaneProcess(tmp_path) as plane,
        Gate() as gate,
        SupervisorProcess(tmp_path / "box", plane, workers=2) as supervisor,
        plane.http() as http,
    ):
        automations.publish(http, "held", [automations.action_step("hold", "test.gate", {"port": gate.port})])
        in_hand = [automations.start(http, "held") for _ in range(2)]
        visits = [gate.knock() for _ in range(2)]
        assert {visit.says["worker"] for visit in visits} == {"box-1", "box-2"}
        supervisor.family()

        supervisor.process.send_signal(number)
        supervisor.wait_for("stopping")
        waiting = automations.start(http, "held")
        for visit in visits:
            visit.release("in time")

        assert supervisor.process.wait(30) == 0
        assert supervisor.leftovers() == []
        assert supervisor.wait_for("stopped")["finished"] == 2
        assert gate.is_quiet(0)
        for run in in_hand:
            assert automations.finish(http, run)["status"] == "completed"
        (step,) = automations.steps(http, waiting)
        assert step["status"] == "suspended"
        assert automations.event_types(http, waiting).count("action.called") == 0
        # Their ends are written after their sockets have closed.
        deadline = time.monotonic() + 30
        while left := automations.created(http.get("/v1/projects/default/worker-sessions"))["items"]:
            assert time.monotonic() < deadline, left


def test_a_job_that_does_not_finish_is_cut_off_and_given_back(tmp_path: Path) -> None:
    with (
        ControlPlaneProcess(tmp_path) as plane,
        Gate() as gate,
        SupervisorProcess(tmp_path / "box", plane, supervisor={"drain_timeout": "1s"}) as supervisor,
        plane.http() as http,
    ):
        step = automations.action_step("hold", "test.gate", {"port": gate.port}, retry={"max_attempts": 2})
        automations.publish(http, "held", [step])
        run = automations.start(http, "held")
        visit = gate.knock()
        assert supervisor.terminate() == 75
        visit.wait_for_end()
        assert supervisor.leftovers() == []
        failed = [e for e in automations.events(http, run) if e["event_type"] == "action.failed"]
        assert [e["payload"]["error"]["type"] for e in failed] == ["WorkerShutdown"]

        supervisor.start()
        again = gate.knock()
        assert again.says["attempt"] == 2
        again.release()
        assert automations.finish(http, run)["status"] == "completed"
