"""When to connect again. The random source is passed in."""

from collections.abc import Callable

FIRST = 2.0
CAP = 60.0
HEALTHY_AFTER = 30.0
_SHARE_THAT_IS_CERTAIN = 0.2
"""The rest of each delay is random: workers that lost one server do not come back in lockstep, and none at once."""


class Backoff:
    """Doubles from FIRST to CAP seconds with jitter; only a connection that was healthy for HEALTHY_AFTER resets it.

    `uniform` returns a float in [0, 1).
    """

    def __init__(self, uniform: Callable[[], float]) -> None:
        self._uniform = uniform
        self._ceiling = FIRST

    def delay(self, healthy_for: float = 0.0) -> float:
        """Seconds to wait after a connection that was registered for `healthy_for` seconds (0: never was)."""
        if healthy_for >= HEALTHY_AFTER:
            self._ceiling = FIRST
        ceiling = self._ceiling
        self._ceiling = min(CAP, ceiling * 2)
        return ceiling * (_SHARE_THAT_IS_CERTAIN + (1.0 - _SHARE_THAT_IS_CERTAIN) * self._uniform())
