"""Which models this worker can generate with now: registered generators, and what model servers say that they have."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Protocol

import structlog

from wire.frames import ClaimedJob, ModelCapability
from worker_child.actions import Action, Context
from worker_child.errors import ConfigurationError, ModelServerError, RequestRefused, UnknownAction
from worker_child.generators import Generator, Generators, is_model

LOOK_INTERVAL = 60.0
FIRST_LOOK = 5.0
"""Seconds for which a start waits for the model servers; what answers later is offered later."""
MOST_MODELS = 1000
"""Models of one worker: what a frame holds."""
EVERY = "*"
_MOST_NAMED = 20


class Provider(Protocol):
    """A model server."""

    name: str

    async def models(self) -> list[str] | None:
        """The models that it has; None when it keeps no list. Raises ModelServerError or RequestRefused."""

    def generate(self, model: str, request: Any, context: Context) -> AsyncIterator[Any]:
        """Texts, delta objects, and at last a Message. Raises ModelServerError or RequestRefused."""

    async def close(self) -> None:
        """Ends its connections."""


class Catalogue:
    """`wanted` are `provider/model` or `provider/*`; empty: everything that there is. Raises ConfigurationError."""

    def __init__(self, wanted: Sequence[str], generators: Generators, providers: Iterable[Provider]) -> None:
        self._providers = {provider.name: provider for provider in providers}
        self._registered: list[Generator] = []
        self._wanted: dict[str, list[str]] = {}
        """By the name of a provider, in the order in which it was asked for."""
        self._resolve(wanted, generators)
        self._listed: dict[str, list[str] | None] = {}
        """What the providers that answered have."""
        self._said: dict[str, tuple[Any, ...]] = {}
        self._available: dict[tuple[str, str], Generator] = {}
        self._offered: dict[tuple[str, str], Generator] = {}
        """All that ever were available: a job may be claimed just as its model goes, which need not be for long."""
        self._looked = False
        self._log = structlog.get_logger()
        self._choose()

    @property
    def models(self) -> tuple[ModelCapability, ...]:
        """What can be generated with now."""
        return tuple(ModelCapability(provider=provider, model=model) for provider, model in self._available)

    @property
    def is_empty(self) -> bool:
        """Whether there never will be anything to generate with."""
        return not self._registered and not self._wanted

    def action(self, job: ClaimedJob, emit: Callable[[dict[str, Any]], None]) -> Action:
        """The generation that a job asks for, ready to run. Raises UnknownAction."""
        found = self._offered.get((job.provider or "", job.model or ""))
        if found is None:
            raise UnknownAction(f"this worker does not generate with {job.work!r}")
        return found.action(job, emit)

    async def look(self) -> bool:
        """Asks every model server once. Returns whether what can be generated with has changed."""
        before = list(self._available)
        asked = [self._providers[name] for name in self._wanted]
        answers = await asyncio.gather(*(self._ask(provider) for provider in asked))
        self._listed = {
            provider.name: answer for provider, (answered, answer) in zip(asked, answers, strict=True) if answered
        }
        self._looked = True
        self._choose()
        return before != list(self._available)

    async def first_look(self) -> None:
        """What is there at the start, within FIRST_LOOK seconds."""
        try:
            async with asyncio.timeout(FIRST_LOOK):
                await self.look()
        except TimeoutError:
            self._log.warning("models.slow", providers=list(self._wanted), seconds=FIRST_LOOK)

    async def watch(self, changed: Callable[[Sequence[ModelCapability]], None]) -> None:
        """Looks again and again, and tells what has changed; until it is cancelled."""
        while self._wanted:
            if self._looked:
                await asyncio.sleep(LOOK_INTERVAL)
            if await self.look():
                changed(self.models)

    async def close(self) -> None:
        """Ends the connections to all model servers."""
        for provider in self._providers.values():
            await provider.close()

    def _resolve(self, wanted: Sequence[str], generators: Generators) -> None:
        registered = generators.all()
        for entry in wanted or [*(one.name for one in registered), *(f"{name}/{EVERY}" for name in self._providers)]:
            provider, _, model = entry.partition("/")
            mine = [one for one in registered if one.provider == provider and model in (one.model, EVERY)]
            self._registered += [one for one in mine if one not in self._registered]
            if provider in self._providers and (not mine or model == EVERY):
                self._wanted.setdefault(provider, []).append(model)
            elif not mine:
                known = ", ".join([*self._providers, *(one.name for one in registered)]) or "none"
                raise ConfigurationError(
                    f"models: no provider is configured and no generator is registered for {entry!r} (known: {known})"
                )

    async def _ask(self, provider: Provider) -> tuple[bool, list[str] | None]:
        try:
            return True, await provider.models()
        except (ModelServerError, RequestRefused) as error:
            self._say(provider.name, "warning", "models.unavailable", error=str(error))
            return False, None

    def _choose(self) -> None:
        self._available = {(one.provider, one.model): one for one in self._registered}
        for name, wanted in self._wanted.items():
            if name not in self._listed:
                continue
            listed = self._listed[name]
            found = self._of_provider(wanted, listed)
            for model in found:
                if len(self._available) < MOST_MODELS:
                    self._available.setdefault((name, model), self._generator(name, model))
            missing = [model for model in wanted if model not in (*found, EVERY)]
            level = "warning" if missing or not found else "info"
            self._say(name, level, "models.found", models=found[:_MOST_NAMED], count=len(found), missing=missing)
        self._offered |= self._available

    def _of_provider(self, wanted: list[str], listed: list[str] | None) -> list[str]:
        """A server without a list is trusted to have what is named."""
        if listed is None:
            return [model for model in wanted if model != EVERY]
        has = [model for model in dict.fromkeys(listed) if is_model(model)]
        return has if EVERY in wanted else [model for model in wanted if model in has]

    def _generator(self, provider: str, model: str) -> Generator:
        handler = functools.partial(self._providers[provider].generate, model)
        return Generator(provider=provider, model=model, handler=handler)

    def _say(self, provider: str, level: str, event: str, **fields: Any) -> None:
        """Only what has changed since the last look: it is looked at every minute."""
        said = (event, *fields.items())
        if self._said.get(provider) != said:
            self._said[provider] = said
            getattr(self._log, level)(event, provider=provider, **fields)


NOTHING = Catalogue([], Generators(), [])
"""The catalogue of a worker without models."""
