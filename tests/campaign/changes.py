"""Waiting for a state to come about: whoever changes it says so, whoever waits has a deadline."""

import asyncio
from collections.abc import Callable


class CampaignError(AssertionError):
    """Something that the campaign proves is not so."""


class Changes:
    """`told` after every change; `until` returns when a condition holds, and fails at its deadline."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}

    def told(self) -> None:
        """Something changed: whoever has waited for that goes on."""
        for future, holds in list(self._waiting.items()):
            if not future.done() and holds():
                future.set_result(None)

    async def until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Raises CampaignError, which says `what` did not come about."""
        if holds():
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = holds
        try:
            await asyncio.wait_for(future, seconds)
        except TimeoutError:
            raise CampaignError(f"after {seconds:g} s still not so: {what}") from None
        finally:
            del self._waiting[future]
