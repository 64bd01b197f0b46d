"""Work that holds the event loop for long, such as reading a million values, one piece at a time: after each piece the
loop is everybody else's for as long as that took, and keys take turns.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TypeVar

import structlog

LARGE = 64 * 1024
"""Bytes of JSON that are read in turn; what is smaller is read at once."""

ResultT = TypeVar("ResultT")
_log = structlog.get_logger(__name__)


class Turnstile:
    """Of one event loop, which runs when something is added."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Callable[[], None]]] = OrderedDict()
        """By key; the first key's is next."""
        self._turning = False

    def add(self, key_id: str, work: Callable[[], None]) -> None:
        """Have it called when it is its turn, a turn of the loop from now at the soonest."""
        self._waiting.setdefault(key_id, deque()).append(work)
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    async def do(self, key_id: str, work: Callable[[], ResultT]) -> ResultT:
        """What the work returns when it is its turn. Raises what it raises."""
        done: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()

        def piece() -> None:
            if done.done():
                return  # whoever asked for it has gone
            try:
                done.set_result(work())
            except Exception as error:  # noqa: BLE001 - it is for the one who asked
                done.set_exception(error)

        self.add(key_id, piece)
        return await done

    def _turn(self) -> None:
        if not self._waiting:
            self._turning = False
            return
        key_id, works = self._waiting.popitem(last=False)
        work = works.popleft()
        if works:
            self._waiting[key_id] = works
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            work()
        except Exception:  # noqa: BLE001 - a bug of one piece stops no other
            _log.exception("a piece of large work failed")
        loop.call_later(loop.time() - began, self._turn)
