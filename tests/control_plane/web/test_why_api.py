"""Why, over real HTTP: what it says follows what workers do."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.control_plane.web.test_api import P, refused
from tests.support.control_plane_server import DEADLINE, Serving, ask, register, serving


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def http(plane: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.http() as client:
        yield client


async def enqueued(http: httpx.AsyncClient, **job: Any) -> str:
    response = await http.post(f"{P}/jobs", json={"jobs": [{"action_name": "train", **job}]})
    job_id: str = response.raise_for_status().json()["ids"][0]
    return job_id


async def why(http: httpx.AsyncClient, job_id: str) -> tuple[str, list[str], dict[str, Any]]:
    answer = (await http.get(f"{P}/jobs/{job_id}/why")).raise_for_status().json()
    assert answer["job_id"] == job_id
    return answer["state"], [reason["code"] for reason in answer["reasons"]], answer


async def test_a_worker_that_has_left_takes_nothing(plane: Serving, http: httpx.AsyncClient) -> None:
    job = await enqueued(http)
    async with plane.worker() as worker:
        await register(worker)
        assert (await why(http, job))[0] == "claimable"
    async with asyncio.timeout(DEADLINE):
        while (await why(http, job))[0] == "claimable":
            pass
    assert (await why(http, job))[:2] == ("waiting", ["no_worker"])


async def test_from_no_worker_to_the_end(plane: Serving, http: httpx.AsyncClient) -> None:
    job = await enqueued(http, queue="gpu", retry={"max_attempts": 2, "delay": "1h"})
    assert (await why(http, job))[:2] == ("waiting", ["no_worker"])
    async with plane.worker() as other, plane.worker() as worker:
        await register(other, "rig-1", queues=["default"], action_names=["print"])
        state, codes, answer = await why(http, job)
        assert (state, codes) == ("waiting", ["no_eligible_worker"])
        assert answer["nearest_miss"]["worker_instance_id"] == "rig-1"
        assert answer["nearest_miss"]["differences"] == [
            "claims from default and not from queue gpu",
            "offers print and not action train",
        ]
        await register(worker, "rig-2", queues=["gpu"], concurrency_limit=1)
        assert (await why(http, job))[0] == "claimable"
        (claimed,) = (await ask(worker, {"type": "jobs.claim", "available_slots": 1}))["jobs"]
        state, codes, answer = await why(http, job)
        assert (state, codes) == ("running", [])
        assert "worker rig-2 has it (attempt 1)" in answer["summary"]

        second = await enqueued(http, queue="gpu")
        state, codes, answer = await why(http, second)
        assert (state, codes) == ("waiting", ["workers_full"])
        assert "(rig-2)" in answer["summary"]

        report = {"type": "job.report", "job_id": job, "lease_token": claimed["lease_token"], "status": "failed"}
        await ask(worker, report | {"error_type": "Oops", "error_message": "no disk", "message_id": "m-2"})
        state, codes, answer = await why(http, job)
        assert (state, codes) == ("waiting", ["retry_at"])
        assert "until" in answer["reasons"][0]
        (attempt,) = answer["attempts"]
        assert (attempt["error_type"], attempt["error_message"]) == ("Oops", "no disk")
        assert attempt["worker_instance_id"] == "rig-2"


async def test_a_delayed_job_and_one_that_nobody_has(http: httpx.AsyncClient) -> None:
    job = await enqueued(http, delay_seconds=3600)
    assert (await why(http, job))[1] == ["no_worker", "delayed_until"]
    refused(await http.get(f"{P}/jobs/job_nobody/why"), 404, "not_found")


NAP = {"key": "nap", "kind": "sleep", "config": {"duration": "1h"}}
ASK = {"key": "ok", "kind": "wait_for_event", "config": {"event_type": "approved"}, "timeout": {"duration": "2h"}}
WORK = {"key": "work", "kind": "action", "config": {"action_name": "train"}}


async def started(http: httpx.AsyncClient, handle: str, *steps: dict[str, Any], **more: Any) -> str:
    """A run of it, which is made if there are `steps`."""
    path = f"{P}/automations"
    if steps:
        (await http.post(path, json={"handle": handle, "name": handle})).raise_for_status()
        spec = {"spec": {"steps": list(steps), **more}}
        (await http.post(f"{path}/{handle}/versions", json=spec)).raise_for_status()
        (await http.post(f"{path}/{handle}/versions/1/publication")).raise_for_status()
    run_id: str = (await http.post(f"{path}/{handle}/runs", json={})).raise_for_status().json()["id"]
    return run_id


async def why_run(http: httpx.AsyncClient, run_id: str) -> tuple[str, list[str], dict[str, Any]]:
    answer = (await http.get(f"{P}/runs/{run_id}/why")).raise_for_status().json()
    assert answer["run_id"] == run_id
    return answer["state"], [reason["code"] for reason in answer["reasons"]], answer


async def test_what_a_run_waits_for_from_its_turn_to_its_end(plane: Serving, http: httpx.AsyncClient) -> None:
    first = await started(http, "a", NAP, concurrency="queue")
    second, third = await started(http, "a"), await started(http, "a")
    state, codes, answer = await why_run(http, first)
    assert (state, codes, answer["step_key"]) == ("waiting", ["sleeping_until"], "nap")
    run = (await http.get(f"{P}/runs/{first}")).json()
    assert answer["reasons"][0]["until"] == run["wake_at"]
    state, codes, answer = await why_run(http, third)
    assert (state, codes, answer["run_status"]) == ("waiting", ["awaiting_turn"], "queued")
    assert answer["summary"] == f"its automation runs one at a time: run {first} goes on, and 1 run before it"
    assert answer["reasons"][0]["remedy"] == f"wait, or mobius runs cancel {first}"
    assert (await why_run(http, second))[2]["summary"].endswith(f"run {first} goes on")
    (await http.post(f"{P}/runs/{first}/cancellations", json={})).raise_for_status()
    state, codes, answer = await why_run(http, first)
    assert (state, codes, answer["summary"]) == ("ended", [], "it has ended: cancelled")
    refused(await http.get(f"{P}/runs/run_nobody/why"), 404, "not_found")


async def test_what_a_run_waits_for_a_signal_and_its_job_with_that_jobs_own_reasons(
    plane: Serving, http: httpx.AsyncClient
) -> None:
    run = await started(http, "b", ASK, WORK)
    state, codes, answer = await why_run(http, run)
    assert (state, codes, answer["step_key"]) == ("waiting", ["awaiting_signal"], "ok")
    assert "a signal (approved), and fails without one at " in answer["summary"]
    assert answer["reasons"][0]["remedy"] == f"mobius runs signal {run} ok"
    (await http.post(f"{P}/runs/{run}/signals", json={"step_key": "ok"})).raise_for_status()
    state, codes, answer = await why_run(http, run)
    assert (state, codes, answer["step_key"]) == ("waiting", ["no_worker"], "work")
    job = answer["job"]
    assert job == (await http.get(f"{P}/jobs/{job['job_id']}/why")).json()
    assert answer["summary"] == f"step work waits for job {job['job_id']}: no worker of this project is connected"
    async with plane.worker() as worker:
        await register(worker, "rig-1")
        assert (await why_run(http, run))[0] == "claimable"
        (claimed,) = (await ask(worker, {"type": "jobs.claim", "available_slots": 1}))["jobs"]
        state, codes, answer = await why_run(http, run)
        assert (state, codes) == ("running", [])
        assert "worker rig-1 has it" in answer["summary"]
        await ask(worker, {"type": "job.report", "job_id": claimed["id"], "lease_token": claimed["lease_token"]})
        state, _, answer = await why_run(http, run)
        assert (state, "step_key" in answer, "job" in answer) == ("ended", False, False)


async def test_a_paused_queue_and_a_limit_that_is_reached(plane: Serving, http: httpx.AsyncClient) -> None:
    await enqueued(http, queue="gpu")
    (await http.patch(f"{P}/queues/gpu", json={"max_running": 1})).raise_for_status()
    async with plane.worker() as worker:
        await register(worker, concurrency_limit=4)
        await ask(worker, {"type": "jobs.claim", "available_slots": 4})
        job = await enqueued(http, queue="gpu")
        state, codes, answer = await why(http, job)
        assert (state, codes) == ("waiting", ["limit_reached"])
        assert answer["summary"] == "queue gpu runs 1 job, and 1 is its limit"
        (await http.patch(f"{P}/queues/gpu", json={"paused": True})).raise_for_status()
        assert (await why(http, job))[1] == ["queue_paused", "limit_reached"]
