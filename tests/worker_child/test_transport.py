import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.scripted_server import ScriptedServer, scripted_server
from wire.codec import MAX_FRAME_TO_WORKER
from worker_child import transport
from worker_child.endpoint import endpoint
from worker_child.errors import CredentialError
from worker_child.transport import ApiKey, Connection, UpgradeRefused, open_connection

SOCKET = "/v1/projects/default/workers/socket"


class Recorder:
    """A receiver whose news can be awaited."""

    def __init__(self) -> None:
        self.last_read = 0.0
        self.news: asyncio.Queue[tuple[str, object]] = asyncio.Queue()

    def messages_received(self, messages: list[bytes]) -> None:
        for message in messages:
            self.news.put_nowait(("text", message))

    def binary_received(self) -> None:
        self.news.put_nowait(("binary", None))

    def connection_closed(self, reason: str, *, going_away: bool) -> None:
        self.news.put_nowait(("going away" if going_away else "closed", reason))

    async def next(self) -> tuple[str, object]:
        async with asyncio.timeout(20):
            return await self.news.get()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


def raw(payload: bytes, first: int = 0x81) -> bytes:
    """A frame of a server; by default a whole text message."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


async def opened(server: ScriptedServer, recorder: Recorder) -> Connection:
    connection = await open_connection(endpoint(server.url, "default", ""), ApiKey("mbx_key", None), recorder)
    await server.connected()
    return connection


# --- the key ----------------------------------------------------------------------------------------------------------


def test_a_key_is_read_from_its_file_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "api-key"
    file.write_text("mbx_first.acme\n")
    key = ApiKey(None, str(file))
    assert key.header() == {"Authorization": "Bearer mbx_first.acme"}
    assert key.project == "acme"
    assert not key.read_again()
    file.write_text("mbx_second\n")
    assert key.read_again()
    assert key.header() == {"Authorization": "Bearer mbx_second"}


def test_a_key_from_the_settings_cannot_change() -> None:
    assert not ApiKey("mbx_key", None).read_again()


@pytest.mark.parametrize("content", ["", "  \n", "two lines\nof text", "x" * 5000, "mbx_ü"])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "api-key"
    file.write_text(content)
    with pytest.raises(CredentialError, match="api_key_file") as caught:
        ApiKey(None, str(file))
    assert not content.strip() or content.strip() not in str(caught.value)


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=r"api_key_file .*nothing: No such file"):
        ApiKey(None, str(tmp_path / "nothing"))


# --- the connection ---------------------------------------------------------------------------------------------------


async def test_the_upgrade_carries_the_key_and_messages_go_both_ways(server: ScriptedServer) -> None:
    recorder = Recorder()
    connection = await opened(server, recorder)
    assert server.requests == [(SOCKET, "Bearer mbx_key")]
    connection.transmit([b'{"a":1}', b'{"b":2}'])
    assert [await server.connection.recv(), await server.connection.recv()] == ['{"a":1}', '{"b":2}']
    await server.connection.send('{"c":3}')
    assert await recorder.next() == ("text", b'{"c":3}')
    assert time.monotonic() - recorder.last_read < 20
    await connection.say_goodbye()
    await server.connection.wait_closed()
    assert server.connection.close_code == 1000


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refused_upgrade_is_told_apart(server: ScriptedServer, status: int) -> None:
    server.refuse = [status]
    with pytest.raises(UpgradeRefused, match=str(status)):
        await open_connection(endpoint(server.url, "default", ""), ApiKey("mbx_key", None), Recorder())


@pytest.mark.parametrize("status", [500, 503, 429, 302])
async def test_any_other_answer_is_a_connection_error(server: ScriptedServer, status: int) -> None:
    server.refuse = [status]
    with pytest.raises(ConnectionError, match=str(status)):
        await open_connection(endpoint(server.url, "default", ""), ApiKey("mbx_key", None), Recorder())
    assert len(server.requests) == 1, "a redirect is not followed"


async def test_nobody_there_is_a_connection_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConnectionError):
            await open_connection(endpoint(url, "default", ""), ApiKey("mbx_key", None), Recorder())


async def test_a_server_that_never_answers_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "OPEN_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="timed out"):
            await open_connection(endpoint(url, "default", ""), ApiKey("mbx_key", None), Recorder())


async def test_fragments_are_put_together(server: ScriptedServer) -> None:
    recorder = Recorder()
    await opened(server, recorder)
    await server.connection.send(["one, ", "two, ", "three"])
    assert await recorder.next() == ("text", b"one, two, three")
    await server.connection.send("whole")
    assert await recorder.next() == ("text", b"whole")


async def test_messages_that_arrive_together_are_told_together(server: ScriptedServer) -> None:
    recorder = Recorder()
    connection = await opened(server, recorder)
    together: list[list[bytes]] = []
    recorder.messages_received = together.append  # type: ignore[method-assign]
    connection.data_received(raw(b"one") + raw(b"two" * 100) + raw(b"three" * 20_000) + raw(b""))
    assert together == [[b"one", b"two" * 100, b"three" * 20_000, b""]]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
async def test_a_stream_may_be_cut_anywhere_and_mixed_with_anything(server: ScriptedServer, step: int) -> None:
    recorder = Recorder()
    connection = await opened(server, recorder)
    stream = b"".join(
        [
            raw(b"a"),
            raw(b"b" * 200),
            raw(b"frag", first=0x01),
            raw(b"ping", first=0x89),
            raw(b"ment", first=0x80),
            raw(b"c" * 70_000),
            raw(b"bits", first=0x82),
            raw(b"d"),
            raw(b"pong", first=0x8A),
            raw(b"e"),
        ]
    )
    step *= 999 if step == 100 else 1
    for start in range(0, len(stream), step):
        connection.data_received(stream[start : start + step])
    news = [await recorder.next() for _ in range(7)]
    whole = [b"a", b"b" * 200, b"fragment", b"c" * 70_000, None, b"d", b"e"]
    assert news == [("binary" if text is None else "text", text) for text in whole]
    assert recorder.news.empty()


@pytest.mark.parametrize(
    ("first", "second"), [(0x81, 0x81), (0xC1, 0x01), (0x83, 0x01), (0x81, 0xFF)], ids=["mask", "rsv", "opcode", "size"]
)
async def test_a_frame_that_breaks_the_protocol_ends_the_connection(
    server: ScriptedServer, first: int, second: int
) -> None:
    recorder = Recorder()
    connection = await opened(server, recorder)
    connection.data_received(raw(b"whole") + bytes((first, second)) + bytes(20))
    assert await recorder.next() == ("text", b"whole")
    assert (await recorder.next())[0] == "closed"


async def test_a_message_amid_fragments_breaks_the_protocol(server: ScriptedServer) -> None:
    recorder = Recorder()
    connection = await opened(server, recorder)
    connection.data_received(raw(b"frag", first=0x01))
    connection.data_received(raw(b"whole"))
    assert (await recorder.next())[0] == "closed"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 300_000])
async def test_messages_of_every_size_are_sent_whole(server: ScriptedServer, size: int) -> None:
    connection = await opened(server, Recorder())
    connection.transmit([b"x" * size, b"next"])
    assert [len(await server.connection.recv()), await server.connection.recv()] == [size, "next"]


async def test_binary_messages_are_told_apart(server: ScriptedServer) -> None:
    recorder = Recorder()
    await opened(server, recorder)
    await server.connection.send(b"\x00")
    assert await recorder.next() == ("binary", None)
    await server.connection.send([b"\x00", b"\x01"])
    assert await recorder.next() == ("binary", None)


async def test_a_close_of_the_server_is_told_once_with_its_reason(server: ScriptedServer) -> None:
    recorder = Recorder()
    await opened(server, recorder)
    await server.connection.close(4001, "superseded")
    assert await recorder.next() == ("closed", "closed with code 4001: superseded")
    await server.connection.wait_closed()
    assert recorder.news.empty()


@pytest.mark.parametrize("code", [1001, 1012])
async def test_a_server_that_goes_away_is_told_apart(server: ScriptedServer, code: int) -> None:
    recorder = Recorder()
    await opened(server, recorder)
    await server.connection.close(code, "restart")
    assert await recorder.next() == ("going away", f"closed with code {code}: restart")


async def test_a_connection_that_is_cut_is_told(server: ScriptedServer) -> None:
    recorder = Recorder()
    connection = await opened(server, recorder)
    server.connection.transport.abort()
    kind, _ = await recorder.next()
    assert kind == "closed"
    connection.transmit([b"nothing happens"])
    connection.ping()


@pytest.mark.parametrize("split", [1, 4])
async def test_a_message_that_is_too_large_ends_the_connection(server: ScriptedServer, split: int) -> None:
    recorder = Recorder()
    await opened(server, recorder)
    piece = "x" * (MAX_FRAME_TO_WORKER // split + 1)
    await server.connection.send([piece] * split if split > 1 else piece)
    kind, reason = await recorder.next()
    assert (kind, "1009" in str(reason)) == ("closed", True)


async def test_after_it_is_abandoned_nothing_more_is_heard(server: ScriptedServer) -> None:
    recorder = Recorder()
    connection = await opened(server, recorder)
    connection.abandon()
    await server.connection.wait_closed()
    assert recorder.news.empty()


async def test_a_pong_counts_as_read(server: ScriptedServer) -> None:
    recorder = Recorder()
    connection = await opened(server, recorder)
    assert recorder.last_read == 0.0
    connection.ping()
    await server.connection.send("after the pong")
    await recorder.next()
    assert recorder.last_read > 0.0


async def test_bytes_that_the_peer_never_takes_are_a_stall(server: ScriptedServer) -> None:
    recorder = Recorder()
    connection = await opened(server, recorder)
    now = 1000.0
    assert not connection.is_stalled(now)
    assert not connection.is_stalled(now + 100), "nothing waits to be sent"
    server.connection.transport.pause_reading()
    connection.transmit([b"x" * 1_000_000] * 32)
    while connection.unsent == 0:
        connection.transmit([b"x" * 1_000_000] * 32)
    assert not connection.is_stalled(now + 200)
    # The kernel may take a little more: the stall is measured from the last byte that it took.
    taken_at = now + 200
    while not connection.is_stalled(taken_at):
        taken_at += transport.WRITE_DEADLINE
        await asyncio.sleep(0)
    connection.abandon()


async def test_a_slow_peer_that_takes_something_is_none(server: ScriptedServer) -> None:
    connection = await opened(server, Recorder())
    server.connection.transport.pause_reading()
    connection.transmit([b"x" * 1_000_000] * 32)
    assert connection.unsent
    assert not connection.is_stalled(1000.0)
    connection._taken -= 1
    assert not connection.is_stalled(1000.0 + transport.WRITE_DEADLINE)
    connection.abandon()
