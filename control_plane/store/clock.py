"""The store's clock on one machine: wall time read once, then carried on by the monotonic clock."""

import time
from collections.abc import Callable


class Clock:
    """Microseconds since the epoch that never go back: neither when the wall clock is set, nor behind `floor`."""

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def keep_above(self, floor: int) -> None:
        """Go on from `floor` (a time that is already stored), if the clock is behind it."""
        self._offset = max(self._offset, floor * 1000 - self._monotonic())

    def now(self) -> int:
        """Microseconds since the epoch, UTC."""
        return (self._monotonic() + self._offset) // 1000
