"""NUL characters: refused in texts, kept in JSON, and the same on both stores; no report of a worker is lost to one."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import Struct

from control_plane.web.error_status import HttpError
from control_plane.web.shapes import NoQuery
from control_plane.web.texts import refuse_nul, texts_with_nul
from tests.support.control_plane_server import Serving, answer_to, ask, register, serving
from tests.support.store_scenario import PostgresPlace, SqlitePlace

AUTOMATIONS = "/v1/projects/default/automations"
RUNS = "/v1/projects/default/runs"
ODD = {"a\0key": "a \0 value", "nested": [{"\0": "\0"}]}


@pytest.fixture
async def plane(place: SqlitePlace | PostgresPlace, tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path, store=place.url) as running:
        yield running


def step(**config: Any) -> dict[str, Any]:
    return {"key": "one", "kind": "action", "config": {"action_name": "print"} | config}


async def sent(http: httpx.AsyncClient, path: str, body: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    response = await http.post(path, json=body, **arguments)
    assert response.is_success, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def started(http: httpx.AsyncClient, first: dict[str, Any], **body: Any) -> str:
    """A run of a published automation with this step and whatever comes in."""
    await sent(http, AUTOMATIONS, {"handle": "a", "name": "A"})
    spec = {"steps": [first, step() | {"key": "two"}]}
    version = await sent(http, f"{AUTOMATIONS}/a/versions", {"spec": spec})
    assert version["validation"] == {"valid": True, "errors": []}
    (await http.post(f"{AUTOMATIONS}/a/versions/1/publication")).raise_for_status()
    return str((await sent(http, f"{AUTOMATIONS}/a/runs", body))["id"])


async def test_json_values_keep_theirs_from_the_input_to_the_result(plane: Serving) -> None:
    async with plane.http() as http, plane.worker() as worker:
        run = await started(http, step(parameters={"odd": "{{ .inputs.odd }}", "\0": "\0"}), inputs={"odd": ODD})
        await register(worker, concurrency_limit=1)
        (job,) = (await ask(worker, {"type": "jobs.claim", "available_slots": 1}))["jobs"]
        assert job["spec"]["parameters"] == {"odd": ODD, "\0": "\0"}
        report = {"type": "job.report", "job_id": job["id"], "lease_token": job["lease_token"], "message_id": "m-2"}
        assert (await ask(worker, report | {"status": "completed", "result": ODD}))["type"] == "job.report.ack"
        (job,) = (await ask(worker, {"type": "jobs.claim", "available_slots": 1, "message_id": "m-3"}))["jobs"]
        failure = {"status": "failed", "error_type": "Odd\0", "error_message": "it said \0"}
        again = {"job_id": job["id"], "lease_token": job["lease_token"], "message_id": "m-4"} | failure
        assert (await ask(worker, report | again))["type"] == "job.report.ack"
        record = (await http.get(f"{RUNS}/{run}")).json()
        assert (record["status"], record["error_type"]) == ("failed", "Odd\ufffd")
        steps = (await http.get(f"{RUNS}/{run}/steps")).json()["items"]
        assert (steps[0]["result"], steps[1]["error_message"]) == (ODD, "it said \ufffd")


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (AUTOMATIONS, {"handle": "b", "name": "nul \0"}, "`name`"),
        (AUTOMATIONS, {"handle": "b", "name": "b", "description": "\0"}, "`description`"),
        (f"{AUTOMATIONS}/a/runs", {"external_id": "nul \0"}, "`external_id`"),
        (f"{RUNS}/run_%00/cancellations", {}, "`id`"),
        (f"{AUTOMATIONS}/a%00/runs", {}, "`handle`"),
    ],
)
async def test_a_text_with_one_is_refused(plane: Serving, path: str, body: dict[str, Any], says: str) -> None:
    async with plane.http() as http:
        response = await http.post(path, json=body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "invalid_text"
        assert says in error["message"]


async def test_names_in_a_specification_hold_none(plane: Serving) -> None:
    async with plane.http() as http:
        settings = {"queue": "nul \0"}
        response = await http.post(AUTOMATIONS, json={"handle": "q", "name": "q", "settings": settings})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_field")
        await sent(http, AUTOMATIONS, {"handle": "b", "name": "B"})
        version = await sent(http, f"{AUTOMATIONS}/b/versions", {"spec": {"steps": [step(action_name="nul \0")]}})
        assert version["validation"]["errors"] == [
            "steps[0].config.action_name: expected a text without NUL characters"
        ]
        assert (await http.post(f"{AUTOMATIONS}/b/versions/1/publication")).status_code == 409


async def test_a_worker_that_sends_one_is_told_and_goes_on(plane: Serving) -> None:
    async with plane.worker() as worker:
        refused = await register(worker, "worker \0")
        assert (refused["type"], refused["error"]["code"]) == ("error", "invalid_frame")
        nul = {"queues": ["q \0"]}, {"action_names": ["a", "a \0"]}, {"models": [{"provider": "p", "model": "m \0"}]}
        for names in (*nul, {"capabilities": ["c \0"]}):
            refused = await register(worker, "worker-1", **names)
            assert (refused["type"], refused["error"]["code"]) == ("error", "invalid_frame")
        assert (await register(worker, "worker-1"))["type"] == "worker.registered"
        for number, names in enumerate(nul):
            for kind in ("worker.ready", "jobs.claim"):
                said = {"type": kind, "message_id": f"{kind}-{number}", "available_slots": 1} | names
                refused = await ask(worker, said)
                assert (refused["type"], refused["error"]["code"]) == ("error", "invalid_frame")
        beat = {"type": "job.heartbeat", "job_id": "job_\0", "lease_token": "\0", "message_id": "m-2"}
        assert (await ask(worker, beat))["type"] in ("job.heartbeat.ack", "error")
        report = {"type": "job.report", "job_id": "job_\0", "lease_token": "\0", "message_id": "m-3"}
        unknown = await ask(worker, report | {"status": "completed"})
        assert unknown["error"]["code"] == "unknown_job"
        assert (await answer_to(worker, "m-3"))["type"] == "job.report.ack"


class Inner(Struct, frozen=True, kw_only=True):
    text: str
    values: dict[str, Any] = {}


class Outer(Struct, frozen=True, kw_only=True):
    names: list[str]
    inner: list[Inner]


def test_where_a_nul_is_looked_for() -> None:
    body = Outer(names=["a", "\0"], inner=[Inner(text="b", values={"c": "\0"}), Inner(text="d\0")])
    assert list(texts_with_nul(body)) == ["names[1]", "inner[1].text"]
    with pytest.raises(HttpError) as caught:
        refuse_nul({}, NoQuery(), msgspec.json.encode(body), body)
    assert caught.value.status == 400
    refuse_nul({"run_id": "run_1"}, NoQuery(), b"", None)
