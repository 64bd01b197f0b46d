"""The routes of actions over real HTTP, with a real worker's socket where one is needed."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from websockets.asyncio.client import ClientConnection

from tests.control_plane.web.test_api import P, refused
from tests.support.control_plane_server import Serving, ask, next_of, register, serving

ACTIONS = f"{P}/actions"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def http(plane: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.http() as client:
        yield client


async def test_a_record_from_its_making_to_its_end(http: httpx.AsyncClient) -> None:
    body = {
        "name": "mail.send",
        "title": "Send a mail",
        "description": "d",
        "endpoint_kind": "worker",
        "annotations": {"idempotent": False},
        "input_schema": {"type": "object"},
        "output_schema": {},
        "tags": {"team": "a"},
    }
    created = await http.post(ACTIONS, json=body)
    assert created.status_code == 201, created.text
    action = created.json()
    assert action | body == action
    assert set(action) - set(body) == {"id", "created_at", "updated_at"}
    refused(await http.post(ACTIONS, json=body), 409, "name_taken")
    changed = await http.patch(f"{ACTIONS}/mail.send", json={"annotations": {"idempotent": True}, "max_running": 2})
    assert (changed.json()["annotations"], changed.json()["max_running"]) == ({"idempotent": True}, 2)
    cleared = await http.patch(f"{ACTIONS}/mail.send", json={"annotations": None, "max_running": None})
    assert not {"annotations", "max_running"} & set(cleared.json())
    assert (await http.get(f"{ACTIONS}/mail.send")).json() == cleared.json()
    assert (await http.get(ACTIONS)).json() == {"items": [cleared.json()], "has_more": False}
    assert (await http.delete(f"{ACTIONS}/mail.send")).status_code == 204
    for method in ("GET", "PATCH", "DELETE"):
        refused(await http.request(method, f"{ACTIONS}/mail.send"), 404, "not_found")


@pytest.mark.parametrize("body", [{"endpoint_kind": "http"}, {"endpoint_url": "https://example.com/hook"}])
async def test_actions_over_http_are_refused_with_what_to_do(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    message = refused(await http.post(ACTIONS, json={"name": "a", **body}), 400, "endpoint_kind_unsupported")
    assert "worker" in message


async def invoke(http: httpx.AsyncClient, name: str = "print", **body: Any) -> httpx.Response:
    return await http.post(f"{ACTIONS}/{name}/invocations", json=body)


async def next_job(socket: ClientConnection) -> dict[str, Any]:
    claimed = await next_of(socket, "jobs.claimed")
    (job,) = claimed["jobs"]
    return dict(job)


async def test_a_name_may_have_slashes_and_spaces(http: httpx.AsyncClient) -> None:
    name = "team/deploy now?"
    body = {"name": name, "annotations": {"idempotent": False}}
    (await http.post(f"{P}/actions", json=body)).raise_for_status()
    place = f"{P}/actions/{quote(name, safe='')}"
    assert (await http.get(place)).raise_for_status().json()["name"] == name
    changed = (await http.patch(place, json={"title": "T"})).raise_for_status().json()
    assert (changed["name"], changed["title"]) == (name, "T")
    assert (await http.delete(place)).status_code == 204
    assert (await http.get(place)).status_code == 404


async def test_an_invocation_answers_with_the_result(plane: Serving, http: httpx.AsyncClient) -> None:
    async with plane.worker() as socket:
        await register(socket)
        for number, report, expected in (
            (1, {"result": {"sum": 3}}, {"status": "completed", "output": {"sum": 3}}),
            (
                2,
                {"status": "failed", "error_type": "Boom", "error_message": "no"},
                {"status": "failed", "error": "Boom: no"},
            ),
        ):
            await socket.send(json.dumps({"type": "jobs.claim", "message_id": f"c{number}", "available_slots": 1}))
            asked = asyncio.create_task(invoke(http, input={"a": number}))
            job = await next_job(socket)
            assert (job["action_name"], job["spec"]["parameters"]) == ("print", {"a": number})
            frame = {"type": "job.report", "job_id": job["id"], "lease_token": job["lease_token"], **report}
            await ask(socket, frame | {"message_id": f"r{number}"})
            answer = await asked
            assert (answer.status_code, answer.json()) == (200, {**expected, "job_id": job["id"]})


async def test_an_invocation_that_takes_longer_goes_on(plane: Serving, http: httpx.AsyncClient) -> None:
    answer = await invoke(http, timeout_seconds=1)
    assert (answer.status_code, answer.json()["status"]) == (202, "active")
    job_id = answer.json()["job_id"]
    assert (await http.get(f"{P}/jobs/{job_id}")).json()["status"] == "pending"
    await http.post(f"{P}/jobs/{job_id}/cancellations", json={"reason": "not needed"})
    assert plane.store.watched_jobs == set()


async def test_a_cancelled_invocation_says_so(plane: Serving, http: httpx.AsyncClient) -> None:
    asked = asyncio.create_task(invoke(http))
    async with asyncio.timeout(20):
        while not (jobs := (await http.get(f"{P}/jobs")).json()["items"]):  # noqa: ASYNC110 - the server's, not ours
            await asyncio.sleep(0.01)
    await http.post(f"{P}/jobs/{jobs[0]['id']}/cancellations", json={"reason": "by hand"})
    answer = await asked
    assert (answer.status_code, answer.json()["error"]) == (200, "cancelled: by hand")
    assert plane.store.watched_jobs == set()


async def test_a_dry_run_runs_nothing(http: httpx.AsyncClient) -> None:
    answer = await invoke(http, dry_run=True, input={"a": 1})
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    refused(await invoke(http, dry_run=True, input={"a": "y" * 800_000}), 400, "invalid_job")
    refused(await invoke(http, dry_run=True, timeout_seconds=121), 400, "invalid_request")
    assert (await http.get(f"{P}/jobs")).json()["items"] == []


async def test_a_server_that_stops_answers_those_who_wait(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.http() as client:
        asked = asyncio.create_task(invoke(client, timeout_seconds=120))
        async with asyncio.timeout(20):
            while not running.store.watched_jobs:  # noqa: ASYNC110 - the server's, not ours
                await asyncio.sleep(0.01)
        running.plane.stop("the test")
        answer = await asked
        assert (answer.status_code, answer.json()["status"]) == (202, "active")
