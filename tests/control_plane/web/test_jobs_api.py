"""The routes of jobs over real HTTP, with a real worker's socket where one is needed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.control_plane.web.test_api import P, refused
from tests.support.control_plane_server import Serving, answer_to, ask, next_of, register, serving

JOBS = f"{P}/jobs"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def http(plane: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.http() as client:
        yield client


async def enqueued(http: httpx.AsyncClient, *jobs: dict[str, Any]) -> list[str]:
    response = await http.post(JOBS, json={"jobs": jobs})
    assert response.status_code == 201, response.text
    ids: list[str] = response.json()["ids"]
    return ids


async def test_a_job_from_enqueue_to_its_result(plane: Serving, http: httpx.AsyncClient) -> None:
    retry = {"max_attempts": 2, "delay": "0s", "backoff": 2, "max_delay": "1m", "non_retryable": ["Mine"]}
    ids = await enqueued(
        http,
        {"action_name": "print", "parameters": {"message": "x"}, "retry": retry, "timeout_seconds": 60, "priority": 3},
        {"action_name": "print", "spec": {"parameters": {}, "more": 1}, "queue": "gpu", "external_id": "mine"},
    )
    async with plane.worker() as socket:
        await register(socket)
        claimed = await ask(socket, {"type": "jobs.claim", "available_slots": 2})
        frames = {job["id"]: job for job in claimed["jobs"]}
        assert list(frames) == ids
        frame = frames[ids[0]]
        assert (frame["origin"], frame["claim_attempt"]) == ("direct_action_invoke", 1)
        assert "run_id" not in frame
        assert "step_id" not in frame
        assert frame["spec"]["parameters"] == {"message": "x"}
        assert frames[ids[1]]["spec"]["more"] == 1
        failed = {"status": "failed", "error_type": "Boom", "error_message": "no"}
        report = {"type": "job.report", "job_id": ids[0], "lease_token": frame["lease_token"]}
        assert (await ask(socket, report | failed | {"message_id": "m-4"}))["type"] == "job.report.ack"
        (again,) = (await ask(socket, {"type": "jobs.claim", "available_slots": 2, "message_id": "m-3"}))["jobs"]
        await ask(socket, report | {"lease_token": again["lease_token"], "result": {"n": 1}, "message_id": "m-2"})
    job = (await http.get(f"{JOBS}/{ids[0]}")).json()
    assert (job["status"], job["result"], job["spec"]) == ("completed", {"n": 1}, {"parameters": {"message": "x"}})
    (attempt,) = job["attempts"]
    assert (attempt["attempt"], attempt["error_type"], attempt["error_message"]) == (1, "Boom", "no")
    assert attempt["worker_instance_id"] == "worker-1"
    assert job["retry"] == {
        "max_attempts": 2,
        "delay_seconds": 0.0,
        "backoff": 2.0,
        "max_delay_seconds": 60.0,
        "non_retryable": ["Mine"],
    }
    assert (job["priority"], job["timeout_seconds"]) == (3, 60.0)
    assert not {"lease_token_hash", "lease_token"} & set(job)


async def test_a_waiting_worker_is_woken(plane: Serving, http: httpx.AsyncClient) -> None:
    async with plane.worker() as socket:
        await register(socket)
        await socket.send('{"type": "jobs.claim", "message_id": "c", "available_slots": 1}')
        await enqueued(http, {"action_name": "print", "delay_seconds": 0.2})
        answer = await socket.recv()
        assert '"jobs.claimed"' in str(answer)


async def test_listings(http: httpx.AsyncClient) -> None:
    ids = await enqueued(http, *({"action_name": f"a{n % 2}", "queue": f"q{n}"} for n in range(4)))
    page = (await http.get(JOBS, params={"limit": 3})).json()
    assert [job["id"] for job in page["items"]] == ids[:0:-1]
    assert page["has_more"] is True
    page = (await http.get(JOBS, params={"limit": 3, "cursor": page["next_cursor"]})).json()
    assert ([job["id"] for job in page["items"]], page["has_more"]) == ([ids[0]], False)
    assert "spec" not in page["items"][0]
    found = (await http.get(JOBS, params={"status": "pending", "queue": "q2", "action_name": "a0"})).json()
    assert [job["id"] for job in found["items"]] == [ids[2]]
    assert (await http.get(JOBS, params={"status": "failed"})).json()["items"] == []
    refused(await http.get(JOBS, params={"status": "gone"}), 400, "invalid_request")
    refused(await http.get(f"{JOBS}/job_unknown"), 404, "not_found")


async def test_an_external_id_answers_the_same_job(http: httpx.AsyncClient) -> None:
    (first,) = await enqueued(http, {"action_name": "print", "external_id": "x"})
    response = await http.post(JOBS, json={"jobs": [{"action_name": "print", "external_id": "x"}]})
    assert response.json() == {"ids": [first], "existing": [first]}


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({}, "action_name"),
        ({"action_name": "a", "model": "m"}, "action_name"),
        ({"model": "m", "spec": {}}, "provider"),
        ({"provider": "p", "model": "m"}, "spec"),
        ({"provider": "p", "model": "m", "spec": {}, "parameters": {}}, "parameters"),
        ({"action_name": "a", "kind": "llm_generation"}, "kind"),
        ({"action_name": "a", "parameters": {}, "spec": {}}, "not both"),
        ({"action_name": "a", "retry": {"delay": "soon"}}, "retry.delay"),
        ({"action_name": "a", "retry": {"max_delay": "10000h"}}, "retry.max_delay"),
        ({"action_name": "a", "run_at": "9999-12-31T23:59:59-01:00"}, "run_at: at the latest 9999-12-31T23:59:59Z"),
        ({"action_name": "a", "parameters": {"x": "y" * 800_000}}, "bytes"),
    ],
)
async def test_a_wrong_job_is_named_and_takes_all_along(
    http: httpx.AsyncClient, job: dict[str, Any], says: str
) -> None:
    response = await http.post(JOBS, json={"jobs": [{"action_name": "print"}, job]})
    message = refused(response, 400, "invalid_job")
    assert message.startswith("jobs[1]")
    assert says in message
    assert (await http.get(JOBS)).json()["items"] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"jobs": []},
        {"jobs": [{"action_name": "print"}] * 1001},
        {"jobs": [{"action_name": "print", "priority": 101}]},
        {"jobs": [{"action_name": "print", "queue": "a/b"}]},
        {"jobs": [{"action_name": "print", "run_at": "2026-01-01T00:00:00"}]},
        {"jobs": [{"action_name": "print", "retry": {"max_attempts": 11}}]},
        {"jobs": [{"action_name": "print", "retry": {"backoff": 0.5}}]},
        {"jobs": [{"action_name": "print", "timeout_seconds": 0}]},
        {"jobs": [{"action_name": "print", "delay_seconds": -1}]},
        {"jobs": [{"action_name": "print", "colour": "red"}]},
    ],
)
async def test_a_request_of_the_wrong_form_is_refused(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    refused(await http.post(JOBS, json=body), 400, "invalid_request")


async def test_cancel_and_put_back(plane: Serving, http: httpx.AsyncClient) -> None:
    waiting, running = await enqueued(http, {"action_name": "other"}, {"action_name": "print"})
    cancelled = await http.post(f"{JOBS}/{waiting}/cancellations", json={"reason": "no"})
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    message = refused(await http.post(f"{JOBS}/{waiting}/retries"), 409, "job_not_failed")
    assert "cancelled" in message
    async with plane.worker() as socket:
        await register(socket)
        (job,) = (await ask(socket, {"type": "jobs.claim", "available_slots": 2}))["jobs"]
        report = {"type": "job.report", "job_id": running, "lease_token": job["lease_token"], "message_id": "m-2"}
        await ask(socket, report | {"status": "failed", "error_type": "Boom", "error_message": "no"})
        assert [one["id"] for one in (await http.get(JOBS, params={"status": "failed"})).json()["items"]] == [running]
        await socket.send('{"type": "jobs.claim", "message_id": "m-3", "available_slots": 1}')
        back = await http.post(f"{JOBS}/{running}/retries")
        assert (back.status_code, back.json()["status"]) == (200, "pending")
        (job,) = (await answer_to(socket, "m-3"))["jobs"]
        await http.post(f"{JOBS}/{running}/cancellations", json={"reason": "stop"})
        assert (await next_of(socket, "job.cancel"))["reason"] == "stop"
    refused(await http.post(f"{JOBS}/job_unknown/cancellations"), 404, "not_found")
    refused(await http.post(f"{JOBS}/job_unknown/retries"), 404, "not_found")
