"""Texts hold no NUL character: PostgreSQL cannot store one, so no store is asked to. Inside JSON values it is kept."""

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from control_plane.web.error_status import HttpError

NUL = "\0"
_WRITTEN = b"\\u0000"
"""How JSON writes it; a bare one is no JSON."""


def refuse_nul(path: Mapping[str, Any], query: Struct, body: bytes, decoded: Struct | None) -> None:
    """Raises HttpError 400 for a NUL in a part of the path, a query parameter or a field of the body that is a text."""
    found = next((f"path: `{name}`" for name, value in path.items() if NUL in str(value)), None)
    if found is None:
        found = next((f"query parameter `{name}`" for name in texts_with_nul(query)), None)
    if found is None and decoded is not None and _WRITTEN in body:
        found = next((f"request body: `{name}`" for name in texts_with_nul(decoded)), None)
    if found is not None:
        raise HttpError(400, "invalid_text", f"{found} holds a NUL character, which no text may hold")


def texts_with_nul(value: Struct, name: str = "") -> Iterable[str]:
    """The paths of the fields that are texts, or lists of them, and hold one. What is in a dict is JSON."""
    for field in value.__struct_fields__:
        yield from _texts_with_nul(getattr(value, field), f"{name}.{field}" if name else field)


def _texts_with_nul(value: Any, name: str) -> Iterable[str]:
    if isinstance(value, str):
        if NUL in value:
            yield name
    elif isinstance(value, Struct):
        yield from texts_with_nul(value, name)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _texts_with_nul(each, f"{name}[{index}]")
