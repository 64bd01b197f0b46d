"""Files that describe an automation, and values on the command line: read, checked, made plain data."""

import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import tomli

from mobius_cli.errors import InputError, NotFoundError, UsageError

MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_JOBS_BYTES = 256 * 1024 * 1024
STANDARD_INPUT = "-"

_FIELDS: dict[str, type] = {
    "handle": str,
    "name": str,
    "description": str,
    "default_agent_id": str,
    "default_inputs": dict,
    "settings": dict,
    "tags": dict,
    "spec": dict,
}
_KINDS: dict[type, str] = {str: "text", dict: "a table (an object)"}


def read_automation(path: str) -> dict[str, Any]:
    """The automation that a JSON or TOML file describes; `-` is standard input.

    Keys: `handle`, `name`, `description`, `default_agent_id`, `default_inputs`, `settings`, `tags`, and `spec`, which
    becomes a version. Raises NotFoundError (no such file), InputError (anything else), naming file and key.
    """
    content, source = _content(path, MAX_FILE_BYTES)
    document = _parsed(content, path, source)
    for key, value in document.items():
        if key not in _FIELDS:
            raise InputError(f"{source}: unknown key {key!r}; expected {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[key]):
            raise InputError(f"{source}: {key!r} is {_json(value)}; expected {_KINDS[_FIELDS[key]]}")
    return document


def parse_inputs(
    pairs: Iterable[str], text: str | None, *, pair_option: str = "--input", option: str = "--inputs"
) -> dict[str, Any]:
    """Inputs of a run: the object of --inputs, then each `key=value` of --input over it. Other options are named.

    A value that is JSON (`3`, `true`, `"03"`, `[1]`) is taken as such, any other as text. Raises UsageError.
    """
    inputs: dict[str, Any] = {}
    if text is not None:
        try:
            inputs = msgspec.json.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise UsageError(f'{option}: expected a JSON object, like \'{{"name": "value"}}\': {error}') from error
        if not isinstance(inputs, dict):
            raise UsageError(f'{option}: expected a JSON object, like \'{{"name": "value"}}\'')
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"{pair_option}: {pair!r} has no name; expected name=value")
        inputs[key] = _value(value)
    return inputs


class JobLine(msgspec.Struct, frozen=True):
    """A job of a file: the number of its line, from 1, and the bytes of that."""

    number: int
    size: int
    job: dict[str, Any]


def read_jobs(path: str) -> list[JobLine]:
    """The jobs of a file with a JSON object on each line; `-` is standard input. Raises NotFoundError, InputError."""
    content, source = _content(path, MAX_JOBS_BYTES)
    jobs: list[JobLine] = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            job = msgspec.json.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InputError(f"{source}, line {number}, is no JSON: {error}") from error
        if not isinstance(job, dict):
            raise InputError(f'{source}, line {number}: expected an object such as {{"action_name": "print"}}')
        jobs.append(JobLine(number, len(line), job))
    if not jobs:
        raise InputError(f"{source} has no jobs: expected a JSON object on each line")
    return jobs


def parse_moment(text: str | None, option: str) -> str | None:
    """A date or time as the server reads it; without an offset from UTC it is this machine's. Raises UsageError."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except (ValueError, OverflowError):
        raise UsageError(f"{option}: expected a time such as 2026-01-31T12:00 or 2026-01-31, got {text!r}") from None


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return text


def _content(path: str, most: int) -> tuple[bytes, str]:
    source = "standard input" if path == STANDARD_INPUT else path
    try:
        if path == STANDARD_INPUT:
            content = sys.stdin.buffer.read(most + 1)
        else:
            with Path(path).open("rb") as file:
                content = file.read(most + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path!r}; expected a file, or - for standard input") from error
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error
    if len(content) > most:
        raise InputError(f"{source} is larger than {most} bytes")
    return content, source


def _parsed(content: bytes, path: str, source: str) -> dict[str, Any]:
    # A TOML document never begins with a brace, and a JSON object always does.
    is_json = path.endswith(".json") or (not path.endswith(".toml") and content.lstrip().startswith(b"{"))
    try:
        document = msgspec.json.decode(content) if is_json else tomli.loads(content.decode())
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"{source} is no {'JSON' if is_json else 'TOML'}: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{source}: expected an object with the keys {', '.join(_FIELDS)}")
    try:
        msgspec.json.encode(document)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: a value cannot be sent as JSON: {error}") from error
    return document


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:60]
