"""The control plane is killed with -9 under load and started again: nothing acknowledged is missing."""

import threading
from pathlib import Path

import httpx

from tests.support import automations
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.gate import Gate
from tests.support.supervisor_process import SupervisorProcess

KILLS = 3
RUNS_BEFORE_A_KILL = 40

NAP = {"kind": "sleep", "config": {"duration": "300ms"}}
WAIT = {"kind": "wait_for_event", "config": {"event_type": "told"}}


def test_nothing_acknowledged_is_lost_and_children_come_back(tmp_path: Path) -> None:
    # A lease outlives the longest reconnect delay that a few kills in a row can build up.
    arguments = ("--lease-duration", "45s", "--heartbeat-cadence", "5s")
    with (
        ControlPlaneProcess(tmp_path, *arguments) as plane,
        Gate() as gate,
        SupervisorProcess(tmp_path / "box", plane, workers=2, concurrency=5) as supervisor,
    ):
        with plane.http() as http:
            steps = [automations.action_step(key, "test.noop", retry={"max_attempts": 10}) for key in ("a", "b")]
            automations.publish(http, "load", steps)
            automations.publish(http, "held", [automations.action_step("hold", "test.gate", {"port": gate.port})])
            held = automations.start(http, "held")
            action, tidy = (automations.action_step(key, "test.noop", retry={"max_attempts": 10}) for key in "bt")
            steps = [{"key": "a", **NAP}, action, {"key": "c", **NAP}, {"key": "d", **WAIT}]
            automations.publish(http, "naps", steps, cleanup=[tidy], defaults={"wall_clock_timeout": "1h"})
            automations.publish(http, "line", [{"key": "a", **NAP}], concurrency="queue")
        visit = gate.knock()

        acknowledged: list[str] = []
        enough = threading.Event()

        def produce() -> None:
            """Start runs until the control plane is gone; what was answered counts."""
            with plane.http() as http:
                try:
                    while True:
                        acknowledged.append(automations.start(http, "load"))
                        if len(acknowledged) % RUNS_BEFORE_A_KILL == 0:
                            enough.set()
                except httpx.TransportError:
                    return

        waiting: dict[str, list[str]] = {"naps": [], "line": []}
        for kill in range(1, KILLS + 1):
            enough.clear()
            with plane.http() as http:
                for handle, runs in waiting.items():
                    runs += [automations.start(http, handle) for _ in range(3)]
            producer = threading.Thread(target=produce)
            producer.start()
            assert enough.wait(30)
            plane.kill()
            producer.join()
            plane.start()
            for slot in ("default-1", "default-2"):
                supervisor.wait_for("session.registered", slot=slot, count=kill + 1)

        with plane.http() as http:
            for run in acknowledged:
                assert automations.finish(http, run)["status"] == "completed", run
                types = automations.event_types(http, run)
                assert types.count("action.result") == 2
                assert types[-1] == "run.completed"
                sequences = [event["sequence"] for event in automations.events(http, run)]
                assert sequences == list(range(1, len(sequences) + 1))
            for run in waiting["naps"]:
                signal = http.post(f"{automations.RUNS}/{run}/signals", json={"step_key": "d", "result": {"told": run}})
                assert signal.status_code == 200
                assert automations.finish(http, run)["result"] == {"a": {}, "b": {}, "c": {}, "d": {"told": run}}
                types = automations.event_types(http, run)
                assert (types.count("step.completed"), types.count("action.result")) == (5, 2)
            ended = [automations.finish(http, run) for run in waiting["line"]]
            assert [run["status"] for run in ended] == ["completed"] * len(ended)
            starts = [run["started_at"] for run in ended]
            assert starts == sorted(starts)
            assert all(automations.event_types(http, run).count("step.completed") == 1 for run in waiting["line"])
            visit.release("held through it all")
            assert automations.finish(http, held)["result"]["hold"]["answer"] == "held through it all"
        assert not list(supervisor.matching("process ended"))
        assert supervisor.terminate() == 0
