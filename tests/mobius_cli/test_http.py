import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mobius_cli import http
from mobius_cli.connection import Connection
from mobius_cli.errors import (
    CannotCreateError,
    CommandError,
    CredentialError,
    InputError,
    NotFoundError,
    UnavailableError,
)
from mobius_cli.http import Mobius, Record
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.tcp_faults import Conversation, CuttingProxy, answering, endless, listening, silent

SPEC: Record = {
    "steps": [
        {"key": "first", "kind": "action", "config": {"action_name": "nobody.has.this"}},
    ]
}


def connect(url: str, key: str, project: str = "default") -> Mobius:
    return Mobius(Connection(api_url=url, api_key=key, project=project))


@pytest.fixture
async def mobius(plane: ControlPlaneProcess) -> AsyncIterator[Mobius]:
    async with connect(plane.url, plane.key) as client:
        yield client


async def made(mobius: Mobius, handle: str, spec: Record = SPEC) -> Record:
    """A published automation."""
    await mobius.create_automation({"handle": handle, "name": handle})
    version = await mobius.create_version(handle, spec)
    return await mobius.publish(handle, version["version"])


async def test_an_automation_from_creation_to_a_cancelled_run(mobius: Mobius) -> None:
    automation = await made(mobius, "whole")
    assert (automation["handle"], automation["published_version"]) == ("whole", 1)
    assert (await mobius.automation("whole"))["id"] == automation["id"]
    assert [version["status"] for version in await mobius.versions("whole")] == ["published"]
    run = await mobius.start_run("whole", inputs={"a": 1}, external_id="mine")
    assert (await mobius.start_run("whole", inputs={}, external_id="mine"))["id"] == run["id"]
    assert (await mobius.run(run["id"]))["inputs"] == {"a": 1}
    assert [step["step_key"] for step in await mobius.steps(run["id"])] == ["first"]
    listed, more = await mobius.runs(automation_id=automation["id"])
    assert ([one["id"] for one in listed], more) == ([run["id"]], False)
    assert (await mobius.cancel(run["id"], "no more"))["status"] == "cancelled"
    events = [event async for event in mobius.events(run["id"])]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["event_type"] == "run.cancelled"
    with pytest.raises(CannotCreateError, match="external_id_conflict"):
        await mobius.start_run("whole", inputs={}, external_id="mine")


async def test_listings_follow_cursors_up_to_the_limit(mobius: Mobius, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAGE_SIZE", 2)
    handles = [f"listed-{number}" for number in range(5)]
    for handle in handles:
        await mobius.create_automation({"handle": handle, "name": handle})
    listed, more = await mobius.automations(status=None, limit=1000)
    assert not more
    assert {automation["handle"] for automation in listed} >= set(handles)
    some, more = await mobius.automations(status=None, limit=3)
    assert (some, more) == (listed[:3], True)


async def test_a_resumed_stream_has_no_event_twice_and_none_missing(
    plane: ControlPlaneProcess, mobius: Mobius, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", (0.01, 0.02))
    await made(mobius, "dropped")
    run = await mobius.start_run("dropped", inputs={}, external_id=None)
    await mobius.cancel(run["id"], None)
    expected = [event async for event in mobius.events(run["id"])]
    drops: list[str] = []
    proxy = CuttingProxy(plane.port, limit=800, cuts=2)
    async with listening(proxy) as url, connect(url, plane.key) as through_proxy:
        received = [event async for event in through_proxy.events(run["id"], dropped=lambda why, _: drops.append(why))]
    assert received == expected
    assert proxy.times_cut == 2
    assert len(drops) == 2


async def test_a_stream_outlives_the_control_plane(tmp_path_factory: pytest.TempPathFactory) -> None:
    with ControlPlaneProcess(tmp_path_factory.mktemp("killed")) as plane:
        async with connect(plane.url, plane.key) as mobius:
            await made(mobius, "killed")
            run = await mobius.start_run("killed", inputs={}, external_id=None)
            received: list[Record] = []
            suspended = asyncio.Event()

            async def follow() -> None:
                async for event in mobius.events(run["id"]):
                    received.append(event)
                    if event["event_type"] == "step.suspended":
                        suspended.set()

            following = asyncio.ensure_future(follow())
            await suspended.wait()
            plane.kill()
            plane.start()
            await mobius.cancel(run["id"], None)
            await following
            assert received == [event async for event in mobius.events(run["id"])]


async def test_a_stream_that_is_resumed_behind_the_end_ends(mobius: Mobius) -> None:
    await made(mobius, "behind")
    run = await mobius.start_run("behind", inputs={}, external_id=None)
    await mobius.cancel(run["id"], None)
    assert [event async for event in mobius.events(run["id"], since=10_000)] == []


async def test_a_stream_that_never_comes_back_is_given_up(
    plane: ControlPlaneProcess, mobius: Mobius, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(http, "RESUME_SECONDS", 0.2)
    await made(mobius, "lost")
    run = await mobius.start_run("lost", inputs={}, external_id=None)
    proxy = CuttingProxy(plane.port, limit=1000, cuts=1)
    received: list[Record] = []

    async def follow(mobius: Mobius) -> None:
        async for event in mobius.events(run["id"], dropped=lambda *_: monkeypatch.setattr(proxy, "port", 9)):
            received.append(event)  # noqa: PERF401 - what came before the error counts

    async with listening(proxy) as url, connect(url, plane.key) as through_proxy:
        with pytest.raises(UnavailableError, match="could not be resumed"):
            await follow(through_proxy)
    assert received


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("work", "kind", "says"),
    [
        (lambda mobius: mobius.run("run_none"), NotFoundError, "run_none"),
        (lambda mobius: mobius.automation("none"), NotFoundError, "none"),
        (lambda mobius: mobius.automation(".."), InputError, "no id or handle"),
        (lambda mobius: mobius.automation("a/b"), NotFoundError, "no automation a/b"),
        (lambda mobius: mobius.create_automation({"handle": "UPPER", "name": "a"}), InputError, "handle"),
        (lambda mobius: mobius.create_automation({"handle": "a", "name": "a", "colour": 1}), InputError, "colour"),
        (lambda mobius: mobius.runs(status="odd"), InputError, "status"),
        (
            lambda mobius: mobius.start_run("a", inputs={"v": nested(300)}, external_id=None),
            InputError,
            "nested too deeply",
        ),
        (
            lambda mobius: mobius.start_run("a", inputs={"v": nested(100_000)}, external_id=None),
            InputError,
            "nested too deeply",
        ),
    ],
)
async def test_refusals_are_the_servers_sentences(
    mobius: Mobius, work: Any, kind: type[CommandError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        await work(mobius)


async def test_an_invalid_version_is_not_published(mobius: Mobius) -> None:
    await mobius.create_automation({"handle": "invalid", "name": "invalid"})
    version = await mobius.create_version("invalid", {"steps": []})
    assert version["validation"]["valid"] is False
    with pytest.raises(InputError, match="steps"):
        await mobius.publish("invalid", 1)


async def test_a_wrong_key_and_a_foreign_project_are_refused_without_the_key(plane: ControlPlaneProcess) -> None:
    wrong = "mbx_" + "w" * 32
    async with connect(plane.url, wrong) as mobius:
        with pytest.raises(CredentialError) as caught:
            await mobius.worker_sessions()
    assert wrong not in str(caught.value)
    async with connect(plane.url, plane.key, project="elsewhere") as mobius:
        with pytest.raises((CredentialError, NotFoundError), match="elsewhere"):
            await mobius.worker_sessions()


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with connect(url, "mbx_x") as mobius:
            with pytest.raises(UnavailableError, match=f"cannot reach {url}"):
                await mobius.worker_sessions()
            with pytest.raises(UnavailableError, match=f"cannot reach {url}"):
                await anext(mobius.events("run_x"))


REDIRECT = b"HTTP/1.1 308 Permanent Redirect\r\nlocation: https://elsewhere/\r\ncontent-length: 0\r\n\r\n"
BUSY = (
    b"HTTP/1.1 429 Too Many\r\nretry-after: 7\r\ncontent-length: 48\r\n\r\n"
    b'{"error":{"code":"rate_limit","message":"wait"}}'
)


@pytest.mark.parametrize(
    ("conversation", "says"),
    [
        (answering(REDIRECT), "redirects to 'https://elsewhere/'"),
        (answering(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno"), "404 without a Mobius error"),
        (answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno"), "answered no JSON object"),
        (answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"), "cannot reach"),
        (answering(b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"items": 3}'), "no list of items"),
        (answering(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"), "500 without a Mobius error"),
        (answering(b"not http at all\r\n\r\n"), "cannot reach"),
        (answering(b""), "cannot reach .*begins with https://"),
        (answering(BUSY), "wait"),
        (silent, "did not answer within 0.3 s"),
        (endless, "more than 1000000 bytes"),
    ],
)
async def test_what_is_no_mobius_is_said_to_be_none(
    conversation: Conversation, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "ANSWER_SECONDS", 0.3 if conversation is silent else 20.0)
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 1_000_000)
    async with listening(conversation) as url, connect(url, "mbx_x") as mobius:
        with pytest.raises(UnavailableError, match=says):
            await mobius.runs()


async def test_the_servers_wish_to_wait_is_kept() -> None:
    async with listening(answering(BUSY)) as url, connect(url, "mbx_x") as mobius:
        with pytest.raises(UnavailableError) as caught:
            await mobius.worker_sessions()
    assert caught.value.retry_after == 7


async def test_a_stream_of_something_else_is_refused() -> None:
    html = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nno"
    async with listening(answering(html)) as url, connect(url, "mbx_x") as mobius:
        with pytest.raises(UnavailableError, match="no event stream"):
            await anext(mobius.events("run_x"))


async def test_a_server_that_repeats_a_cursor_ends_the_listing() -> None:
    body = b'{"items": [{}], "next_cursor": "same"}'
    response = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    async with listening(answering(response)) as url, connect(url, "mbx_x") as mobius:
        listed, _ = await mobius.runs(limit=100)
    assert listed == [{}, {}]


async def test_an_abandoned_stream_closes_its_connection(plane: ControlPlaneProcess, mobius: Mobius) -> None:
    closed = asyncio.Event()

    async def watched(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await CuttingProxy(plane.port)(reader, writer)
        finally:
            closed.set()

    await made(mobius, "abandoned")
    run = await mobius.start_run("abandoned", inputs={}, external_id=None)
    async with listening(watched) as url, connect(url, plane.key) as client:
        async with contextlib.aclosing(client.events(run["id"])) as events:
            await anext(events)
        await closed.wait()
