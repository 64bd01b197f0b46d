"""The published clients do their job against a real control plane, unchanged (make installs them, each by itself)."""

import json
import os
import selectors
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.store_scenario import PostgresPlace

SCRIPTS = Path(__file__).parent / "clients"
ENVIRONMENTS = Path(__file__).parents[2] / ".venv" / "clients"
TIMEOUT = 60.0

SAMPLE = {
    "steps": [
        {"key": "greet", "kind": "action", "config": {"action_name": "greet", "parameters": {"name": "Ada"}}},
        {
            "key": "retry",
            "kind": "action",
            "retry": {"max_attempts": 3},
            "config": {"action_name": "flaky", "parameters": {"succeed_at": 3}},
        },
    ]
}


class Script:
    """A script under one client's interpreter, which says what happens in JSON lines."""

    def __init__(self, version: str, plane: ControlPlaneProcess, name: str, *arguments: str) -> None:
        python = ENVIRONMENTS / version / "bin" / "python"
        assert python.exists(), f"client {version} is not installed: run `make .venv/clients-{version}`"
        self.process = subprocess.Popen(
            [str(python), str(SCRIPTS / name), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"MOBIUS_API_URL": plane.url, "MOBIUS_API_KEY": plane.key},
        )
        self._buffer = b""

    def next(self, event: str) -> dict[str, Any]:
        """The script's next line, which must tell of this event."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + TIMEOUT
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
                assert data, f"the script ended or fell silent before {event!r}: {self._buffer.decode()}"
                self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        said: dict[str, Any] = json.loads(line)
        assert said.pop("event") == event, said
        return said

    def tell(self) -> None:
        """Let the script go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(TIMEOUT)
        finally:
            self.process.kill()
            self.process.wait()


@contextmanager
def script(version: str, plane: ControlPlaneProcess, name: str, *arguments: str) -> Iterator[Script]:
    running = Script(version, plane, name, *arguments)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """None: a file beside the server's."""
    if request.param == "sqlite":
        yield None
        return
    place = PostgresPlace(request.getfixturevalue("cluster"))
    yield place.url
    place.remove()


@pytest.fixture
def plane(tmp_path: Path, store_url: str | None) -> Iterator[ControlPlaneProcess]:
    with ControlPlaneProcess(tmp_path, store_url=store_url) as running:
        yield running


@pytest.fixture
def loops_plane(tmp_path: Path, store_url: str | None) -> Iterator[ControlPlaneProcess]:
    with ControlPlaneProcess(tmp_path, "--dialect", "loops", store_url=store_url) as running:
        yield running


def test_client_0_0_23_from_creation_to_cancellation(plane: ControlPlaneProcess) -> None:
    with (
        script("0.0.23", plane, "worker.py", "2", "public-1") as worker,
        script("0.0.23", plane, "lifecycle.py") as client,
    ):
        published = client.next("published")
        assert published["created"]["status"] == "draft"
        assert published["validation"]["valid"] is True
        assert published["fetched"]["published_version"] == published["version"] == 1
        assert published["updated"] == "says hello twice"
        assert (published["listed"], published["versions"]) == (["greeting"], [1])

        watched = client.next("watched")["events"]
        types = [event[0] for event in watched]
        assert types[0] == "run.started"
        assert types[-1] == "run.completed"
        assert [event[1] for event in watched] == list(range(1, len(watched) + 1))
        assert types.count("action.result") == 3
        assert types.count("action.retried") == 1
        assert {event[0] for event in watched if "status" in event[2]} <= {"run.started", "run.completed"}
        assert client.next("resumed")["events"] == [watched[-1][1]]

        run = client.next("waited")["run"]
        assert run["status"] == "completed"
        assert run["result"] == {"greet": {"greeting": "hello Ada"}, "retried": {"attempt": 2}, "count": {"output": 2}}
        second = client.next("waited")["run"]
        assert second["result"]["greet"] == {"greeting": "hello Grace"}
        assert set(client.next("listed")["runs"]) == {run["id"], second["id"]}

        worker.next("endless started")
        client.tell()
        worker.next("endless cancelled")
        cancelled = client.next("cancelled")
        assert cancelled["run"]["status"] == "cancelled"
        assert client.next("cancelled again")["status"] == "completed"

        signalled = client.next("signalled")
        assert signalled["status"] == "completed"
        assert signalled["types"] == ["step.completed", "run.completed"]
        assert signalled["run"]["result"] == {"nap": {}, "ok": {"by": "me"}}

        refused = client.next("refused")
        assert refused["status"] == 404
        assert refused["body"]["error"]["code"] == "not_found"


def run_sample(plane: ControlPlaneProcess) -> dict[str, Any]:
    with plane.http() as http:
        automations = "/v1/projects/default/automations"
        http.post(automations, json={"handle": "sample", "name": "Sample"}).raise_for_status()
        http.post(f"{automations}/sample/versions", json={"spec": SAMPLE}).raise_for_status()
        http.post(f"{automations}/sample/versions/1/publication").raise_for_status()
        started = http.post(f"{automations}/sample/runs").raise_for_status()
        assert started.status_code == 202
        run = f"/v1/projects/default/runs/{started.json()['id']}"
        with http.stream("GET", f"{run}/events.stream") as stream:
            for line in stream.iter_lines():
                assert "\r" not in line
        result: dict[str, Any] = http.get(run).json()
        return result


def invoke(plane: ControlPlaneProcess) -> Any:
    """A job without a run, and its answer."""
    with plane.http() as http:
        body = {"input": {"name": "Ada"}, "timeout_seconds": 60}
        return http.post("/v1/projects/default/actions/greet/invocations", json=body, timeout=90).json().get("output")


def test_worker_0_0_61_speaks_the_loops_dialect(loops_plane: ControlPlaneProcess) -> None:
    with script("0.0.61", loops_plane, "worker.py", "1", "public-2"):
        run = run_sample(loops_plane)
        assert invoke(loops_plane) == {"greeting": "hello Ada"}
    assert run["status"] == "completed"
    assert run["result"] == {"greet": {"greeting": "hello Ada"}, "retry": {"attempt": 3}}


def test_worker_0_5_0_finds_the_project_by_its_key(plane: ControlPlaneProcess) -> None:
    with script("0.5.0", plane, "worker.py", "2", "public-5"):
        run = run_sample(plane)
        assert invoke(plane) == {"greeting": "hello Ada"}
    assert run["status"] == "completed"
    assert run["result"] == {"greet": {"greeting": "hello Ada"}, "retry": {"attempt": 3}}


def test_worker_0_0_61_on_a_project_that_alone_speaks_loops(tmp_path: Path) -> None:
    with (
        ControlPlaneProcess(tmp_path, "--project-dialect", "default=loops") as plane,
        script("0.0.61", plane, "worker.py", "3", "public-3"),
    ):
        assert run_sample(plane)["status"] == "completed"


def test_a_public_worker_goes_on_after_the_control_plane_was_killed(plane: ControlPlaneProcess) -> None:
    with script("0.0.23", plane, "worker.py", "1", "public-4"):
        assert run_sample(plane)["status"] == "completed"
        assert invoke(plane) == {"greeting": "hello Ada"}
        plane.kill()
        plane.start()
        with plane.http() as http:
            started = http.post("/v1/projects/default/automations/sample/runs").raise_for_status().json()
            with http.stream("GET", f"/v1/projects/default/runs/{started['id']}/events.stream") as stream:
                stream.read()
            assert http.get(f"/v1/projects/default/runs/{started['id']}").json()["status"] == "completed"
