"""`@generator`: what can be registered, and what becomes of what a generator yields; run by a real Runner."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tests.support.session_driver import claimed_generation
from wire.depth import MAX_DEPTH
from worker_child import generators as module
from worker_child.actions import Context, Registry
from worker_child.catalogue import Catalogue
from worker_child.decisions import Outcome
from worker_child.errors import ActionDefinitionError, RetryableError
from worker_child.generators import Generators, Message, Usage
from worker_child.runner import Runner

USAGE = Usage(input_tokens=3, output_tokens=2)


class Bench:
    """Runs generations; `deltas` are what they emitted, in order."""

    def __init__(self) -> None:
        self.generators = Generators()
        self.deltas: list[dict[str, Any]] = []
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.first = asyncio.Event()

    def start(self, handler: Any, request: Any = None, **options: Any) -> Runner:
        self.generators.generator("p", "m", **options)(handler)
        runner = Runner(
            Registry(),
            "rig-1",
            threads=1,
            finished=lambda _execution, outcome, _returned: self.outcome.set_result(outcome),
            came_back=lambda _execution: None,
            produced=self._produced,
            catalogue=Catalogue([], self.generators, []),
        )
        runner.start(1, claimed_generation(1, spec={} if request is None else {"request": request}))
        runner.begin()
        return runner

    def _produced(self, execution: int, delta: dict[str, Any]) -> None:
        assert execution == 1
        self.deltas.append(delta)
        self.first.set()

    async def run(self, handler: Any, request: Any = None, **options: Any) -> Outcome:
        self.start(handler, request, **options)
        async with asyncio.timeout(20):
            return await self.outcome


@pytest.fixture
async def bench() -> Bench:
    return Bench()


def response(outcome: Outcome) -> dict[str, Any]:
    assert outcome.status == "completed", outcome
    result: dict[str, Any] = msgspec.json.decode(outcome.result)
    assert list(result) == ["llm_response"]
    message: dict[str, Any] = result["llm_response"]
    return message


async def test_texts_become_deltas_and_the_text_of_the_message(bench: Bench) -> None:
    async def generate(request: dict[str, Any], ctx: Context) -> AsyncIterator[Any]:
        assert request == {"messages": []}
        yield f"{ctx.action} "
        yield ""
        yield {"type": "thinking", "thinking": "hm"}
        yield "works"
        yield Message(usage=USAGE)

    message = response(await bench.run(generate, {"messages": []}))
    assert bench.deltas == [{"text": "p/m "}, {"type": "thinking", "thinking": "hm"}, {"text": "works"}]
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "p/m works"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }


async def test_a_message_of_its_own_is_sent_as_it_is(bench: Bench) -> None:
    blocks = [{"type": "tool_use", "id": "t", "name": "look", "input": {"x": 1}}]

    async def generate(ctx: Context) -> AsyncIterator[Any]:
        yield "let me see"
        usage = {"input_tokens": 1, "output_tokens": 1, "service_tier": "standard"}
        yield Message(usage=usage, content=blocks, stop_reason="tool_use", id="msg_1", model="m-2", stop_sequence=".")

    message = response(await bench.run(generate))
    assert (message["id"], message["model"], message["content"]) == ("msg_1", "m-2", blocks)
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", ".")
    assert message["usage"]["service_tier"] == "standard"


async def test_no_text_is_no_content(bench: Bench) -> None:
    async def generate() -> AsyncIterator[Any]:
        yield Message(usage=USAGE)

    assert response(await bench.run(generate))["content"] == []


class Request(msgspec.Struct):
    max_tokens: int


async def test_a_request_that_does_not_fit_names_the_field(bench: Bench) -> None:
    async def generate(request: Request) -> AsyncIterator[Any]:
        yield Message(usage=USAGE)

    outcome = await bench.run(generate, {"max_tokens": "many"})
    assert outcome.error_type == "ValidationError"
    assert outcome.error_message == "request.max_tokens: Expected `int`, got `str`"


async def yields_nothing() -> AsyncIterator[Any]:
    return
    yield


async def goes_on() -> AsyncIterator[Any]:
    yield Message(usage=USAGE)
    yield "more"


async def yields_a_number() -> AsyncIterator[Any]:
    yield 7


async def yields_what_is_no_json() -> AsyncIterator[Any]:
    yield {"text": object()}


async def yields_half_a_character() -> AsyncIterator[Any]:
    yield "\ud83d"


async def yields_depth() -> AsyncIterator[Any]:
    value: Any = 1
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    yield {"deep": value}


async def yields_without_end() -> AsyncIterator[Any]:
    while True:
        yield "x" * 1024 * 1024


async def asks_again() -> AsyncIterator[Any]:
    yield "a"
    raise RetryableError("not now")


@pytest.mark.parametrize(
    ("handler", "error_type", "message"),
    [
        (yields_nothing, "NonRetryableError", "the generator ended without its last thing, a Message with the usage"),
        (goes_on, "NonRetryableError", "the generator yields str after its Message, the last thing"),
        (
            yields_a_number,
            "NonRetryableError",
            "the generator yields int: expected a text, a delta object or a Message",
        ),
        (yields_what_is_no_json, "NonRetryableError", "a delta that cannot be sent as JSON"),
        (yields_half_a_character, "NonRetryableError", "a delta that cannot be sent as JSON"),
        (yields_depth, "NonRetryableError", "nested more deeply than 200 levels"),
        (yields_without_end, "ResultTooLarge", f"more than the limit of {module.MAX_TEXT} bytes"),
        (asks_again, "RetryableError", "not now"),
    ],
)
async def test_what_is_no_generation_is_a_failure(bench: Bench, handler: Any, error_type: str, message: str) -> None:
    outcome = await bench.run(handler)
    assert (outcome.status, outcome.error_type) == ("failed", error_type)
    assert message in str(outcome.error_message)


async def test_a_cancel_ends_the_generator_where_it_waits(bench: Bench) -> None:
    cleaned = asyncio.Event()

    async def generate() -> AsyncIterator[Any]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    runner = bench.start(generate)
    async with asyncio.timeout(20):
        await bench.first.wait()
        runner.cancel(1, "cancelled")
        outcome = await bench.outcome
    assert outcome.status == "cancelled"
    assert cleaned.is_set()


async def test_a_generator_that_takes_too_long_times_out(bench: Bench) -> None:
    async def generate() -> AsyncIterator[Any]:
        yield "a"
        await asyncio.Event().wait()

    outcome = await bench.run(generate, timeout="50ms")
    assert (outcome.status, outcome.error_type) == ("failed", "TimeoutError")
    assert outcome.error_message == "'p/m' did not end within its timeout of 0.05 s"


async def test_what_is_left_of_a_generator_that_failed_is_closed(bench: Bench) -> None:
    cleaned = asyncio.Event()

    async def generate() -> AsyncIterator[Any]:
        try:
            yield 7
            yield 8
        finally:
            cleaned.set()

    assert (await bench.run(generate)).status == "failed"
    assert cleaned.is_set()


# --- registering ------------------------------------------------------------------------------------------------------


def not_a_generator(request: dict[str, Any]) -> None: ...


async def not_an_async_generator(request: dict[str, Any]) -> None: ...


def a_sync_generator(request: dict[str, Any]) -> Any:
    yield 1


@pytest.mark.parametrize("handler", [not_a_generator, not_an_async_generator, a_sync_generator, None, 7])
def test_only_an_async_generator_function_can_be_registered(handler: Any) -> None:
    with pytest.raises(
        ActionDefinitionError, match=r"@generator\('p', 'm'\) of .*: expected an `async def` that yields"
    ):
        Generators().generator("p", "m")(handler)


@pytest.mark.parametrize(
    ("provider", "name"), [("", "m"), ("p", ""), ("a/b", "m"), ("p", "a b"), ("p", "m" * 257), (None, "m"), ("p", 7)]
)
def test_names_are_checked_where_they_are_given(provider: Any, name: Any) -> None:
    with pytest.raises(ActionDefinitionError, match="expected the names of a provider"):
        Generators().generator(provider, name)


async def another() -> AsyncIterator[Any]:
    yield 1


def test_a_generator_has_one_definition() -> None:
    generators = Generators()
    assert generators.generator("p", "org/m")(another) is another
    generators.generator("p", "org/m")(another)
    with pytest.raises(
        ActionDefinitionError, match=r"'p/org/m' is defined twice, by .*another .* and by .*yields_nothing "
    ):
        generators.generator("p", "org/m")(yields_nothing)
    assert [one.name for one in generators.all()] == ["p/org/m"]


@pytest.mark.parametrize("timeout", ["soon", 0, -1, float("nan")])
def test_a_timeout_is_a_duration(timeout: Any) -> None:
    with pytest.raises(ActionDefinitionError, match=r"@generator\('p', 'm'\) of .*: timeout"):
        Generators().generator("p", "m", timeout=timeout)(another)


def test_a_signature_that_cannot_be_called_is_refused() -> None:
    async def generate(one: dict[str, Any], two: dict[str, Any]) -> AsyncIterator[Any]:
        yield 1

    with pytest.raises(ActionDefinitionError, match=r"@generator\('p', 'm'\) of .*: a handler takes at most one"):
        Generators().generator("p", "m")(generate)
