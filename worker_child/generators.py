"""The generation API: `@generator`, what a generator may yield, and the registry behind it."""

import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from wire.codec import MAX_FRAME_TO_SERVER
from wire.depth import MAX_DEPTH, is_deeper
from wire.frames import ClaimedJob
from worker_child import signatures
from worker_child.actions import Action, Context, timeout_seconds
from worker_child.errors import ActionDefinitionError, NonRetryableError, ResultTooLarge

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])

MAX_TEXT = MAX_FRAME_TO_SERVER - 64 * 1024
"""Bytes of all that one generation yields: what fits into the frame that reports it."""
LONGEST_NAME = 256

_json = msgspec.json.Encoder()


class Usage(Struct, frozen=True, kw_only=True):
    """What a generation has used, in tokens. The `cache_` fields only where the model's server tells them."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int | UnsetType = UNSET
    cache_read_input_tokens: int | UnsetType = UNSET


class Message(Struct, frozen=True, kw_only=True):
    """The last thing that a generator yields. Without `content` its text is that of all deltas.

    `usage` may be an object as the Messages API has it. `model`, when empty, is the model that was asked for.
    """

    usage: Usage | dict[str, Any]
    content: list[dict[str, Any]] | None = None
    stop_reason: str = "end_turn"
    stop_sequence: str | None = None
    id: str = ""
    model: str = ""


class Generator(Struct, frozen=True, kw_only=True):
    """A registered generator: an async generator function of a request and a Context. `timeout` is in seconds."""

    provider: str
    model: str
    handler: Callable[..., AsyncIterator[Any]]
    request_holder: type[Struct] | None = None
    arguments: tuple[str, ...] = ("parameters", "context")
    timeout: float | None = None

    @property
    def name(self) -> str:
        """`provider/model`."""
        return f"{self.provider}/{self.model}"

    def action(self, job: ClaimedJob, emit: Callable[[dict[str, Any]], None]) -> Action:
        """The generation that a job asks for, as an action of its own; `emit` is called with every delta."""

        async def generate(context: Context) -> dict[str, Any]:
            request = job.spec.get("request")
            if self.request_holder is not None:
                request = signatures.convert({} if request is None else request, self.request_holder)
            given = {"parameters": request, "context": context}
            produced = self.handler(*(given[argument] for argument in self.arguments))
            return {"llm_response": await _collect(produced, job.model or self.model, emit)}

        return Action(
            name=self.name,
            handler=generate,
            asynchronous=True,
            parameters_holder=None,
            result_decoder=None,
            arguments=("context",),
            concurrency=None,
            timeout=self.timeout,
            idempotent=False,
            isolation="task",
        )


class Generators:
    """The generators of one process, by provider and model."""

    def __init__(self) -> None:
        self._generators: dict[tuple[str, str], Generator] = {}

    def generator(
        self, provider: str, model: str, *, timeout: float | str | None = None
    ) -> Callable[[HandlerT], HandlerT]:
        """Registers the decorated async generator function for `provider/model`, and returns it unchanged.

        It takes the job's request (its annotation is the type; none means a dict) and a `Context`, both or either, and
        yields texts, delta objects, and at last a `Message`. `timeout` is seconds or a duration such as "2m".
        Raises ActionDefinitionError.
        """
        decorator = f"@generator({provider!r}, {model!r})"
        if not _is_provider(provider) or not is_model(model):
            raise ActionDefinitionError(
                f"{decorator}: expected the names of a provider (without a slash) and of a model, without spaces, "
                f'of at most {LONGEST_NAME} characters; write for example @generator("mine", "small")'
            )

        def register(handler: HandlerT) -> HandlerT:
            try:
                arguments, request_holder = signatures.read_generator(handler, Context)
                self._add(
                    Generator(
                        provider=provider,
                        model=model,
                        handler=handler,
                        request_holder=request_holder,
                        arguments=arguments,
                        timeout=timeout_seconds(timeout),
                    )
                )
            except (TypeError, ValueError) as error:
                where = signatures.described(handler)
                raise ActionDefinitionError(f"{decorator} of {where}: {error}") from error
            return handler

        return register

    def _add(self, generator: Generator) -> None:
        key = generator.provider, generator.model
        known = self._generators.get(key)
        if known is not None and not signatures.same(known.handler, generator.handler):
            first, second = signatures.described(known.handler), signatures.described(generator.handler)
            raise ActionDefinitionError(
                f"generator {generator.name!r} is defined twice, by {first} and by {second}: rename one"
            )
        self._generators[key] = generator

    def get(self, provider: str, model: str) -> Generator | None:
        """The generator of this provider and model, if there is one."""
        return self._generators.get((provider, model))

    def all(self) -> list[Generator]:
        """Every registered generator, by name."""
        return sorted(self._generators.values(), key=lambda generator: generator.name)


async def _collect(produced: AsyncIterator[Any], model: str, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Passes the deltas on; returns the whole message as the Messages API has it."""
    texts: list[str] = []
    size = 0
    last: Message | None = None
    closing = contextlib.aclosing(produced) if isinstance(produced, AsyncGenerator) else contextlib.nullcontext()
    async with closing:
        async for piece in produced:
            if last is not None:
                raise NonRetryableError(
                    f"the generator yields {type(piece).__name__} after its Message, the last thing"
                )
            if isinstance(piece, Message):
                last = piece
                continue
            delta = {"text": piece} if isinstance(piece, str) else piece
            size += _checked_size(delta)
            if size > MAX_TEXT:
                raise ResultTooLarge(f"the generation has more than the limit of {MAX_TEXT} bytes")
            if isinstance(delta.get("text"), str):
                texts.append(delta["text"])
            if delta != {"text": ""}:
                emit(delta)
    if last is None:
        raise NonRetryableError("the generator ended without its last thing, a Message with the usage")
    text = "".join(texts)
    return {
        "id": last.id or f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": last.model or model,
        "content": last.content if last.content is not None else [{"type": "text", "text": text}] if text else [],
        "stop_reason": last.stop_reason,
        "stop_sequence": last.stop_sequence,
        "usage": last.usage,
    }


def _checked_size(delta: Any) -> int:
    """Bytes of a delta as JSON. Raises NonRetryableError for what is none."""
    if not isinstance(delta, dict):
        raise NonRetryableError(
            f"the generator yields {type(delta).__name__}: expected a text, a delta object or a Message"
        )
    try:
        encoded = _json.encode(delta)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise NonRetryableError(f"the generator yields a delta that cannot be sent as JSON: {error}") from error
    if is_deeper(encoded, MAX_DEPTH):
        raise NonRetryableError(f"the generator yields a delta that is nested more deeply than {MAX_DEPTH} levels")
    return len(encoded)


def _is_provider(name: object) -> bool:
    return is_model(name) and "/" not in str(name)


def is_model(name: object) -> bool:
    """Whether a model may be called so."""
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and not any(sign.isspace() for sign in name)


generators = Generators()
"""What `@generator` fills when a process imports its modules."""

generator = generators.generator
