"""print, fail, json, time and random (contract, "Stock actions' parameters")."""

import datetime as dt
import random
import string
import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from worker_child.actions import Context, action
from worker_child.errors import NonRetryableError, RetryableError

MAX_VALUES = 10_000
MAX_LENGTH = 65_536
MAX_CHOSEN = 16 * 1024 * 1024


class Print(Struct, frozen=True):
    """`args` follow the message, separated by spaces."""

    message: Any = ""
    args: list[Any] = []


class Fail(Struct, frozen=True):
    """`message` becomes the error's message."""

    message: str = "the fail action was asked to fail"


class Json(Struct, frozen=True):
    """`query` is a dotted path such as `items[0].name`; `merge_with` is laid over `data`."""

    operation: Literal["parse", "stringify", "query", "merge", "validate"]
    data: Any = None
    query: str = ""
    merge_with: Any = None


class Time(Struct, frozen=True):
    """`utc` false: the worker's own time zone."""

    utc: bool = True


class Random(Struct, frozen=True):
    """`count` asks for a list of that many; `seed` makes the values repeatable."""

    type: Literal["uuid", "number", "float", "string", "choice", "boolean", "alphanumeric", "hex"] = "number"
    min: float = 0
    max: float = 100
    length: Annotated[int, Meta(ge=1, le=MAX_LENGTH)] = 16
    choices: list[Any] = []
    count: Annotated[int, Meta(ge=1, le=MAX_VALUES)] | None = None
    charset: str = string.ascii_letters
    seed: int | str | None = None


@action("print", idempotent=True)
async def print_message(parameters: Print, context: Context) -> str:
    """Writes the message to the worker's log and returns it."""
    text = " ".join(_text(part) for part in (parameters.message, *parameters.args))
    context.log.info("print", message=text)
    return text


@action("fail", idempotent=True)
async def fail(parameters: Fail) -> None:
    """Always fails, retryably."""
    raise RetryableError(parameters.message)


@action("json", idempotent=True)
async def transform_json(parameters: Json) -> Any:
    """Parses, prints, queries, merges or checks JSON."""
    return _OPERATIONS[parameters.operation](parameters)


@action("time", idempotent=True)
async def current_time(parameters: Time) -> dict[str, Any]:
    """The worker's wall clock: RFC 3339, and seconds since the epoch."""
    now = dt.datetime.fromtimestamp(time.time(), dt.UTC)
    local = now if parameters.utc else now.astimezone()
    return {"time": local.isoformat().replace("+00:00", "Z"), "unix": now.timestamp(), "timezone": str(local.tzname())}


@action("random", idempotent=True)
async def random_value(parameters: Random) -> Any:
    """One random value, or a list of `count`."""
    if parameters.max < parameters.min:
        raise NonRetryableError(f"parameters.max: {parameters.max} is less than min, {parameters.min}")
    if parameters.type == "choice" and not parameters.choices:
        raise NonRetryableError("parameters.choices: must not be empty for type `choice`")
    if parameters.type == "string" and not parameters.charset:
        raise NonRetryableError("parameters.charset: must not be empty for type `string`")
    seeded = parameters.seed is not None
    source = random.Random(parameters.seed) if seeded else random.SystemRandom()  # noqa: S311 - a seed asks for it
    make = _GENERATORS[parameters.type]
    if parameters.count is None:
        return make(source, parameters)
    if parameters.count * parameters.length > MAX_VALUES * 100:
        raise NonRetryableError("parameters.count: count times length is larger than 1000000 characters")
    # A list may name one large choice many times: it costs nothing until it is written out.
    if parameters.type == "choice" and parameters.count * _longest(parameters.choices) > MAX_CHOSEN:
        raise NonRetryableError(f"parameters.count: count times the longest choice is larger than {MAX_CHOSEN} bytes")
    return [make(source, parameters) for _ in range(parameters.count)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _longest(choices: list[Any]) -> int:
    return max(len(msgspec.json.encode(choice)) for choice in choices)


def _parse(parameters: Json) -> Any:
    if not isinstance(parameters.data, str):
        return parameters.data
    try:
        return msgspec.json.decode(parameters.data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NonRetryableError(f"parameters.data: not JSON: {error}") from error


def _stringify(parameters: Json) -> str:
    return msgspec.json.encode(parameters.data).decode()


def _query(parameters: Json) -> Any:
    value = _parse(parameters)
    for key in parameters.query.replace("[", ".[").split("."):
        if not key or key == "$":
            continue
        try:
            value = value[int(key[1:-1])] if key.startswith("[") and key.endswith("]") else value[key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise NonRetryableError(f"parameters.query: nothing at {key!r} of {parameters.query!r}") from None
    return value


def _merge(parameters: Json) -> dict[str, Any]:
    base, over = _parse(parameters), parameters.merge_with
    if not isinstance(base, dict) or not isinstance(over, dict):
        raise NonRetryableError("parameters.merge_with: data and merge_with must both be objects")
    return _merged(base, over)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _validate(parameters: Json) -> dict[str, Any]:
    try:
        _parse(parameters)
    except NonRetryableError as error:
        return {"valid": False, "error": str(error)}
    return {"valid": True}


_OPERATIONS: dict[str, Callable[[Json], Any]] = {
    "parse": _parse,
    "stringify": _stringify,
    "query": _query,
    "merge": _merge,
    "validate": _validate,
}


def _letters(source: random.Random, charset: str, length: int) -> str:
    return "".join(source.choice(charset) for _ in range(length))


_GENERATORS: dict[str, Callable[[random.Random, Random], Any]] = {
    "uuid": lambda source, _: str(uuid.UUID(int=source.getrandbits(128), version=4)),
    "number": lambda source, given: source.randint(int(given.min), int(given.max)),
    "float": lambda source, given: source.uniform(given.min, given.max),
    "string": lambda source, given: _letters(source, given.charset, given.length),
    "alphanumeric": lambda source, given: _letters(source, string.ascii_letters + string.digits, given.length),
    "hex": lambda source, given: _letters(source, "0123456789abcdef", given.length),
    "choice": lambda source, given: source.choice(given.choices),
    "boolean": lambda source, _: source.random() < 0.5,
}
