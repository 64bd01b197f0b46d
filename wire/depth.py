"""How deeply JSON text is nested: what a program can read it may be unable to write again, a few levels further in."""

import re
from itertools import accumulate

MAX_DEPTH = 200
"""Levels that a control plane takes of one value. Values meet in templates and are wrapped in events, runs and answers;
twice this and the wrapping must stay below the thousand at which Python and SQLite give up."""

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SIGNS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def is_deeper(data: bytes | str, limit: int) -> bool:
    """Whether `data`, which is JSON, has more than `limit` levels of arrays and objects. Cheap unless it may have."""
    if len(data) <= 2 * limit:
        return False
    text = data.encode() if isinstance(data, str) else data
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    steps = _STRINGS.sub(b"", text).translate(_SIGNS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > limit
