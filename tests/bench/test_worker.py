"""The measurement of workers: every contestant does every job of its load, and the figures are of that alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.sync.client import connect

from bench import worker

CONTESTANTS = {"ours": worker.ours("write"), "the published Python client": worker.of_python}
if worker.node() is not None:
    CONTESTANTS["the published npm client"] = worker.of_node


@pytest.mark.parametrize("start", CONTESTANTS.values(), ids=CONTESTANTS)
def test_every_contestant_does_all_jobs_of_its_load(start: worker.Start) -> None:
    figures, spent = worker.run(start, 300, 10, 2)
    assert figures["seconds"] > 0
    assert figures["cpu_seconds"] > 0
    assert len(spent) >= 2
    assert spent[1] > 0, "both workers had a part in it"


def test_one_at_a_time_gives_latencies() -> None:
    figures = worker.dispatch(worker.ours("off"), 50)
    assert 0 < figures["dispatch p50 ms"] <= figures["dispatch p99 ms"]


def test_a_job_that_is_reported_twice_is_not_counted_twice() -> None:
    command = [sys.executable, "-m", "bench.in_memory_server", "--jobs", "2"]
    with subprocess.Popen(
        command, cwd=Path(worker.ROOT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            with connect(f"ws://127.0.0.1:{server.stdout.readline().strip()}/") as socket:
                socket.send(json.dumps({"type": "worker.register", "message_id": "r", "worker_instance_id": "w"}))
                assert json.loads(socket.recv(20))["message_id"] == "r"
                socket.send(json.dumps({"type": "jobs.claim", "message_id": "c", "available_slots": 2}))
                assert server.stdout.readline() == "ready\n"
                server.stdin.write("go\n")
                server.stdin.flush()
                claimed = json.loads(socket.recv(20))
                assert claimed["message_id"] == "c"
                first, second = (job["id"] for job in claimed["jobs"])
                for job_id in (first, first, second):
                    socket.send(json.dumps({"type": "job.report", "message_id": "m", "job_id": job_id}))
                assert [json.loads(socket.recv(20))["job_id"] for _ in range(3)] == [first, first, second]
            assert json.loads(server.stdout.readline())["seconds"] > 0
        finally:
            server.kill()
