"""Limits over real sockets: what is refused, with which headers, and that everybody else goes on."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from control_plane import rate_limits
from control_plane.web import app, held_bytes
from control_plane.web.authentication import Authenticator
from control_plane.web.held_bytes import HeldBytes
from tests.support.control_plane_server import DEADLINE, Serving, register, serving

P = "/v1/projects/default"


def limits_of(plane: Serving) -> rate_limits.Limits:
    authenticator: Authenticator = plane.plane._gate.authenticator
    return authenticator.limits


async def test_a_key_that_asks_too_often(tmp_path: Path) -> None:
    async with serving(tmp_path, rate_limit=1) as plane, plane.http() as http:
        other = await plane.new_project("other")
        first = await http.get(P)
        assert first.status_code == 200
        assert (first.headers["x-ratelimit-limit"], first.headers["x-ratelimit-remaining"]) == ("2", "1")
        answers = [await http.get(P) for _ in range(20)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        for answer in refused:
            assert answer.json()["error"]["code"] == "rate_limited"
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["x-ratelimit-remaining"] == "0"
            assert answer.headers["x-ratelimit-scope"] == "key"
            assert answer.headers["x-ratelimit-policy"] == "1;w=1;burst=2"
            assert int(answer.headers["x-ratelimit-reset"]) in (1, 2)
        # Also a worker socket is asked for, and other keys are other buckets.
        statuses, waits = [], set()
        for _ in range(4):
            try:
                async with plane.worker():
                    statuses.append(101)
            except InvalidStatus as refusal:
                statuses.append(refusal.response.status_code)
                waits.add(refusal.response.headers["retry-after"])
        assert waits == {"1"}
        assert 429 in statuses
        async with plane.http(other) as others:
            assert (await others.get("/v1/projects/other")).status_code == 200
        assert (await http.get("/healthz")).status_code == 200


async def test_no_limit_says_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, rate_limit=0) as plane, plane.http() as http:
        assert not [name for name in (await http.get(P)).headers if "ratelimit" in name]


async def test_connections_of_one_key(tmp_path: Path) -> None:
    async with serving(tmp_path, connections_per_key=2) as plane, plane.http() as http:
        step = {"key": "one", "kind": "action", "config": {"action_name": "print"}}
        await http.post(f"{P}/automations", json={"handle": "a", "name": "A"})
        await http.post(f"{P}/automations/a/versions", json={"spec": {"steps": [step]}})
        await http.post(f"{P}/automations/a/versions/1/publication")
        run_id = (await http.post(f"{P}/automations/a/runs")).json()["id"]
        stream = f"{P}/runs/{run_id}/events.stream"
        async with plane.worker() as worker, http.stream("GET", stream) as streaming:
            await register(worker)
            lines = streaming.aiter_lines()
            assert await anext(lines)
            with pytest.raises(InvalidStatus) as refusal:
                async with plane.worker():
                    pass
            assert refusal.value.response.status_code == 429
            assert refusal.value.response.headers["x-ratelimit-scope"] == "connections"
            refused = await http.get(stream)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_connections")
            assert refused.headers["retry-after"] == "10"
            assert (await http.get(P)).status_code == 200
        async with asyncio.timeout(DEADLINE), plane.worker() as worker:
            assert (await register(worker))["type"] == "worker.registered"


class Watched(rate_limits.Arrivals):
    """Tells when somebody comes or goes."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._changed = asyncio.Event()

    def arrive(self, address: str) -> rate_limits.Arrival | None:
        self._changed.set()
        return super().arrive(address)

    def left(self, address: str) -> None:
        self._changed.set()
        super().left(address)

    async def until(self, number: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while sum(self._here.values()) != number:
                self._changed.clear()
                await self._changed.wait()


async def raw(plane: Serving) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(plane.host, plane.port)


async def test_connections_without_a_key_of_one_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "is_loopback", lambda _: False)
    async with serving(tmp_path) as plane, plane.http() as http:
        arrivals = limits_of(plane).arrivals = Watched(3)
        idle = [await raw(plane) for _ in range(3)]
        await arrivals.until(3)
        reader, writer = await raw(plane)
        async with asyncio.timeout(DEADLINE):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 429 Too Many Requests")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
        writer.close()
        # One that leaves makes room, and one that shows its key does not count, as a request or as a socket.
        idle[0][1].close()
        await arrivals.until(2)
        assert (await http.get(P)).status_code == 200
        async with plane.worker() as worker:
            await register(worker)
            await arrivals.until(2)
            async with plane.worker() as second:
                await register(second, "worker-2")
                await arrivals.until(2)
        for _, each in idle[1:]:
            each.close()
        await arrivals.until(0)


async def test_connections_of_everybody_together(tmp_path: Path) -> None:
    async with serving(tmp_path) as plane:
        limits_of(plane).most_connections = 2
        arrivals = limits_of(plane).arrivals = Watched(99)
        held = [await raw(plane) for _ in range(2)]
        await arrivals.until(2)
        reader, writer = await raw(plane)
        async with asyncio.timeout(DEADLINE):
            assert (await reader.read()).startswith(b"HTTP/1.1 503 Service Unavailable")
        for _, each in [*held, (reader, writer)]:
            each.close()


async def test_refused_keys_behind_a_trusted_proxy_are_counted_by_their_sender(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, trusted_proxies=frozenset({"127.0.0.1"})) as plane,
        httpx.AsyncClient(base_url=plane.url) as http,
    ):

        async def status(sender: str, number: int) -> Any:
            headers = {"authorization": f"Bearer mbx_{number:032}", "x-forwarded-for": f"198.51.100.1, {sender}"}
            return await http.get(P, headers=headers)

        limits_of(plane).failures = rate_limits.Buckets(rate_limits.Rate(per_second=0.001, burst=5))
        assert [(await status("203.0.113.9", number)).status_code for number in range(7)] == [401] * 5 + [429] * 2
        refused = await status("203.0.113.9", 8)
        assert (refused.headers["x-ratelimit-scope"], int(refused.headers["retry-after"]) > 100) == ("address", True)
        assert (await status("203.0.113.10", 9)).status_code == 401


async def test_requests_of_a_key_that_hold_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_bytes, "MOST_HELD", 2_500_000)
    held: list[HeldBytes] = []
    make = HeldBytes.__init__
    monkeypatch.setattr(HeldBytes, "__init__", lambda self: (make(self), held.append(self))[0])
    config = {"action_name": "a", "parameters": {"x": "y" * 700_000}}
    spec = {"steps": [{"key": "a", "kind": "action", "config": config}]}
    body = json.dumps({"spec": spec})
    head = f"POST {P}/automations/a/versions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    async with serving(tmp_path) as plane, plane.http() as http:
        head += f"authorization: Bearer {plane.key}\r\n\r\n"
        await http.post(f"{P}/automations", json={"handle": "a", "name": "A"})
        halves = [await asyncio.open_connection(plane.host, plane.port) for _ in range(4)]
        for _, writer in halves:
            writer.write((head + body[:-10]).encode())
        # One of them is too much, is read to its end, and hears it.
        async with asyncio.timeout(DEADLINE):
            while sum(held[0].by_key.values()) != 3 * (len(body) - 10):  # noqa: ASYNC110 - the server's, not ours
                await asyncio.sleep(0.01)
            for _, writer in halves:
                writer.write(body[-10:].encode())
            answers = sorted([(await reader.readuntil(b"\r\n")).split()[1] for reader, _ in halves])
        assert answers == [b"201", b"201", b"201", b"429"]
        for _, writer in halves:
            writer.close()
        # Answers count as well, and what was held is given back.
        monkeypatch.setattr(held_bytes, "MOST_HELD", 1_000_000)
        refused = await http.get(f"{P}/automations/a/versions")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_much_at_once")
        assert (refused.headers["retry-after"], refused.headers["x-ratelimit-scope"]) == ("1", "bytes")
        assert (await http.get(f"{P}/automations/a/versions?limit=1")).status_code == 200
        assert (await http.post(f"{P}/automations/a/versions", json={"spec": spec})).status_code == 201
        async with asyncio.timeout(DEADLINE):
            while held[0].by_key:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_answers_that_nobody_reads_are_held_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_bytes, "MOST_HELD", 20_000_000)
    config = {"action_name": "a", "parameters": {"x": "y" * 700_000}}
    spec = {"steps": [{"key": "a", "kind": "action", "config": config}]}
    async with serving(tmp_path) as plane, plane.http() as http:
        await http.post(f"{P}/automations", json={"handle": "a", "name": "A"})
        for _ in range(11):
            await http.post(f"{P}/automations/a/versions", json={"spec": spec})
        request = f"GET {P}/automations/a/versions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {plane.key}\r\n\r\n"
        deaf = [await asyncio.open_connection(plane.host, plane.port, limit=1024) for _ in range(2)]
        for reader, writer in deaf:
            writer.write(request.encode())
            await reader.readuntil(b"\r\n")
        refused = await http.get(f"{P}/automations/a/versions")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_much_at_once")
        for _, writer in deaf:
            writer.close()
        async with asyncio.timeout(DEADLINE):
            while (await http.get(f"{P}/automations/a/versions")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_caller_that_goes_in_the_middle_of_its_body_is_no_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []
    monkeypatch.setattr(app._log, "error", lambda event, **_: faults.append(event), raising=False)
    gone = asyncio.Event()
    read_body = app._read_body

    async def noted(*arguments: Any) -> bytes:
        try:
            return await read_body(*arguments)
        finally:
            asyncio.get_running_loop().call_later(0, gone.set)

    monkeypatch.setattr(app, "_read_body", noted)
    async with serving(tmp_path) as plane:
        _, writer = await asyncio.open_connection(plane.host, plane.port)
        head = f"POST {P}/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {plane.key}\r\ncontent-length: 100\r\n\r\n"
        writer.write(head.encode() + b"{")
        await writer.drain()
        writer.close()
        await asyncio.wait_for(gone.wait(), DEADLINE)
    assert faults == []
