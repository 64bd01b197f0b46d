"""Counts by size, and how Prometheus has them. Decides only."""

import bisect
import math
from collections.abc import Iterable, Sequence


class Histogram:
    """Observations of one kind, counted by upper bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: Sequence[float]) -> None:
        """Several more, for less than one by one."""
        counts, bounds, place = self._counts, self._bounds, bisect.bisect_left
        for value in values:
            counts[place(bounds, value)] += 1
        self.sum += sum(values)

    def add(self, counts: Iterable[int], total: float) -> None:
        """What somebody else has counted by the same bounds, and its sum. Places that are missing count nothing."""
        for place, count in enumerate(counts):
            if place < len(self._counts):
                self._counts[place] += count
        self.sum += total

    @property
    def counts(self) -> tuple[int, ...]:
        """By upper bound, not cumulated; the last are those above all bounds."""
        return tuple(self._counts)

    def copy(self) -> "Histogram":
        """With counts of its own."""
        other = Histogram(self._bounds)
        other.add(self._counts, self.sum)
        return other

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated, each with its bound as text, `+Inf` last."""
        total, found = 0, []
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            found.append(("+Inf" if math.isinf(bound) else f"{bound:g}", float(total)))
        return found
