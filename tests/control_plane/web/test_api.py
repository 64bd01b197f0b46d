"""Every route over real HTTP: its shape, its status, and its refusals in the envelope."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane.rate_limits import Buckets, Rate
from control_plane.web.api import ROUTES
from tests.support.control_plane_server import Serving, serving

P = "/v1/projects/default"
SPEC = {"steps": [{"key": "one", "kind": "action", "config": {"action_name": "print", "parameters": {"message": "x"}}}]}


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def http(plane: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.http() as client:
        yield client


def refused(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) <= {"code", "message", "details"}
    assert body["error"]["code"] == code
    message: str = body["error"]["message"]
    return message


async def published(http: httpx.AsyncClient, handle: str = "sample", spec: dict[str, Any] | None = None) -> None:
    response = await http.post(f"{P}/automations", json={"handle": handle, "name": "Sample"})
    assert response.status_code == 201, response.text
    response = await http.post(f"{P}/automations/{handle}/versions", json={"spec": spec or SPEC})
    assert response.status_code == 201, response.text
    response = await http.post(f"{P}/automations/{handle}/versions/1/publication")
    assert response.status_code == 200, response.text


async def test_health_needs_no_key(plane: Serving) -> None:
    async with httpx.AsyncClient(base_url=plane.url) as client:
        for path in ("/healthz", "/readyz"):
            response = await client.get(path)
            assert (response.status_code, response.json()) == (200, {"status": "ok"})
        assert (await client.head("/healthz")).content == b""


async def test_projects(http: httpx.AsyncClient, plane: Serving) -> None:
    await plane.new_project("other")
    listed = (await http.get("/v1/projects")).json()
    assert [project["handle"] for project in listed["items"]] == ["default"]
    project = (await http.get(P)).json()
    assert listed["items"] == [project]
    assert project["access_mode"] == "org_open"
    assert project["created_at"].endswith("Z")
    for query, found in (
        ("search=defau", 1),
        ("search=xyz", 0),
        ("status=archived", 0),
        ("status=all", 1),
        ("tag=a", 0),
    ):
        assert len((await http.get(f"/v1/projects?{query}")).json()["items"]) == found, query


async def test_automations_and_versions(http: httpx.AsyncClient) -> None:
    body = {"handle": "greet", "name": "Greet", "description": "d", "tags": {"a": "b"}, "default_inputs": {"n": 1}}
    created = await http.post(f"{P}/automations", json=body)
    assert created.status_code == 201
    automation = created.json()
    assert automation | body == automation
    assert (automation["status"], automation["latest_version"], automation["triggers"]) == ("draft", 0, [])
    assert "published_version" not in automation
    refused(await http.post(f"{P}/automations", json=body), 409, "handle_taken")

    version = await http.post(f"{P}/automations/greet/versions", json={"spec": SPEC, "compiled_plan": {"p": 1}})
    assert version.status_code == 201
    assert version.json()["spec"] == SPEC
    assert version.json()["validation"] == {"valid": True, "errors": []}
    assert version.json()["compiled_plan"] == {"p": 1}
    listed = (await http.get(f"{P}/automations/greet/versions")).json()
    assert [one["version"] for one in listed["items"]] == [1]
    activated = (await http.post(f"{P}/automations/greet/versions/1/publication")).json()
    assert (activated["status"], activated["published_version"]) == ("active", 1)

    patched = await http.patch(f"{P}/automations/greet", json={"status": "paused", "description": "e"})
    assert (patched.json()["status"], patched.json()["description"]) == ("paused", "e")
    refused(await http.post(f"{P}/automations/greet/runs"), 409, "automation_paused")
    assert (await http.get(f"{P}/automations?status=paused")).json()["items"] == [patched.json()]

    deleted = await http.delete(f"{P}/automations/greet")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await http.get(f"{P}/automations")).json()["items"] == []
    assert [one["handle"] for one in (await http.get(f"{P}/automations?status=archived")).json()["items"]] == ["greet"]


async def test_an_invalid_version_is_kept_and_never_published(http: httpx.AsyncClient) -> None:
    await http.post(f"{P}/automations", json={"handle": "bad", "name": "Bad"})
    spec = {"steps": [{"key": "one", "kind": "action", "config": {}}]}
    version = (await http.post(f"{P}/automations/bad/versions", json={"spec": spec})).json()
    assert version["validation"]["valid"] is False
    message = refused(await http.post(f"{P}/automations/bad/versions/1/publication"), 409, "invalid_version")
    assert "action_name" in message
    refused(await http.post(f"{P}/automations/bad/runs"), 409, "not_published")
    refused(await http.post(f"{P}/automations/bad/versions/7/publication"), 404, "not_found")
    refused(await http.post(f"{P}/automations/bad/versions/x/publication"), 404, "not_found")


async def test_pages(http: httpx.AsyncClient) -> None:
    for number in range(5):
        await http.post(f"{P}/automations", json={"handle": f"a-{number}", "name": "A"})
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await http.get(f"{P}/automations?limit=2{cursor}")).json()
        seen += [one["handle"] for one in page["items"]]
        assert page["has_more"] == ("next_cursor" in page)
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == ["a-4", "a-3", "a-2", "a-1", "a-0"]
    refused(await http.get(f"{P}/automations?cursor=nonsense"), 400, "invalid_cursor")


async def test_runs(http: httpx.AsyncClient) -> None:
    await published(http)
    source = {"type": "test", "id": "t-1"}
    started = await http.post(f"{P}/automations/sample/runs", json={"external_id": "x", "source": source})
    assert started.status_code == 202
    run = started.json()
    assert (run["automation_version"], run["source"]) == (1, source)
    assert "result" not in run
    again = await http.post(f"{P}/automations/sample/runs", json={"external_id": "x"})
    assert again.json()["id"] == run["id"]

    steps = (await http.get(f"{P}/runs/{run['id']}/steps")).json()["items"]
    assert [(step["step_key"], step["status"]) for step in steps] == [("one", "suspended")]
    assert steps[0]["job_id"].startswith("job_")
    assert [one["id"] for one in (await http.get(f"{P}/runs?status=suspended")).json()["items"]] == [run["id"]]
    assert (await http.get(f"{P}/runs?automation_id=auto_x")).json()["items"] == []
    assert (await http.get(f"{P}/runs?source_event_id=evt_x")).json() == {"items": [], "has_more": False}

    first = (await http.get(f"{P}/runs/{run['id']}/events?limit=1")).json()
    assert (first["has_more"], first["next_sequence"]) == (True, 1)
    rest = (await http.get(f"{P}/runs/{run['id']}/events?since_sequence=1")).json()
    assert [event["sequence"] for event in rest["items"]] == list(range(2, rest["next_sequence"] + 1))

    cancelled = await http.post(f"{P}/runs/{run['id']}/cancellations", json={"reason": "enough"})
    assert cancelled.status_code == 200
    assert (await http.get(f"{P}/runs/{run['id']}")).json()["status"] == "cancelled"
    assert (await http.post(f"{P}/runs/{run['id']}/cancellations")).json()["status"] == "cancelled"
    message = refused(
        await http.post(f"{P}/automations/sample/runs", json={"external_id": "x"}), 409, "external_id_conflict"
    )
    assert message
    assert (await http.get(f"{P}/worker-sessions")).json() == {
        "items": [],
        "totals": {"active_instances": 0, "slots": 0, "busy": 0, "stale": 0},
    }


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        (b"{", "invalid_json", "not JSON"),
        (b"\xff", "invalid_json", "not JSON"),
        (b'{"handle":"a","name":"\xff"}', "invalid_json", "not JSON"),
        (b"[]", "invalid_request", "Expected `object`"),
        (b'{"handle":"a"}', "invalid_request", "`name`"),
        (b'{"handle":"a","name":"A","nmae":1}', "invalid_request", "unknown field `nmae`"),
        (b'{"handle":"a","name":7}', "invalid_request", "$.name"),
        (b'{"handle":"Not A Handle","name":"A"}', "invalid_request", "$.handle"),
        (b'{"handle":"a","name":"A","description":null}', "invalid_request", "$.description"),
        (b'{"handle":"a","name":"A","settings":' + b'{"a":' * 100_000, "invalid_json", "too deeply"),
        (b'{"handle":"a","name":"A","settings":' + b'{"a":' * 250 + b"1" + b"}" * 251, "invalid_json", "too deeply"),
        (b"", "invalid_request", "`handle`"),
    ],
)
async def test_a_wrong_body_is_refused_and_named(http: httpx.AsyncClient, body: bytes, code: str, named: str) -> None:
    message = refused(await http.post(f"{P}/automations", content=body), 400, code)
    assert named in message


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/runs?limit=0", "$.limit"),
        ("/runs?limit=201", "$.limit"),
        ("/runs?limit=ten", "$.limit"),
        ("/runs?status=lost", "$.status"),
        ("/runs?stauts=failed", "`stauts`"),
        ("/runs?limit=1&limit=2", "`limit` is given twice"),
        ("/automations?tag=a", "`tag`"),
        ("/runs/run_x/events?since_sequence=-1", "$.since_sequence"),
        ("/worker-sessions?x=1", "`x`"),
    ],
)
async def test_a_wrong_query_is_refused_and_named(http: httpx.AsyncClient, path: str, named: str) -> None:
    assert named in refused(await http.get(P + path), 400, "invalid_request")


@pytest.mark.parametrize("key", ["", "Basic eDp5", "Bearer", "Bearer mbx_" + "0" * 32, "mbx_x", "Bearer " + "x" * 999])
async def test_without_a_valid_key_nothing_is_served(plane: Serving, key: str) -> None:
    plane.plane._gate.authenticator.limits.failures = Buckets(Rate(per_second=1.0, burst=len(ROUTES)))
    async with httpx.AsyncClient(base_url=plane.url, headers={"authorization": key} if key else {}) as client:
        for route in ROUTES:
            if not route.key_needed:
                continue
            path = re.sub(r"\{\w+\}", "x", route.path)
            response = await client.request(route.method, path)
            assert response.status_code == 401, (route.method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            assert key[7:] == "" or key[7:] not in response.text


async def test_of_two_keys_none_counts(plane: Serving) -> None:
    headers = [("authorization", f"Bearer {plane.key}")]
    async with httpx.AsyncClient(base_url=plane.url) as http:
        assert (await http.get(P, headers=headers)).status_code == 200
        assert (await http.get(P, headers=headers * 2)).status_code == 401


@pytest.mark.parametrize(
    "path", ["/", "/v2/projects", f"{P}/environments", f"{P}/runs/", f"{P}/runs/x/signal", f"{P}//"]
)
async def test_unknown_paths(http: httpx.AsyncClient, path: str) -> None:
    refused(await http.get(path), 404, "not_found")


async def test_wrong_methods_name_the_right_ones(http: httpx.AsyncClient) -> None:
    response = await http.put(f"{P}/automations")
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, POST"
    response = await http.get(f"{P}/workers/socket")
    refused(response, 426, "upgrade_required")
    assert response.headers["upgrade"] == "websocket"


async def test_a_body_where_none_is_taken(http: httpx.AsyncClient) -> None:
    refused(await http.request("DELETE", f"{P}/automations/x", content=b"{}"), 400, "invalid_request")


async def test_an_oversized_body_is_refused_and_harms_nobody(http: httpx.AsyncClient) -> None:
    large = json.dumps({"handle": "a", "name": "A", "settings": {"x": "y" * 5_000_000}}).encode()
    refused(await http.post(f"{P}/automations", content=large), 413, "body_too_large")

    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    refused(await http.post(f"{P}/automations", content=unannounced()), 413, "body_too_large")
    await http.post(f"{P}/automations", json={"handle": "a", "name": "A"})
    fits = {"spec": {**SPEC, "description": "y" * 4_000_000}}
    assert (await http.post(f"{P}/automations/a/versions", json=fits)).status_code == 201
