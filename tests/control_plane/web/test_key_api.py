"""API keys over real HTTP: made, exchanged, revoked, and what ends with them, on both kinds of store."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from control_plane.keys import hash_secret, new_api_key
from control_plane.web.api import ROUTES
from control_plane.web.routes import Route
from tests.support.control_plane_server import DEADLINE, Serving, ask, register, serving

P = "/v1/projects/default"
KEYS = f"{P}/keys"
SPEC = {"steps": [{"key": "one", "kind": "action", "config": {"action_name": "print"}}]}


@pytest.fixture
async def plane(place: Any, tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path, store=place.url) as running:
        yield running


@pytest.fixture
async def file_plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def http(plane: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.http() as client:
        yield client


async def created(http: httpx.AsyncClient, *scopes: str, **fields: Any) -> tuple[str, str]:
    """Id and secret."""
    response = await http.post(KEYS, json={"name": "test", "scopes": list(scopes), **fields})
    assert response.status_code == 201, response.text
    return response.json()["key"]["id"], response.json()["secret"]


async def status(plane: Serving, secret: str, path: str = P) -> int:
    async with plane.http(secret) as http:
        return (await http.get(path)).status_code


async def said_before_the_end(worker: ClientConnection) -> list[dict[str, Any]]:
    said = []
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ConnectionClosed):
            while True:
                said.append(json.loads(await worker.recv()))
    return said


async def started_run(http: httpx.AsyncClient) -> str:
    await http.post(f"{P}/automations", json={"handle": "sample", "name": "Sample"})
    await http.post(f"{P}/automations/sample/versions", json={"spec": SPEC})
    await http.post(f"{P}/automations/sample/versions/1/publication")
    return str((await http.post(f"{P}/automations/sample/runs")).json()["id"])


async def test_a_secret_is_shown_once(http: httpx.AsyncClient, plane: Serving) -> None:
    key_id, secret = await created(http, "reader")
    assert await status(plane, secret) == 200
    listed = await http.get(KEYS)
    assert secret not in listed.text
    assert plane.key not in listed.text
    first, bootstrap = listed.json()["items"]
    assert (first["id"], first["scopes"], first["status"], first["name"]) == (key_id, ["reader"], "active", "test")
    assert bootstrap["scopes"] == ["operator", "reader", "worker"]


async def test_a_key_of_another_project_names_it(plane: Serving) -> None:
    async with plane.http(await plane.new_project("team-2")) as http:
        response = await http.post("/v1/projects/team-2/keys", json={"name": "ci", "scopes": ["worker"]})
    assert response.json()["secret"].endswith(".team-2")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"name": "x"}, "scopes"),
        ({"name": "x", "scopes": []}, "$.scopes"),
        ({"name": "x", "scopes": ["admin"]}, "'admin'"),
        ({"name": "x", "scopes": ["reader"], "expires_at": "2020-01-01T00:00:00Z"}, "expires_at is in the past"),
        ({"name": "x", "scopes": ["reader"], "expires_at": "2099-01-01T00:00:00"}, "$.expires_at"),
        ({"name": "x", "scopes": ["reader"], "expires_at": "9999-12-31T23:59:59-01:00"}, "9999-12-31T23:59:59Z"),
        ({"name": "", "scopes": ["reader"]}, "$.name"),
    ],
)
async def test_a_wrong_key_is_refused_and_named(file_plane: Serving, body: dict[str, Any], named: str) -> None:
    async with file_plane.http() as http:
        response = await http.post(KEYS, json=body)
    assert response.status_code == 400
    assert named in response.json()["error"]["message"]


async def test_a_rotation_keeps_both_for_the_overlap(http: httpx.AsyncClient, plane: Serving) -> None:
    key_id, secret = await created(http, "worker", "reader")
    answer = (await http.post(f"{KEYS}/{key_id}/rotations", json={"overlap_seconds": 3600})).json()
    assert answer["key"]["scopes"] == ["reader", "worker"]
    assert answer["replaced"]["replaced_by"] == answer["key"]["id"]
    assert [await status(plane, each) for each in (secret, answer["secret"])] == [200, 200]
    again = await http.post(f"{KEYS}/{key_id}/rotations")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "key_rotated")

    second = (await http.post(f"{KEYS}/{answer['key']['id']}/rotations", json={"overlap_seconds": 0})).json()
    assert await status(plane, answer["secret"]) == 401
    assert await status(plane, second["secret"]) == 200


async def test_a_key_that_lives_as_long_as_can_be_said_is_rotated_and_listed(http: httpx.AsyncClient) -> None:
    last = "9999-12-31T23:59:59Z"
    body = {"name": "ever", "scopes": ["reader"], "expires_at": last}
    key_id = (await http.post(KEYS, json=body)).json()["key"]["id"]
    rotation = (await http.post(f"{KEYS}/{key_id}/rotations")).json()
    assert rotation["key"]["expires_at"] == last
    assert rotation["key"]["id"] in [each["id"] for each in (await http.get(KEYS)).json()["items"]]


async def test_a_revoked_key_is_refused_at_once_and_its_worker_told_why(
    http: httpx.AsyncClient, plane: Serving
) -> None:
    key_id, secret = await created(http, "worker", "reader")
    async with plane.worker(key=secret) as worker, plane.worker() as other:
        await register(worker)
        await register(other, "worker-2")
        assert await status(plane, secret) == 200
        revoked = await http.post(f"{KEYS}/{key_id}/revocations")
        assert revoked.json()["status"] == "revoked"
        assert await status(plane, secret) == 401
        last = (await said_before_the_end(worker))[-1]
        assert (last["type"], last["error"]["code"]) == ("error", "invalid_actor")
        assert "message_id" not in last
        assert (worker.close_code, worker.close_reason) == (1008, "invalid_actor")
        # The other key's worker goes on.
        assert (await ask(other, {"type": "worker.draining"}))["type"] == "worker.draining.ack"
    assert (await http.post(f"{KEYS}/{key_id}/revocations")).json() == revoked.json()


async def test_jobs_that_a_revoked_worker_was_about_to_get_are_handed_back(
    http: httpx.AsyncClient, plane: Serving
) -> None:
    key_id, secret = await created(http, "worker")
    run_id = await started_run(http)
    async with plane.worker(key=secret) as worker, plane.worker() as other:
        await register(worker)
        await worker.send(json.dumps({"type": "jobs.claim", "available_slots": 1}))
        await http.post(f"{KEYS}/{key_id}/revocations")
        said = await said_before_the_end(worker)
        if not any(frame["type"] == "jobs.claimed" and frame["jobs"] for frame in said):
            await register(other, "worker-2")
            claimed = await ask(other, {"type": "jobs.claim", "message_id": "m-2", "available_slots": 1})
            assert [job["run_id"] for job in claimed["jobs"]] == [run_id]


async def test_an_event_stream_ends_with_its_key(http: httpx.AsyncClient, plane: Serving) -> None:
    run_id = await started_run(http)
    key_id, secret = await created(http, "reader")
    async with (
        plane.http(secret) as reader,
        reader.stream("GET", f"{P}/runs/{run_id}/events.stream") as response,
        asyncio.timeout(DEADLINE),
    ):
        chunks = response.aiter_bytes()
        assert (await anext(chunks)).startswith(b"id: 1\n")
        await http.post(f"{KEYS}/{key_id}/revocations")
        rest = b"".join([chunk async for chunk in chunks])
    assert b"run.completed" not in rest
    assert await status(plane, secret, f"{P}/runs/{run_id}/events.stream") == 401


async def test_what_expires_ends_when_the_time_comes(http: httpx.AsyncClient, plane: Serving) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    _, secret = await created(http, "worker", "reader", expires_at=soon)
    async with plane.worker(key=secret) as worker:
        await register(worker)
        last = (await said_before_the_end(worker))[-1]
    assert last["error"]["code"] == "invalid_actor"
    async with plane.http(secret) as reader:
        refused = await reader.get(P)
    assert (refused.status_code, refused.json()["error"]["message"]) == (401, "this API key has expired")


async def test_a_key_revoked_beside_the_server_is_noticed(http: httpx.AsyncClient, plane: Serving, place: Any) -> None:
    key_id, secret = await created(http, "worker")
    async with plane.worker(key=secret) as worker:
        await register(worker)
        await place.write(
            plane.store,
            f"UPDATE api_keys SET revoked_at = {plane.store.now()}, "
            f"changed_at = {plane.store.now()} WHERE id = '{key_id}'",
        )
        last = (await said_before_the_end(worker))[-1]
    assert last["error"]["code"] == "invalid_actor"


def path_of(route: Route) -> str:
    return re.sub(r"\{\w+\}", "none", route.path.replace("{project}", "default").replace("{version}", "1"))


async def test_every_route_with_every_scope(file_plane: Serving) -> None:
    walked = 0
    for scope in ("operator", "reader", "worker"):
        secret = new_api_key()
        await file_plane.store.create_key("default", scope, hash_secret(secret), scopes=(scope,))
        async with file_plane.http(secret) as http:
            for route in ROUTES:
                if not route.key_needed:
                    continue
                walked += 1
                allowed = route.scope_needed in {scope} | ({"reader"} if scope == "operator" else set())
                # What waits for a job would wait here for a worker.
                body = {"dry_run": True} if route.timeout is not None else None
                response = await http.request(route.method, path_of(route), json=body)
                refusal = response.json()["error"]["message"] if response.status_code == 403 else ""
                assert refusal.startswith(f"this needs an API key with scope {route.scope_needed}") is not allowed, (
                    f"{route.method} {route.path} with {scope}: {response.status_code} {response.text}"
                )
    assert walked == 3 * sum(route.key_needed for route in ROUTES)


def test_only_workers_connect_only_readers_read_and_only_operators_change() -> None:
    for route in ROUTES:
        if not route.key_needed:
            continue
        if route.path.endswith("/workers/socket"):
            assert route.scope_needed == "worker"
        elif "/keys" in route.path or route.method != "GET":
            assert route.scope_needed == "operator"
        else:
            assert route.scope_needed == "reader"


async def test_a_key_without_the_scope_opens_no_worker_socket(file_plane: Serving) -> None:
    secret = new_api_key()
    await file_plane.store.create_key("default", "r", hash_secret(secret), scopes=("reader", "operator"))
    for path in (f"{P}/workers/socket", "/v1/workers/socket"):
        with pytest.raises(Exception, match="HTTP 403"):
            async with file_plane.worker(path, secret):
                pass
