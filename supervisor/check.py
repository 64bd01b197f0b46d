"""`mobius-supervisor check`: whether each pool's modules can be imported, found out by a mold like a supervisor's."""

import asyncio
import contextlib
from collections.abc import Mapping

import uvloop

from supervisor.child_settings import mold_settings
from supervisor.children import Children
from supervisor.config import Config, Pool
from supervisor.errors import ConfigurationError
from supervisor.fleet import sentence_of_pool
from supervisor.pool import mold_slot_name
from supervisor.programs import mold_program
from supervisor.slots import BecameReady, Died, Event, SaidBye

_END_PATIENCE = 10.0


def import_modules(config: Config, environ: Mapping[str, str]) -> None:
    """Start a mold for each pool, wait until it is ready, and end it. Raises ConfigurationError with every failure."""
    problems = uvloop.run(_Molds(config, environ).try_all())
    if problems:
        raise ConfigurationError(problems)


class _Molds:
    def __init__(self, config: Config, environ: Mapping[str, str]) -> None:
        self._config = config
        self._program = mold_program(config, environ)
        self._events: dict[str, asyncio.Queue[Event]] = {}

    async def try_all(self) -> list[str]:
        """A sentence for each pool that could not run."""
        children = Children(
            asyncio.get_running_loop(),
            deliver=lambda event: self._events[event.slot].put_nowait(event),
            publish=lambda _fact: None,
            forward=lambda _slot, _incarnation, _lines: None,
            mold_of=lambda slot: slot,
            unexplained=lambda: None,
        )
        try:
            found = await asyncio.gather(*(self._try(children, pool) for pool in self._config.pool))
        finally:
            children.close()
        return [sentence_of_pool(index, reason) for index, reason in enumerate(found) if reason]

    async def _try(self, children: Children, pool: Pool) -> str:
        slot = mold_slot_name(pool.name)
        self._events[slot] = asyncio.Queue()
        children.start(slot, 1, "mold", self._program)
        children.instruct(slot, 1, mold_settings(self._config, pool))
        try:
            async with asyncio.timeout(pool.limits.boot):
                reason = await self._outcome(slot)
        except TimeoutError:
            reason = f"modules: were not imported within {pool.limits.boot:g}s"
        children.kill(slot, 1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_PATIENCE):
                while not isinstance(await self._events[slot].get(), Died):
                    pass
        return reason

    async def _outcome(self, slot: str) -> str:
        """Why the mold is not ready; empty when it is."""
        while True:
            match await self._events[slot].get():
                case BecameReady():
                    return ""
                case SaidBye(bye=bye):
                    return bye.reason
                case Died() as died:
                    # Whoever waits for its end must see it too.
                    self._events[slot].put_nowait(died)
                    how = f"exit code {died.exit_code}" if died.signal is None else f"signal {died.signal}"
                    return f"modules: the process that imports them ended ({died.output[-1] if died.output else how})"
