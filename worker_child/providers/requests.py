"""A request of the Messages API, as far as other APIs can say the same. What they cannot say is refused by name."""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from worker_child import signatures
from worker_child.errors import ValidationError


class Base64Source(Struct, frozen=True, tag_field="type", tag="base64"):
    """An image in the request itself."""

    media_type: str
    data: str


class UrlSource(Struct, frozen=True, tag_field="type", tag="url"):
    """An image elsewhere."""

    url: str


class TextBlock(Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


class ImageBlock(Struct, frozen=True, tag_field="type", tag="image"):
    """An image."""

    source: Base64Source | UrlSource


class ToolUseBlock(Struct, frozen=True, tag_field="type", tag="tool_use"):
    """The model has asked for a tool."""

    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Struct, frozen=True, tag_field="type", tag="tool_result"):
    """What the tool said."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock] = ""
    is_error: bool = False


class ThinkingBlock(Struct, frozen=True, tag_field="type", tag="thinking"):
    """What the model has thought; it is not said again to other APIs."""

    thinking: str = ""


class RedactedThinkingBlock(Struct, frozen=True, tag_field="type", tag="redacted_thinking"):
    """The same, unreadable."""


Block = TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock


class Turn(Struct, frozen=True, kw_only=True):
    """One message of the conversation."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class Tool(Struct, frozen=True, kw_only=True):
    """A tool that the model may ask for. `type`: server-side tools are only known to the server that has them."""

    name: str
    input_schema: dict[str, Any]
    description: str = ""
    type: Literal["custom"] = "custom"


class ToolChoice(Struct, frozen=True, kw_only=True):
    """Which tool is to be asked for."""

    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False


class Request(Struct, frozen=True, kw_only=True):
    """`spec.request` of a generation."""

    messages: list[Turn]
    max_tokens: int | None = None
    system: str | list[TextBlock] = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] = msgspec.field(default_factory=list)
    tools: list[Tool] = msgspec.field(default_factory=list)
    tool_choice: ToolChoice | None = None

    @property
    def system_text(self) -> str:
        """The system prompt as one text."""
        return text_of(self.system)


_holder: Any = signatures.holder_of(Request, "request")


def parsed(request: Any) -> Request:
    """The request of a job. Raises ValidationError, which names the field."""
    found: Request = signatures.convert(request, _holder)
    if not found.messages:
        raise ValidationError("request.messages: expected at least one message")
    return found


def raw(request: Any) -> dict[str, Any]:
    """The request of a job, for an API that is the same. Raises ValidationError."""
    if not isinstance(request, dict):
        raise ValidationError(f"request: expected an object, got {type(request).__name__}")
    return request


def text_of(content: str | list[Any]) -> str:
    """The texts of a content, one paragraph each."""
    if isinstance(content, str):
        return content
    return "\n\n".join(block.text for block in content if isinstance(block, TextBlock))


def images_of(content: str | list[Any]) -> list[ImageBlock]:
    """The images of a content."""
    return [] if isinstance(content, str) else [block for block in content if isinstance(block, ImageBlock)]
