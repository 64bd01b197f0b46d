"""Publish, start and follow automations over a control plane's HTTP API, as any client would."""

import json
from collections.abc import Iterator
from typing import Any

import httpx

RUNS = "/v1/projects/default/runs"
AUTOMATIONS = "/v1/projects/default/automations"


def action_step(key: str, action_name: str, parameters: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """One step of a spec."""
    config = {"action_name": action_name, "parameters": parameters or {}}
    return {"key": key, "kind": "action", "config": config} | fields


def publish(http: httpx.Client, handle: str, steps: list[dict[str, Any]], **more: Any) -> None:
    """Create an automation with these steps and publish it. `more` is what else its spec has."""
    created(http.post(AUTOMATIONS, json={"handle": handle, "name": handle}))
    version = created(http.post(f"{AUTOMATIONS}/{handle}/versions", json={"spec": {"steps": steps, **more}}))
    assert version["validation"] == {"valid": True, "errors": []}
    http.post(f"{AUTOMATIONS}/{handle}/versions/{version['version']}/publication").raise_for_status()


def start(http: httpx.Client, handle: str, **body: Any) -> str:
    """Start a run; returns its id."""
    return str(created(http.post(f"{AUTOMATIONS}/{handle}/runs", json=body))["id"])


def created(response: httpx.Response) -> dict[str, Any]:
    """The body of an answer that must be a success."""
    assert response.is_success, response.text
    body: dict[str, Any] = response.json()
    return body


def stream(http: httpx.Client, run_id: str, since: int = 0) -> Iterator[dict[str, Any]]:
    """The run's events as they happen, to its end."""
    with http.stream("GET", f"{RUNS}/{run_id}/events.stream", params={"since_sequence": since}) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def finish(http: httpx.Client, run_id: str) -> dict[str, Any]:
    """The run, once it is terminal."""
    for _ in stream(http, run_id):
        pass
    return created(http.get(f"{RUNS}/{run_id}"))


def events(http: httpx.Client, run_id: str) -> list[dict[str, Any]]:
    """All events so far."""
    return list(created(http.get(f"{RUNS}/{run_id}/events", params={"limit": 200}))["items"])


def event_types(http: httpx.Client, run_id: str) -> list[str]:
    """Their types, in order."""
    return [event["event_type"] for event in events(http, run_id)]


def steps(http: httpx.Client, run_id: str) -> list[dict[str, Any]]:
    """The run's steps, in order."""
    return list(created(http.get(f"{RUNS}/{run_id}/steps"))["items"])
