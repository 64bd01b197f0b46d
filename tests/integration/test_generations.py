"""From a generation in the store of a real control plane to a model server, through `mobius worker`, and back."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest

from control_plane.domain.model import TERMINAL_JOB, Job
from supervisor import config as pool_file
from tests.support.control_plane_server import Serving, serving
from tests.support.generation import enqueue_generation
from tests.support.mobius_command import MobiusCommand
from tests.support.model_server import ModelServer, model_server, ndjson, sse
from worker_child.providers.server import REFUSALS

DEADLINE = 60.0
REQUEST = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
DOCUMENT = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def snippet(name: str) -> str:
    match = re.search(rf"<!-- test: {re.escape(name)} -->\n```\w+\n(.*?)```", DOCUMENT, re.DOTALL)
    assert match is not None, name
    return match[1]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as served:
        yield served


@pytest.fixture
async def models() -> AsyncIterator[ModelServer]:
    async with model_server() as server:
        yield server


async def ended(plane: Serving, job_id: str) -> Job:
    """The job, once it has ended."""
    project = await plane.store.project("default")
    async with asyncio.timeout(DEADLINE):
        while (job := await plane.store.job(project.id, job_id)).status not in TERMINAL_JOB:  # noqa: ASYNC110 - a job without a run is no event
            await asyncio.sleep(0.02)
    return job


def message(job: Job) -> dict[str, Any]:
    assert (job.status, job.error_message) == ("completed", None)
    assert job.result is not None
    response: dict[str, Any] = job.result["llm_response"]
    return response


class Worker:
    """`mobius worker` with these flags, until the end of the block."""

    def __init__(self, plane: Serving, home: Path, *flags: str) -> None:
        self.command = MobiusCommand(plane.url, plane.key, home)
        self._flags = flags

    async def __aenter__(self) -> Self:
        self._running = self.command.start("worker", "--instance-id", "box", *self._flags)
        self.process = await asyncio.to_thread(self._running.__enter__)
        return self

    async def __aexit__(self, *raised: object) -> None:
        await asyncio.to_thread(self._running.__exit__, None, None, None)


async def test_a_generation_by_an_openai_compatible_server(plane: Serving, models: ModelServer, tmp_path: Path) -> None:
    chunks = [{"choices": [{"delta": {"content": word}}]} for word in ("Hel", "lo")]
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    models.answers("/v1/models", json.dumps({"data": [{"id": "small"}, {"id": "org/big"}]}).encode())
    models.answers("/v1/chat/completions", [sse(event) for event in (*chunks, end, "[DONE]")])
    (tmp_path / "key").write_text("sk-very-secret")
    job_id = await enqueue_generation(plane.store, "lab", "org/big", REQUEST)
    flags = ["--provider", f"lab=openai+{models.url}/v1", "--provider-key-file", f"lab={tmp_path / 'key'}"]
    async with Worker(plane, tmp_path, *flags, "--models", "lab/*") as worker:
        answer = message(await ended(plane, job_id))
        (row,) = (await asyncio.to_thread(worker.command.json, "worker-sessions", "list"))["items"]
    assert answer["content"] == [{"type": "text", "text": "Hello"}]
    assert answer["usage"] == {"input_tokens": 5, "output_tokens": 2}
    assert [pair["model"] for pair in row["models"]] == ["small", "org/big"]
    assert "print" in row["action_names"]
    asked = next(request for request in models.requests if request.method == "POST")
    assert asked.headers["authorization"] == "Bearer sk-very-secret"
    assert (asked.body["model"], asked.body["max_tokens"]) == ("org/big", 10)


async def test_a_generation_by_ollama_and_one_by_a_generator_of_our_own(
    plane: Serving, models: ModelServer, tmp_path: Path
) -> None:
    models.answers("/api/tags", ndjson({"models": [{"name": "llama3:latest"}]}))
    models.answers("/api/chat", ndjson({"message": {"content": "yes"}, "done": True, "eval_count": 1}))
    (tmp_path / "parrot.py").write_text(snippet("parrot.py"))
    jobs = [
        await enqueue_generation(plane.store, "ollama", "llama3", REQUEST),
        await enqueue_generation(plane.store, "mine", "parrot", REQUEST),
    ]
    flags = ["--modules", "parrot", "--module-path", str(tmp_path), "--provider", f"ollama=ollama+{models.url}"]
    async with Worker(plane, tmp_path, *flags, "--models", "ollama/llama3,mine/parrot"):
        texts = [message(await ended(plane, job_id))["content"][0]["text"] for job_id in jobs]
    assert texts == ["yes", "hi "]


async def test_what_the_server_refuses_fails_and_says_why(plane: Serving, models: ModelServer, tmp_path: Path) -> None:
    models.answers("/v1/messages", b'{"error":{"message":"max_tokens: too many"}}', status=400)
    job_id = await enqueue_generation(plane.store, "claude", "c-1", REQUEST)
    flags = ["--provider", f"claude=anthropic+{models.url}", "--models", "claude/c-1"]
    async with Worker(plane, tmp_path, *flags):
        job = await ended(plane, job_id)
    assert (job.status, job.error_type) == ("failed", "NonRetryableError")
    assert job.error_message == ("RequestRefused: model server 'claude' answers 400 Said: max_tokens: too many")


async def test_a_model_that_nobody_has_is_told_at_once(plane: Serving, tmp_path: Path) -> None:
    command = MobiusCommand(plane.url, plane.key, tmp_path)
    done = await asyncio.to_thread(command.run, "worker", "--models", "lab/x")
    assert done.returncode == 78
    assert done.stderr.splitlines()[-1] == (
        "mobius: --models: no provider is configured and no generator is registered for 'lab/x' (known: none)"
    )


def test_the_pool_file_of_the_documentation_loads(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(snippet("pool.toml"))
    (tmp_path / "lab-key").write_text("sk-very-secret")
    (pool,) = pool_file.load(tmp_path / "pool.toml", {"HOME": str(tmp_path), "MOBIUS_API_KEY": "mbx_k"}).pool
    assert pool.models == ["ollama/llama3", "lab/*"]
    assert sorted(pool.providers) == ["lab", "ollama"]


def test_the_documentation_knows_where_each_api_usually_is() -> None:
    for api, url in pool_file._MODEL_SERVERS.items():
        assert re.search(rf"^\| `{api}` \| .* \| `{re.escape(url)}` \|$", DOCUMENT, re.MULTILINE)


def test_the_documentation_knows_which_answers_are_refusals() -> None:
    refusals = [str(status) for status in sorted(REFUSALS)]
    assert f"| the server answers {', '.join(refusals[:-1])} or {refusals[-1]} |" in DOCUMENT
