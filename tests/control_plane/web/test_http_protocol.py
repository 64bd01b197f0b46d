"""The limits of one HTTP connection, with real sockets and an application that only echoes."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from control_plane.web import http_protocol

DEADLINE = 10.0


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    answer = scope["path"].encode() + b" " + body
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the first part", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    if scope["path"] == "/endless":
        answer = b"x" * 50_000_000
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(echo, http=http_protocol.HttpProtocol, lifespan="off", log_config=None)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listening])
        yield listening.getsockname()
        await server.shutdown()


async def exchange(address: tuple[str, int], *parts: bytes) -> bytes:
    """Send the parts, then read until the server closes."""
    reader, writer = await asyncio.open_connection(*address)
    for part in parts:
        writer.write(part)
    async with asyncio.timeout(DEADLINE):
        answer = await reader.read()
    writer.close()
    return answer


def refused(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == code


async def test_ordinary_requests_are_untouched(address: tuple[str, int]) -> None:
    request = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"
    last = b"GET /b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = await exchange(address, request, request + last)
    assert answer.count(b"/a hi") == 2
    assert answer.endswith(b"/b ")


async def test_what_is_no_http(address: tuple[str, int]) -> None:
    refused(await exchange(address, b"\x16\x03\x01 hello\r\n\r\n"), 400, "invalid_request")


async def test_endless_headers(address: tuple[str, int]) -> None:
    head = b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(70))
    refused(await exchange(address, head), 431, "headers_too_large")


async def test_a_head_that_never_ends(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "REQUEST_HEAD_TIMEOUT", 0.05)
    refused(await exchange(address, b"GET / HTTP/1.1\r\nhost: x\r\n"), 408, "request_timeout")
    refused(await exchange(address, b""), 408, "request_timeout")
    # The second request of a connection that was kept alive has the same deadline.
    answer = await exchange(address, b"GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"HTTP/1.1 408 " in answer


async def test_whole_requests_before_what_is_no_http_are_answered(address: tuple[str, int]) -> None:
    request = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"
    for garbage in (b"BAD\r\n\r\n", b"BAD\r\n\r\n" * 100):
        answer = await exchange(address, request + request + garbage)
        assert (answer.count(b"/a hi"), answer.count(b"HTTP/1.1 200 ")) == (2, 2), answer


async def test_an_upgrade_behind_an_unanswered_request_is_none(address: tuple[str, int]) -> None:
    request = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
    upgrade = (
        b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    answer = await exchange(address, request + upgrade)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.endswith(b"/a ")


@pytest.mark.parametrize("next_request", [b"GET /b HTTP/1.1\r\n", b"\x16\x03\x01\r\n\r\n"])
async def test_a_refusal_never_stands_inside_another_answer(
    address: tuple[str, int], next_request: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "REQUEST_HEAD_TIMEOUT", 0.2)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(DEADLINE):
        begun = await reader.readuntil(b"the first part\r\n")
        writer.write(next_request)
        rest = await reader.read()
    writer.close()
    assert begun.startswith(b"HTTP/1.1 200 ")
    assert rest == b""


async def test_an_answer_that_nobody_reads(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT", 0.1)
    lost = asyncio.Event()
    original = http_protocol.HttpProtocol.connection_lost

    def connection_lost(self: http_protocol.HttpProtocol, exc: Exception | None) -> None:
        original(self, exc)
        lost.set()

    monkeypatch.setattr(http_protocol.HttpProtocol, "connection_lost", connection_lost)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(slow, address)
        await asyncio.get_running_loop().sock_sendall(slow, b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            await lost.wait()
