"""One entry of a log (`timestamp`, `level`, `event`, and what else is known) as text and as an entry of the journal."""

from collections.abc import Mapping
from typing import Any

import msgspec

from service_manager import journal

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_NAMES = {"job_id": "job", "run_id": "run"}


def harmless(text: str) -> str:
    """What could steer a terminal is shown, not obeyed: a job's parameters and a peer's words come from anywhere."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text
    )


def journal_entry(identifier: str, entry: Mapping[str, Any], fields: Mapping[str, Any]) -> bytes:
    """The text says everything; `fields` become MOBIUS_<NAME>, as far as they are one value. The journal has the time
    itself. Raises ValueError for a name that no field can have."""
    shown, texts = _without_texts({**entry, "timestamp": None, "level": None, "event": None})
    line = " ".join([str(entry["event"]), *(f"{key}={_word(value)}" for key, value in shown.items())])
    named = {
        f"MOBIUS_{_NAMES.get(name, name).upper()}": value if isinstance(value, str) else _json(value)
        for name, value in fields.items()
        if isinstance(value, str | int | float) and value != ""
    }
    told = {
        "MESSAGE": harmless("\n".join([line, *texts])),
        "PRIORITY": str(_PRIORITIES[entry["level"]]),
        "SYSLOG_IDENTIFIER": identifier,
    }
    return journal.entry({**named, **told})


def _without_texts(entry: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Tracebacks and stacks are read as they were written, below the line."""
    line: dict[str, Any] = {}
    texts: list[str] = []
    for key, value in entry.items():
        if isinstance(value, dict):
            line[key], more = _without_texts(value)
            texts += more
        elif isinstance(value, str) and "\n" in value:
            texts.append(value.rstrip("\n"))
        elif value is not None:
            line[key] = value
    return line, texts


def _word(value: Any) -> str:
    bare = isinstance(value, str) and value and not {" ", '"'} & set(value)
    return str(value) if bare else _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=repr).decode()
