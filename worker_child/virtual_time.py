"""An event loop whose time passes only when nothing else happens, and then at once. For tests of handlers.

While coroutines run the clock stands still, and while threads do, for their first second. When all of them wait for
timers, it goes to the next one. When something outside is waited for (a socket, a process), time passes as everywhere.
"""

import asyncio
import selectors
import threading
import time
from collections.abc import Callable
from typing import Any

from worker_child.actions import Cancelled
from worker_child.errors import JobCancelled

_EXECUTORS = ("job_", "asyncio_", "ThreadPoolExecutor-")
"""How the threads of executors are called: ours, the loop's, and anybody's who gave no name."""

_LOOKS_AGAIN = 0.05
"""Seconds between two looks at what a thread of somebody else's brings about."""


_FREE = 1.0
"""Seconds of a thread's work at a time that do not count."""


class NothingToWaitForError(RuntimeError):
    """Everything waits, and nothing that would end it can happen any more."""


class _Selector(selectors.DefaultSelector):
    """Waits for the world only when the world is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.at_work: Callable[[], bool] = lambda: False
        self.others_at_work: Callable[[], bool] = lambda: False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As asyncio calls it: None waits for an event, and a number of seconds no longer than that."""
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        # One file is the loop's own, by which it is woken.
        if len(self.get_map()) > 1:
            return self._wait(timeout)
        if self.at_work():
            return self._wait_for_threads(timeout)
        if self.others_at_work():
            # Nobody says when they are done.
            return self._wait(_LOOKS_AGAIN if timeout is None else min(timeout, _LOOKS_AGAIN))
        if timeout is None:
            raise NothingToWaitForError
        self.now += timeout
        return []

    def _wait_for_threads(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """What a thread does in a second takes no time; or no two runs would be alike."""
        ready = super().select(_FREE)
        if not ready:
            self.now += _FREE if timeout is None else min(timeout, _FREE)
        return ready

    def _wait(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        began = time.monotonic()
        ready = super().select(timeout)
        passed = time.monotonic() - began
        self.now += passed if ready or timeout is None else timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)
        self._in_flight = 0
        self._parked = 0
        self._threads_before = set(threading.enumerate())
        self._clock.at_work = lambda: self._in_flight > self._parked
        self._clock.others_at_work = self._others_at_work

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._clock.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        """As ever; until the thread is done, or waits in VirtualCancelled, it is at work."""
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self._in_flight += 1
        future.add_done_callback(self._came_back)
        return future

    def _others_at_work(self) -> bool:
        """Threads of no executor, such as one that waits for a process: an executor's own are there when idle, too."""
        new = set(threading.enumerate()) - self._threads_before
        return any(not thread.name.startswith(_EXECUTORS) for thread in new)

    def _came_back(self, _future: "asyncio.Future[Any]") -> None:
        self._in_flight -= 1

    def park(self) -> None:
        """A thread of the executor waits for virtual time."""
        self._parked += 1

    def unpark(self) -> None:
        """It goes on."""
        self._parked -= 1


class VirtualCancelled(Cancelled):
    """Waiting for it in a thread passes virtual time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._virtual = loop
        self._waiting: dict[threading.Event, asyncio.TimerHandle | None] = {}

    def set(self) -> None:
        """Wakes coroutines and threads."""
        super().set()
        for woken in list(self._waiting):
            self._wake(woken)

    def wait_in_thread(self, timeout: float | None = None) -> bool:
        """For at most `timeout` virtual seconds; true when the job should stop. Raises JobCancelled after the test."""
        if not self.is_set() and not self._virtual.is_closed():
            woken = threading.Event()
            self._virtual.call_soon_threadsafe(self._wait, woken, timeout)
            # The loop may be closed before it comes to that.
            while not woken.wait(_LOOKS_AGAIN) and not self._virtual.is_closed():
                pass
        if self._virtual.is_closed():
            raise JobCancelled("the test is over")
        return self.is_set()

    def _wait(self, woken: threading.Event, timeout: float | None) -> None:
        self._virtual.park()
        timer = None if timeout is None else self._virtual.call_later(timeout, self._wake, woken)
        self._waiting[woken] = timer
        if self.is_set():
            self._wake(woken)

    def _wake(self, woken: threading.Event) -> None:
        if woken not in self._waiting:
            return
        timer = self._waiting.pop(woken)
        if timer is not None:
            timer.cancel()
        self._virtual.unpark()
        woken.set()
