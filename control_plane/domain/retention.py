"""What of the past may go. Pure decisions; times are microseconds by the store's clock."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

Retired = Literal["runs", "jobs", "sessions", "deltas"]
"""What is retired: finished runs with all that belongs to them, finished jobs without a run, ended sessions, and the
deltas of jobs that have ended."""

ROWS_BESIDES_EVENTS = 8
"""About so many rows go with a run or a job, besides its events."""


class Past(Struct, frozen=True, kw_only=True):
    """A run, or a job without one, in the order of creation. `ended_at` None: it has not ended, or a job of it has not.
    `events` is how many a run has."""

    seq: int
    created_at: int
    ended_at: int | None
    events: int = 0


class Going(Struct, frozen=True, kw_only=True):
    """What goes now. `position` is where to look on, None at the end; `kept` whether anything was passed over on the
    way. `cut` is the run of which only the last events go now, because it has so many."""

    seqs: list[int]
    position: int | None
    kept: bool = False
    cut: int | None = None

    def __bool__(self) -> bool:
        return bool(self.seqs) or self.cut is not None


class Retirement(Struct, frozen=True, kw_only=True):
    """What one transaction has retired: so many of what was asked for, and where to look on (None: nowhere)."""

    number: int
    position: int | None
    kept: bool = False


def going(looked_at: Sequence[Past], before: int, limit: int, looks: int) -> Going:
    """Of what was looked at (`looks` rows at the most), oldest first: what ended before that time, about `limit` rows
    altogether. What was created since cannot have ended before, so there the look ends."""
    seqs: list[int] = []
    rows = 0
    kept = False
    position = None
    for past in looked_at:
        if past.created_at >= before:
            return Going(seqs=seqs, position=None, kept=kept)
        if past.ended_at is None or past.ended_at >= before:
            kept = True
        elif past.events > limit:
            # By itself, and from its end: what is left of a stream has no gaps.
            if seqs:
                return Going(seqs=seqs, position=position, kept=kept)
            return Going(seqs=[], position=past.seq - 1, kept=kept, cut=past.seq)
        else:
            seqs.append(past.seq)
            rows += past.events + ROWS_BESIDES_EVENTS
        position = past.seq
        if rows >= limit:
            return Going(seqs=seqs, position=position, kept=kept)
    return Going(seqs=seqs, position=position if len(looked_at) == looks else None, kept=kept)
