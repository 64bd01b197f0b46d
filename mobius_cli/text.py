"""Values of records as text for people. No I/O.

A server's text may come from anywhere (an error message of a handler, a name): what could steer a terminal is shown,
not obeyed.
"""

from datetime import datetime
from typing import Any

import msgspec

_LONGEST = 20_000


def plain(value: Any) -> str:
    """One line without control characters; objects as JSON, nothing as an empty text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    return "".join(character if character.isprintable() else _visible(character) for character in text)


def _visible(character: str) -> str:
    return " " if character in "\n\t" else character.encode("unicode_escape").decode()


def moment(value: Any) -> datetime | None:
    """A time as the API writes it (RFC 3339), in this machine's time zone; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed.astimezone() if parsed.tzinfo is not None else None


def date_and_time(value: Any) -> str:
    """`2026-11-22 02:31:07`, or nothing."""
    parsed = moment(value)
    return "" if parsed is None else parsed.strftime("%Y-%m-%d %H:%M:%S")


def time_of_day(value: Any) -> str:
    """`02:31:07.123`, or nothing."""
    parsed = moment(value)
    return "" if parsed is None else f"{parsed:%H:%M:%S}.{parsed.microsecond // 1000:03d}"


def took(start: Any, end: Any) -> str:
    """The time between two moments, `340 ms`, `2.4 s` or `3 min 20 s`; nothing while one of them is missing."""
    first, last = moment(start), moment(end)
    if first is None or last is None:
        return ""
    seconds = max(0.0, (last - first).total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def fault(record: dict[str, Any]) -> str:
    """`error_type: error_message` of a run, a step or an event's payload; nothing where there is none."""
    kind, message = plain(record.get("error_type")), plain(record.get("error_message"))
    return f"{kind}: {message}" if kind and message else kind or message
