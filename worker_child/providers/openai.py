"""Whatever speaks OpenAI's Chat Completions: vLLM, llama.cpp, LM Studio, gateways, OpenAI itself."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from wire.pipe import ModelProvider
from worker_child.actions import Context
from worker_child.errors import RequestRefused
from worker_child.generators import Message, Usage
from worker_child.providers import requests
from worker_child.providers.server import Server

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_DONE = b"[DONE]"
MOST_TOOL_CALLS = 1000


class _Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct, frozen=True):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None
    refusal: str | None = None


class _Choice(Struct, frozen=True):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Cached(Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Cached | None = None


class _Chunk(Struct, frozen=True):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Model(Struct, frozen=True):
    id: str


class _Models(Struct, frozen=True):
    data: list[_Model]


_chunks = msgspec.json.Decoder(_Chunk)


class _Answer:
    """What the chunks of one answer add up to."""

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: dict[int, list[str]] = {}
        self._arguments: dict[int, list[str]] = {}

    def take(self, chunk: _Chunk) -> list[dict[str, Any]]:
        """Adds a chunk; returns its deltas."""
        self.id = self.id or chunk.id or ""
        self.model = self.model or chunk.model or ""
        if chunk.usage is not None:
            cached = chunk.usage.prompt_tokens_details
            cached_tokens = cached.cached_tokens if cached is not None and cached.cached_tokens else None
            self.usage = Usage(
                # The Messages API counts what was read from a cache apart.
                input_tokens=max(0, chunk.usage.prompt_tokens - (cached_tokens or 0)),
                output_tokens=chunk.usage.completion_tokens,
                cache_read_input_tokens=cached_tokens or msgspec.UNSET,
            )
        deltas = []
        for choice in chunk.choices[:1]:
            self.finish_reason = choice.finish_reason or self.finish_reason
            delta = choice.delta or _Delta()
            thought = delta.reasoning_content or delta.reasoning
            if thought:
                self._thoughts.append(thought)
                deltas.append({"type": "thinking", "thinking": thought})
            for text in (delta.content, delta.refusal):
                if text:
                    self._texts.append(text)
                    deltas.append({"text": text})
            for call in delta.tool_calls or []:
                self._take_call(call)
        return deltas

    def _take_call(self, call: _ToolCall) -> None:
        named = self._calls.setdefault(call.index, ["", ""])
        if len(self._calls) > MOST_TOOL_CALLS:
            raise ValueError(f"more than {MOST_TOOL_CALLS} tool calls")
        if call.id:
            named[0] = call.id
        if call.function is not None:
            named[1] = call.function.name or named[1]
            if call.function.arguments:
                self._arguments.setdefault(call.index, []).append(call.function.arguments)

    def content(self) -> list[dict[str, Any]]:
        """The blocks of the message. Raises ValueError for a tool call that is none."""
        blocks: list[dict[str, Any]] = []
        if self._thoughts:
            blocks.append({"type": "thinking", "thinking": "".join(self._thoughts), "signature": ""})
        if self._texts:
            blocks.append({"type": "text", "text": "".join(self._texts)})
        for index, (call_id, name) in sorted(self._calls.items()):
            arguments = "".join(self._arguments.get(index, [])) or "{}"
            value = msgspec.json.decode(arguments, type=dict[str, Any])
            blocks.append({"type": "tool_use", "id": call_id or f"call_{index}", "name": name, "input": value})
        return blocks


class OpenAI:
    """A Provider. `base_url` ends where `/chat/completions` begins."""

    def __init__(self, settings: ModelProvider) -> None:
        self.name = settings.name
        self._server = Server(settings, lambda key: {"authorization": f"Bearer {key}"})
        host = urlsplit(settings.base_url).hostname or ""
        # OpenAI's newer models know only the new word, and other servers often only the old one.
        self._limit = "max_completion_tokens" if host.endswith("api.openai.com") else "max_tokens"

    async def models(self) -> list[str] | None:
        """`GET /models`."""
        found = await self._server.get("/models", _Models)
        return [model.id for model in found.data] if found is not None else None

    async def generate(self, model: str, request: Any, context: Context) -> AsyncIterator[Any]:
        """`POST /chat/completions`, streamed."""
        body = self._body(model, requests.parsed(request))
        answer = _Answer()
        async with self._server.events("/chat/completions", body) as events:
            async for event in events:
                if event.strip() == _DONE:
                    break
                chunk = self._server.decoded(event, _chunks)
                if chunk.error is not None:
                    raise self._server.failed(event)
                try:
                    deltas = answer.take(chunk)
                except ValueError as error:
                    raise self._server.broken(f"said what cannot be: {error}") from error
                for delta in deltas:
                    yield delta
        if answer.finish_reason is None:
            raise self._server.broken("ended its answer before it was complete")
        if answer.usage is None:
            context.log.warning("generation.no_usage", provider=self.name, model=model)
        try:
            content = answer.content()
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._server.broken(f"asked for a tool with arguments that are no JSON object: {error}") from error
        yield Message(
            id=answer.id,
            model=answer.model,
            content=content,
            stop_reason=_STOP_REASONS.get(answer.finish_reason, "end_turn"),
            usage=answer.usage or Usage(input_tokens=0, output_tokens=0),
        )

    async def close(self) -> None:
        """Ends its connections."""
        await self._server.close()

    def _body(self, model: str, request: requests.Request) -> dict[str, Any]:
        optional: dict[str, Any] = {
            self._limit: request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "stop": request.stop_sequences or None,
            "tools": [tool_of(tool) for tool in request.tools] or None,
        }
        choice = request.tool_choice
        if choice is not None and request.tools:
            optional["tool_choice"] = _tool_choice(choice)
            optional["parallel_tool_calls"] = False if choice.disable_parallel_tool_use else None
        return {
            "model": model,
            "messages": _messages(request),
            "stream": True,
            "stream_options": {"include_usage": True},
            **{key: value for key, value in optional.items() if value is not None},
        }


def tool_of(tool: requests.Tool) -> dict[str, Any]:
    """A tool as a function, which Ollama calls it too."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _tool_choice(choice: requests.ToolChoice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def _messages(request: requests.Request) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.system_text:
        messages.append({"role": "system", "content": request.system_text})
    for index, turn in enumerate(request.messages):
        if isinstance(turn.content, str):
            messages.append({"role": turn.role, "content": turn.content})
        elif turn.role == "user":
            messages += _user(turn.content, f"request.messages[{index}].content")
        else:
            messages.append(_assistant(turn.content, f"request.messages[{index}].content"))
    return messages


def _user(blocks: list[requests.Block], where: str) -> list[dict[str, Any]]:
    """The results of tools are messages of their own, before what the user says."""
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for position, block in enumerate(blocks):
        if isinstance(block, requests.ToolResultBlock):
            if requests.images_of(block.content):
                raise RequestRefused(f"{where}[{position}]: this API takes no images from tools")
            results.append({
                "role": "tool", "tool_call_id": block.tool_use_id, "content": requests.text_of(block.content),
            })  # fmt: skip
        elif isinstance(block, requests.TextBlock):
            parts.append({"type": "text", "text": block.text})
        elif isinstance(block, requests.ImageBlock):
            parts.append({"type": "image_url", "image_url": {"url": _image_url(block)}})
        else:
            raise RequestRefused(f"{where}[{position}]: a user has no such block")
    if parts and all(part["type"] == "text" for part in parts):
        # Many servers take parts of one kind only as one text.
        return [*results, {"role": "user", "content": "\n\n".join(part["text"] for part in parts)}]
    return [*results, *([{"role": "user", "content": parts}] if parts else [])]


def _assistant(blocks: list[requests.Block], where: str) -> dict[str, Any]:
    calls = []
    for position, block in enumerate(blocks):
        if isinstance(block, requests.ToolUseBlock):
            arguments = msgspec.json.encode(block.input).decode()
            calls.append({"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}})
        elif isinstance(block, requests.ImageBlock | requests.ToolResultBlock):
            raise RequestRefused(f"{where}[{position}]: an assistant has no such block")
    message: dict[str, Any] = {"role": "assistant", "content": requests.text_of(blocks) or None}
    return message | ({"tool_calls": calls} if calls else {})


def _image_url(block: requests.ImageBlock) -> str:
    source = block.source
    if isinstance(source, requests.UrlSource):
        return source.url
    return f"data:{source.media_type};base64,{source.data}"


provider = OpenAI
"""What `worker_child.providers` makes."""
