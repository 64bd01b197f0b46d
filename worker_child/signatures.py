"""How a handler is called, and what its parameters and its result are: read once, when it is registered.

Everything here raises SignatureError with a sentence for whoever wrote the handler.
"""

import dis
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect
from msgspec import Struct

from worker_child.errors import ValidationError

_JSON_TYPES = (dict, list, str, int, float, bool, type(None))


class SignatureError(TypeError):
    """A handler that cannot be called with a job's parameters."""


class Signature(Struct, frozen=True, kw_only=True):
    """`arguments` are "parameters" and "context" in the handler's order.

    `suspends`: its coroutine may wait for something. `parameters_holder` is a Struct whose one field, `parameters`, has
    the handler's type; None: they are taken as they come. `result_decoder` reads the result's JSON as the declared
    type; None when nothing is declared that JSON could be compared with.
    """

    asynchronous: bool
    suspends: bool
    arguments: tuple[str, ...]
    parameters_holder: type[Struct] | None
    result_decoder: Any


def read(handler: Callable[..., Any], context_type: type) -> Signature:
    """The handler's signature. Raises SignatureError."""
    called = _called(handler)
    _refuse_class(handler)
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise SignatureError("it has a `yield`, but a handler returns one value")
    try:
        parameters = inspect.signature(handler).parameters.values()
        hints = typing.get_type_hints(called, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise SignatureError(f"the signature cannot be read: {error}") from error
    arguments, parameters_type = _arguments(list(parameters), hints, context_type)
    return Signature(
        asynchronous=inspect.iscoroutinefunction(called),
        suspends=_suspends(handler),
        arguments=arguments,
        parameters_holder=holder_of(parameters_type, "parameters"),
        result_decoder=_result_decoder(hints),
    )


def read_generator(handler: Callable[..., Any], context_type: type) -> tuple[tuple[str, ...], type[Struct] | None]:
    """The arguments of a generator, and the holder of its `request`. Raises SignatureError."""
    called = _called(handler)
    _refuse_class(handler)
    if not inspect.isasyncgenfunction(called):
        raise SignatureError(
            "expected an `async def` that yields its deltas and at last a Message; what blocks is called by "
            "`await asyncio.to_thread(...)`"
        )
    try:
        parameters = inspect.signature(handler).parameters.values()
        hints = typing.get_type_hints(called, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise SignatureError(f"the signature cannot be read: {error}") from error
    arguments, request_type = _arguments(list(parameters), hints, context_type)
    return arguments, holder_of(request_type, "request")


def convert(value: Any, holder: type[Struct]) -> Any:
    """What a job gives, as the type that the holder has. Raises ValidationError, which names the field."""
    (name,) = holder.__struct_fields__
    try:
        return getattr(msgspec.convert({name: value}, holder), name)
    except msgspec.ValidationError as error:
        raise ValidationError(_sentence("", error)) from error


def check_result(encoded: bytes, decoder: Any) -> None:
    """Whether a result's JSON is what the handler declares. Raises ValidationError, which names the field."""
    try:
        decoder.decode(encoded)
    except msgspec.ValidationError as error:
        raise ValidationError(_sentence("result", error)) from error


def same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether both come from the same lines of the same file: a module that was imported again."""
    return (_name(one), _place(one)) == (_name(other), _place(other))


def described(handler: Callable[..., Any]) -> str:
    """The handler's name and place, for people."""
    file, line = _place(handler)
    return f"{_name(handler)} ({Path(file).name}, line {line})" if file else _name(handler)


def _name(handler: Callable[..., Any]) -> str:
    called = _called(handler)
    return f"{getattr(called, '__module__', '?')}.{getattr(called, '__qualname__', repr(handler))}"


def _place(handler: Callable[..., Any]) -> tuple[str, int]:
    """File and line; an empty file where that cannot be known."""
    code = getattr(inspect.unwrap(_called(handler)), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code is not None else ("", 0)


def _refuse_class(handler: Callable[..., Any]) -> None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if inspect.isclass(handler):
        raise SignatureError(
            "it is a class, whose instance would be the result: decorate a function, or pass a method of an instance"
        )


def _suspends(handler: Callable[..., Any]) -> bool:
    """False only if it certainly does not: a function of Python's whose code awaits nothing."""
    code = handler.__code__ if inspect.isfunction(handler) else None
    return code is None or any(instruction.opname == "YIELD_VALUE" for instruction in dis.get_instructions(code))


def _called(handler: Callable[..., Any]) -> Any:
    """The function behind a partial or an object with `__call__`."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler if inspect.isroutine(handler) or inspect.isclass(handler) else type(handler).__call__


def _arguments(
    parameters: list[inspect.Parameter], hints: dict[str, Any], context_type: type
) -> tuple[tuple[str, ...], Any]:
    arguments: list[str] = []
    parameters_type: Any = None
    for parameter in parameters:
        hint = hints.get(parameter.name)
        required = parameter.default is inspect.Parameter.empty
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            if required and parameter.kind is parameter.KEYWORD_ONLY:
                raise SignatureError(f"{parameter.name} is keyword-only and has no default")
        elif _bare(hint) is context_type or (hint is None and parameter.name in ("ctx", "context")):
            arguments.append("context")
        else:
            arguments.append("parameters")
            parameters_type = dict[str, Any] if hint is None else None if hint is Any else hint
    if arguments.count("parameters") > 1 or arguments.count("context") > 1:
        raise SignatureError(
            "a handler takes at most one parameters object and at most one Context; make several parameters one class"
        )
    _check_parameters_type(Any if parameters_type is None else parameters_type)
    return tuple(arguments), parameters_type


def _check_parameters_type(hint: Any) -> None:
    """What no JSON can be converted to is the handler's fault and not its jobs': said before there are any."""
    try:
        foreign = _foreign(msgspec.inspect.type_info(hint))
    except (TypeError, NameError) as error:
        raise SignatureError(f"parameters cannot be read as their type: {error}") from error
    if foreign is not None:
        raise SignatureError(
            f"parameters cannot be read as {foreign.__qualname__}: use a msgspec.Struct, a dataclass, a TypedDict or "
            "plain types"
        )


def holder_of(kind: Any, name: str) -> type[Struct] | None:
    """A Struct whose one field is called `name`; None for None.

    msgspec reads a type anew at every conversion, which takes 5 us for a dict; what is within a Struct, once.
    """
    return msgspec.defstruct(name.capitalize(), [(name, kind)], gc=False) if kind is not None else None


def _result_decoder(hints: dict[str, Any]) -> Any:
    hint = hints.get("return", Any)
    if hint is Any:
        return None
    try:
        return None if _foreign(msgspec.inspect.type_info(hint)) else msgspec.json.Decoder(hint)
    except (TypeError, NameError):
        # What is returned may still be written as JSON: only reading it back as this type is not possible.
        return None


def _foreign(info: Any, seen: set[int] | None = None) -> type | None:
    """The first class in a type that no JSON value is an instance of."""
    seen = set() if seen is None else seen
    if isinstance(info, tuple | list):
        return next((found for one in info if (found := _foreign(one, seen)) is not None), None)
    if not isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field) or id(info) in seen:
        return None
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        return None if any(issubclass(known, info.cls) for known in _JSON_TYPES) else info.cls
    parts = (getattr(info, name) for name in info.__struct_fields__ if name not in ("default", "default_factory"))
    return next((found for part in parts if (found := _foreign(part, seen)) is not None), None)


def _bare(hint: Any) -> Any:
    """The type itself of `Annotated[type, ...]`, whose bounds are for parameters."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _sentence(what: str, error: msgspec.ValidationError) -> str:
    sentence, _, path = str(error).partition(" - at `$")
    return f"{what}{path.rstrip('`')}: {sentence}".removeprefix(".")
