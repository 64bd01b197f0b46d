"""What a request could have said where it named something that there is none of."""

import re
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

_AT = re.compile(r"^Invalid enum value .* - at `\$(?P<path>.*)`$", re.DOTALL)
_SHOWN = 200
"""Characters at each end of an error that quotes what was sent."""

_kind = lru_cache(maxsize=100)(inspect.type_info)
_PART = re.compile(r"\.(?P<field>\w+)|\[")


def with_allowed(error: msgspec.ValidationError, shape: type[msgspec.Struct]) -> str:
    """The error of decoding a `shape`, and, where it names none of a few values, which these are."""
    text = str(error)
    found = _AT.match(text)
    values = [] if found is None else _values(_kind(shape), found["path"])
    shown = text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}...{text[-_SHOWN:]}"
    return f"{shown}: expected one of {', '.join(map(str, values))}" if values else shown


def _values(kind: Any, path: str) -> list[Any]:
    for part in _PART.finditer(path):
        inner = [_below(each, part["field"]) for each in _of_union(kind)]
        kind = next((each for each in inner if each is not None), None)
    return [value for each in _of_union(kind) if isinstance(each, inspect.LiteralType) for value in each.values]


def _of_union(kind: Any) -> tuple[Any, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _below(kind: Any, field: str | None) -> Any:
    if isinstance(kind, inspect.StructType):
        return next((each.type for each in kind.fields if each.encode_name == field), None)
    if isinstance(kind, inspect.ListType):
        return kind.item_type
    return kind.value_type if isinstance(kind, inspect.DictType) else None
