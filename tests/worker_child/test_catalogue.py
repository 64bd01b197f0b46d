"""Which models are offered, as model servers come, go and change."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from tests.support.session_driver import claimed_generation, model
from worker_child import catalogue as module
from worker_child.actions import Context
from worker_child.catalogue import Catalogue
from worker_child.errors import ConfigurationError, ModelServerError, UnknownAction
from worker_child.generators import Generators, Message


class Server:
    """A model server whose answer the test decides: a list of models, None, or what it raises."""

    def __init__(self, name: str, answer: Any = ()) -> None:
        self.name = name
        self.answer = answer
        self.asked = asyncio.Semaphore(0)
        self.closed = False

    async def models(self) -> list[str] | None:
        self.asked.release()
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, asyncio.Event):
            await self.answer.wait()
            return []
        return list(self.answer) if self.answer is not None else None

    async def generate(self, name: str, request: Any, context: Context) -> AsyncIterator[Any]:
        yield Message(usage={}, content=[{"model": name, "request": request, "attempt": context.attempt}])

    async def close(self) -> None:
        self.closed = True


def registered(*names: str) -> Generators:
    generators = Generators()
    for name in names:

        async def generate() -> AsyncIterator[Any]:
            yield Message(usage={})

        generators.generator(*name.split("/"))(generate)
    return generators


def names(catalogue: Catalogue) -> list[str]:
    return [f"{one.provider}/{one.model}" for one in catalogue.models]


DOWN = ModelServerError("it is down")


@pytest.mark.parametrize(
    ("wanted", "answer", "offered"),
    [
        ([], ["a", "b"], ["own/x", "own/y", "srv/a", "srv/b"]),
        (["srv/*"], ["a", "b"], ["srv/a", "srv/b"]),
        (["srv/b", "srv/a"], ["a", "b", "c"], ["srv/b", "srv/a"]),
        (["srv/b", "srv/gone"], ["a", "b"], ["srv/b"]),
        (["own/*"], ["a"], ["own/x", "own/y"]),
        (["own/y"], ["a"], ["own/y"]),
        (["own/y", "own/*", "own/y"], [], ["own/y", "own/x"]),
        (["srv/org/big"], ["org/big"], ["srv/org/big"]),
        (["srv/a", "srv/*"], None, ["srv/a"]),
        ([], None, ["own/x", "own/y"]),
        (["srv/*", "own/x"], DOWN, ["own/x"]),
        (["srv/*"], ["a", "", "b c", "d" * 257, "a"], ["srv/a"]),
    ],
)
async def test_what_is_wanted_and_there_is_offered(wanted: list[str], answer: Any, offered: list[str]) -> None:
    catalogue = Catalogue(wanted, registered("own/x", "own/y"), [Server("srv", answer)])
    await catalogue.look()
    assert names(catalogue) == offered


async def test_a_generator_of_ones_own_goes_before_the_server_of_its_name() -> None:
    catalogue = Catalogue(["srv/a"], registered("srv/a"), [server := Server("srv", ["a"])])
    await catalogue.look()
    assert names(catalogue) == ["srv/a"]
    assert server.asked.locked()


async def test_what_is_neither_registered_nor_configured_is_a_fault_of_the_configuration() -> None:
    with pytest.raises(ConfigurationError, match=r"for 'srv2/a' \(known: srv, own/x\)"):
        Catalogue(["srv2/a"], registered("own/x"), [Server("srv")])
    with pytest.raises(ConfigurationError, match=r"for 'own/z'"):
        Catalogue(["own/z"], registered("own/x"), [])


async def test_a_server_is_offered_when_it_comes_and_not_when_it_has_gone() -> None:
    server = Server("srv", DOWN)
    catalogue = Catalogue(["srv/a"], Generators(), [server])
    assert not await catalogue.look()
    assert not catalogue.is_empty
    server.answer = ["a"]
    assert await catalogue.look()
    assert not await catalogue.look()
    assert catalogue.models == (model("srv/a"),)
    server.answer = DOWN
    assert await catalogue.look()
    assert catalogue.models == ()


async def test_one_server_that_is_down_hides_no_other() -> None:
    catalogue = Catalogue([], Generators(), [Server("one", DOWN), Server("two", ["a"])])
    await catalogue.look()
    assert names(catalogue) == ["two/a"]


async def test_a_worker_offers_no_more_models_than_a_frame_holds() -> None:
    catalogue = Catalogue([], Generators(), [Server("srv", [f"m{number}" for number in range(3000)])])
    await catalogue.look()
    assert len(catalogue.models) == module.MOST_MODELS


async def test_the_start_waits_for_a_slow_server_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_LOOK", 0.05)
    catalogue = Catalogue(["slow/*"], Generators(), [Server("slow", asyncio.Event())])
    async with asyncio.timeout(20):
        await catalogue.first_look()
    assert catalogue.models == ()


async def test_changes_are_told_as_they_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_INTERVAL", 0.001)
    server = Server("srv", ["a"])
    catalogue = Catalogue(["srv/*"], Generators(), [server])
    await catalogue.first_look()
    told: asyncio.Queue[Any] = asyncio.Queue()
    watching = asyncio.ensure_future(catalogue.watch(told.put_nowait))
    async with asyncio.timeout(20):
        for answer, expected in ((["a", "b"], ("srv/a", "srv/b")), (DOWN, ()), (["b"], ("srv/b",))):
            server.answer = answer
            assert await told.get() == tuple(model(name) for name in expected)
    watching.cancel()


async def test_a_look_that_did_not_end_in_time_is_made_up_for_at_once() -> None:
    catalogue = Catalogue(["srv/*"], Generators(), [Server("srv", ["a"])])
    told: asyncio.Queue[Any] = asyncio.Queue()
    watching = asyncio.ensure_future(catalogue.watch(told.put_nowait))
    async with asyncio.timeout(20):
        assert await told.get() == (model("srv/a"),)
    watching.cancel()


async def test_what_stays_the_same_is_logged_once() -> None:
    with structlog.testing.capture_logs() as lines:
        server = Server("srv", ["a"])
        catalogue = Catalogue(["srv/a", "srv/z"], Generators(), [server])
        for answer in (["a"], ["a"], DOWN, DOWN, ["a", "z"]):
            server.answer = answer
            await catalogue.look()
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("models.found", "warning"),
        ("models.unavailable", "warning"),
        ("models.found", "info"),
    ]
    assert lines[0]["missing"] == ["z"]
    assert lines[1]["error"] == "it is down"


async def test_a_job_gets_the_model_that_it_asks_for_or_none() -> None:
    catalogue = Catalogue(["srv/*"], Generators(), [Server("srv", ["a"])])
    await catalogue.look()
    job = claimed_generation(1, provider="srv", model="a", spec={"request": {"messages": []}})
    result = await catalogue.action(job, lambda delta: None).handler(Context(job, "rig-1"))
    (said,) = result["llm_response"]["content"]
    assert said == {"model": "a", "request": {"messages": []}, "attempt": 1}
    for provider, name in (("srv", "b"), ("other", "a"), (None, None)):
        with pytest.raises(UnknownAction, match=f"{provider}/{name}"):
            catalogue.action(claimed_generation(1, provider=provider, model=name), lambda delta: None)


async def test_a_job_that_was_claimed_as_its_model_went_is_tried_all_the_same() -> None:
    catalogue = Catalogue(["srv/*"], Generators(), [server := Server("srv", ["a"])])
    await catalogue.look()
    server.answer = DOWN
    await catalogue.look()
    assert catalogue.models == ()
    assert catalogue.action(claimed_generation(1, provider="srv", model="a"), lambda delta: None).name == "srv/a"


async def test_closing_closes_every_server() -> None:
    servers = [Server("one"), Server("two")]
    await Catalogue([], Generators(), servers).close()
    assert [server.closed for server in servers] == [True, True]
