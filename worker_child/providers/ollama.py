"""Ollama: `/api/chat`, which streams JSON lines."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Struct

from wire.pipe import ModelProvider
from worker_child.actions import Context
from worker_child.errors import RequestRefused
from worker_child.generators import Message, Usage
from worker_child.providers import requests
from worker_child.providers.openai import tool_of
from worker_child.providers.server import Server

_LATEST = ":latest"


class _Function(Struct, frozen=True):
    name: str
    arguments: dict[str, Any] = {}


class _ToolCall(Struct, frozen=True):
    function: _Function


class _Said(Struct, frozen=True):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Line(Struct, frozen=True):
    model: str = ""
    message: _Said | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    error: Any = None


class _Model(Struct, frozen=True):
    name: str


class _Models(Struct, frozen=True):
    models: list[_Model] | None = None


_lines = msgspec.json.Decoder(_Line)


class Ollama:
    """A Provider. `base_url` ends where `/api` begins."""

    def __init__(self, settings: ModelProvider) -> None:
        self.name = settings.name
        self._server = Server(settings, lambda key: {"authorization": f"Bearer {key}"})

    async def models(self) -> list[str] | None:
        """`GET /api/tags`. What is tagged `latest` is known without its tag too, as people call it."""
        found = await self._server.get("/api/tags", _Models)
        if found is None:
            return None
        names = [model.name for model in found.models or []]
        return [known for name in names for known in dict.fromkeys((name.removesuffix(_LATEST), name))]

    async def generate(self, model: str, request: Any, context: Context) -> AsyncIterator[Any]:
        """`POST /api/chat`, streamed."""
        del context
        body = _body(model, requests.parsed(request))
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[_ToolCall] = []
        last: _Line | None = None
        async with self._server.lines("/api/chat", body) as lines:
            async for data in lines:
                if not data.strip():
                    continue
                line = self._server.decoded(data, _lines)
                if line.error is not None:
                    raise self._server.failed(data)
                said = line.message or _Said()
                if said.thinking:
                    thoughts.append(said.thinking)
                    yield {"type": "thinking", "thinking": said.thinking}
                if said.content:
                    texts.append(said.content)
                    yield said.content
                calls += said.tool_calls or []
                if line.done:
                    last = line
                    break
        if last is None:
            raise self._server.broken("ended its answer before it was complete")
        yield Message(
            model=last.model,
            content=_content(texts, thoughts, calls),
            stop_reason="tool_use" if calls else "max_tokens" if last.done_reason == "length" else "end_turn",
            usage=Usage(input_tokens=last.prompt_eval_count or 0, output_tokens=last.eval_count or 0),
        )

    async def close(self) -> None:
        """Ends its connections."""
        await self._server.close()


def _content(texts: list[str], thoughts: list[str], calls: list[_ToolCall]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if thoughts:
        blocks.append({"type": "thinking", "thinking": "".join(thoughts), "signature": ""})
    if texts:
        blocks.append({"type": "text", "text": "".join(texts)})
    for number, call in enumerate(calls):
        # Ollama's calls have no ids; within a message they need only differ.
        blocks.append({
            "type": "tool_use", "id": f"call_{number}", "name": call.function.name, "input": call.function.arguments,
        })  # fmt: skip
    return blocks


def _body(model: str, request: requests.Request) -> dict[str, Any]:
    choice = request.tool_choice.type if request.tool_choice is not None else "auto"
    if choice in ("any", "tool"):
        raise RequestRefused("request.tool_choice: Ollama cannot be made to use a tool; only `auto` and `none`")
    options = {
        "num_predict": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": request.stop_sequences or None,
    }
    body: dict[str, Any] = {
        "model": model,
        "messages": _messages(request),
        "stream": True,
        "options": {key: value for key, value in options.items() if value is not None},
    }
    return body | ({"tools": [tool_of(tool) for tool in request.tools]} if request.tools and choice == "auto" else {})


def _messages(request: requests.Request) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.system_text:
        messages.append({"role": "system", "content": request.system_text})
    names: dict[str, str] = {}
    for index, turn in enumerate(request.messages):
        if isinstance(turn.content, str):
            messages.append({"role": turn.role, "content": turn.content})
            continue
        message: dict[str, Any] = {"role": turn.role, "content": requests.text_of(turn.content)}
        calls = []
        for block in turn.content:
            if isinstance(block, requests.ToolUseBlock):
                names[block.id] = block.name
                calls.append({"function": {"name": block.name, "arguments": block.input}})
            elif isinstance(block, requests.ToolResultBlock):
                messages.append({
                    "role": "tool", "content": requests.text_of(block.content),
                    "tool_name": names.get(block.tool_use_id, ""),
                })  # fmt: skip
        images = [_image(image, f"request.messages[{index}].content") for image in requests.images_of(turn.content)]
        message |= ({"images": images} if images else {}) | ({"tool_calls": calls} if calls else {})
        if message["content"] or images or calls:
            messages.append(message)
    return messages


def _image(block: requests.ImageBlock, where: str) -> str:
    if isinstance(block.source, requests.UrlSource):
        raise RequestRefused(f"{where}: Ollama takes images in the request itself, not by their address")
    return block.source.data


provider = Ollama
"""What `worker_child.providers` makes."""
