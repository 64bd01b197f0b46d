"""All slots of one pool: its mold and its children, and how one set is exchanged for another. Decides only.

Children are forked by the mold, so an empty slot is filled only while the mold is ready; a mold that dies takes no
child with it.

A planned change never takes capacity away first: a replacement under a free number above `workers` is ready before the
child that it replaces drains, and at most the pool's `max_unavailable` are exchanged at a time. New settings are tried
first, by a mold and a few children of their own; only when those are ready is anything that runs touched.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import count

import msgspec

from supervisor import config
from supervisor.facts import REPLACED, ChildRecycled
from supervisor.recycle import RECYCLE_GRACE, Recycler
from supervisor.slots import AbandonSpawn, DeadlinePassed, Drain, Event, Kill, Slot, Stalled, Start, State, Step
from wire.pipe import PreviousEnd

_COMING_UP = (State.SPAWNING, State.BOOTING, State.CONNECTING, State.CONNECTING_SILENT, State.READY, State.READY_SILENT)


MOST_ASKED_FOR = 8
"""Children that are asked for and not announced yet. A mold makes one at a time: more would only wait in its pipe,
which holds some ninety, and their time would run meanwhile."""

_AT_REST = (State.READY, State.BACKOFF, State.STUCK, State.DRAINING)


def mold_slot_name(pool: str, number: int = 1) -> str:
    """A name that no child's slot has: a colon is not allowed in a pool's name."""
    return f"mold:{pool}" if number == 1 else f"mold:{pool}:{number}"


def slot_number(slot: str) -> int:
    """The number of a child's slot in its pool."""
    return int(slot.rpartition("-")[2])


Past = dict[str, tuple[int, PreviousEnd | None]]
"""Slots that are gone: their last incarnation, and how it ended."""


class Trial:
    """New settings with a mold and the first children of their own. `failure` says why they are not taken.

    Of a rehearsal there is the mold alone.
    """

    def __init__(self, settings: config.Pool, mold: Slot, now: float, *, rehearsal: bool) -> None:
        self.settings = settings
        self.mold = mold
        self.rehearsal = rehearsal
        self.children: list[Slot] = []
        self.failure = ""
        self.deadline = now + settings.limits.boot

    @property
    def is_ready(self) -> bool:
        """Everything that was to be started claims work, or could."""
        if self.rehearsal:
            return self.mold.state is State.READY
        return self.is_complete and all(child.state is State.READY for child in self.children)

    @property
    def is_complete(self) -> bool:
        """As many children are started as the settings exchange at a time."""
        return len(self.children) == _share(self.settings)

    def owns(self, slot: str) -> bool:
        """Whether a slot of that name is part of the trial."""
        return any(one.name == slot for one in (self.mold, *self.children))

    def judge(self, now: float) -> None:
        """Sets `failure` when something ended, or the time is over."""
        for slot in (self.mold, *self.children):
            if slot.state not in _COMING_UP:
                self.failure = f"{slot.name}: {_why_it_ended(slot, self.settings.limits.boot)}"
                return
        if now >= self.deadline and not self.is_ready:
            late = next((slot for slot in (*self.children, self.mold) if slot.state is not State.READY), self.mold)
            self.failure = f"{late.name}: not ready within {self.settings.limits.boot:g}s"


class Pool:
    """Wanted against actual. `filling` is false once the pool is being stopped, and before it was ever taken on."""

    def __init__(self, settings: config.Pool, *, on_trial: bool = False, past: Past | None = None) -> None:
        self.settings = settings
        self.name = settings.name
        self.filling = not on_trial
        self.retired = False
        self.outdated = False
        """Its mold would run another build than the supervisor: what runs goes on, and nothing is started any more."""
        self.trial: Trial | None = None
        self._past: Past = {} if past is None else past
        self.mold = self._remembered(_mold(mold_slot_name(self.name), settings))
        self.children: list[Slot] = []
        self.held: set[str] = set()
        """Slots that were drained by hand and stay empty until they are asked for."""
        self.leaving: set[str] = set()
        """Slots that go when their child has ended."""
        self._grace = 0.0
        self._queue: list[str] = []
        self._interrupted: list[str] = []
        self._successors: dict[str, str] = {}
        self._old_molds: list[Slot] = []
        self._recycler = Recycler()
        self._recycled: set[str] = set()
        for number in range(1, 1 if on_trial else settings.workers + 1):
            self._add(number)

    # --- what others may ask -------------------------------------------------------------------------------------

    @property
    def molds(self) -> list[Slot]:
        """The present one first."""
        tried = [self.trial.mold] if self.trial is not None and self.trial.mold is not self.mold else []
        return [self.mold, *tried, *self._old_molds]

    @property
    def slots(self) -> list[Slot]:
        """The molds first, then the children in order."""
        return [*self.molds, *self.children]

    @property
    def is_drained(self) -> bool:
        """No child is left that could still be waited for."""
        return all(child.is_over for child in self.children)

    @property
    def is_over(self) -> bool:
        """No process is left that could still be waited for."""
        return all(slot.is_over for slot in self.slots)

    @property
    def is_rolling(self) -> bool:
        """Some children are still to be exchanged."""
        return bool(self._queue or self._successors)

    @property
    def is_dead(self) -> bool:
        """Nothing works, and nothing will."""
        return self.outdated and self.is_drained

    @property
    def share(self) -> int:
        """Children that may be exchanged at a time."""
        return _share(self.settings)

    def next_deadline(self) -> float:
        """Monotonic seconds; infinity for none."""
        trial = math.inf
        if self.trial is not None and not self.trial.failure and not self.trial.is_ready:
            trial = self.trial.deadline
        return min(trial, *(slot.deadline for slot in self.slots))

    def owns(self, slot: str) -> bool:
        """Whether a slot of that name is this pool's."""
        return any(one.name == slot for one in self.slots)

    def find(self, slot: str) -> Slot:
        """Raises StopIteration when there is none of that name."""
        return next(one for one in self.slots if one.name == slot)

    def is_on_trial(self, slot: str) -> bool:
        """Whether the slot belongs to settings that are not adopted yet."""
        return self.trial is not None and self.trial.owns(slot)

    def terms(self, slot: str) -> tuple[config.Pool, str]:
        """With which settings the slot's next process starts, and from which mold."""
        if self.trial is not None and self.trial.owns(slot):
            return self.trial.settings, self.trial.mold.name
        return self.settings, self.mold.name

    def role(self, slot: str) -> str:
        """What is planned for a slot, in words; empty for nothing."""
        if slot in self.leaving:
            return "leaving"
        if self.is_on_trial(slot):
            return "on trial"
        if slot in self.held:
            return "held"
        if slot in self._successors:
            return f"to be replaced by {self._successors[slot]}"
        if slot in self._queue:
            return "to be replaced"
        replaced = next((old for old, new in self._successors.items() if new == slot), "")
        return f"replaces {replaced}" if replaced else ""

    # --- what happens by itself ----------------------------------------------------------------------------------

    def step(self, event: Event, now: float) -> list[Step]:
        """What a process of this pool did."""
        return self.find(event.slot).step(event, now)

    def tick(self, now: float, *, children_may_start: bool) -> list[Step]:
        """Deadlines that have passed, then what is missing, then what is to be exchanged."""
        steps: list[Step] = []
        for slot in self.slots:
            if slot.deadline <= now:
                steps += self._late(slot, now)
        if self.filling or self.trial is not None:
            steps += self._try_on(now, children_may_start=children_may_start)
            self._sweep()
        if self.filling:
            steps += self._end_stalled(now)
            steps += self._fill(now, children_may_start=children_may_start)
            steps += self._exchange(now, children_may_start=children_may_start)
            steps += self._close_old_molds(now)
        return steps

    def _late(self, slot: Slot, now: float) -> list[Step]:
        steps = self._order(slot, DeadlinePassed, now)
        for step in steps[:]:
            if isinstance(step, AbandonSpawn):
                # Only a mold that hangs leaves a spawn unanswered; the next one takes its place.
                mold = self.find(self.terms(slot.name)[1])
                if mold.state is State.READY:
                    since = step.asked_at
                    steps += mold.step(
                        Stalled(slot=mold.name, incarnation=mold.incarnation, unanswered_since=since), now
                    )
        return steps

    def forgive(self, seconds: float) -> None:
        """Time in which the supervisor did not run counts against no process."""
        for slot in self.slots:
            slot.forgive(seconds)
        if self.trial is not None:
            self.trial.deadline += seconds

    def refuse_build(self, slot: str, grace: float, now: float) -> list[Step]:
        """A process runs another build than the supervisor: it goes, and no other is started in its place."""
        if self.trial is not None and self.trial.owns(slot):
            self.trial.failure = f"{slot}: {REPLACED}"
            return []
        self.outdated = True
        steps = self._interrupt_exchange(grace, now)
        self._interrupted.clear()
        return steps + self._drain(self.find(slot), grace, now)

    # --- stopping ------------------------------------------------------------------------------------------------

    def drain(self, grace: float, now: float) -> list[Step]:
        """Let every child finish within `grace` seconds; nothing is started any more."""
        self.filling = False
        self._end_trial()
        return [step for child in self.children for step in self._drain(child, grace, now)]

    def kill(self, now: float) -> list[Step]:
        """End every child at once."""
        self.filling = False
        self._end_trial()
        return [step for child in self.children for step in self._order(child, Kill, now)]

    def close(self, now: float) -> list[Step]:
        """End the molds, which have nothing to finish. Children that are drained and gone need none."""
        self.filling = False
        self._end_trial()
        steps = [step for mold in self.molds for step in self._drain(mold, 0.0, now)]
        for child in self.children:
            # A stuck child that ended after all must not come back.
            if child.state is State.BACKOFF:
                steps += self._order(child, Kill, now)
        return steps

    # --- planned changes -----------------------------------------------------------------------------------------

    def hold(self, slot: str, grace: float, now: float) -> list[Step]:
        """Drain one child and leave its slot empty."""
        self.held.add(slot)
        if slot in self._queue:
            self._queue.remove(slot)
        return self._drain(self.find(slot), grace, now)

    def replace(self, slots: Iterable[str], grace: float) -> None:
        """Exchange children one after the other, each for a new one that is ready first. Empty slots are filled."""
        self._grace = grace
        for slot in slots:
            child = self.find(slot)
            self.held.discard(slot)
            if not self.role(slot) and child.state is not State.EMPTY:
                self._queue.append(slot)

    def recycle(self, grace: float, now: float) -> list[Step]:
        """Exchange children that reached a limit, never more at a time than the pool can spare."""
        if not self.filling or self.trial is not None or self.is_rolling or self.outdated:
            return []
        missing = sum(child.state is not State.READY for child in self.staying)
        # Those that still finish what they hold take no capacity, and memory all the same.
        room = self.share - missing - len(self.leaving)
        steps: list[Step] = []
        for child, reason in self._recycler.choose(self.staying, self.settings.limits, room, now):
            steps.append(
                ChildRecycled(
                    pool=self.name,
                    slot=child.name,
                    incarnation=child.incarnation,
                    reason=reason,
                    jobs_done=child.jobs_done,
                    age=now - (child.ready_at or now),
                    private_memory=child.private_memory,
                )
            )
            self.replace([child.name], grace)
            self._recycled.add(child.name)
        return steps

    def scale(self, workers: int, grace: float, now: float) -> list[Step]:
        """Another number of children: new ones under the lowest free numbers, or the highest ones drained."""
        self.settings = msgspec.structs.replace(self.settings, workers=workers)
        staying = self.staying
        for _ in range(workers - len(staying)):
            self._add(self._free_number(1))
        steps: list[Step] = []
        for child in staying[workers:]:
            steps += self._leave(child, grace, now)
        return steps

    def adjust(self, settings: config.Pool, grace: float, now: float) -> list[Step]:
        """Settings that need no new process: limits, restart policy and the number of children."""
        self.settings = settings
        for slot in self.children:
            slot.limits, slot.restart = settings.limits, settings.restart
        self.mold.restart = settings.restart
        return self.scale(settings.workers, grace, now)

    def try_out(self, settings: config.Pool, grace: float, now: float, *, rehearsal: bool = False) -> list[Step]:
        """Start a mold and the first children (in a rehearsal none) with new settings. What runs is not touched."""
        self._grace = grace
        steps = self._interrupt_exchange(grace, now)
        if self.filling:
            taken = {mold.name for mold in self.molds}
            name = next(name for name in (mold_slot_name(self.name, n) for n in count(1)) if name not in taken)
            mold = self._remembered(_mold(name, settings))
        else:
            mold = self.mold
        self.trial = Trial(settings, mold, now, rehearsal=rehearsal)
        return steps + self._start(mold, now)

    def commit(self, grace: float, now: float) -> list[Step]:
        """The trial's settings are the pool's; its children replace the first of the old ones, the others follow."""
        trial = self.trial
        if trial is None:
            return []
        self.trial = None
        self.settings, self.filling, self._grace = trial.settings, True, grace
        if self.mold is not trial.mold:
            self._old_molds.append(self.mold)
            self.mold = trial.mold
        self.held.clear()
        self._interrupted.clear()
        new = {child.name for child in trial.children}
        old = [child for child in self.staying if child.name not in new]
        steps: list[Step] = []
        for child in old[self.settings.workers :]:
            steps += self._leave(child, grace, now)
        old = old[: self.settings.workers]
        for child in old:
            child.limits, child.restart = self.settings.limits, self.settings.restart
        self._successors = {child.name: name for child, name in zip(old, sorted(new, key=slot_number), strict=False)}
        self._queue = [child.name for child in old if child.name not in self._successors]
        for _ in range(self.settings.workers - max(len(old), len(new))):
            self._add(self._free_number(1))
        return steps

    def abort(self, grace: float, now: float) -> list[Step]:
        """The trial ends, and everything is as it was."""
        trial = self.trial
        if trial is None:
            return []
        self._end_trial()
        steps = [step for child in trial.children for step in self._leave(child, grace, now)]
        # What an earlier change had begun goes on.
        self.replace([slot for slot in self._interrupted if self.owns(slot)], grace)
        self._interrupted.clear()
        return steps + self._drain(trial.mold, 0.0, now)

    def retire(self, grace: float, now: float) -> list[Step]:
        """The pool is wanted no more."""
        self.retired = True
        return self.drain(grace, now)

    def remember(self, slot: Slot) -> None:
        """A slot is about to go; its name may come back."""
        self._past[slot.name] = (slot.incarnation, slot.last_end)

    # --- parts ---------------------------------------------------------------------------------------------------

    @property
    def _asked_for(self) -> int:
        return sum(child.state is State.SPAWNING for child in self.children)

    def _end_stalled(self, now: float) -> list[Step]:
        """Children that beat and do not get on: no more at a time than a planned change would take, so that whatever
        they have in common does not empty the pool, should this ever be a mistake."""
        stalled = [child for child in self.children if child.is_stalled]
        busy = [child for child in self.staying if child.state not in _AT_REST and not child.is_stalled]
        return [
            step for child in stalled[: max(0, self.share - len(busy))] for step in self._order(child, Stalled, now)
        ]

    def _fill(self, now: float, *, children_may_start: bool) -> list[Step]:
        steps: list[Step] = []
        if self.outdated:
            return steps
        if self.mold.state is State.EMPTY:
            steps += self._start(self.mold, now)
        if not children_may_start or self.mold.state is not State.READY:
            return steps
        # A mass death must not become a mass start: those that had their turn before wait for some of their siblings.
        room = max(1, self.share) - sum(child.is_starting for child in self.children if child.incarnation > 1)
        # A child whose successor is on its way is not wanted back.
        unwanted = self.held | self.leaving | self._successors.keys()
        for child in self.children:
            if self._asked_for >= MOST_ASKED_FOR:
                break
            if child.state is State.EMPTY and child.name not in unwanted and not self.is_on_trial(child.name):
                if child.name in self._queue:
                    # It starts from the present mold anyway.
                    self._queue.remove(child.name)
                if child.incarnation > 0:
                    if room <= 0:
                        continue
                    room -= 1
                steps += self._start(child, now)
        return steps

    def _exchange(self, now: float, *, children_may_start: bool) -> list[Step]:
        steps: list[Step] = []
        for old, new in list(self._successors.items()):
            if not self.owns(old) or not self.owns(new):
                del self._successors[old]
            elif old not in self.leaving and self.find(new).state is State.READY:
                patient = old in self._recycled
                steps += self._leave(self.find(old), max(self._grace, RECYCLE_GRACE) if patient else self._grace, now)
                if patient:
                    # It may take its time, and holds up nothing else.
                    del self._successors[old]
                    self._recycled.discard(old)
        if self.outdated or not children_may_start or self.mold.state is not State.READY or self.trial is not None:
            return steps
        while self._queue and len(self._successors) < self.share and self._asked_for < MOST_ASKED_FOR:
            successor = self._add(self._free_number(self.settings.workers + 1))
            self._successors[self._queue.pop(0)] = successor.name
            steps += self._start(successor, now)
        return steps

    def _interrupt_exchange(self, grace: float, now: float) -> list[Step]:
        """Nothing further is exchanged for now; successors of children that still work are not needed."""
        steps: list[Step] = []
        for old, new in self._successors.items():
            if self.owns(old) and old not in self.leaving and self.owns(new):
                self._interrupted.append(old)
                steps += self._leave(self.find(new), grace, now)
        self._interrupted += self._queue
        self._queue.clear()
        self._successors.clear()
        return steps

    def _try_on(self, now: float, *, children_may_start: bool) -> list[Step]:
        trial = self.trial
        if trial is None or trial.failure:
            return []
        trial.judge(now)
        if trial.failure or trial.rehearsal or trial.mold.state is not State.READY or not children_may_start:
            return []
        if not trial.children:
            trial.deadline = now + trial.settings.limits.boot
        above = trial.settings.workers + 1 if self.staying else 1
        steps: list[Step] = []
        while not trial.is_complete and self._asked_for < MOST_ASKED_FOR:
            child = self._add(self._free_number(above), trial.settings)
            trial.children.append(child)
            steps += self._start(child, now)
        return steps

    def _end_trial(self) -> None:
        """Its slots are the pool's to be rid of."""
        if self.trial is not None:
            if self.trial.mold is not self.mold:
                self._old_molds.append(self.trial.mold)
            self.leaving.update(child.name for child in self.trial.children)
            self.trial = None

    def _close_old_molds(self, now: float) -> list[Step]:
        gone = [child.is_over for child in self.children if child.name in self.leaving]
        if self.is_rolling or not all(gone) or any(child.state is State.SPAWNING for child in self.children):
            # Old children have the processes of their jobs forked by the mold that they come from, with its code.
            return []
        live = (State.SPAWNING, State.BOOTING, State.CONNECTING, State.READY)
        return [s for mold in self._old_molds if mold.state in live for s in self._drain(mold, 0.0, now)]

    def _sweep(self) -> None:
        """Slots that are to go and have no process are forgotten, but for their number of incarnations."""
        gone = (State.EMPTY, State.BACKOFF)
        for slot in [child for child in self.children if child.name in self.leaving and child.state in gone]:
            self.children.remove(slot)
            self.leaving.discard(slot.name)
            self.held.discard(slot.name)
            self.remember(slot)
        for mold in [mold for mold in self._old_molds if mold.state in gone]:
            self._old_molds.remove(mold)
            self.remember(mold)

    @property
    def staying(self) -> list[Slot]:
        """Children that count: neither leaving, nor on trial, nor with a successor."""
        return [
            child
            for child in self.children
            if child.name not in self.leaving
            and child.name not in self._successors
            and not self.is_on_trial(child.name)
        ]

    def _add(self, number: int, settings: config.Pool | None = None) -> Slot:
        settings = settings or self.settings
        name = f"{self.name}-{number}"
        slot = self._remembered(Slot(name, self.name, "child", settings.limits, settings.restart))
        self.children.append(slot)
        self.children.sort(key=lambda child: slot_number(child.name))
        return slot

    def _remembered(self, slot: Slot) -> Slot:
        """A name that comes back goes on counting: slot and incarnation name one process, ever."""
        slot.incarnation, slot.last_end = self._past.get(slot.name, (0, None))
        return slot

    def _free_number(self, lowest: int) -> int:
        taken = {slot_number(child.name) for child in self.children}
        return next(number for number in _upwards(lowest) if number not in taken)

    def _leave(self, child: Slot, grace: float, now: float) -> list[Step]:
        self.leaving.add(child.name)
        if child.name in self._queue:
            self._queue.remove(child.name)
        return self._drain(child, grace, now)

    def _drain(self, slot: Slot, grace: float, now: float) -> list[Step]:
        return slot.step(Drain(slot=slot.name, incarnation=slot.incarnation, grace=grace), now)

    def _start(self, slot: Slot, now: float) -> list[Step]:
        concurrency = self.terms(slot.name)[0].concurrency
        return slot.step(Start(slot=slot.name, incarnation=slot.incarnation, concurrency=concurrency), now)

    def _order(self, slot: Slot, order: type[DeadlinePassed | Kill | Stalled], now: float) -> list[Step]:
        return slot.step(order(slot=slot.name, incarnation=slot.incarnation), now)


def _mold(name: str, settings: config.Pool) -> Slot:
    # A mold does not beat: it has no loop, and nobody waits for it but its own spawns, which have a deadline.
    limits = msgspec.structs.replace(settings.limits, silence=config.PositiveDuration(math.inf))
    return Slot(name, settings.name, "mold", limits, settings.restart)


def _share(settings: config.Pool) -> int:
    return max(1, math.ceil(settings.workers * settings.restart.max_unavailable / 100))


def _upwards(lowest: int) -> Iterator[int]:
    return count(lowest)


def _why_it_ended(slot: Slot, boot: float) -> str:
    if slot.bye is not None:
        return slot.bye.reason
    if slot.last_end is not None and slot.last_end.incarnation == slot.incarnation:
        return slot.last_end.detail
    # It is about to be killed: an end that is known is that of an earlier one of this name.
    return f"it is {slot.state.value}" if slot.was_ever_ready else f"not ready within {boot:g}s"
