"""What can go wrong between us and a model server, whatever API it speaks."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_server import DEADLINE, ndjson
from wire.pipe import ModelProvider
from worker_child.errors import CredentialError, ModelServerError, RequestRefused
from worker_child.providers import provider
from worker_child.providers import server as module

CHAT = "/api/chat"
KEY = "sk-0123456789-secret"


def said(content):
    return {"message": {"content": content}, "done": False}


DONE = {"done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 1}


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    return file


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api", "header", "value"),
    [
        ("ollama", "authorization", f"Bearer {KEY}"),
        ("openai", "authorization", f"Bearer {KEY}"),
        ("anthropic", "x-api-key", KEY),
    ],
)
async def test_each_api_is_given_the_key_as_it_wants_it(server, client_of, key_file, api, header, value):
    client = client_of(api, api_key_file=str(key_file))
    await client.provider.models()
    assert server.requests[0].headers[header] == value


async def test_a_key_that_was_exchanged_is_read_again_and_tried_once(server, client_of, key_file):
    client = client_of("ollama", api_key_file=str(key_file))

    async def judge(request, reply):
        good = request.headers["authorization"] == "Bearer new-key"
        await reply.begin(200 if good else 401)
        await reply.piece(ndjson(DONE) if good else b'{"error":"no"}')
        await reply.end()

    server.handle(CHAT, judge)
    with pytest.raises(ModelServerError, match="answers 401"):
        await client.generate()
    assert len(server.requests) == 1
    key_file.write_text("new-key")
    await client.generate()
    assert len(server.requests) == 3
    key_file.write_text("another")
    await client.generate()
    assert len(server.requests) == 4


async def test_a_key_file_that_has_gone_is_no_new_key(server, client_of, key_file):
    client = client_of("ollama", api_key_file=str(key_file))
    server.answers(CHAT, b"", status=403)
    key_file.unlink()
    with pytest.raises(ModelServerError, match="answers 403"):
        await client.generate()


@pytest.mark.parametrize("content", ["", "two words", "line\nline", "ü", "x" * 5000])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path, content):
    (tmp_path / "key").write_text(content)
    with pytest.raises(CredentialError, match="this is not a key") as raised:
        provider(ModelProvider(name="lab", api="openai", base_url="http://h", api_key_file=str(tmp_path / "key")))
    assert not content or content not in str(raised.value)
    with pytest.raises(CredentialError, match=r"providers\.lab\.api_key_file .*nowhere: No such file"):
        provider(ModelProvider(name="lab", api="openai", base_url="http://h", api_key_file=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_no_error_repeats_the_key(server, client_of, key_file, status):
    client = client_of("openai", "/v1", api_key_file=str(key_file))
    server.answers("/v1/chat/completions", f'{{"error":{{"message":"wrong key {KEY}"}}}}'.encode(), status=status)
    with pytest.raises((ModelServerError, RequestRefused), match=r"wrong key \[key\]") as raised:
        await client.generate()
    assert KEY not in str(raised.value)


# --- refusals and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, RequestRefused) for status in (400, 404, 413, 422)),
        *((status, ModelServerError) for status in (301, 401, 403, 408, 409, 429, 500, 502, 503, 529)),
    ],
)
async def test_only_a_request_at_fault_is_never_asked_again(server, client_of, status, error):
    server.answers(CHAT, b'{"error":"because"}', status=status, location="http://example.com/")
    with pytest.raises(error, match=f"model server 'lab' answers {status} Said: because"):
        await client_of("ollama").generate()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"plain text", "plain text"),
        (b"", "Said$"),
        (b'{"detail":[1]}', r'\{"detail":\[1\]\}'),
        (b'{"error":{"type":"t","message":"deep"}}', "deep$"),
        (b"\xff\xfe" + b"x" * 100_000, "x…$"),
        (b"[" * 50_000, r"\[…$"),
    ],
)
async def test_what_a_server_complains_of_is_shown_in_short(server, client_of, body, shown):
    server.answers(CHAT, body, status=500)
    with pytest.raises(ModelServerError, match=shown) as raised:
        await client_of("ollama").generate()
    assert len(str(raised.value)) < 1000


async def test_a_complaint_without_end_is_not_waited_for(server, client_of, monkeypatch):
    monkeypatch.setattr(module, "LIST_TIMEOUT", 0.1)

    async def complain(request, reply):
        await reply.begin(500)
        await reply.piece(b"so far")
        await request.gone.wait()

    server.handle(CHAT, complain)
    with pytest.raises(ModelServerError, match="answers 500 Said: so far"):
        await client_of("ollama").generate()


async def test_an_answer_that_is_compressed_is_refused(server, client_of):
    server.answers(CHAT, b"\x1f\x8b", content_encoding="gzip")
    with pytest.raises(ModelServerError, match="compresses its answer although"):
        await client_of("ollama").generate()


# --- connections that break -------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there(client_of):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ModelServerError, match=f"at http://127.0.0.1:{port} cannot be reached, or broke off"):
        await client_of("ollama", base_url=f"http://127.0.0.1:{port}").generate()


async def test_a_name_that_does_not_resolve(client_of):
    with pytest.raises(ModelServerError, match="cannot be reached"):
        await client_of("ollama", base_url="http://model-server.invalid").generate()


async def test_an_answer_that_is_cut_is_never_taken_for_a_whole_one(server, client_of):
    async def cut(_request, reply):
        await reply.piece(ndjson(said("par")))
        reply.cut()

    server.handle(CHAT, cut)
    client = client_of("ollama")
    with pytest.raises(ModelServerError, match="broke off"):
        await client.generate()
    assert client.deltas == [{"text": "par"}]


async def test_a_connection_that_is_cut_before_any_answer(server, client_of):
    async def cut(_request, reply):
        reply.cut()

    server.handle(CHAT, cut)
    with pytest.raises(ModelServerError, match="broke off"):
        await client_of("ollama").generate()


async def test_what_is_no_http(client_of):
    async def speak(_reader, writer):
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    with pytest.raises(ModelServerError, match="broke off"):
        await client_of("ollama", base_url=f"http://127.0.0.1:{port}").generate()
    listening.close()


@pytest.mark.parametrize("pieces", [0, 1])
async def test_a_server_that_falls_silent_is_given_up(server, client_of, pieces):
    async def fall_silent(request, reply):
        for _ in range(pieces):
            await reply.piece(ndjson(said("x")))
        await request.gone.wait()

    server.handle(CHAT, fall_silent)
    with pytest.raises(ModelServerError, match=r"said nothing for 0\.2 s"):
        await client_of("ollama", silence=0.2).generate()
    async with asyncio.timeout(DEADLINE):
        await server.requests[0].gone.wait()


async def test_a_server_that_says_nothing_but_comments_is_given_up(server, client_of):
    async def comment(request, reply):
        with contextlib.suppress(ConnectionError):
            while not request.gone.is_set():
                await reply.piece(b": still there\n\n")
                await asyncio.sleep(0.02)

    server.handle("/v1/chat/completions", comment)
    with pytest.raises(ModelServerError, match=r"said nothing but comments for 0\.3 s"):
        await client_of("openai", "/v1", silence=0.3).generate()
    async with asyncio.timeout(DEADLINE):
        await server.requests[0].gone.wait()


async def test_a_slow_server_is_waited_for_as_long_as_it_says_something(server, client_of):
    async def speak_slowly(_request, reply):
        for _ in range(10):
            await asyncio.sleep(0.1)
            await reply.piece(b"\n")
        await reply.piece(ndjson(said("at last"), DONE))
        await reply.end()

    server.handle(CHAT, speak_slowly)
    assert (await client_of("ollama", silence=0.6).generate()).text == "at last"


@pytest.mark.parametrize("when", ["before the answer", "within it"])
async def test_a_cancel_ends_the_connection(server, client_of, when):
    async def speak_for_ever(request, reply):
        if when == "within it":
            await reply.piece(ndjson(said("x")))
        await request.gone.wait()

    server.handle(CHAT, speak_for_ever)
    client = client_of("ollama", silence=600)
    generating = asyncio.ensure_future(client.generate())
    request = await server.request()
    if when == "within it":
        async with asyncio.timeout(DEADLINE):
            await client.first.wait()
    generating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await generating
    async with asyncio.timeout(DEADLINE):
        await request.gone.wait()


async def test_an_answer_is_read_no_further_than_it_is_complete(server, client_of):
    async def go_on(request, reply):
        await reply.piece(ndjson(DONE))
        await request.gone.wait()

    server.handle(CHAT, go_on)
    await client_of("ollama", silence=600).generate()
    async with asyncio.timeout(DEADLINE):
        await server.requests[0].gone.wait()


# --- sizes ------------------------------------------------------------------------------------------------------------


async def test_an_answer_is_bounded(server, client_of, monkeypatch):
    monkeypatch.setattr(module, "MAX_ANSWER", 100_000)

    async def go_on(_request, reply):
        while True:
            await reply.piece(b"\n" * 10_000)

    server.handle(CHAT, go_on)
    with pytest.raises(ModelServerError, match="answers with more than 100000 bytes"):
        await client_of("ollama").generate()


async def test_a_line_is_bounded(server, client_of):
    async def go_on(_request, reply):
        while True:
            await reply.piece(b"x" * 65536)

    server.handle(CHAT, go_on)
    with pytest.raises(ModelServerError, match="said what cannot be read: a line has more than"):
        await client_of("ollama").generate()


async def test_a_list_is_bounded_in_size_and_time(server, client_of, monkeypatch):
    monkeypatch.setattr(module, "MAX_LIST", 1000)
    server.answers("/api/tags", [b"x" * 600] * 2)
    client = client_of("ollama")
    with pytest.raises(ModelServerError, match="has more than 1000 bytes at /api/tags"):
        await client.provider.models()
    monkeypatch.setattr(module, "LIST_TIMEOUT", 0.1)

    async def dribble(request, reply):
        await reply.piece(b"x")
        await request.gone.wait()

    server.handle("/api/tags", dribble)
    with pytest.raises(ModelServerError, match=r"did not answer /api/tags within 0\.1 s"):
        await client.provider.models()


# --- proxies, memory --------------------------------------------------------------------------------------------------


async def test_proxies_of_the_environment_are_not_for_this_machine(server, client_of, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answers(CHAT, ndjson(DONE))
    await client_of("ollama").generate()


async def test_proxies_of_the_environment_are_for_elsewhere(server, client_of, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, server.url)
    server.answers("http://model-server.invalid/api/chat", ndjson(DONE))
    await client_of("ollama", base_url="http://model-server.invalid").generate()


def test_a_worker_without_model_servers_does_not_load_an_http_client():
    program = "import sys; import worker_child.mold; print([name for name in sys.modules if name.startswith('httpx')])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
