"""A real llama.cpp server, with a model that the test writes itself, behind a real worker: `make test-llm`."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct

from tests.support.child_process import Child, mold_process
from tests.support.control_plane_server import serving
from tests.support.generation import enqueue_generation
from tests.support.mobius_command import MobiusCommand
from tests.support.scripted_server import ScriptedServer, scripted_server
from tests.support.session_driver import claimed_generation
from tests.support.tiny_model import CONTEXT, write_tiny_model
from wire import codec, frames, pipe

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "llama" / "bin" / "python"
DEADLINE = 120.0
REQUEST = {"messages": [{"role": "user", "content": "moka ribi"}], "temperature": 1.0}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server."""
    home = tmp_path_factory.mktemp("llama")
    model = write_tiny_model(home / "tiny.gguf")
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [PYTHON, ROOT / "tests" / "llm" / "llama_server.py", model, str(CONTEXT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), (home / "log").read_text()
        yield address
        process.kill()
        process.wait()


class Streamed(Struct):
    """One generation as a control plane saw it; times are seconds from the claim."""

    texts: list[str]
    message: dict[str, Any]
    first: float
    last: float


class Rig:
    """One worker child between the model server and a control plane that the test plays."""

    def __init__(self, server: ScriptedServer, child: Child) -> None:
        self.server = server
        self.child = child

    async def claim(self, max_tokens: int) -> None:
        request = REQUEST | {"max_tokens": max_tokens}
        await self.server.answer_claim(claimed_generation(1, provider="lab", model="tiny", spec={"request": request}))

    async def next(self) -> frames.FromWorker:
        async with asyncio.timeout(DEADLINE):
            while isinstance(frame := codec.decode_from_worker(await self.server.connection.recv()), frames.Claim):
                pass
        return frame

    async def generate(self, max_tokens: int) -> Streamed:
        began = time.monotonic()
        await self.claim(max_tokens)
        texts: dict[int, str] = {}
        times = []
        while not isinstance(frame := await self.next(), frames.Report):
            assert isinstance(frame, frames.GenerationDelta)
            times.append(time.monotonic() - began)
            texts[frame.sequence] = frame.delta["text"]
            ack = frames.GenerationDeltaAck(job_id=frame.job_id, received_sequence=frame.sequence)
            await self.server.send(ack)
        assert (frame.status, frame.error_message) == ("completed", None)
        assert frame.result is not None
        await self.server.send(frames.ReportAck(message_id=frame.message_id, job_id=frame.job_id))
        in_order = [text for _, text in sorted(texts.items())]
        return Streamed(in_order, frame.result["llm_response"], times[0], times[-1])


@pytest.fixture(params=["openai", "anthropic"])
async def rig(request: pytest.FixtureRequest, llama: str, tmp_path: Path) -> AsyncIterator[Rig]:
    base_url = f"{llama}/v1" if request.param == "openai" else llama
    provider = pipe.ModelProvider(name="lab", api=request.param, base_url=base_url)
    with mold_process(tmp_path) as mold:
        await asyncio.to_thread(lambda: mold.settle(model_servers=True))
        async with scripted_server() as server:
            settings: dict[str, Any] = {"models": ["lab/tiny"], "providers": [provider], "api_url": server.url}
            child = await asyncio.to_thread(lambda: mold.spawn(**settings))
            register = await server.register()
            assert register.models == [frames.ModelCapability(provider="lab", model="tiny")]
            yield Rig(server, child)


@pytest.mark.parametrize("tokens", [1, 50, 5000])
async def test_what_is_streamed_is_what_the_message_says(rig: Rig, tokens: int) -> None:
    streamed = await rig.generate(tokens)
    message = streamed.message
    assert message["content"] == [{"type": "text", "text": "".join(streamed.texts)}]
    assert message["usage"]["output_tokens"] == tokens
    assert message["usage"]["input_tokens"] + message["usage"].get("cache_read_input_tokens", 0) > 1
    assert message["stop_reason"] == "max_tokens"
    assert message["model"] == "tiny"
    rate = tokens / streamed.last
    print(
        f"\n{tokens} tokens in {len(streamed.texts)} deltas, the first after {streamed.first * 1e3:.1f} ms, "
        f"the last after {streamed.last * 1e3:.1f} ms ({rate:.0f} tokens/s)"
    )


async def test_a_cancel_stops_the_model(rig: Rig, llama: str) -> None:
    await rig.claim(60_000)
    assert isinstance(await rig.next(), frames.GenerationDelta)
    cancelled = time.monotonic()
    await rig.server.send(frames.JobCancel(job_id="job-1", reason="nobody waits"))
    while isinstance(report := await rig.next(), frames.GenerationDelta):
        pass
    assert isinstance(report, frames.Report)
    assert report.status == "cancelled"
    async with httpx.AsyncClient() as http, asyncio.timeout(DEADLINE):
        while (await http.get(f"{llama}/slots")).json()[0]["is_processing"]:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    assert time.monotonic() - cancelled < 5
    print(f"\nthe model had stopped {(time.monotonic() - cancelled) * 1e3:.0f} ms after the cancel was sent")


async def test_a_request_that_the_server_refuses(rig: Rig) -> None:
    request = {"messages": [{"role": "user", "content": "\n" * (CONTEXT + 1000)}], "max_tokens": 5}
    await rig.server.answer_claim(claimed_generation(1, provider="lab", model="tiny", spec={"request": request}))
    report = await rig.next()
    assert isinstance(report, frames.Report)
    assert (report.status, report.error_type) == ("failed", "NonRetryableError")
    assert "RequestRefused: model server 'lab' answers 400" in str(report.error_message)


async def test_from_the_store_of_a_control_plane_and_back(llama: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as plane:
        job_ids = [await enqueue_generation(plane.store, "lab", "tiny", REQUEST | {"max_tokens": 20}) for _ in range(5)]
        command = MobiusCommand(plane.url, plane.key, tmp_path)
        running = command.start("worker", "--provider", f"lab=openai+{llama}/v1", "--models", "lab/*")
        await asyncio.to_thread(running.__enter__)
        project = await plane.store.project("default")
        async with asyncio.timeout(DEADLINE):
            for job_id in job_ids:
                while (job := await plane.store.job(project.id, job_id)).status != "completed":
                    assert job.status in ("pending", "claimed"), job
                    await asyncio.sleep(0.02)
                assert job.result is not None
                assert job.result["llm_response"]["usage"]["output_tokens"] == 20
        await asyncio.to_thread(running.__exit__, None, None, None)
