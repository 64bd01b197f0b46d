"""Runs that wait, over real HTTP: signals, what a waiting run shows, and which runs are listed."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.control_plane.web.test_api import P, published, refused
from tests.support.control_plane_server import Serving, serving

WAITING = {
    "steps": [
        {
            "key": "ok",
            "kind": "wait_for_event",
            "config": {"event_type": "approved", "match": {"order": 7}},
            "timeout": {"duration": "1h"},
        }
    ],
    "defaults": {"wall_clock_timeout": "2h"},
}


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def http(plane: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.http() as client:
        yield client


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_run_waits_and_a_signal_ends_it(http: httpx.AsyncClient) -> None:
    await published(http, "waiting", WAITING)
    run = (await http.post(f"{P}/automations/waiting/runs")).json()
    path = f"{P}/runs/{run['id']}"
    waiting = (await http.get(path)).json()
    assert waiting["status"] == "suspended"
    assert moment(waiting["wake_at"]) - moment(waiting["started_at"]) == timedelta(hours=1)
    assert moment(waiting["wall_clock_deadline_at"]) - moment(waiting["started_at"]) == timedelta(hours=2)
    (step,) = (await http.get(f"{path}/steps")).json()["items"]
    assert (step["kind"], step["status"], step["wait_id"][:5]) == ("wait_for_event", "suspended", "wait_")
    assert "job_id" not in step

    assert "`step_key`" in refused(await http.post(f"{path}/signals", json={}), 400, "invalid_request")
    refused(await http.post(f"{path}/signals", json={"step_key": "ok", "result": 5}), 400, "invalid_request")
    refused(await http.post(f"{path}/signals", json={"step_key": "x"}), 404, "unknown_step")
    refused(await http.post(f"{P}/runs/run_x/signals", json={"step_key": "ok"}), 404, "not_found")
    sentence = refused(await http.post(f"{path}/signals", json={"step_key": "ok"}), 400, "signal_refused")
    assert sentence == "the step waits for a signal with order 7; this one has none"

    answer = await http.post(f"{path}/signals", json={"step_key": "ok", "result": {"order": 7}})
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    ended = (await http.get(path)).json()
    assert ended["result"] == {"ok": {"order": 7}}
    assert "wake_at" not in ended
    refused(await http.post(f"{path}/signals", json={"step_key": "ok"}), 409, "run_ended")


async def test_a_sleeping_run_wakes_by_itself(http: httpx.AsyncClient) -> None:
    await published(http, "nap", {"steps": [{"key": "nap", "kind": "sleep", "config": {"duration": "50ms"}}]})
    run = (await http.post(f"{P}/automations/nap/runs")).json()
    assert run["status"] == "suspended"
    async with http.stream("GET", f"{P}/runs/{run['id']}/events.stream", timeout=60) as stream:
        events = [line async for line in stream.aiter_lines() if line.startswith("event:")]
    assert events[-1] == "event: run.completed"


async def test_a_skipped_start_says_what_goes_on(http: httpx.AsyncClient) -> None:
    await published(http, "one", {**WAITING, "concurrency": "skip"})
    run = (await http.post(f"{P}/automations/one/runs")).json()
    answer = await http.post(f"{P}/automations/one/runs")
    refused(answer, 409, "run_skipped")
    assert answer.json()["error"]["details"] == {"run_id": run["id"], "status": "suspended"}


async def test_undeclared_inputs_are_refused(http: httpx.AsyncClient) -> None:
    await published(http, "typed", {**WAITING, "inputs": {"colour": {}}})
    answer = await http.post(f"{P}/automations/typed/runs", json={"inputs": {"color": "red"}})
    sentence = refused(answer, 400, "invalid_inputs")
    assert sentence == "inputs.color: the automation declares no such input; it declares colour"


async def test_runs_are_listed_by_what_is_asked(http: httpx.AsyncClient) -> None:
    await published(http, "waiting", WAITING)
    ids = [(await http.post(f"{P}/automations/waiting/runs", json={"external_id": name})).json()["id"] for name in "ab"]

    async def found(**query: str) -> list[str]:
        answer = await http.get(f"{P}/runs", params=query)
        assert answer.status_code == 200, answer.text
        return [run["id"] for run in answer.json()["items"]]

    assert await found() == ids[::-1]
    assert await found(external_id="a") == ids[:1]
    assert await found(parent_run_id=ids[0]) == []
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert await found(created_before=later, external_id="b") == ids[1:]
    assert await found(created_after=later) == []
    for wrong in ("yesterday", "2026-01-01T00:00:00"):
        assert "created_after" in refused(
            await http.get(f"{P}/runs", params={"created_after": wrong}), 400, "invalid_request"
        )
