"""The worker socket over real connections: admission, bad input, back-pressure, pings, closes."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import uvloop
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from control_plane.domain.enqueue import NewJob
from control_plane.turnstile import Turnstile
from control_plane.web import inbound_bytes, worker_socket
from control_plane.web.worker_socket import WorkerSocket
from tests.support.control_plane_server import DEADLINE, Serving, answer_to, ask, next_of, register, serving

PROJECT_PATH = "/v1/projects/default/workers/socket"
ORG_PATH = "/v1/workers/socket"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


async def start_runs(plane: Serving, number: int = 1, action: str = "print") -> list[str]:
    project = await plane.store.project("default")
    step = {"key": "one", "kind": "action", "config": {"action_name": action, "parameters": {}}}
    await plane.store.create_automation(project.id, "sample", "Sample", {})
    await plane.store.create_version(project.id, "sample", {"steps": [step]}, None)
    await plane.store.publish_version(project.id, "sample", 1)
    return [(await plane.store.start_run(project.id, "sample")).id for _ in range(number)]


async def closed(connection: ClientConnection) -> tuple[int | None, str | None]:
    """Read until the server closes; its code and reason."""
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.recv()
    return connection.close_code, connection.close_reason


# --- admission


@pytest.mark.parametrize("path", [PROJECT_PATH, ORG_PATH, PROJECT_PATH + "?x=1"])
async def test_a_worker_registers_on_both_paths(plane: Serving, path: str) -> None:
    async with plane.worker(path) as worker:
        answer = await register(worker)
    assert answer["type"] == "worker.registered"
    assert answer["lease"] == {"lease_duration_seconds": 60, "heartbeat_cadence_seconds": 20}


@pytest.mark.parametrize(
    ("path", "key", "status", "code"),
    [
        (PROJECT_PATH, "mbx_" + "0" * 32, 401, "invalid_api_key"),
        (PROJECT_PATH, "nonsense", 401, "unauthorized"),
        (ORG_PATH, "mbx_" + "0" * 32, 401, "invalid_api_key"),
        ("/v1/projects/other/workers/socket", None, 403, "forbidden"),
        ("/v1/projects/no-such/workers/socket", None, 403, "forbidden"),
        ("/v1/projects/default/runs", None, 404, "not_found"),
        ("/", None, 404, "not_found"),
    ],
)
async def test_refused_upgrades(plane: Serving, path: str, key: str | None, status: int, code: str) -> None:
    await plane.new_project("other")
    with pytest.raises(InvalidStatus) as refusal:
        async with plane.worker(path, key):
            pass
    response = refusal.value.response
    assert response.status_code == status
    assert response.body is not None
    assert json.loads(response.body)["error"]["code"] == code


async def test_an_unavailable_store_is_a_passing_refusal(plane: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(_: bytes) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(worker_socket, "ADMISSION_TIMEOUT", 0.05)
    monkeypatch.setattr(plane.store, "key", hangs)
    with pytest.raises(InvalidStatus) as refusal:
        async with plane.worker():
            pass
    assert refusal.value.response.status_code == 503


async def raw_exchange(plane: Serving, request: str) -> bytes:
    reader, writer = await asyncio.open_connection(plane.host, plane.port)
    writer.write(request.encode())
    async with asyncio.timeout(DEADLINE):
        answer = await reader.read()
    writer.close()
    return answer


async def test_a_broken_handshake_is_refused_in_the_envelope(plane: Serving) -> None:
    head = f"GET {PROJECT_PATH} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    answer = await raw_exchange(plane, f"{head}sec-websocket-version: 13\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"error":{"code":"invalid_request"' in answer
    answer = await raw_exchange(plane, head.replace("GET", "POST") + "\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")
    answer = await raw_exchange(plane, head + "x: y\r\n" * 200 + "\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_a_worker_that_does_not_register_is_closed(plane: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_socket, "REGISTER_TIMEOUT", 0.05)
    async with plane.worker() as worker:
        code, reason = await closed(worker)
    assert code == 1008
    assert reason is not None
    assert "worker.register" in reason


# --- bad input


async def test_bad_frames_are_answered_and_the_conversation_goes_on(plane: Serving) -> None:
    async with plane.worker() as worker:
        await register(worker)
        for number, data in enumerate(
            [
                "not json",
                "[1, 2]",
                '{"type": "worker.unknown", "message_id": "x-2"}',
                '{"type": "job.report", "message_id": "x-3"}',
                '{"type": "job.heartbeat", "message_id": "x-4", "job_id": 7, "lease_token": "t"}',
                "[" * 100_000,
                json.dumps({"type": "worker.ready", "message_id": "m" * 257}),
                json.dumps({"type": "worker.ready", "available_slots": 10**30}),
            ]
        ):
            await worker.send(data)
            error = await next_of(worker, "error")
            assert error["error"]["code"] == "invalid_frame"
            assert error["error"]["message"]
            assert error.get("message_id") == (f"x-{number}" if "x-" in data else None)
        await worker.send(b'{"type": "keepalive"}')
        error = await next_of(worker, "error")
        assert error["error"]["code"] == "invalid_frame"
        assert "text" in error["error"]["message"]
        answer = await ask(worker, {"type": "worker.draining", "message_id": "m-9"})
        assert answer["type"] == "worker.draining.ack"


async def test_fragments_are_joined(plane: Serving) -> None:
    async with plane.worker() as worker:
        frame = json.dumps(
            {"type": "worker.register", "worker_instance_id": "é-1", "message_id": "m-1"}, ensure_ascii=False
        )
        await worker.send([frame[:30], "", frame[30:31], frame[31:]])
        assert (await answer_to(worker, "m-1"))["type"] == "worker.registered"
        await worker.send([b"binary", b"in parts"])
        assert (await next_of(worker, "error"))["error"]["code"] == "invalid_frame"


async def test_a_frame_of_100_megabytes_harms_nobody_else(plane: Serving) -> None:
    async with plane.worker() as other:
        await register(other, "other-1")
        reader, writer = await upgraded(plane)
        writer.write(masked(json.dumps({"type": "worker.register", "worker_instance_id": "w-1"})))
        writer.write(struct.pack("!BBQ4s", 0x81, 0xFF, 100_000_000, b"mask"))

        async def send_all() -> None:
            for _ in range(1000):
                writer.write(b"x" * 100_000)
                await writer.drain()

        sending = asyncio.create_task(send_all())
        async with asyncio.timeout(DEADLINE):
            said = await reader.read()
        assert b"\x88" in said
        assert struct.pack("!H", 1009) + b"frame with 100000000 bytes exceeds limit" in said
        assert (await ask(other, {"type": "worker.draining", "message_id": "m-2"}))["type"] == "worker.draining.ack"
        sending.cancel()
        writer.transport.abort()


async def test_a_report_for_an_unknown_job(plane: Serving) -> None:
    async with plane.worker() as worker:
        await register(worker)
        await worker.send(
            json.dumps({"type": "job.report", "message_id": "r-1", "job_id": "job_x", "lease_token": "lease_x"})
        )
        error = await answer_to(worker, "r-1")
        assert (error["type"], error["error"]["code"]) == ("error", "unknown_job")
        acknowledgement = await answer_to(worker, "r-1")
        assert (acknowledgement["type"], acknowledgement["job_id"]) == ("job.report.ack", "job_x")


# --- work


async def test_a_waiting_claim_is_woken_and_the_report_acknowledged(plane: Serving) -> None:
    async with plane.worker() as worker:
        await register(worker, queues=["default"])
        await worker.send(json.dumps({"type": "jobs.claim", "message_id": "c-1", "available_slots": 2}))
        [run_id] = await start_runs(plane)
        claimed = await answer_to(worker, "c-1")
        [job] = claimed["jobs"]
        assert (job["origin"], job["run_id"], job["claim_attempt"]) == ("automation_action_step", run_id, 1)
        token = {"job_id": job["id"], "lease_token": job["lease_token"]}
        beat = await ask(worker, {"type": "job.heartbeat", "message_id": "h-1", **token})
        assert beat == {"type": "job.heartbeat.ack", "message_id": "h-1", "job_id": job["id"]}
        ack = await ask(worker, {"type": "job.report", "message_id": "r-1", "result": {"n": 1}, **token})
        assert ack == {"type": "job.report.ack", "message_id": "r-1", "job_id": job["id"]}
        again = await ask(worker, {"type": "job.report", "message_id": "r-2", "result": {"n": 2}, **token})
        assert again["duplicate"] is True
    project = await plane.store.project("default")
    ended = await plane.store.run(project.id, run_id, with_result=True)
    assert json.loads(msgspec.json.encode(ended.result)) == {"one": {"n": 1}}


async def test_cancelling_reaches_the_worker(plane: Serving) -> None:
    async with plane.worker() as worker:
        await register(worker)
        [run_id] = await start_runs(plane)
        claimed = await ask(worker, {"type": "jobs.claim", "message_id": "c-1", "available_slots": 1})
        project = await plane.store.project("default")
        await plane.store.cancel_run(project.id, run_id, "enough")
        cancel = await next_of(worker, "job.cancel")
        assert (cancel["job_id"], cancel["reason"]) == (claimed["jobs"][0]["id"], "enough")


async def test_presence_rows(plane: Serving) -> None:
    async with plane.worker() as worker, plane.http() as http:
        await register(worker, "rig-1", concurrency_limit=3, name="rig", version="1.2", queues=["default"])
        [run_id] = await start_runs(plane)
        [job] = (await ask(worker, {"type": "jobs.claim", "message_id": "c-1", "available_slots": 1}))["jobs"]
        listed = (await http.get("/v1/projects/default/worker-sessions")).json()
        assert listed["totals"] == {"active_instances": 1, "slots": 3, "busy": 1, "stale": 0}
        [row] = listed["items"]
        shown = ("worker_instance_id", "instance_status", "stale", "busy_job_count", "name", "version", "queues")
        assert [row[field] for field in shown] == ["rig-1", "active", False, 1, "rig", "1.2", ["default"]]
        [held] = row["current_jobs"]
        assert [held[field] for field in ("id", "run_id", "action", "status")] == [
            job["id"],
            run_id,
            "print",
            "claimed",
        ]
        await ask(worker, {"type": "worker.draining", "message_id": "d-1"})
        [row] = (await http.get("/v1/projects/default/worker-sessions")).json()["items"]
        assert row["instance_status"] == "draining"


@pytest.mark.parametrize(
    ("settings", "path", "origin", "has_run"),
    [
        ({}, PROJECT_PATH, "automation_action_step", True),
        ({"dialect": "loops"}, PROJECT_PATH, "loop_action_step", True),
        ({"dialects": {"default": "loops"}}, PROJECT_PATH, "loop_action_step", True),
        ({}, ORG_PATH, "loop_action_step", False),
    ],
)
async def test_dialects(tmp_path: Path, settings: dict[str, Any], path: str, origin: str, has_run: bool) -> None:
    async with serving(tmp_path, **settings) as plane, plane.worker(path) as worker:
        await register(worker)
        await start_runs(plane)
        [job] = (await ask(worker, {"type": "jobs.claim", "message_id": "c-1", "available_slots": 1}))["jobs"]
        assert job["origin"] == origin
        assert ("run_id" in job, "step_id" in job) == (has_run, has_run)


# --- identity


async def test_a_live_owner_keeps_its_identity_and_a_dead_one_does_not(plane: Serving) -> None:
    async with plane.worker() as owner:
        await register(owner, "rig-1")
        async with plane.worker() as second:
            refusal = await register(second, "rig-1")
            assert (refusal["type"], refusal["error"]["code"]) == ("error", "worker_instance_conflict")
        # The owner's box is gone: it reads nothing, so it answers no ping.
        owner.transport.pause_reading()
        async with plane.worker() as third:
            assert (await register(third, "rig-1"))["type"] == "worker.registered"
        owner.transport.resume_reading()
        await closed(owner)


# --- liveness and back-pressure


async def test_a_silent_worker_is_pinged_then_dropped(plane: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_socket, "PING_INTERVAL", 0.5)
    dropped: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(worker_socket.WorkerSocket, "_drop", record_drop(dropped))
    async with plane.worker() as answering:
        await register(answering, "alive-1")
        async with plane.worker() as silent:
            await register(silent, "silent-1")
            silent.transport.pause_reading()
            async with asyncio.timeout(DEADLINE):
                assert await dropped.get() == "answers no ping"
            silent.transport.abort()
        answer = await ask(answering, {"type": "worker.draining", "message_id": "m-2"})
        assert answer["type"] == "worker.draining.ack"


async def test_a_worker_that_does_not_read_is_dropped(plane: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_socket, "WRITE_TIMEOUT", 0.2)
    monkeypatch.setattr(worker_socket, "WRITE_BUFFER", 1024)
    dropped: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(worker_socket.WorkerSocket, "_drop", record_drop(dropped))
    reader, writer = await upgraded(plane)
    # Heartbeats of jobs that do not exist: every one is answered, and nobody reads the answers.
    beat = masked(json.dumps({"type": "job.heartbeat", "job_id": "j" * 200, "lease_token": "t"}))
    writer.write(masked(json.dumps({"type": "worker.register", "worker_instance_id": "w-1"})))
    reader._transport.pause_reading()  # type: ignore[attr-defined]

    async def flood() -> None:
        while True:
            writer.write(beat * 200)
            await writer.drain()

    flooding = asyncio.create_task(flood())
    async with asyncio.timeout(DEADLINE):
        assert await dropped.get() == "does not read what it is sent"
    flooding.cancel()
    writer.transport.abort()
    async with plane.worker() as other:
        assert (await register(other, "other-1"))["type"] == "worker.registered"


@pytest.mark.parametrize("in_fragments", [False, True])
async def test_a_message_that_comes_too_slowly_is_not_waited_for(
    plane: Serving, monkeypatch: pytest.MonkeyPatch, in_fragments: bool
) -> None:
    monkeypatch.setattr(worker_socket, "MESSAGE_TIMEOUT", 0.3)
    dropped: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(worker_socket.WorkerSocket, "_drop", record_drop(dropped))
    _, writer = await upgraded(plane)
    writer.write(masked(json.dumps({"type": "worker.register", "worker_instance_id": "w-1"})))
    whole = masked(json.dumps({"type": "keepalive", "padding": "x" * 1000}))
    fragment = bytes([0x01, 0x80 | 3]) + bytes(4) + b'{"t'
    for _ in range(5):
        writer.write(whole[:500])
        await writer.drain()
        await asyncio.sleep(0.1)  # a message that comes in time, slowly
        writer.write(whole[500:])
    writer.write(fragment if in_fragments else whole[:-1])
    ping = bytes([0x89, 0x80]) + bytes(4)

    async def say_something() -> None:
        while True:
            writer.write(ping if in_fragments else b"")
            await asyncio.sleep(0.05)

    saying = asyncio.create_task(say_something())
    async with asyncio.timeout(DEADLINE):
        assert await dropped.get() == "sends a message too slowly"
    saying.cancel()
    writer.transport.abort()


async def test_sockets_of_a_key_that_hold_much_take_turns(plane: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_bytes, "MOST_HELD", 500_000)
    text = json.dumps({"type": "jobs.claim", "message_id": "m", "available_slots": 0, "padding": "x" * 400_000})
    message = masked(text)
    whole: list[str] = []
    sockets = []
    for number in range(4):
        reader, writer = await upgraded(plane)
        writer.write(masked(json.dumps({"type": "worker.register", "worker_instance_id": f"w-{number}"})))
        await next_text(reader)
        sockets.append((reader, writer))

    async def rest(number: int) -> None:
        reader, writer = sockets[number]
        writer.write(message[200_000:])
        assert json.loads(await next_text(reader))["message_id"] == "m"
        whole.append(f"w-{number}")

    async with asyncio.timeout(DEADLINE), plane.worker() as small:
        for _, writer in sockets:
            writer.write(message[:200_000])
            await writer.drain()
        # Three of them hold more than is held; who holds little is heard.
        await register(small)
        later = [asyncio.create_task(rest(number)) for number in (1, 2, 3)]
        assert (await ask(small, {"type": "jobs.claim", "message_id": "c", "available_slots": 0}))["jobs"] == []
        sockets[0][1].transport.abort()
        await asyncio.gather(*later)
    assert sorted(whole) == ["w-1", "w-2", "w-3"]
    for _, writer in sockets:
        writer.transport.abort()


async def test_a_socket_that_waits_for_its_turn_is_not_silent(plane: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_bytes, "MOST_HELD", 300_000)
    monkeypatch.setattr(worker_socket, "PING_INTERVAL", 0.3)
    dropped: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(worker_socket.WorkerSocket, "_drop", record_drop(dropped))
    text = json.dumps({"type": "jobs.claim", "message_id": "m", "available_slots": 0, "padding": "x" * 400_000})
    message = masked(text)
    (_, first), (reader, second) = await upgraded(plane), await upgraded(plane)
    for number, writer in enumerate((first, second)):
        writer.write(masked(json.dumps({"type": "worker.register", "worker_instance_id": f"w-{number}"})))
    await next_text(reader)

    async def slowly() -> None:
        for place in range(200_000, 300_000):
            first.write(message[place : place + 1])
            await asyncio.sleep(0.05)

    first.write(message[:200_000])
    await first.drain()
    slow = asyncio.create_task(slowly())
    async with asyncio.timeout(DEADLINE), plane.worker() as silent:
        second.write(message)
        await register(silent, "silent")
        silent.transport.pause_reading()
        assert await dropped.get() == "answers no ping"
        silent.transport.abort()
        slow.cancel()
        first.transport.abort()
        assert json.loads(await next_text(reader))["message_id"] == "m"
    assert dropped.empty()
    second.transport.abort()


@pytest.mark.parametrize("in_fragments", [False, True])
async def test_large_messages_and_what_follows_them_are_taken(
    plane: Serving, monkeypatch: pytest.MonkeyPatch, in_fragments: bool
) -> None:
    put_off: list[str] = []
    add = Turnstile.add
    monkeypatch.setattr(Turnstile, "add", lambda self, key, work: (put_off.append(key), add(self, key, work))[1])
    project = await plane.store.project("default")
    await plane.store.enqueue(project.id, [NewJob(action_name="a", spec={"parameters": {}})] * 3)
    async with plane.worker() as worker:
        await register(worker)
        jobs = (await ask(worker, {"type": "jobs.claim", "message_id": "c", "available_slots": 3}))["jobs"]
        for number, job in enumerate(jobs):
            result = {"text": "x" * (300_000 if number == 1 else 10), "number": number}
            token = {"job_id": job["id"], "lease_token": job["lease_token"]}
            frame = {"type": "job.report", "message_id": f"r-{number}", "result": result, **token}
            text = json.dumps(frame)
            await worker.send([text[:100], text[100:200], text[200:]] if in_fragments else text)
        acks = {(await next_of(worker, "job.report.ack"))["message_id"] for _ in jobs}
        assert acks == {"r-0", "r-1", "r-2"}
    assert len(put_off) == 1
    for number, job in enumerate(jobs):
        stored = await plane.store.job(project.id, job["id"])
        assert (stored.status, stored.result["number"]) == ("completed", number)


async def next_text(reader: asyncio.StreamReader) -> str:
    """The next message of a raw connection."""
    while True:
        first, size = await reader.readexactly(2)
        if size >= 126:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
        data = await reader.readexactly(size)
        if first & 15 == Opcode.TEXT:
            return data.decode()


def record_drop(dropped: "asyncio.Queue[str]") -> Any:
    original = worker_socket.WorkerSocket._drop

    def drop(self: worker_socket.WorkerSocket, why: str) -> None:
        dropped.put_nowait(why)
        original(self, why)

    return drop


async def upgraded(plane: Serving) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A raw connection after the upgrade: it answers no ping by itself."""
    with_small_buffer = socket.socket()
    with_small_buffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with_small_buffer.setblocking(False)
    await asyncio.get_running_loop().sock_connect(with_small_buffer, (plane.host, plane.port))
    reader, writer = await asyncio.open_connection(sock=with_small_buffer)
    writer.write(
        f"GET {PROJECT_PATH} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        f"authorization: Bearer {plane.key}\r\nsec-websocket-version: 13\r\n"
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    async with asyncio.timeout(DEADLINE):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"sec-websocket-extensions" not in head.lower()
    return reader, writer


def masked(text: str) -> bytes:
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=True)


async def test_a_worker_that_asks_faster_than_the_store_answers_is_not_listened_to(
    plane: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_socket, "MOST_UNANSWERED", 10)
    paused, answering = asyncio.Event(), asyncio.Event()
    pause, reports = worker_socket.WorkerSocket._pause_reading, plane.store.reports

    def pausing(socket: WorkerSocket) -> None:
        if socket._connection is not None:
            paused.set()
        pause(socket)

    async def late(*arguments: Any) -> Any:
        await answering.wait()
        return await reports(*arguments)

    monkeypatch.setattr(worker_socket.WorkerSocket, "_pause_reading", pausing)
    monkeypatch.setattr(plane.store, "reports", late)
    async with asyncio.timeout(DEADLINE), plane.worker() as worker:
        await register(worker)
        for number in range(11):
            frame = {"type": "job.report", "message_id": f"m-{number}", "job_id": "job_x", "lease_token": "x"}
            await worker.send(json.dumps(frame))
        await paused.wait()
        answering.set()
        assert {(await next_of(worker, "error"))["message_id"] for _ in range(11)} == {f"m-{n}" for n in range(11)}
        assert (await ask(worker, {"type": "jobs.claim", "message_id": "c", "available_slots": 0}))["jobs"] == []


async def test_frames_that_get_no_answer_are_not_waited_for(plane: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_socket, "MOST_UNANSWERED_BYTES", 50_000)
    async with plane.worker() as worker:
        await register(worker)
        for _ in range(20):
            await worker.send(json.dumps({"type": "keepalive", "padding": "x" * 10_000}))
        assert (await ask(worker, {"type": "jobs.claim", "message_id": "c", "available_slots": 0}))["jobs"] == []


def test_a_timer_that_is_due_at_once_can_be_set_again() -> None:
    async def set_twice() -> None:
        socket = WorkerSocket(None, config=None, server_state=SimpleNamespace(connections=set()), app_state=None)  # type: ignore[arg-type]
        ticked = asyncio.Event()
        monkeypatch.setattr(socket, "_next_deadline", lambda: asyncio.get_running_loop().time() - 1.0)
        monkeypatch.setattr(socket, "_tick", ticked.set)
        socket._arm()
        socket._arm()
        async with asyncio.timeout(DEADLINE):
            await ticked.wait()

    with pytest.MonkeyPatch.context() as monkeypatch:
        uvloop.run(set_twice())


async def test_frames_of_one_read_are_answered_in_one_write(plane: Serving) -> None:
    reader, writer = await upgraded(plane)
    writer.write(masked(json.dumps({"type": "worker.register", "worker_instance_id": "w-1", "message_id": "m"})))
    async with asyncio.timeout(DEADLINE):
        assert b"worker.registered" in await reader.read(65536)
        writer.write(masked("one") + masked("two") + masked("three"))
        assert (await reader.read(65536)).count(b"invalid_frame") == 3
    writer.transport.abort()


# --- the end


async def test_the_server_closes_with_the_code_of_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as plane, plane.worker() as worker:
        await register(worker)
        plane.plane.stop("the test says so")
        code, _ = await closed(worker)
    assert code == 1012


async def test_a_worker_that_leaves_keeps_its_jobs(plane: Serving) -> None:
    async with plane.worker() as worker:
        token = (await register(worker, "rig-1"))["worker_session_token"]
        await start_runs(plane)
        [job] = (await ask(worker, {"type": "jobs.claim", "message_id": "c-1", "available_slots": 1}))["jobs"]
    async with plane.worker() as worker:
        answer = await register(worker, "rig-1", worker_session_token=token)
        assert answer["type"] == "worker.registered"
        ack = await ask(
            worker,
            {"type": "job.report", "message_id": "r-1", "job_id": job["id"], "lease_token": job["lease_token"]},
        )
        assert ack == {"type": "job.report.ack", "message_id": "r-1", "job_id": job["id"]}


async def test_too_many_bad_frames_close_the_socket(plane: Serving) -> None:
    async with plane.worker() as worker:
        await register(worker)
        for _ in range(worker_socket.MOST_INVALID_FRAMES):
            await worker.send("nonsense")
            assert (await next_of(worker, "error"))["error"]["code"] == "invalid_frame"
        await worker.send("nonsense")
        code, _ = await closed(worker)
    assert code == 1008


async def test_bad_frames_that_are_rare_close_nothing(plane: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_socket, "INVALID_FRAMES_WITHIN", 0.0)
    async with plane.worker() as worker:
        await register(worker)
        for _ in range(2 * worker_socket.MOST_INVALID_FRAMES):
            await worker.send("nonsense")
            assert (await next_of(worker, "error"))["error"]["code"] == "invalid_frame"
