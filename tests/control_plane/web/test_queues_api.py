"""The routes of queues over real HTTP, with a real worker's socket where one is needed."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest

from tests.control_plane.web.test_api import P, refused
from tests.support.control_plane_server import Serving, answer_to, ask, register, serving

QUEUES = f"{P}/queues"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def http(plane: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.http() as client:
        yield client


async def enqueue(http: httpx.AsyncClient, number: int, queue: str = "default") -> list[str]:
    jobs = [{"action_name": "print", "queue": queue}] * number
    ids: list[str] = (await http.post(f"{P}/jobs", json={"jobs": jobs})).raise_for_status().json()["ids"]
    return ids


async def test_a_queue_as_it_fills_is_paused_and_resumed(plane: Serving, http: httpx.AsyncClient) -> None:
    assert (await http.get(QUEUES)).json() == {"items": []}
    refused(await http.get(f"{QUEUES}/default"), 404, "not_found")
    paused = (await http.patch(f"{QUEUES}/default", json={"paused": True})).json()
    assert (paused["paused"], paused["pending"], paused["claimed"]) == (True, 0, 0)
    (job_id,) = await enqueue(http, 1)
    (queue,) = (await http.get(QUEUES)).json()["items"]
    assert (queue["name"], queue["pending"]) == ("default", 1)
    assert queue["oldest_age_seconds"] >= 0
    async with plane.worker() as socket:
        await register(socket)
        await socket.send(json.dumps({"type": "jobs.claim", "message_id": "c", "available_slots": 1}))
        why = (await http.get(f"{P}/jobs/{job_id}/why")).json()
        assert [reason["code"] for reason in why["reasons"]] == ["queue_paused"]
        resumed = (await http.patch(f"{QUEUES}/default", json={"paused": False})).json()
        assert (resumed["paused"], "paused_at" in resumed) == (False, False)
        # The worker that waits is woken by that.
        (job,) = (await answer_to(socket, "c"))["jobs"]
        assert job["id"] == job_id


async def test_a_limit_lets_the_next_job_through_when_one_ends(plane: Serving, http: httpx.AsyncClient) -> None:
    ids = await enqueue(http, 2, "gpu")
    assert (await http.patch(f"{QUEUES}/gpu", json={"max_running": 1})).json()["max_running"] == 1
    async with plane.worker() as one, plane.worker() as two:
        await register(one, "one")
        await register(two, "two")
        (job,) = (await ask(one, {"type": "jobs.claim", "message_id": "c", "available_slots": 2}))["jobs"]
        assert job["id"] == ids[0]
        await two.send(json.dumps({"type": "jobs.claim", "message_id": "c", "available_slots": 2}))
        why = (await http.get(f"{P}/jobs/{ids[1]}/why")).json()
        assert "limit_reached" in [reason["code"] for reason in why["reasons"]]
        await ask(one, {"type": "job.report", "job_id": job["id"], "lease_token": job["lease_token"]})
        (job,) = (await answer_to(two, "c"))["jobs"]
        assert job["id"] == ids[1]
    assert "max_running" not in (await http.patch(f"{QUEUES}/gpu", json={"max_running": None})).json()


@pytest.mark.parametrize("body", [{"max_running": 0}, {"paused": "yes"}, {"colour": "red"}])
async def test_what_is_wrong_is_refused(http: httpx.AsyncClient, body: dict[str, object]) -> None:
    refused(await http.patch(f"{QUEUES}/default", json=body), 400, "invalid_request")


@pytest.mark.parametrize("name", ["line%0Abreak", "%1B[31mred", "%7F", "%C2%85", "q" * 257])
async def test_names_that_no_queue_may_have(http: httpx.AsyncClient, name: str) -> None:
    """Nor may an automation send its jobs there, so that every queue that is listed can be paused."""
    refused(await http.patch(f"{QUEUES}/{name}", json={"paused": True}), 400, "invalid_request")
    body = {"handle": "a", "name": "A", "settings": {"queue": unquote(name)}}
    refused(await http.post(f"{P}/automations", json=body), 400, "invalid_field")
    assert (await http.get(QUEUES)).json() == {"items": []}


async def test_a_queue_with_an_unusual_name_is_paused(http: httpx.AsyncClient) -> None:
    assert (await http.patch(f"{QUEUES}/eine%20%C3%B6ffentliche", json={"paused": True})).json()["paused"] is True
