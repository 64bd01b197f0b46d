"""The store's clock on one machine: the monotonic clock carries it on, and the wall clock moves it forward."""

import time
from collections.abc import Callable

from control_plane.domain.times import MICROSECONDS

MOST_BEHIND = 1_000_000_000
"""Nanoseconds: what the wall clock is ahead by more was set, or passed while the machine slept."""

MOST_AHEAD = 60_000_000
"""Microseconds that a clock may be ahead of what it follows without a word."""


def lead(ahead: int) -> str | None:
    """What an operator should know of a store's clock that is so many microseconds ahead."""
    if ahead <= MOST_AHEAD:
        return None
    return (
        f"the store's clock is {ahead // MICROSECONDS} s ahead and stays so until that time is reached, since it once "
        "ran ahead and never goes back: what is created has times in the future, and what sleeps until a given time "
        "wakes that much too early"
    )


class Clock:
    """Microseconds since the epoch that never go back: neither when the wall clock is set, nor behind `floor`."""

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def keep_above(self, floor: int) -> None:
        """Go on from `floor` (a time that is already stored), if the clock is behind it."""
        self._offset = max(self._offset, floor * 1000 - self._monotonic())

    def ahead(self) -> int:
        """Microseconds ahead of the wall clock."""
        return (self._monotonic() + self._offset - self._wall()) // 1000

    def follow(self) -> int:
        """Go on from the wall clock, if the clock is behind it by more than a second; the microseconds gone forward."""
        behind = self._wall() - self._monotonic() - self._offset
        if behind <= MOST_BEHIND:
            return 0
        self._offset += behind
        return behind // 1000

    def now(self) -> int:
        """Microseconds since the epoch, UTC."""
        return (self._monotonic() + self._offset) // 1000
