"""How deeply JSON text is nested, and how much is in it: a program that reads it may be unable to write it again a few
levels further in, or stand still over a million empty lists."""

from itertools import accumulate

MAX_DEPTH = 200
"""Levels that a control plane takes of one value. Values meet in templates and are wrapped in events, runs and answers;
twice this and the wrapping must stay below the thousand at which Python and SQLite give up."""

MAX_ELEMENTS = 1_000_000
"""Values and keys that a control plane takes in one text, some of them counted twice (a text in a list). Twelve
megabytes of empty lists are four million objects, and nobody else is served while they are made."""

_SIGNS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NO_ELEMENTS = bytes(set(range(256)) - set(b'[{,"'))


def is_deeper(data: bytes | str, limit: int) -> bool:
    """Whether `data`, which is JSON, has more than `limit` levels of arrays and objects. Cheap unless it may have."""
    if len(data) <= 2 * limit:
        return False
    text = data.encode() if isinstance(data, str) else data
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    steps = _outside_strings(_without_escapes(text)).translate(_SIGNS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > limit


def has_more_elements(data: bytes | str, limit: int) -> bool:
    """Whether JSON text has more than `limit` strings, commas and openings of arrays and objects, before anybody reads
    it. What is no JSON gets an answer too: it holds up to the place where a reader would stop."""
    if len(data) <= limit:
        return False
    text = data.encode() if isinstance(data, str) else data
    if len(text.translate(None, _NO_ELEMENTS)) <= limit:
        return False
    text = _without_escapes(text)
    strings = text.count(b'"') // 2
    return strings > limit or strings + len(_outside_strings(text).translate(None, _NO_ELEMENTS)) > limit


def _without_escapes(text: bytes) -> bytes:
    """Every quote that is left begins or ends a string."""
    return text.replace(b"\\\\", b"").replace(b'\\"', b"")


def _outside_strings(text: bytes) -> bytes:
    return b"".join(text.split(b'"')[::2])
