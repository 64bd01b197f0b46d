"""A whole child between a model server and a control plane, all over real sockets: streams, reconnects, cancels."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.child_process import Child, MoldProcess, mold_process
from tests.support.model_server import ModelServer, Reply, Request, model_server, ndjson
from tests.support.scripted_server import ScriptedServer, scripted_server
from tests.support.session_driver import claimed_generation
from wire import codec, frames, pipe

CHAT = "/api/chat"
DEADLINE = 30.0
MODULE = """
from worker_child import Context, Message, Usage, generator

@generator("mine", "parrot")
async def parrot(request, ctx: Context):
    yield request["say"]
    yield Message(usage=Usage(input_tokens=1, output_tokens=1))
"""


def said(text: str) -> bytes:
    return ndjson({"message": {"content": text}, "done": False})


DONE = ndjson({"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 4})


class Rig:
    """One mold, one control plane, one model server called `lab`."""

    def __init__(self, mold: MoldProcess, server: ScriptedServer, models: ModelServer) -> None:
        self.mold = mold
        self.server = server
        self.models = models

    async def spawn(self, **settings: Any) -> Child:
        provider = pipe.ModelProvider(name="lab", api="ollama", base_url=self.models.url)
        given = {"api_url": self.server.url, "models": ["lab/*"], "providers": [provider]} | settings
        return await asyncio.to_thread(lambda: self.mold.spawn(**given))

    async def generating(self, handler: Callable[[Request, Reply], Any], **settings: Any) -> Child:
        """A child that has claimed a generation, which the model server answers by `handler`."""
        self.models.handle(CHAT, handler)
        child = await self.spawn(**settings)
        await self.server.register()
        await self.server.answer_claim(self.job)
        return child

    @property
    def job(self) -> frames.ClaimedJob:
        request = {"messages": [{"role": "user", "content": "hi"}]}
        return claimed_generation(1, provider="lab", model="m", spec={"request": request})

    async def next(self) -> frames.FromWorker:
        """The next frame that is no claim."""
        async with asyncio.timeout(DEADLINE):
            while isinstance(frame := codec.decode_from_worker(await self.server.connection.recv()), frames.Claim):
                pass
        return frame

    async def acknowledge(self, delta: frames.GenerationDelta) -> None:
        await self.server.send(frames.GenerationDeltaAck(job_id=delta.job_id, received_sequence=delta.sequence))

    async def until(self, child: Child, kind: type[Any], **fields: Any) -> Any:
        return await asyncio.to_thread(child.heard_until, kind, **fields)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    (tmp_path / "parrots.py").write_text(MODULE)
    with mold_process(tmp_path) as mold:
        ready = await asyncio.to_thread(lambda: mold.settle(modules=["parrots"], model_servers=True))
        assert isinstance(ready, pipe.MoldReady)
        async with scripted_server() as server, model_server() as models:
            models.answers("/api/tags", ndjson({"models": [{"name": "m"}]}))
            yield Rig(mold, server, models)


def text_of(deltas: dict[int, str]) -> str:
    assert sorted(deltas) == list(range(len(deltas)))
    return "".join(text for _, text in sorted(deltas.items()))


async def test_models_are_registered_streamed_from_and_reported(rig: Rig) -> None:
    async def answer(_request: Request, reply: Reply) -> None:
        for word in ("Hel", "lo"):
            await reply.piece(said(word))
        await reply.piece(DONE)
        await reply.end()

    rig.models.handle(CHAT, answer)
    child = await rig.spawn(models=["lab/m", "mine/parrot"])
    register = await rig.server.register()
    assert register.models == [
        frames.ModelCapability(provider="mine", model="parrot"),
        frames.ModelCapability(provider="lab", model="m"),
    ]
    claim = await rig.server.answer_claim(rig.job)
    assert claim.models == register.models
    deltas = {}
    while not isinstance(frame := await rig.next(), frames.Report):
        assert isinstance(frame, frames.GenerationDelta)
        deltas[frame.sequence] = frame.delta["text"]
    assert text_of(deltas) == "Hello"
    assert frame.result is not None
    message = frame.result["llm_response"]
    assert message["content"] == [{"type": "text", "text": "Hello"}]
    assert message["usage"] == {"input_tokens": 3, "output_tokens": 4}
    await rig.server.send(frames.ReportAck(message_id=frame.message_id, job_id=frame.job_id))
    beat = await rig.until(child, pipe.Beat, completed=1, reports_waiting=0, source="loop")
    assert beat.actions["lab/m"].completed == 1


async def test_a_generator_of_a_module_is_run(rig: Rig) -> None:
    await rig.spawn(models=["mine/*"], providers=[])
    await rig.server.register()
    await rig.server.answer_claim(
        claimed_generation(1, provider="mine", model="parrot", spec={"request": {"say": "hi"}})
    )
    delta = await rig.next()
    assert isinstance(delta, frames.GenerationDelta)
    assert delta.delta == {"text": "hi"}
    report = await rig.next()
    assert isinstance(report, frames.Report)
    assert report.status == "completed"


@pytest.mark.parametrize("acknowledges", [True, False])
async def test_a_stream_survives_a_cut_connection_whole_and_in_order(rig: Rig, acknowledges: bool) -> None:
    words = [f"{number} " for number in range(2000)]
    gate = asyncio.Event()

    async def answer(_request: Request, reply: Reply) -> None:
        for number, word in enumerate(words):
            await reply.piece(said(word))
            if number == 1000:
                await gate.wait()
        await reply.piece(DONE)
        await reply.end()

    await rig.generating(answer)
    deltas: dict[int, str] = {}

    async def read_until(stop: Callable[[frames.FromWorker], bool]) -> frames.FromWorker:
        while not stop(frame := await rig.next()):
            assert isinstance(frame, frames.GenerationDelta), frame
            assert deltas.setdefault(frame.sequence, frame.delta["text"]) == frame.delta["text"]
            if acknowledges:
                await rig.acknowledge(frame)
        return frame

    await read_until(lambda _: len("".join(deltas.values())) > 2000)
    rig.server.connection.transport.abort()
    gate.set()
    await rig.server.register()
    report = await read_until(lambda frame: isinstance(frame, frames.Report))
    assert text_of(deltas) == "".join(words)
    assert isinstance(report, frames.Report)
    assert report.result is not None
    assert report.result["llm_response"]["content"][0]["text"] == "".join(words)


async def test_a_control_plane_that_does_not_read_holds_up_nothing_but_its_deltas(rig: Rig) -> None:
    """More than the kernel's buffers hold is written meanwhile; the worker reads on, and its result has all of it."""
    words = [f"{number:07} " * 8000 for number in range(180)]
    reads = asyncio.Event()

    async def answer(_request: Request, reply: Reply) -> None:
        for word in words:
            await reply.piece(said(word))
        await reply.piece(DONE)
        await reply.end()

    rig.models.handle(CHAT, answer)
    async with relay(rig.server.port, reads) as url:
        child = await rig.spawn(api_url=url)
        reads.set()
        await rig.server.register()
        claim = await rig.server.receive(frames.Claim)
        reads.clear()
        await rig.server.send(frames.Claimed(message_id=claim.message_id, jobs=[rig.job]))
        await rig.until(child, pipe.Beat, source="loop", reports_waiting=1)
        reads.set()
        sequences, size = [], 0
        while not isinstance(frame := await rig.next(), frames.Report):
            if isinstance(frame, frames.GenerationDelta):
                sequences.append(frame.sequence)
                size += len(frame.delta["text"])
    assert sequences == list(range(len(sequences)))
    assert 0 < size < sum(map(len, words))
    assert frame.result is not None
    assert frame.result["llm_response"]["content"][0]["text"] == "".join(words)


@contextlib.asynccontextmanager
async def relay(port: int, reads: asyncio.Event) -> AsyncIterator[str]:
    """Passes on what is said to a port of this machine, and of what a worker says only as long as `reads` is set."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)

        async def back() -> None:
            while data := await from_server.read(65536):
                writer.write(data)

        backwards = asyncio.ensure_future(back())
        while await reads.wait() and (data := await reader.read(65536)):
            to_server.write(data)
            await to_server.drain()
        backwards.cancel()
        to_server.close()
        writer.close()

    listening = socket.create_server(("127.0.0.1", 0))
    # Its connections have it too: what nobody reads soon stays with the worker.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    server = await asyncio.start_server(serve, sock=listening, limit=65536)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        reads.set()
        server.close()


async def test_a_cancel_ends_the_stream_of_the_model_server(rig: Rig) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.piece(said("Hel"))
        await request.gone.wait()

    await rig.generating(answer)
    assert isinstance(await rig.next(), frames.GenerationDelta)
    await rig.server.send(frames.JobCancel(job_id="job-1", reason="nobody waits"))
    report = await rig.next()
    assert isinstance(report, frames.Report)
    assert report.status == "cancelled"
    async with asyncio.timeout(DEADLINE):
        await (await rig.models.request(2)).gone.wait()


async def test_a_drain_that_runs_out_ends_the_stream_too(rig: Rig) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.piece(said("Hel"))
        await request.gone.wait()

    child = await rig.generating(answer)
    await rig.next()
    child.drain(0.5)
    assert isinstance(await rig.next(), frames.Draining)
    report = await rig.next()
    assert isinstance(report, frames.Report)
    assert report.error_type == "WorkerShutdown"
    async with asyncio.timeout(DEADLINE):
        await (await rig.models.request(2)).gone.wait()


async def test_a_worker_of_models_alone_waits_for_its_server(tmp_path: Path) -> None:
    """It is ready, so that nobody takes it for one that hangs, and claims nothing: that would be everything."""
    with mold_process(tmp_path) as mold:
        await asyncio.to_thread(lambda: mold.settle(stock_actions=False, model_servers=True))
        async with scripted_server() as server, model_server() as models:
            models.answers("/api/tags", b"", status=503)
            rig = Rig(mold, server, models)
            child = await rig.spawn()
            register = await server.register()
            assert (register.action_names, register.models, register.available_slots) == ([], None, 0)
            await rig.until(child, pipe.Ready)
            await server.send(frames.WorkAvailable())
            child.drain(5)
            # A claim would have come before it.
            await server.receive(frames.Draining)
            assert "models.unavailable" in child.output()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"models": ["lab2/m"]}, "models: no provider is configured and no generator is registered for 'lab2/m'"),
        (
            {"providers": [pipe.ModelProvider(name="x", api="openai", base_url="http://h", api_key_file="/nowhere")]},
            "providers.x.api_key_file /nowhere: No such file or directory",
        ),
    ],
)
async def test_models_that_cannot_work_are_one_sentence_and_exit_78(
    rig: Rig, settings: dict[str, Any], sentence: str
) -> None:
    child = await rig.spawn(**settings)
    bye = await rig.until(child, pipe.Bye)
    assert sentence in bye.reason
    assert await asyncio.to_thread(rig.mold.exit_code, child.pid) == 78


async def test_no_log_line_has_the_key_of_a_model_server(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-very-secret")
    rig.models.answers("/api/tags", json.dumps({"error": "bad key sk-very-secret"}).encode(), status=401)
    rig.models.answers(CHAT, json.dumps({"error": "bad key sk-very-secret"}).encode(), status=401)
    key = str(tmp_path / "key")
    provider = pipe.ModelProvider(name="lab", api="ollama", base_url=rig.models.url, api_key_file=key)
    child = await rig.spawn(providers=[provider], log_level="debug")
    await rig.server.register()
    await rig.until(child, pipe.Registered)
    output = child.output()
    assert "bad key [key]" in output
    assert "sk-very-secret" not in output
