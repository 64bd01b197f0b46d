"""Whom the kernel's out-of-memory killer hit, told from a counter that belongs to the whole unit. Decides only.

The counter names nobody. A process is blamed only if it died by a SIGKILL that is not ours while the counter had just
risen, and if no more processes did so than the counter rose by. Everything else stays unknown.
"""

import math

FRESH = 5.0
"""Seconds after a rise in which a death may be its consequence: a large process takes a while to be torn down."""


class Blame:
    """The counter's history, as far as it matters."""

    def __init__(self) -> None:
        self._seen: int | None = None
        self._unclaimed = 0
        self._risen_at = -math.inf

    def observe(self, kills: int | None, now: float) -> None:
        """What the counter says now; None when it cannot be read."""
        if kills is not None and self._seen is not None and kills > self._seen:
            if now - self._risen_at > FRESH:
                self._unclaimed = 0
            self._unclaimed += kills - self._seen
            self._risen_at = now
        self._seen = kills

    def judge(self, deaths: int, now: float) -> bool | None:
        """Whether so many deaths by somebody's SIGKILL were for want of memory; None: it cannot be told."""
        if self._seen is None:
            return None
        if self._unclaimed == 0 or now - self._risen_at > FRESH:
            return False
        if deaths > self._unclaimed:
            self._unclaimed = 0
            return None
        self._unclaimed -= deaths
        return True
