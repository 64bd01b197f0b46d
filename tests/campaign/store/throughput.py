"""How much was done when: what a fault cost, from the times at which jobs were done. Decides only."""

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

BACK = 0.9
"""Share of the usual throughput at which it is back."""

WINDOW = 1.0
"""Seconds over which throughput is counted."""

BEFORE = 1.0
"""Seconds before a fault that show what is usual."""

LATELY = 5
"""Faults."""


class Moment(Struct, frozen=True, kw_only=True):
    """When a fault of this kind was committed, and the share of the processors' time that other machines on the same
    hardware took (`steal`) from then until the throughput was back, or nobody waited for it any more."""

    kind: str
    at: float
    stolen: float = 0.0


class Cost(Struct, frozen=True, kw_only=True):
    """Of one fault: what was usual before, seconds until that was back (None: not before the next fault), the longest
    time in which no job was done, and `stolen` as of its moment."""

    kind: str
    stolen: float
    usual: float
    back_after: float | None
    longest_silence: float


def rate(times: Sequence[float], begin: float, end: float) -> float:
    """Jobs a second of `times`, which are in order."""
    return (bisect_left(times, end) - bisect_left(times, begin)) / (end - begin)


def usual(times: Sequence[float], faults: Sequence[float]) -> float:
    """Jobs a second when nothing is wrong: the median of what was so before each fault."""
    return statistics.median(rate(times, at - BEFORE, at) for at in faults)


def usual_lately(times: Sequence[float], faults: Sequence[float]) -> float:
    """The same for the last of these faults: a machine that others use too is not as fast at all times."""
    return usual(times, faults[-LATELY:])


def back_after(times: Sequence[float], at: float, until: float, usual_rate: float) -> float | None:
    """Seconds from `at` to the begin of the first window with a usual rate; None if none ends before `until`."""
    wanted = BACK * usual_rate * WINDOW
    # A window may begin at the fault, and else begins best with a job.
    for begin in (at, *times[bisect_right(times, at) : bisect_left(times, until)]):
        if begin + WINDOW > until:
            return None
        if bisect_left(times, begin + WINDOW) - bisect_left(times, begin) >= wanted:
            return begin - at
    return None


def longest_silence(times: Sequence[float], at: float, until: float) -> float:
    """Seconds without any job done, at most, between two moments."""
    within = [at, *times[bisect_right(times, at) : bisect_left(times, until)], until]
    return max(later - earlier for earlier, later in pairwise(within))
