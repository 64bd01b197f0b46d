import json
import signal
from collections.abc import Iterator

import pytest

from tests.support.mobius_command import MobiusCommand


@pytest.fixture(scope="module")
def worker(command: MobiusCommand) -> Iterator[None]:
    """A worker of queue `default`. Runs wait for it, so nobody has to wait until it is there."""
    with command.start("worker", "--concurrency", "5", "--instance-id", "helper"):
        yield


@pytest.fixture(scope="module", autouse=True)
def automations(command: MobiusCommand) -> None:
    for handle, queue_action in (("waits", "nobody.has.this"), ("prints", "print"), ("fails", "fail")):
        parameters = {"message": "said"}
        config = {"action_name": queue_action, "parameters": parameters}
        spec = {"steps": [{"key": "only", "kind": "action", "config": config}]}
        document = json.dumps({"handle": handle, "spec": spec})
        done = command.run("automations", "create", "-", "--publish", stdin=document)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def approval(command: MobiusCommand) -> str:
    config = {"event_type": "approved", "match": {"order": 7}}
    spec = {"steps": [{"key": "ok", "kind": "wait_for_event", "config": config}]}
    done = command.run("automations", "create", "-", "--publish", stdin=json.dumps({"handle": "asks", "spec": spec}))
    assert done.returncode == 0, done.stderr
    return "asks"


def started(command: MobiusCommand, handle: str) -> str:
    return str(command.json("automations", "start", handle)["id"])


def test_a_run_that_waits_and_is_cancelled(command: MobiusCommand) -> None:
    run_id = started(command, "waits")
    assert command.json("runs", "get", run_id)["status"] == "suspended"
    titles, row = command.run("runs", "list-steps", run_id).stdout.splitlines()
    assert titles.split() == ["STEP", "KIND", "STATUS", "ATTEMPT", "JOB", "TOOK", "ERROR"]
    assert row.split()[:3] == ["only", "action", "suspended"]
    assert row.split()[4].startswith("job_")
    assert command.run("runs", "cancel", run_id, "--reason", "enough").stdout == f"{run_id} is cancelled\n"
    assert command.json("runs", "cancel", run_id)["status"] == "cancelled"
    done = command.run("runs", "stream", run_id)
    assert done.returncode == 1
    assert "run.cancelled" in done.stdout.splitlines()[-1]
    assert f"run {run_id} ended cancelled" in done.stderr


def test_why(command: MobiusCommand, approval: str) -> None:
    run_id = started(command, "waits")
    said = command.run("runs", "why", run_id).stdout.splitlines()
    assert said[0].startswith("step only waits for job job_")
    assert said[1].startswith("1. ")
    assert said[2].startswith("   what helps: ")
    waits = started(command, approval)
    assert f"   what helps: mobius runs signal {waits} ok" in command.run("runs", "why", waits).stdout.splitlines()
    assert [reason["code"] for reason in command.json("runs", "why", waits)["reasons"]] == ["awaiting_signal"]
    command.run("runs", "cancel", run_id)
    assert command.run("runs", "why", run_id).stdout == "it has ended: cancelled\n"
    assert command.run("runs", "why", "run_nobody").returncode == 66


def test_list_by_status(command: MobiusCommand) -> None:
    run_id = started(command, "waits")
    assert run_id in {run["id"] for run in command.json("runs", "list", "--status", "suspended")}
    assert run_id not in {run["id"] for run in command.json("runs", "list", "--status", "completed")}
    shown = command.run("runs", "list", "--limit", "1")
    assert shown.stdout.splitlines()[1].split()[0] == run_id


def test_list_by_what_started_a_run_and_when(command: MobiusCommand) -> None:
    one = str(command.json("automations", "start", "waits", "--external-id", "order-1")["id"])
    two = str(command.json("automations", "start", "waits", "--external-id", "order-2")["id"])

    def listed(*options: str) -> list[str]:
        return [run["id"] for run in command.json("runs", "list", *options)]

    assert listed("--external-id", "order-1") == [one]
    assert listed("--automation", "waits", "--created-after", "2020-01-01")[:2] == [two, one]
    assert listed("--created-before", "2020-01-01T00:00:00Z") == []
    assert listed("--parent", one) == []
    assert command.run("runs", "list", "--automation", "nobody").returncode == 66
    done = command.run("runs", "list", "--created-after", "soon")
    assert (done.returncode, "--created-after: expected a time" in done.stderr) == (64, True)


def test_signal(command: MobiusCommand, approval: str) -> None:
    run_id = started(command, approval)
    assert command.json("runs", "get", run_id)["wake_at"]
    refused = command.run("runs", "signal", run_id, "ok", "--value", "order=8")
    assert (refused.returncode, "the step waits for a signal with order 7, not 8" in refused.stderr) == (65, True)
    assert command.run("runs", "signal", run_id, "nobody").returncode == 66
    assert command.run("runs", "signal", run_id, "ok", "--result", "[]").returncode == 64
    done = command.run("runs", "signal", run_id, "ok", "--result", '{"order": 1, "by": "me"}', "--value", "order=7")
    assert done.stdout == f"{run_id} is completed\n"
    assert command.json("runs", "get", run_id)["result"] == {"ok": {"order": 7, "by": "me"}}
    again = command.run("runs", "signal", run_id, "ok")
    assert (again.returncode, "it takes no signals" in again.stderr) == (65, True)


@pytest.mark.parametrize("arguments", [["get"], ["list-steps"], ["stream"], ["cancel"]])
def test_no_such_run(command: MobiusCommand, arguments: list[str]) -> None:
    done = command.run("runs", *arguments, "run_none")
    assert (done.returncode, done.stdout) == (66, "")
    assert "run_none" in done.stderr


def test_ctrl_c_ends_a_stream_quietly(command: MobiusCommand) -> None:
    run_id = started(command, "waits")
    with command.start("runs", "stream", run_id) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # The line of the suspended step: from here on the stream is waiting.
        while "step.suspended" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read().strip() == ""


def test_wait_for_a_run(command: MobiusCommand, worker: None) -> None:
    done = command.run("automations", "start", "prints", "--wait")
    assert done.returncode == 0, done.stderr
    fields = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert fields["status"] == "completed"
    assert json.loads(fields["result"])["only"]


def test_stream_a_run(command: MobiusCommand, worker: None) -> None:
    done = command.run("automations", "start", "prints", "--stream", "--output", "json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["event_type"] for event in events]
    assert (kinds[0], kinds[-1], kinds.count("action.result")) == ("run.started", "run.completed", 1)
    run_id = events[0]["run_id"]
    again = command.run("runs", "stream", run_id, "--since", "2", "--output", "json").stdout
    assert [json.loads(line) for line in again.splitlines()] == events[2:]
    assert " helper " in command.run("runs", "stream", run_id).stdout


@pytest.mark.parametrize("how", ["--wait", "--stream"])
def test_a_run_that_fails_is_exit_code_1(command: MobiusCommand, worker: None, how: str) -> None:
    done = command.run("automations", "start", "fails", how)
    assert done.returncode == 1
    assert "ended failed" in done.stderr
    assert "said" in done.stderr
