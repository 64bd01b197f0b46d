"""`mobius jobs`, `queues` and `actions` against a real control plane."""

import json
from pathlib import Path

from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.mobius_command import MobiusCommand

JOBS = "/v1/projects/default/jobs"


def enqueued(command: MobiusCommand, *arguments: str) -> str:
    job_id: str = command.json("jobs", "enqueue", *arguments)["id"]
    return job_id


def test_a_job_with_every_option(command: MobiusCommand) -> None:
    job_id = enqueued(
        command, "print", "--params", '{"message": "x", "n": 1}', "--param", "n=2", "--queue", "slow",
        "--priority", "7", "--delay", "2h", "--max-attempts", "4", "--retry-delay", "1s", "--backoff", "2",
        "--max-delay", "10s", "--timeout", "5m", "--external-id", "cli-1",
    )  # fmt: skip
    job = command.json("jobs", "get", job_id)
    assert job["spec"] == {"parameters": {"message": "x", "n": 2}}
    assert (job["queue"], job["priority"], job["timeout_seconds"], job["external_id"]) == ("slow", 7, 300.0, "cli-1")
    assert job["retry"] == {"max_attempts": 4, "delay_seconds": 1.0, "backoff": 2.0, "max_delay_seconds": 10.0}
    assert enqueued(command, "print", "--external-id", "cli-1") == job_id
    shown = command.run("jobs", "get", job_id).stdout
    assert "external id" in shown
    assert "slow" in shown
    why = command.run("jobs", "why", job_id)
    assert (why.returncode, "what helps:" in why.stdout) == (0, True)
    listed = command.run("jobs", "list", "--queue", "slow").stdout.splitlines()
    assert listed[0].startswith("JOB ")
    assert listed[1].startswith(job_id)
    cancelled = command.run("jobs", "cancel", job_id, "--reason", "not needed")
    assert cancelled.stdout == f"job {job_id} cancelled\n"


def test_a_file_of_jobs(command: MobiusCommand, tmp_path: Path) -> None:
    lines = [json.dumps({"action_name": "bulk", "parameters": {"n": n}, "external_id": f"b{n}"}) for n in range(1500)]
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n".join(lines))
    assert command.run("jobs", "enqueue", "--file", str(file)).stdout == "1500 jobs are enqueued\n"
    again = command.run("jobs", "enqueue", "--file", "-", stdin=file.read_text())
    assert again.stdout == "1500 jobs are enqueued, 1500 of which were there already\n"
    assert len(command.json("jobs", "list", "--action", "bulk", "--limit", "2000")) == 1500
    file.write_text('{"action_name": "x"}\n[]\n')
    refused = command.run("jobs", "enqueue", "--file", str(file))
    assert (refused.returncode, "line 2" in refused.stderr) == (65, True)


def test_a_file_that_fails_in_the_middle_says_what_is_done(command: MobiusCommand, tmp_path: Path) -> None:
    lines = [json.dumps({"action_name": "middle"})] * 1500
    lines[1200] = json.dumps({"action_name": "middle", "priority": 500})
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n".join(lines))
    refused = command.run("jobs", "enqueue", "--file", str(file), "--output", "json")
    assert refused.returncode == 65
    assert "lines 1001 to 1500: " in refused.stderr
    assert "at `line 1201.priority`" in refused.stderr
    assert "the 1000 jobs of the lines before 1001 are enqueued" in refused.stderr
    stored = command.json("jobs", "list", "--action", "middle", "--limit", "2000")
    assert set(json.loads(refused.stdout)["ids"]) == {job["id"] for job in stored}
    assert len(stored) == 1000


def test_a_file_is_sent_in_pieces_that_a_server_takes(command: MobiusCommand, tmp_path: Path) -> None:
    line = json.dumps({"action_name": "large", "parameters": {"x": "x" * 20_000}})
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n".join([line] * 450))
    assert file.stat().st_size > 8 * 1024 * 1024
    assert command.run("jobs", "enqueue", "--file", str(file)).stdout == "450 jobs are enqueued\n"


def test_failed_jobs_are_put_back(plane: ControlPlaneProcess, command: MobiusCommand) -> None:
    with command.start("worker", "--queues", "broken"):
        failed = command.run("jobs", "enqueue", "fail", "--param", "message=no", "--queue", "broken", "--wait")
        assert failed.returncode == 1
        (job,) = command.json("jobs", "list", "--status", "failed", "--queue", "broken")
        shown = command.run("jobs", "get", job["id"]).stdout
        assert "DIED OF" in shown
    command.run("queues", "pause", "broken")
    assert command.run("jobs", "retry", "--all-failed", "--queue", "broken").stdout == f"job {job['id']} waits again\n"
    refused = command.run("jobs", "retry", job["id"])
    assert (refused.returncode, "pending" in refused.stderr) == (65, True)
    with plane.http() as http:
        assert http.get(f"{JOBS}/{job['id']}").json()["status"] == "pending"


def test_queues(command: MobiusCommand) -> None:
    enqueued(command, "print", "--queue", "gpu")
    assert command.json("queues", "limit", "gpu", "3")["max_running"] == 3
    assert command.json("queues", "pause", "gpu")["paused"] is True
    rows = {line.split()[0]: line.split() for line in command.run("queues", "list").stdout.splitlines()}
    assert rows["gpu"][1:3] == ["paused", "1"]
    assert rows["gpu"][-1] == "3"
    assert command.json("queues", "resume", "gpu")["paused"] is False
    assert "max_running" not in command.json("queues", "limit", "gpu", "none")
    assert command.run("queues", "limit", "gpu", "many").returncode == 64


def test_actions(command: MobiusCommand) -> None:
    recorded = command.json("actions", "record", "pay", "--not-idempotent", "--title", "Pay")
    assert recorded["annotations"] == {"idempotent": False}
    changed = command.json("actions", "record", "pay", "--limit", "2")
    assert (changed["max_running"], changed["title"]) == (2, "Pay")
    assert "idempotent=false" in command.run("actions", "list").stdout
    assert command.run("actions", "forget", "pay").returncode == 0
    assert command.run("actions", "get", "pay").returncode == 66
    late = command.run("actions", "invoke", "nobody.knows", "--timeout", "1")
    assert (late.returncode, "goes on" in late.stdout) == (0, True)


def test_wrong_usage(command: MobiusCommand) -> None:
    for arguments in (
        ("enqueue",),
        ("enqueue", "print", "--file", "x"),
        ("enqueue", "print", "--delay", "soon"),
        ("enqueue", "--file", "x", "--priority", "1"),
        ("retry",),
        ("retry", "job_1", "--all-failed"),
        ("cancel",),
    ):
        assert command.run("jobs", *arguments).returncode == 64, arguments
    assert command.run("jobs", "get", "job_unknown").returncode == 66
    assert command.run("jobs", "enqueue", "print", "--priority", "1000").returncode == 65
