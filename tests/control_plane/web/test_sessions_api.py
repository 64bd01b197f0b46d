"""Presence, history and drains over HTTP, with workers on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.control_plane_server import DEADLINE, Serving, ask, next_of, register, serving

P = "/v1/projects/default/worker-sessions"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def http(plane: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.http() as client:
        yield client


async def start_run(plane: Serving) -> str:
    project = await plane.store.project("default")
    step = {"key": "one", "kind": "action", "config": {"action_name": "print"}}
    await plane.store.create_automation(project.id, "a", "A", {})
    await plane.store.create_version(project.id, "a", {"steps": [step]}, None)
    await plane.store.publish_version(project.id, "a", 1)
    return (await plane.store.start_run(project.id, "a")).id


async def listed(http: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    response = await http.get(P, params=query)
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    return items


async def test_a_drained_session_finishes_claims_nothing_and_is_let_go_again(
    plane: Serving, http: httpx.AsyncClient
) -> None:
    async with plane.worker() as worker:
        registered = await register(worker, "rig-1", concurrency_limit=2, version="1.2")
        await start_run(plane)
        [job] = (await ask(worker, {"type": "jobs.claim", "message_id": "c-1", "available_slots": 1}))["jobs"]
        [row] = await listed(http, state="live")
        assert (row["saturation"], row["drain_requested"], row["instance_status"]) == (0.5, False, "active")

        drained = (await http.post(f"{P}/{row['id']}/drain")).json()
        assert (drained["jobs_left"], drained["worker_session_id"]) == (1, row["id"])
        assert [(item["id"], item["instance_status"]) for item in drained["items"]] == [(row["id"], "draining")]
        await next_of(worker, "worker.drain")
        assert (await ask(worker, {"type": "jobs.claim", "message_id": "c-2", "available_slots": 1}))["jobs"] == []
        report = {"type": "job.report", "job_id": job["id"], "lease_token": job["lease_token"], "message_id": "r-1"}
        await ask(worker, report)
        [standing] = (await http.get(f"{P}/drain")).json()["items"]
        assert standing["jobs_left"] == 0
        assert standing["created_at"] == drained["created_at"]

        lifted = (await http.delete(f"{P}/{row['id']}/drain")).json()
        assert [item["drain_requested"] for item in lifted["items"]] == [False]
        assert (await http.delete(f"{P}/{row['id']}/drain")).status_code == 404
        async with asyncio.timeout(DEADLINE):
            await worker.wait_closed()
        assert worker.close_code == 1012
    async with plane.worker() as worker:
        await register(worker, "rig-1", worker_session_token=registered["worker_session_token"])
        await start_again(plane)
        assert (await ask(worker, {"type": "jobs.claim", "message_id": "c-3", "available_slots": 1}))["jobs"]


async def start_again(plane: Serving) -> None:
    project = await plane.store.project("default")
    await plane.store.start_run(project.id, "a")


@pytest.mark.parametrize("named", [{"worker_instance_id": "rig-1"}, {"version": "1.2"}])
async def test_a_drain_meets_workers_that_come_later(
    plane: Serving, http: httpx.AsyncClient, named: dict[str, str]
) -> None:
    assert (await http.post(f"{P}/drain", json=named)).json()["items"] == []
    async with plane.worker() as worker, plane.worker() as other:
        await register(worker, "rig-1", version="1.2")
        await next_of(worker, "worker.drain")
        await register(other, "rig-2", version="1.3")
        assert [row["worker_instance_id"] for row in await listed(http, state="draining")] == ["rig-1"]
        [standing] = (await http.get(f"{P}/drain")).json()["items"]
        assert named.items() <= standing.items()
        assert (await http.delete(f"{P}/drain", params=named)).status_code == 200
    async with plane.worker() as worker:
        await register(worker, "rig-1", version="1.2")
        assert await listed(http, state="draining") == []


async def test_the_history_says_when_and_why_a_session_ended(plane: Serving, http: httpx.AsyncClient) -> None:
    for _ in range(2):
        async with plane.worker() as worker:
            await register(worker, "rig-1")
    async with plane.worker() as worker:
        await register(worker, "rig-2")
        await ask(worker, {"type": "worker.draining", "message_id": "d-1"})
    async with asyncio.timeout(DEADLINE):
        while len(await listed(http, state="ended")) < 2:  # noqa: ASYNC110 - a row's end is no event of the API
            await asyncio.sleep(0.01)
    rows = await listed(http, state="ended")
    assert [(row["worker_instance_id"], row["end_reason"], row["instance_status"]) for row in rows] == [
        ("rig-2", "drained", "ended"),
        ("rig-1", "superseded", "ended"),
    ]
    assert all(row["ended_at"] >= row["created_at"] for row in rows)
    first = (await http.get(P, params={"state": "all", "limit": 1})).json()
    assert first["has_more"]
    rest = await listed(http, state="all", cursor=first["next_cursor"])
    assert [row["worker_instance_id"] for row in [*first["items"], *rest]] == ["rig-2", "rig-1", "rig-1"]
    # What the public clients list has none of the history's fields.
    assert {"ended_at", "end_reason", "saturation", "created_at"}.isdisjoint((await listed(http))[0])


@pytest.mark.parametrize(
    ("method", "path", "arguments", "status", "named"),
    [
        ("POST", "/drain", {"json": {}}, 400, "worker_instance_id"),
        ("POST", "/drain", {"json": {"version": "1", "worker_instance_id": "a"}}, 400, "either"),
        ("DELETE", "/drain", {}, 400, "query parameters"),
        ("DELETE", "/drain", {"params": {"version": "9"}}, 404, "9"),
        ("POST", "/wsess_none/drain", {}, 404, "wsess_none"),
        ("GET", "", {"params": {"state": "gone"}}, 400, "state"),
        ("GET", "", {"params": {"cursor": "x"}}, 400, "state"),
        ("GET", "", {"params": {"cursor": "%%", "state": "all"}}, 400, "cursor"),
    ],
)
async def test_refusals(
    http: httpx.AsyncClient, method: str, path: str, arguments: dict[str, Any], status: int, named: str
) -> None:
    response = await http.request(method, P + path, **arguments)
    assert response.status_code == status
    assert named in response.json()["error"]["message"]
