"""A worker's key is exchanged under it: the old one ends, and the job in its hands goes on."""

from pathlib import Path

from tests.support import automations
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.gate import Gate
from tests.support.supervisor_process import SupervisorProcess


def test_a_job_outlives_the_key_of_its_worker(tmp_path: Path) -> None:
    with ControlPlaneProcess(tmp_path / "plane") as plane, plane.http() as http, Gate() as gate:
        keys = "/v1/projects/default/keys"
        made = automations.created(http.post(keys, json={"name": "fleet", "scopes": ["worker"]}))
        key_file = tmp_path / "worker-key"
        key_file.touch(mode=0o600)
        key_file.write_text(made["secret"])
        with SupervisorProcess(tmp_path / "box", plane, control_plane={"api_key_file": str(key_file)}) as supervisor:
            registered = supervisor.wait_for("session.registered", slot="default-1")
            step = automations.action_step("one", "test.gate", {"port": gate.port})
            automations.publish(http, "a", [step])
            run_id = automations.start(http, "a")
            visit = gate.knock()
            rotation = f"{keys}/{made['key']['id']}/rotations"
            key_file.write_text(automations.created(http.post(rotation, json={"overlap_seconds": 3}))["secret"])
            supervisor.wait_for("session.registered", slot="default-1", count=2)
            visit.release({})
            events = list(automations.stream(http, run_id))
            assert events[-1]["event_type"] == "run.completed"
            assert sum(event["event_type"] == "action.called" for event in events) == 1
            assert not list(supervisor.matching("process ended", slot="default-1"))
            assert registered
            assert supervisor.terminate() == 0
