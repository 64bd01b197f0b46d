"""What a request could have said where it named something that there is none of, or that is no name."""

import re
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

_AT = re.compile(r"^(Invalid enum value|Expected `str` matching regex) .* - at `\$(?P<path>.*)`$", re.DOTALL)
_SHOWN = 200
"""Characters at each end of an error that quotes what was sent."""

_kind = lru_cache(maxsize=100)(inspect.type_info)
_PART = re.compile(r"\.(?P<field>\w+)|\[")


def with_allowed(error: msgspec.ValidationError, shape: type[msgspec.Struct]) -> str:
    """The error of decoding a `shape`, and, where it names none of a few values, which these are; where a text does not
    match, what is said of such texts, and no regular expression."""
    text = str(error)
    shown = text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}...{text[-_SHOWN:]}"
    found = _AT.match(text)
    if found is None:
        return shown
    kinds = _kinds(_kind(shape), found["path"])
    for each in kinds:
        said = getattr(each, "extra_json_schema", None) or {}
        if "description" in said:
            return f"Expected {said['description']} - at `${found['path']}`"
    values = [value for each in kinds if isinstance(each, inspect.LiteralType) for value in each.values]
    return f"{shown}: expected one of {', '.join(map(str, values))}" if values else shown


def _kinds(kind: Any, path: str) -> tuple[Any, ...]:
    for part in _PART.finditer(path):
        inner = [_below(each, part["field"]) for each in _of_union(kind)]
        kind = next((each for each in inner if each is not None), None)
    return _of_union(kind)


def _of_union(kind: Any) -> tuple[Any, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _below(kind: Any, field: str | None) -> Any:
    if isinstance(kind, inspect.StructType):
        return next((each.type for each in kind.fields if each.encode_name == field), None)
    if isinstance(kind, inspect.ListType):
        return kind.item_type
    return kind.value_type if isinstance(kind, inspect.DictType) else None
