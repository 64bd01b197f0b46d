"""When to connect again. The random source is passed in."""

from collections.abc import Callable

FIRST = 2.0
CAP = 60.0
HEALTHY_AFTER = 30.0
_SHARE_THAT_IS_CERTAIN = 0.2
"""The rest of each delay is random: workers that lost one server do not come back in lockstep, and none at once."""


AT_ONCE = 0.5
"""Seconds within which a worker comes back whose server said that it goes away: soon, and not in the same instant."""

MAX_AGE = 12 * 3600.0
"""Seconds after which a connection that works is exchanged for a new one: names, routes and certificates change."""
_SHARE_OF_AGE = 0.8


class Backoff:
    """Doubles from FIRST to CAP seconds with jitter; only a connection that was healthy for HEALTHY_AFTER resets it.

    `uniform` returns a float in [0, 1).
    """

    def __init__(self, uniform: Callable[[], float]) -> None:
        self._uniform = uniform
        self._ceiling = FIRST
        self._hurried = False

    def delay(self, healthy_for: float = 0.0, *, going_away: bool = False) -> float:
        """Seconds to wait after a connection that was registered for `healthy_for` seconds (0: never was).

        `going_away`: the server said so. That is believed once; from a server that says it each time, we back off.
        """
        if healthy_for >= HEALTHY_AFTER:
            self._ceiling, self._hurried = FIRST, False
        if going_away and not self._hurried:
            self._hurried = True
            return AT_ONCE * self._uniform()
        ceiling = self._ceiling
        self._ceiling = min(CAP, ceiling * 2)
        return ceiling * (_SHARE_THAT_IS_CERTAIN + (1.0 - _SHARE_THAT_IS_CERTAIN) * self._uniform())

    def age(self) -> float:
        """Seconds that the next connection may last: workers that came together do not go together."""
        return MAX_AGE * (_SHARE_OF_AGE + (1.0 - _SHARE_OF_AGE) * self._uniform())
