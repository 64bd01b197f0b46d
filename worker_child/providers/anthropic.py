"""Whatever speaks Anthropic's Messages API. The job's request is one already: it is passed on as it is."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Struct

from wire.pipe import ModelProvider
from worker_child.actions import Context
from worker_child.generators import Message
from worker_child.providers import requests
from worker_child.providers.server import Server

VERSION = "2023-06-01"
DEFAULT_MAX_TOKENS = 4096
"""The API wants to be told."""
MOST_BLOCKS = 10_000

_GROWING = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
"""What kind of delta makes which field of its block longer."""


class _Event(Struct, frozen=True):
    type: str
    index: int = 0
    message: dict[str, Any] | None = None
    content_block: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


class _Model(Struct, frozen=True):
    id: str


class _Models(Struct, frozen=True):
    data: list[_Model]


_events = msgspec.json.Decoder(_Event)


class _Block:
    """A content block while it grows."""

    def __init__(self, start: dict[str, Any]) -> None:
        self._start = start
        self._grown: dict[str, list[str]] = {}
        self._input: list[str] = []

    def take(self, delta: dict[str, Any]) -> str | None:
        """Adds a delta; returns its text, if it has any that grows."""
        kind = delta.get("type")
        field = _GROWING.get(str(kind))
        if field is not None:
            piece = _text(delta, field)
            self._grown.setdefault(field, []).append(piece)
            return piece
        if kind == "input_json_delta":
            self._input.append(_text(delta, "partial_json"))
        elif kind == "citations_delta":
            self._start = self._start | {"citations": [*(self._start.get("citations") or []), delta.get("citation")]}
        return None

    def whole(self) -> dict[str, Any]:
        """The block. Raises ValueError when a tool's input is no JSON object."""
        block = dict(self._start)
        for field, pieces in self._grown.items():
            block[field] = str(block.get(field) or "") + "".join(pieces)
        if self._input:
            block["input"] = msgspec.json.decode("".join(self._input) or "{}", type=dict[str, Any])
        return block


class _Answer:
    """What the events of one answer add up to. ValueError of any method: the server says what cannot be."""

    def __init__(self) -> None:
        self.complete = False
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, _Block] = {}
        self._usage: dict[str, Any] = {}

    def take(self, event: _Event) -> dict[str, Any] | None:
        """Adds an event; returns its delta, if it is one for people."""
        match event.type:
            case "message_start":
                self._message = event.message or {}
                self._use(self._message.get("usage"))
            case "content_block_start":
                self._blocks[event.index] = _Block(event.content_block or {})
                if len(self._blocks) > MOST_BLOCKS:
                    raise ValueError(f"more than {MOST_BLOCKS} content blocks")
            case "content_block_delta":
                return self._grow(event)
            case "message_delta":
                self._message |= event.delta or {}
                self._use(event.usage)
            case "message_stop":
                self.complete = True
        return None

    def _grow(self, event: _Event) -> dict[str, Any] | None:
        delta = event.delta or {}
        if event.index not in self._blocks:
            raise ValueError(f"a delta of the content block {event.index}, which has not begun")
        piece = self._blocks[event.index].take(delta)
        if not piece or delta.get("type") == "signature_delta":
            return None
        return {"text": piece} if delta["type"] == "text_delta" else {"type": "thinking", "thinking": piece}

    def _use(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._usage |= {key: value for key, value in usage.items() if value is not None}

    def message(self) -> Message:
        """The whole of it."""
        said = self._message
        return Message(
            id=str(said.get("id") or ""),
            model=str(said.get("model") or ""),
            content=[block.whole() for _, block in sorted(self._blocks.items())],
            stop_reason=str(said.get("stop_reason") or "end_turn"),
            stop_sequence=said.get("stop_sequence"),
            usage={"input_tokens": 0, "output_tokens": 0} | self._usage,
        )


class Anthropic:
    """A Provider. `base_url` ends where `/v1` begins."""

    def __init__(self, settings: ModelProvider) -> None:
        self.name = settings.name
        headers = {"anthropic-version": VERSION}
        self._server = Server(settings, lambda key: {"x-api-key": key}, headers)

    async def models(self) -> list[str] | None:
        """`GET /v1/models`."""
        found = await self._server.get("/v1/models?limit=1000", _Models)
        return [model.id for model in found.data] if found is not None else None

    async def generate(self, model: str, request: Any, context: Context) -> AsyncIterator[Any]:
        """`POST /v1/messages`, streamed."""
        del context
        body = {"max_tokens": DEFAULT_MAX_TOKENS} | requests.raw(request) | {"model": model, "stream": True}
        answer = _Answer()
        async with self._server.events("/v1/messages", body) as events:
            async for data in events:
                event = self._server.decoded(data, _events)
                if event.type == "error":
                    raise self._server.failed(data)
                try:
                    delta = answer.take(event)
                except ValueError as error:
                    raise self._server.broken(f"said what cannot be: {error}") from error
                if delta is not None:
                    yield delta
                if answer.complete:
                    break
        if not answer.complete:
            raise self._server.broken("ended its answer before it was complete")
        try:
            yield answer.message()
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._server.broken(f"asked for a tool with an input that is no JSON object: {error}") from error

    async def close(self) -> None:
        """Ends its connections."""
        await self._server.close()


def _text(delta: dict[str, Any], field: str) -> str:
    text = delta.get(field)
    if not isinstance(text, str):
        raise ValueError(f"a {delta.get('type')} without its {field}")  # noqa: TRY004 - the server's fault, not a type's
    return text


provider = Anthropic
"""What `worker_child.providers` makes."""
