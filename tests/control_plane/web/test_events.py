"""The live event stream over real HTTP, byte for byte."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from control_plane.web import events, http_protocol, server_sent
from tests.support.control_plane_server import Serving, ask, register, serving

P = "/v1/projects/default"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def http(plane: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.http() as client:
        yield client


async def start_run(http: httpx.AsyncClient, steps: int = 1) -> str:
    config = {"action_name": "print", "parameters": {}}
    spec = {"steps": [{"key": f"step-{number}", "kind": "action", "config": config} for number in range(steps)]}
    await http.post(f"{P}/automations", json={"handle": "sample", "name": "Sample"})
    await http.post(f"{P}/automations/sample/versions", json={"spec": spec})
    await http.post(f"{P}/automations/sample/versions/1/publication")
    response = await http.post(f"{P}/automations/sample/runs")
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def parse(stream: bytes) -> list[dict[str, str]]:
    assert b"\r" not in stream
    assert stream.endswith(b"\n\n")
    blocks = [block for block in stream.decode().split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


async def test_a_run_is_streamed_until_its_terminal_event(plane: Serving, http: httpx.AsyncClient) -> None:
    run_id = await start_run(http)
    streaming = asyncio.create_task(http.get(f"{P}/runs/{run_id}/events.stream"))
    async with plane.worker() as worker:
        await register(worker)
        claimed = await ask(worker, {"type": "jobs.claim", "message_id": "m-2", "available_slots": 1})
        job = claimed["jobs"][0]
        await ask(
            worker,
            {
                "type": "job.report",
                "job_id": job["id"],
                "lease_token": job["lease_token"],
                "result": {"status": "x"},
                "message_id": "m-3",
            },
        )
    response = await streaming
    assert response.headers["content-type"] == "text/event-stream"
    said = parse(response.content)
    assert [event["event"] for event in said] == [
        "run.started",
        "step.started",
        "step.suspended",
        "action.called",
        "action.result",
        "step.completed",
        "run.completed",
    ]
    assert [event["id"] for event in said] == [str(number) for number in range(1, 8)]
    listed = (await http.get(f"{P}/runs/{run_id}/events")).json()["items"]
    assert [json.loads(event["data"]) for event in said] == listed
    assert {event["event_type"] for event in listed if "status" in event["payload"]} <= {"run.started", "run.completed"}


async def test_resuming(http: httpx.AsyncClient) -> None:
    run_id = await start_run(http)
    await http.post(f"{P}/runs/{run_id}/cancellations")
    stream = f"{P}/runs/{run_id}/events.stream"
    whole = parse((await http.get(stream)).content)
    assert parse((await http.get(f"{stream}?since_sequence=2")).content) == whole[2:]
    headers = {"last-event-id": "3"}
    assert parse((await http.get(f"{stream}?since_sequence=2", headers=headers)).content) == whole[3:]
    # A reader that has seen everything is not kept waiting.
    behind = await http.get(f"{stream}?since_sequence={whole[-1]['id']}")
    assert (behind.status_code, behind.content) == (200, b"")


async def test_refusals(http: httpx.AsyncClient) -> None:
    assert (await http.get(f"{P}/runs/run_x/events.stream")).status_code == 404
    run_id = await start_run(http)
    assert (await http.head(f"{P}/runs/{run_id}/events.stream")).status_code == 200
    for query, headers in (("?since_sequence=x", {}), ("", {"last-event-id": "abc"}), ("", {"last-event-id": "-1"})):
        response = await http.get(f"{P}/runs/{run_id}/events.stream{query}", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


async def test_heartbeats_are_comments(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_sent, "HEARTBEAT_INTERVAL", 0.05)
    run_id = await start_run(http)
    received = b""
    async with http.stream("GET", f"{P}/runs/{run_id}/events.stream") as response:
        async for chunk in response.aiter_bytes():
            received += chunk
            if received.count(server_sent.HEARTBEAT) >= 2:
                break
    assert all(line.startswith((b":", b"id:", b"event:", b"data:")) for line in received.split(b"\n") if line)


async def test_the_poll_behind_the_hints(
    plane: Serving, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "POLL_INTERVAL", 0.05)
    monkeypatch.setattr(events.RunStreams, "committed", lambda *_: None)
    run_id = await start_run(http)
    async with http.stream("GET", f"{P}/runs/{run_id}/events.stream") as response:
        lines = response.aiter_lines()
        assert await anext(lines) == "id: 1"
        await plane.store.cancel_run((await plane.store.project("default")).id, run_id, None)
        assert "event: run.cancelled" in [line async for line in lines]


async def test_a_reader_that_does_not_read_is_cut_off_and_harms_nobody(
    plane: Serving, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off = asyncio.Event()

    class Watched(http_protocol.HttpProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            cut_off.set()

    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT", 0.2)
    run_id = await start_run(http, steps=8)
    monkeypatch.setattr(plane.plane._server.config, "http_protocol_class", Watched)
    plane.plane._server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop = asyncio.get_running_loop()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        await loop.sock_connect(slow, (plane.host, plane.port))
        request = (
            f"GET {P}/runs/{run_id}/events.stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {plane.key}\r\n\r\n"
        )
        await loop.sock_sendall(slow, request.encode())
        assert await loop.sock_recv(slow, 16) == b"HTTP/1.1 200 OK\r"
        # The results are larger than what is buffered for a reader that stands still.
        async with plane.worker() as worker:
            await register(worker)
            for number in range(8):
                claim = {"type": "jobs.claim", "message_id": f"c-{number}", "available_slots": 1}
                job = (await ask(worker, claim))["jobs"][0]
                report = {"type": "job.report", "job_id": job["id"], "lease_token": job["lease_token"]}
                await ask(worker, {**report, "message_id": f"r-{number}", "result": {"text": "x" * 60_000}})
        assert (await http.get(f"{P}/runs/{run_id}")).json()["status"] == "completed"
        async with asyncio.timeout(60):
            await cut_off.wait()
    assert parse((await http.get(f"{P}/runs/{run_id}/events.stream")).content)[-1]["event"] == "run.completed"


async def test_streams_end_when_the_server_stops(tmp_path: Path) -> None:
    async with serving(tmp_path) as plane, plane.http() as http:
        run_id = await start_run(http)
        async with http.stream("GET", f"{P}/runs/{run_id}/events.stream") as response:
            chunks = response.aiter_bytes()
            assert (await anext(chunks)).startswith(b"id: 1\n")
            plane.plane.stop("the test says so")
            async with asyncio.timeout(60):
                rest = [chunk async for chunk in chunks]
        assert b"run.completed" not in b"".join(rest)
