"""The control plane stands still for longer than a lease, as when its machine sleeps, and goes on."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import automations
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.raw_worker import RawWorker

LEASE = 4.0


@pytest.fixture(params=["a file", "a database with two replicas"])
def planes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[ControlPlaneProcess]]:
    """All that serve one store."""
    arguments = ("--lease-duration", f"{LEASE:g}s", "--heartbeat-cadence", "2s")
    with ExitStack() as running:
        if request.param == "a file":
            yield [running.enter_context(ControlPlaneProcess(tmp_path, *arguments))]
        else:
            cluster = request.getfixturevalue("cluster")
            database = cluster.new_database()
            running.callback(cluster.drop_database, database)
            where = {"store_url": cluster.url(database), "key_file": tmp_path / "api-key"}
            replicas = (ControlPlaneProcess(tmp_path / name, *arguments, **where) for name in "ab")
            yield [running.enter_context(replica) for replica in replicas]


def test_who_comes_back_after_its_next_round_has_its_job_still(planes: list[ControlPlaneProcess]) -> None:
    plane = planes[0]
    with plane.http() as http:
        automations.publish(http, "a", [automations.action_step("one", "work")])
        run = automations.start(http, "a")
        with RawWorker(plane) as worker:
            worker.register("w")
            job = worker.claim("work")
        for each in planes:
            os.kill(each.pid, signal.SIGSTOP)
        # What passes here is the fault itself.
        time.sleep(1.5 * LEASE)
        for each in planes:
            os.kill(each.pid, signal.SIGCONT)
        for each in planes:
            wait_for_lapse_or_grace(each)
        with RawWorker(plane) as worker:
            worker.register("w")
            worker.ask(claim_of(job) | {"type": "job.heartbeat"}, "job.heartbeat.ack")
            worker.ask(claim_of(job) | {"type": "job.report", "result": {"n": 1}}, "job.report.ack")
        finished = automations.finish(http, run)
        assert (finished["status"], finished["result"]) == ("completed", {"one": {"n": 1}})


def claim_of(job: dict[str, Any]) -> dict[str, Any]:
    return {"job_id": job["id"], "lease_token": job["lease_token"], "message_id": "1"}


def wait_for_lapse_or_grace(plane: ControlPlaneProcess) -> None:
    """Until its next round has looked at the leases."""
    deadline = time.monotonic() + 30
    while not any(said in plane.log() for said in ('"leases_lapsed": 1', "of grace")):
        assert time.monotonic() < deadline, plane.log()
        with plane.http() as http:
            assert http.get("/healthz").status_code == 200
