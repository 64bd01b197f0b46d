"""What is served without a key, and what one project's key shows of another's: every route there is, with real objects.

The routes are walked from the table. A route on a new kind of object fails here until its object is made below.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from control_plane.web.api import ROUTES
from control_plane.web.app import Endpoint
from control_plane.web.routes import Route
from tests.support.control_plane_server import Serving, ask, next_of, register, serving

WITHOUT_A_KEY = {
    "/healthz",
    "/readyz",
    "/reference",
    "/reference/page.css",
    "/reference/page.js",
    "/openapi.json",
    "/asyncapi.json",
}

SECRET = "zebra"
SECRET_NUMBER = 777_777
"""In every name, text and value of the first project that nobody else has a reason to say."""

SPEC = {"steps": [{"key": "one", "kind": "action", "config": {"action_name": "print", "parameters": {"x": SECRET}}}]}

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/automations"): {"handle": "shared", "name": "mine"},
    ("POST", "/automations/{handle}/versions"): {"spec": {"steps": []}},
    ("POST", "/runs/{id}/signals"): {"step_key": "one"},
    ("POST", "/worker-sessions/drain"): {"worker_instance_id": "box-1"},
    ("POST", "/jobs"): {"jobs": [{"action_name": "print", "external_id": "order-7"}]},
    ("POST", "/actions"): {"name": "shared.action"},
    ("POST", "/actions/{action_name}/invocations"): {"timeout_seconds": 1, "dry_run": True},
    ("POST", "/keys"): {"name": "mine", "scopes": ["reader"]},
}
"""Of routes that refuse an empty body before they look for the object."""

QUERIES = {("DELETE", "/worker-sessions/drain"): {"worker_instance_id": "box-1"}}

NAMES_NOTHING = {
    ("POST", "/actions/{action_name}/invocations"),
    ("GET", "/queues/{queue}"),
    ("PATCH", "/queues/{queue}"),
}
"""Routes that take a name which need not exist: they work on the caller's own project."""


class First:
    """The project that somebody else would like to see: one of every object, with a job in a worker's hands."""

    def __init__(self, plane: Serving, key: str) -> None:
        self.plane = plane
        self.key = key
        self.ids: dict[str, str] = {}
        self.job: dict[str, Any] = {}
        self.token = ""
        self.worker: ClientConnection

    async def make(self, worker: ClientConnection) -> None:
        """Everything, by way of the API."""
        self.worker = worker
        models = [{"provider": "p", "model": "m"}]
        registered = await register(worker, "box-1", name=f"{SECRET} box", version=SECRET, models=models)
        self.token = registered["worker_session_token"]
        async with self.plane.http(self.key) as http:
            http.base_url = httpx.URL(f"{self.plane.url}/v1/projects/first")
            await ok(http.post("/automations", json={"handle": "shared", "name": f"{SECRET} automation"}))
            await ok(http.post("/automations/shared/versions", json={"spec": SPEC}))
            await ok(http.post("/automations/shared/versions/1/publication"))
            run = await ok(http.post("/automations/shared/runs", json={"source": {"type": SECRET}}))
            await ok(http.post("/actions", json={"name": "shared.action", "title": f"{SECRET} action"}))
            key = await ok(http.post("/keys", json={"name": f"{SECRET} key", "scopes": ["reader"]}))
            generation = {"provider": "p", "model": "m", "spec": {"request": {"messages": []}}}
            job = {**generation, "queue": f"{SECRET}-queue", "external_id": "order-7"}
            (job_id,) = (await ok(http.post("/jobs", json={"jobs": [job]})))["ids"]
            claim = {"type": "jobs.claim", "message_id": "c", "available_slots": 1, "queues": [f"{SECRET}-queue"]}
            (self.job,) = (await ask(worker, claim))["jobs"]
            assert self.job["id"] == job_id
            await ask(worker, self.delta(0, f"{SECRET} text"))
            (session,) = (await ok(http.get("/worker-sessions")))["items"]
            await ok(http.patch("/queues/shared-queue", json={"max_running": SECRET_NUMBER}))
        self.ids = {
            "automations": "shared",
            "versions": "1",
            "runs": run["id"],
            "jobs": job_id,
            "actions": "shared.action",
            "keys": key["key"]["id"],
            "queues": "shared-queue",
            "worker-sessions": session["id"],
        }

    def delta(self, sequence: int, text: str) -> dict[str, Any]:
        frame = {"type": "generation.delta", "job_id": self.job["id"], "lease_token": self.job["lease_token"]}
        return {**frame, "sequence": sequence, "delta": {"text": text}, "message_id": f"d-{sequence}"}

    async def snapshot(self) -> dict[str, Any]:
        """Every object as its own project shows it."""
        async with self.plane.http(self.key) as http:
            shown = {}
            for route in ROUTES:
                if (
                    route.method == "GET"
                    and "{project}" in route.path
                    and not route.path.endswith((".stream", "socket"))
                ):
                    shown[route.path] = (await http.get(path_of(route, "first", self.ids))).json()
        return json.loads(json.dumps(shown), object_hook=without_times)


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if not name.endswith(("_at", "_seconds"))}


async def ok(request: Any) -> Any:
    response = await request
    assert response.is_success, response.text
    return response.json()


def path_of(route: Route, project: str, ids: dict[str, str]) -> str:
    """The route's path with the first project's own objects in it."""
    parts: list[str] = []
    for segment in route.path.split("/"):
        is_object = segment.startswith("{") and segment != "{project}"
        parts.append(ids[parts[-1]] if is_object else project if segment == "{project}" else segment)
    return "/".join(parts)


def names_an_object(route: Route) -> bool:
    return route.path.count("{") > 1


def of_projects() -> Iterator[tuple[Route, tuple[str, str]]]:
    """What names an object comes first: later the second project has objects of the same names."""
    for named in (True, False):
        for route in ROUTES:
            if "{project}" in route.path and names_an_object(route) is named:
                yield route, (route.method, route.path.removeprefix("/v1/projects/{project}"))


@pytest.fixture
async def plane(place: Any, tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path, store=place.url, heartbeat_cadence=1.0) as running:
        yield running


@pytest.fixture
async def first(plane: Serving) -> AsyncIterator[First]:
    made = First(plane, await plane.new_project("first"))
    async with plane.worker("/v1/projects/first/workers/socket", made.key) as worker:
        await made.make(worker)
        yield made


async def test_nothing_is_served_without_a_key_but_health_and_the_reference(first: First, plane: Serving) -> None:
    app: Any = plane.plane._server.config.app
    open_to_all = set()
    async with httpx.AsyncClient(base_url=plane.url) as http:
        for endpoint in app.apps.values():
            assert isinstance(endpoint, Endpoint)
            for route in endpoint._methods.values():
                response = await http.request(route.method, path_of(route, "first", first.ids))
                assert SECRET not in response.text
                if route.key_needed:
                    assert response.status_code == 401, (route.method, route.path)
                    assert response.headers["www-authenticate"] == "Bearer"
                else:
                    open_to_all.add(route.path)
                    assert response.status_code == 200
        assert (await http.get("/v1/projects/first/anything")).status_code == 404
    assert open_to_all == WITHOUT_A_KEY
    for path in ("/v1/projects/first/workers/socket", "/v1/workers/socket", "/v1/projects/none/workers/socket"):
        with pytest.raises(InvalidStatus, match="401"):
            async with plane.worker(path, "none"):
                pass


async def test_another_projects_key_opens_no_route_of_the_first(first: First, plane: Serving) -> None:
    before = await first.snapshot()
    key = await plane.new_project("second")
    walked = 0
    async with plane.http(key) as http:
        for route, name in of_projects():
            for project in ("first", "never-made"):
                response = await http.request(
                    route.method, path_of(route, project, first.ids), json=BODIES.get(name), params=QUERIES.get(name)
                )
                walked += 1
                assert response.status_code == 403, (name, response.text)
                expected = f"this API key opens project 'second', not {project!r}"
                assert response.json()["error"] == {"code": "forbidden", "message": expected}
    assert walked == 2 * sum("{project}" in route.path for route in ROUTES)
    for project in ("first", "never-made"):
        with pytest.raises(InvalidStatus, match="403"):
            async with plane.worker(f"/v1/projects/{project}/workers/socket", key):
                pass
    assert await first.snapshot() == before


async def test_the_firsts_objects_do_not_exist_in_another_project(first: First, plane: Serving) -> None:
    before = await first.snapshot()
    key = await plane.new_project("second")
    async with plane.http(key) as http:
        for route, name in of_projects():
            if route.path.endswith("/workers/socket"):
                continue
            response = await http.request(
                route.method, path_of(route, "second", first.ids), json=BODIES.get(name), params=QUERIES.get(name)
            )
            if names_an_object(route) and name not in NAMES_NOTHING:
                assert response.status_code == 404, (name, response.text)
            else:
                assert response.is_success or response.status_code == 404, (name, response.text)
            assert SECRET not in response.text, name
            assert str(SECRET_NUMBER) not in response.text, name
            assert SECRET not in str(response.headers)
            own = response.json() if response.is_success and response.content else {}
            assert not {first.ids["runs"], first.ids["jobs"], first.ids["keys"]} & set(strings_in(own)), name
        for route in ROUTES:
            if "{project}" not in route.path and route.key_needed and not route.path.endswith("socket"):
                response = await http.request(route.method, route.path)
                assert response.status_code == 200, route.path
                assert SECRET not in response.text, route.path
                assert "first" not in response.text, route.path
    assert await first.snapshot() == before


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from strings_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings_in(each)
    elif isinstance(value, str):
        yield value


async def test_another_projects_worker_cannot_touch_a_job_whose_lease_it_knows(first: First, plane: Serving) -> None:
    key = await plane.new_project("second")
    lease = {"job_id": first.job["id"], "lease_token": first.job["lease_token"]}
    for path in ("/v1/projects/second/workers/socket", "/v1/workers/socket"):
        async with plane.worker(path, key) as thief:
            # The same name, and the very token of the other's session, are nothing here.
            registered = await register(
                thief, "box-1", worker_session_token=first.token, models=[{"provider": "p", "model": "m"}]
            )
            assert registered["worker_session_token"] != first.token
            claim = {"type": "jobs.claim", "message_id": "c", "available_slots": 9, "queues": [f"{SECRET}-queue"]}
            claimed = await ask(thief, claim)
            assert claimed["jobs"] == []
            beaten = await ask(thief, {"type": "job.heartbeat", "message_id": "h", **lease})
            assert beaten["cancel"]["reason"] == "lease_lost"
            await ask(thief, {**first.delta(1, "stolen"), "message_id": "d"})
            report = {"type": "job.report", "message_id": "r", **lease, "result": {"text": "stolen"}}
            refused = await ask(thief, report)
            assert (refused["type"], refused["error"]["code"]) == ("error", "unknown_job")
            assert SECRET not in json.dumps([registered, beaten, refused])
    # Its holder goes on as if nothing had been.
    beaten = await ask(first.worker, {"type": "job.heartbeat", "message_id": "h", **lease})
    assert "cancel" not in beaten
    path = f"/v1/projects/first/jobs/{first.job['id']}"
    done = {"type": "job.report", "message_id": "r", **lease, "result": {"llm_response": {"text": "kept"}}}
    async with plane.http(first.key) as http, http.stream("GET", f"{path}/deltas.stream") as deltas:
        assert "duplicate" not in await ask(first.worker, done)
        async with asyncio.timeout(20):
            said = b"".join([chunk async for chunk in deltas.aiter_bytes()]).decode()
        job = await ok(http.get(path))
    assert SECRET in said
    assert job["status"] == "completed"
    assert "stolen" not in said + json.dumps(job)


async def test_another_projects_streams_show_nothing(first: First, plane: Serving) -> None:
    """What one project's stream says is woken by facts of all: none of another's may come with it."""
    key = await plane.new_project("second")
    async with plane.http(key) as http:
        http.base_url = httpx.URL(f"{plane.url}/v1/projects/second")
        text = json.dumps(SPEC).replace(SECRET, "x")
        await ok(http.post("/automations", json={"handle": "shared", "name": "mine"}))
        await ok(http.post("/automations/shared/versions", json={"spec": json.loads(text)}))
        await ok(http.post("/automations/shared/versions/1/publication"))
        run = await ok(http.post("/automations/shared/runs"))
        async with http.stream("GET", f"/runs/{run['id']}/events.stream") as mine:
            assert mine.status_code == 200
            async with plane.http(first.key) as theirs:
                await ok(theirs.post(f"/v1/projects/first/runs/{first.ids['runs']}/cancellations"))
            await ok(http.post(f"/runs/{run['id']}/cancellations"))
            async with asyncio.timeout(20):
                said = b"".join([chunk async for chunk in mine.aiter_bytes()])
    assert b"run.cancelled" in said
    assert SECRET.encode() not in said
    assert first.ids["runs"].encode() not in said
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await next_of(first.worker, "job.cancel")
            pytest.fail("a job of the first project was cancelled")
