"""Times and durations as users write and read them."""

import contextlib
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

MICROSECONDS = 1_000_000
"""In a second: the store's times are integer microseconds since the epoch, UTC."""

LATEST = 253_402_300_799 * MICROSECONDS
"""9999-12-31T23:59:59Z: a later time could be stored, but not be written in an answer."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_LONGEST_TEXT = 64


def rfc3339(microseconds: int) -> str:
    """A store time as RFC 3339 text in UTC with `Z`."""
    text = (_EPOCH + timedelta(microseconds=microseconds)).isoformat()
    return text.removesuffix("+00:00") + "Z"


@lru_cache(maxsize=256)  # a claim asks for the same few again and again
def to_microseconds(seconds: float) -> int:
    """A duration in the store's unit."""
    return round(seconds * MICROSECONDS)


def parse_time(text: str) -> int:
    """Store time of an RFC 3339 text, which says its offset from UTC. Raises ValueError with a sentence."""
    with contextlib.suppress(ValueError):
        found = datetime.fromisoformat(text) if len(text) <= _LONGEST_TEXT and "T" in text.upper() else None
        if found is not None and found.tzinfo is not None:
            return (found - _EPOCH) // timedelta(microseconds=1)
    raise ValueError(f'expected a time such as "2027-06-30T12:00:00Z", not {text[:_LONGEST_TEXT]!r}')


def parse_duration(text: str) -> float:
    """Seconds of a duration written as in Go: "500ms", "30s", "1m30s", "2h". Raises ValueError with a sentence."""
    position = 0
    seconds = 0.0
    while position < len(text) <= _LONGEST_TEXT:
        part = _PART.match(text, position)
        if part is None:
            break
        seconds += float(part.group(1)) * _UNIT_SECONDS[part.group(2)]
        position = part.end()
    if position == 0 or position != len(text):
        raise ValueError(f'expected a duration such as "500ms", "30s" or "1m30s", not {text[:_LONGEST_TEXT]!r}')
    return seconds
