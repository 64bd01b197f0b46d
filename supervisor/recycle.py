"""When a child that works is exchanged for a fresh one: after so many jobs, so long, with so much memory, or when a
handler in it does not stop.

Decides only. One scheduler for a pool: each child has a limit of its own, a little below the pool's, so that children
which started together do not end together; an idle moment is waited for, but not for ever; and what is chosen is
exchanged like in any planned change, with the replacement ready first.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

from supervisor.config import Limits
from supervisor.slots import Slot, State

SPREAD = 0.2
"""The largest share by which a child's own limit is below its pool's."""

IDLE_PATIENCE = 60.0
"""Seconds that a child which is due may go on to be busy."""

RECYCLE_GRACE = 3600.0
"""Seconds that a recycled child has for what it holds. Its replacement works already: there is no hurry, and a job that
is cut off may have no attempt left."""

Reason = Literal["jobs", "age", "memory", "overdue"]


def due(slot: Slot, limits: Limits, now: float) -> Reason | None:
    """Why the slot's child is to be exchanged; None if it is not."""
    if slot.state is not State.READY or slot.ready_at is None:
        return None
    if slot.beat is not None and slot.beat.overdue:
        # A thread cannot be ended, and holds its slot for as long as it runs.
        return "overdue"
    if not (limits.max_jobs or limits.max_age or limits.max_memory):
        return None
    own = 1.0 - SPREAD * _spread(slot)
    if limits.max_jobs and slot.jobs_done >= max(1.0, limits.max_jobs * own):
        return "jobs"
    if limits.max_age and now - slot.ready_at >= limits.max_age * own:
        return "age"
    if limits.max_memory and slot.private_memory is not None and slot.private_memory >= limits.max_memory * own:
        return "memory"
    return None


class Recycler:
    """Remembers since when a child is due. `choose` is called once a round."""

    def __init__(self) -> None:
        self._due_since: dict[tuple[str, int], float] = {}

    def choose(self, children: Iterable[Slot], limits: Limits, room: int, now: float) -> list[tuple[Slot, Reason]]:
        """At most `room` children that are to be exchanged now: idle ones first, then those that were due longest."""
        found = [(child, reason) for child in children if (reason := due(child, limits, now)) is not None]
        since = {(child.name, child.incarnation): now for child, _ in found}
        self._due_since = {key: self._due_since.get(key, value) for key, value in since.items()}
        waiting = [
            (child.jobs_in_hand > 0, self._due_since[child.name, child.incarnation], child.name, child, reason)
            for child, reason in found
        ]
        waiting = [one for one in waiting if not one[0] or now - one[1] >= IDLE_PATIENCE]
        return [(child, reason) for _, _, _, child, reason in sorted(waiting, key=lambda one: one[:3])[: max(0, room)]]


def _spread(slot: Slot) -> float:
    """In [0, 1), the same whenever it is asked for one incarnation, and another one for the next."""
    digest = hashlib.blake2b(f"{slot.name}/{slot.incarnation}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) / 2**32
