"""Work that may wait for a disk: in a thread that nobody has to wait for, not even the end of the process. Acts.

The loop's own executor would be waited for: a supervisor that once read from a disk which stands still would then hear
no signal any more and never end.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """What `work` returns, or raises. Whoever gives up waiting leaves the thread behind, until the disk moves again."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it is the waiting side's to judge
            tell(done.set_exception, error)
        else:
            tell(done.set_result, result)

    def tell(settle: Callable[..., None], outcome: object) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may be closed by now.
            loop.call_soon_threadsafe(lambda: None if done.done() else settle(outcome))

    threading.Thread(target=run, name="disk", daemon=True).start()
    return await done
