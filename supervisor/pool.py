"""All slots of one pool: its mold and its children. Decides only.

Children are forked by the mold, so an empty slot is filled only while the mold is ready; a mold that dies takes no
child with it.
"""

import math

import msgspec

from supervisor import config
from supervisor.slots import AbandonSpawn, DeadlinePassed, Drain, Event, Kill, Slot, Start, State, Step


def mold_slot_name(pool: str) -> str:
    """A name that no child's slot has: a colon is not allowed in a pool's name."""
    return f"mold:{pool}"


class Pool:
    """Wanted against actual. `filling` is false once the pool is being stopped."""

    def __init__(self, settings: config.Pool) -> None:
        self.settings = settings
        self.name = settings.name
        self.filling = True
        # A mold does not beat: it has no loop, and nobody waits for it but its own spawns, which have a deadline.
        mold_limits = msgspec.structs.replace(settings.limits, silence=config.PositiveDuration(math.inf))
        self.mold = Slot(mold_slot_name(self.name), self.name, "mold", mold_limits, settings.restart)
        self.children = [
            Slot(f"{self.name}-{number}", self.name, "child", settings.limits, settings.restart)
            for number in range(1, settings.workers + 1)
        ]
        self._slots = {slot.name: slot for slot in self.slots}

    @property
    def slots(self) -> list[Slot]:
        """The mold first, then the children in order."""
        return [self.mold, *self.children]

    @property
    def is_drained(self) -> bool:
        """No child is left that could still be waited for."""
        return all(child.is_over for child in self.children)

    @property
    def is_over(self) -> bool:
        """No process is left that could still be waited for."""
        return all(slot.is_over for slot in self.slots)

    def next_deadline(self) -> float:
        """Monotonic seconds; infinity for none."""
        return min(slot.deadline for slot in self.slots)

    def owns(self, slot: str) -> bool:
        """Whether a slot of that name is this pool's."""
        return slot in self._slots

    def step(self, event: Event, now: float) -> list[Step]:
        """What a process of this pool did."""
        return self._slots[event.slot].step(event, now)

    def tick(self, now: float, *, children_may_start: bool) -> list[Step]:
        """Deadlines that have passed, then what is missing."""
        steps: list[Step] = []
        for slot in self.slots:
            if slot.deadline <= now:
                steps += self._order(slot, DeadlinePassed, now)
        if any(isinstance(step, AbandonSpawn) for step in steps):
            # Only a mold that hangs leaves a spawn unanswered; the next one takes its place.
            steps += self._order(self.mold, Kill, now)
        return steps + self._fill(now, children_may_start=children_may_start)

    def drain(self, grace: float, now: float) -> list[Step]:
        """Let every child finish within `grace` seconds; nothing is started any more."""
        self.filling = False
        steps: list[Step] = []
        for child in self.children:
            order = Drain(slot=child.name, incarnation=child.incarnation, grace=grace)
            steps += child.step(order, now)
        return steps

    def kill(self, now: float) -> list[Step]:
        """End every child at once."""
        self.filling = False
        return [step for child in self.children for step in self._order(child, Kill, now)]

    def close(self, now: float) -> list[Step]:
        """End the mold, which has nothing to finish. Children that are drained and gone need none."""
        self.filling = False
        steps = self.mold.step(Drain(slot=self.mold.name, incarnation=self.mold.incarnation, grace=0.0), now)
        for child in self.children:
            # A stuck child that ended after all must not come back.
            if child.state is State.BACKOFF:
                steps += self._order(child, Kill, now)
        return steps

    def forgive(self, seconds: float) -> None:
        """Time in which the supervisor did not run counts against no process."""
        for slot in self.slots:
            slot.forgive(seconds)

    def _fill(self, now: float, *, children_may_start: bool) -> list[Step]:
        if not self.filling:
            return []
        steps: list[Step] = []
        if self.mold.state is State.EMPTY:
            steps += self._order(self.mold, Start, now)
        if children_may_start and self.mold.state is State.READY:
            for child in self.children:
                if child.state is State.EMPTY:
                    steps += self._order(child, Start, now)
        return steps

    def _order(self, slot: Slot, order: type[DeadlinePassed | Kill | Start], now: float) -> list[Step]:
        return slot.step(order(slot=slot.name, incarnation=slot.incarnation), now)
