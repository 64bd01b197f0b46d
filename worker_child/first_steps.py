"""Coroutines whose first step is made at once, and not in the event loop's next turn.

What a short handler costs besides itself is to a good part the way round the loop.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any


def task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """A task as any other: its code runs in a context of its own, `asyncio.current_task()` is that task, and what it
    waits for wakes it through the loop. Not to be called by a task: asyncio knows one current task at a time."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(coroutine, loop=loop, eager_start=True)
    first = _FirstStep()
    # Before 3.12 a task can only ask its loop to make the first step: here that is taken from it.
    loop.call_soon = first  # type: ignore[method-assign, assignment]
    try:
        made = asyncio.Task(coroutine, loop=loop)
    finally:
        del loop.call_soon
    first.make()
    return made


def only(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine that awaits nothing, in a context of its own. There is no task, which would take as long to make
    as everything that the coroutine does: it is code that a callback of the loop runs."""
    try:
        copy_context().run(coroutine.send, None)
    except StopIteration:
        return
    raise RuntimeError(f"{coroutine!r} waits for something")


class _FirstStep:
    """Stands for a loop's `call_soon` while a task is created."""

    __slots__ = ("_context", "_step")

    def __call__(self, step: Callable[[], None], *, context: Context) -> None:
        self._step, self._context = step, context

    def make(self) -> None:
        self._context.run(self._step)
