"""The whole: the embedded control plane and every pool, in the order in which they start and stop. Decides only.

running --stop--> draining (children) --all over--> closing (molds, control plane) --all over--> over
"""

import math
from enum import StrEnum
from typing import Literal

from supervisor import config, reload
from supervisor.errors import (
    ConfigurationError,
    ControlPlaneStartError,
    HandlerImportError,
    PackageReplacedError,
    RefusedError,
    SupervisorError,
)
from supervisor.facts import (
    REPLACED,
    BuildSkew,
    ChangeAborted,
    ChangeAdopted,
    ChangeBegan,
    ChangeRefused,
    DrainedSlot,
    DrainFinished,
    DrainStarted,
    EventRefused,
)
from supervisor.pool import Past, Pool
from supervisor.slots import Booted, DeadlinePassed, Died, Drain, Event, SaidBye, Slot, Start, State, Step

CONTROL_PLANE_SLOT = "control-plane"

SHORT_GRACE = 5.0
"""Seconds that children have after a second request to stop."""

CLOSE_GRACE = 10.0
"""Seconds that the control plane has to end when the children are gone."""

_HOPELESS_EXITS = frozenset({64, 65, 73, 77, 78})
"""Exit codes by which a process says that its settings are at fault: a second try would end alike."""

_KEYS_OF_A_POOL = ("modules: ", "entry_points: ", "actions: ", "models: ", "providers.", "queues: ")
"""How the sentence of a process begins that names a key of its pool."""

CUT_OFF_EXIT = 75
"""Exit code of a stop that ended jobs before they were done: they will be done again."""


class Phase(StrEnum):
    """Where the whole stands."""

    RUNNING = "running"
    DRAINING = "draining"
    CLOSING = "closing"
    OVER = "over"


class Change:
    """A reload under way. `outcome` is "trying" until the first new children are ready, or one of them is not.

    A rehearsal ends when the new molds are ready, and leaves nothing behind; `before` is the change before it.
    """

    def __init__(
        self, settings: config.Config, plan: reload.Plan, *, rehearsal: bool = False, before: "Change | None" = None
    ) -> None:
        self.settings = settings
        self.plan = plan
        self.rehearsal = rehearsal
        self.before = before
        self.outcome: Literal["trying", "adopted", "aborted", "rehearsed"] = "trying"
        self.problem = ""


class Fleet:
    """Every slot there is. `error` says why it stopped by itself, None when it was asked."""

    def __init__(self, settings: config.Config, build: str) -> None:
        self.settings = settings
        self.build = build
        self.build_skew = False
        self.phase = Phase.RUNNING
        self.error: SupervisorError | None = None
        self._past: Past = {}
        self.pools = [Pool(pool, past=self._past) for pool in settings.pool]
        self.control_plane = (
            Slot(CONTROL_PLANE_SLOT, "", "control_plane", config.Limits(), config.Restart())
            if settings.control_plane.embedded
            else None
        )
        self.change: Change | None = None
        self._founders = self.slots
        self._stops = 0
        self._stop_began = 0.0
        self._stopped_children: list[Slot] = []

    # --- what others may ask -------------------------------------------------------------------------------------

    @property
    def slots(self) -> list[Slot]:
        """Control plane, then each pool's mold and children."""
        first = [self.control_plane] if self.control_plane is not None else []
        return first + [slot for pool in self.pools for slot in pool.slots]

    @property
    def children(self) -> list[Slot]:
        """Every child's slot."""
        return [child for pool in self.pools for child in pool.children]

    @property
    def is_ready(self) -> bool:
        """At least one child claims work, and the embedded control plane (if any) serves."""
        control_plane_serves = self.control_plane is None or self.control_plane.is_working
        return self.phase is Phase.RUNNING and control_plane_serves and any(child.is_working for child in self.children)

    @property
    def exit_code(self) -> int:
        """Of the whole, once it is over."""
        if self.error is not None:
            return self.error.exit_code
        return CUT_OFF_EXIT if any(_cut_jobs_off(child) for child in self._stopped_children) else 0

    @property
    def running(self) -> config.Config:
        """What runs now: the adopted settings, with pools as they were scaled."""
        return reload.running(self.settings, [pool.settings for pool in self.pools if not pool.retired])

    @property
    def grace(self) -> float:
        """Seconds that a child has to finish when it is drained."""
        return float(self.settings.supervisor.drain_timeout)

    def next_deadline(self) -> float:
        """Monotonic seconds; infinity for none."""
        own = self.control_plane.deadline if self.control_plane is not None else math.inf
        return min(own, *(pool.next_deadline() for pool in self.pools))

    def pool_of(self, slot: str) -> Pool | None:
        """The pool that has a slot of that name."""
        return next((pool for pool in self.pools if pool.owns(slot)), None)

    def terms(self, slot: str) -> tuple[config.Config, config.Pool, str]:
        """With which settings a slot of a pool is filled, and the name of the mold. Raises LookupError."""
        pool = self.pool_of(slot)
        if pool is None:
            raise LookupError(f"{slot} is no slot")
        trying = self.change is not None and self.change.outcome == "trying" and pool.is_on_trial(slot)
        settings = self.change.settings if trying and self.change is not None else self.settings
        return (settings, *pool.terms(slot))

    def kills(self, slot: str) -> bool:
        """Whether the slot's process is being killed by us."""
        killing = (State.KILLED, State.ENDING, State.STUCK)
        return any(one.name == slot and one.state in killing for one in self.slots)

    # --- what changes it -----------------------------------------------------------------------------------------

    def step(self, event: Event, now: float) -> list[Step]:
        """What a process did."""
        if self.control_plane is not None and event.slot == CONTROL_PLANE_SLOT:
            steps = self.control_plane.step(event, now)
        else:
            pool = self.pool_of(event.slot)
            if pool is None:
                return [_refused(event)]
            steps = pool.step(event, now)
        if isinstance(event, Booted) and event.build != self.build:
            steps += self._notice_skew(event, now)
        if self.phase is Phase.RUNNING and isinstance(event, SaidBye | Died):
            steps += self._give_up(event, now)
        return steps

    def _notice_skew(self, event: Booted, now: float) -> list[Step]:
        """The control plane speaks to everybody by a public protocol, so one of another build is better than none."""
        steps: list[Step] = []
        if not self.build_skew:
            self.build_skew = True
            steps.append(
                BuildSkew(pool="", slot=event.slot, incarnation=event.incarnation, build=event.build, ours=self.build)
            )
        pool = self.pool_of(event.slot)
        return steps + (pool.refuse_build(event.slot, self.grace, now) if pool is not None else [])

    def tick(self, now: float) -> list[Step]:
        """Deadlines that have passed, what is missing, and the next phase when it is due."""
        steps = self._tick_control_plane(now)
        open_for_children = self.control_plane is None or self.control_plane.was_ever_ready
        for pool in self.pools:
            steps += pool.tick(now, children_may_start=open_for_children)
        if self.phase is Phase.RUNNING:
            steps += self._decide_change(now) + self._drop_retired(now)
            steps += [step for pool in self.pools for step in pool.recycle(self.grace, now)]
            if self.build_skew and all(pool.is_dead for pool in self.pools):
                # Whoever supervises us starts the new package; to stay would help nobody.
                self.error = PackageReplacedError(f"no worker is left, and {REPLACED}")
                steps += self._stop(str(self.error), 0.0, now)
        if self.phase is Phase.DRAINING and all(pool.is_drained for pool in self.pools):
            steps += self._close(now)
        if self.phase is Phase.CLOSING and all(slot.is_over for slot in self.slots):
            self.phase = Phase.OVER
            steps.append(self._report(now))
        return steps

    def stop(self, why: str, now: float) -> list[Step]:
        """A request to stop: the first drains, the second shortens the grace, any further one kills."""
        self._stops += 1
        if self._stops >= 3:
            return self.kill(why, now)
        grace = float(self.settings.supervisor.drain_timeout) if self._stops == 1 else SHORT_GRACE
        return self._stop(why, min(grace, float(self.settings.supervisor.drain_timeout)), now)

    def kill(self, why: str, now: float) -> list[Step]:
        """End all children at once."""
        self._stops = max(self._stops, 3)
        steps = self._stop(why, 0.0, now)
        return steps + [step for pool in self.pools for step in pool.kill(now)]

    def forgive(self, seconds: float) -> None:
        """Time in which the supervisor did not run counts against no process."""
        if self.control_plane is not None:
            self.control_plane.forgive(seconds)
        for pool in self.pools:
            pool.forgive(seconds)

    # --- planned changes -----------------------------------------------------------------------------------------

    def plan(self, wanted: config.Config) -> reload.Plan:
        """What a reload to `wanted` would do."""
        slots = {pool.name: [child.name for child in pool.staying] for pool in self.pools if not pool.retired}
        rolling = {pool.name for pool in self.pools if pool.is_rolling}
        planned = reload.plan(self.running, wanted, slots, rolling)
        if self.build_skew and any(pool.needs_new_mold for pool in planned.pools):
            return reload.Plan(refused=[REPLACED], pools=[])
        return planned

    def busy(self, wanted: config.Config | None = None) -> str:
        """Why nothing can be changed now, or not to `wanted`; empty when it can."""
        if self.phase is not Phase.RUNNING:
            return f"the supervisor is {self.phase.value}"
        if self.change is not None and self.change.outcome == "trying":
            return "a reload is under way; ask again when it is done"
        names = {pool.name for pool in wanted.pool} if wanted is not None else set()
        ending = [pool.name for pool in self.pools if pool.retired and pool.name in names]
        return f"pool {ending[0]} was given up and still ends; ask again when it is gone" if ending else ""

    def begin_change(self, wanted: config.Config, now: float) -> tuple[Change, list[Step]]:
        """Try new settings out. Not while `busy`. What runs is touched only when the first new children are ready."""
        change = self.change = Change(wanted, self.plan(wanted))
        if change.plan.refused:
            change.outcome, change.problem = "aborted", "\n".join(change.plan.refused)
            return change, [ChangeRefused(problems=change.plan.refused)]
        steps: list[Step] = [ChangeBegan(actions=reload.lines(change.plan))]
        return change, steps + self._try_out(change, now)

    def rehearse(self, wanted: config.Config, now: float) -> tuple[Change, list[Step]]:
        """Only the new molds, to see whether they come up. Not while `busy`, and not while anything is exchanged."""
        change = self.change = Change(wanted, self.plan(wanted), rehearsal=True, before=self.change)
        return change, self._try_out(change, now)

    def _try_out(self, change: Change, now: float) -> list[Step]:
        steps: list[Step] = []
        settings = {pool.name: pool for pool in change.settings.pool}
        for planned in change.plan.pools:
            if planned.action == "start":
                self.pools.append(Pool(settings[planned.name], on_trial=True, past=self._past))
            if planned.needs_new_mold:
                pool = self._pool(planned.name)
                steps += pool.try_out(settings[planned.name], self.grace, now, rehearsal=change.rehearsal)
        return steps

    def _decide_change(self, now: float) -> list[Step]:
        change = self.change
        if change is None or change.outcome != "trying":
            return []
        trials = [pool.trial for pool in self.pools if pool.trial is not None]
        failures = [trial.failure for trial in trials if trial.failure]
        if failures:
            change.outcome, change.problem = "aborted", failures[0]
            told = [] if change.rehearsal else [ChangeAborted(problem=failures[0])]
            return [*told, *self._end_trials(change, now)]
        if not all(trial.is_ready for trial in trials):
            return []
        if change.rehearsal:
            change.outcome = "rehearsed"
            return self._end_trials(change, now)
        change.outcome = "adopted"
        return [ChangeAdopted(), *self._commit(change, now)]

    def _end_trials(self, change: Change, now: float) -> list[Step]:
        steps: list[Step] = []
        for pool in self.pools:
            steps += pool.abort(self.grace, now)
            pool.retired = pool.retired or not pool.filling
        if change.rehearsal:
            self.change = change.before
        return steps

    def _commit(self, change: Change, now: float) -> list[Step]:
        """Grace and limits of what is drained are those that it was started with."""
        grace = self.grace
        settings = {pool.name: pool for pool in change.settings.pool}
        self.settings = change.settings
        steps: list[Step] = []
        for planned in change.plan.pools:
            pool = self._pool(planned.name)
            if planned.needs_new_mold:
                steps += pool.commit(grace, now)
            elif planned.action == "drain":
                steps += pool.retire(grace, now)
            else:
                steps += pool.adjust(settings[planned.name], grace, now)
        return steps

    def _drop_retired(self, now: float) -> list[Step]:
        steps: list[Step] = []
        for pool in [pool for pool in self.pools if pool.retired and pool.is_drained]:
            if pool.is_over:
                for slot in pool.slots:
                    pool.remember(slot)
                self.pools.remove(pool)
            else:
                steps += pool.close(now)
        return steps

    def _pool(self, name: str) -> Pool:
        return next(pool for pool in self.pools if pool.name == name and not pool.retired)

    # --- parts ---------------------------------------------------------------------------------------------------

    def _tick_control_plane(self, now: float) -> list[Step]:
        slot = self.control_plane
        if slot is None:
            return []
        steps: list[Step] = []
        if slot.deadline <= now:
            steps += slot.step(DeadlinePassed(slot=slot.name, incarnation=slot.incarnation), now)
        if slot.state is State.EMPTY and self.phase in (Phase.RUNNING, Phase.DRAINING):
            # Also while children drain: their last reports need somebody to acknowledge them.
            steps += slot.step(Start(slot=slot.name, incarnation=slot.incarnation), now)
        return steps

    def _stop(self, why: str, grace: float, now: float) -> list[Step]:
        if self.phase not in (Phase.RUNNING, Phase.DRAINING):
            return []
        if self.phase is Phase.RUNNING:
            if self.change is not None and self.change.outcome == "trying":
                self.change.outcome, self.change.problem = "aborted", f"the supervisor stops ({why})"
            self.phase = Phase.DRAINING
            self._stop_began = now
            self._stopped_children = [child for child in self.children if not child.is_over]
        alive = [child for child in self._stopped_children if not child.is_over]
        jobs = sum(child.jobs_in_hand for child in alive)
        steps: list[Step] = [DrainStarted(why=why, grace=grace, children=len(alive), jobs_in_hand=jobs)]
        return steps + [step for pool in self.pools for step in pool.drain(grace, now)]

    def _close(self, now: float) -> list[Step]:
        self.phase = Phase.CLOSING
        steps = [step for pool in self.pools for step in pool.close(now)]
        slot = self.control_plane
        if slot is not None:
            steps += slot.step(Drain(slot=slot.name, incarnation=slot.incarnation, grace=CLOSE_GRACE), now)
        return steps

    def _report(self, now: float) -> DrainFinished:
        byes = [child.bye for child in self._stopped_children if child.bye is not None]
        return DrainFinished(
            seconds=now - self._stop_began,
            finished=sum(bye.finished for bye in byes),
            handed_back=sum(bye.handed_back for bye in byes),
            cut_off=sum(bye.cut_off for bye in byes),
            killed=[child.name for child in self._stopped_children if child.killed_in_stop],
            stuck=[slot.name for slot in self.slots if slot.state is State.STUCK],
            slots={child.name: _drained(child) for child in self._stopped_children},
        )

    def _give_up(self, event: SaidBye | Died, now: float) -> list[Step]:
        """A first start that cannot succeed ends the whole: nobody would look at a log that repeats itself."""
        # Only what was there from the beginning: a change that goes wrong is told to who asked for it.
        founder = next((slot for slot in self._founders if slot.name == event.slot and slot in self.slots), None)
        error = self._hopeless(founder, event) if founder is not None else None
        if error is None:
            return []
        self.error = error
        return self.kill(str(error), now) if not self._anything_in_hand() else self._stop(str(error), SHORT_GRACE, now)

    def _anything_in_hand(self) -> bool:
        return any(child.jobs_in_hand for child in self.children)

    def _hopeless(self, slot: Slot, event: SaidBye | Died) -> SupervisorError | None:
        if isinstance(event, SaidBye):
            hopeless = slot.kind == "mold" and not slot.was_ever_ready
            return HandlerImportError([self._sentence(slot, event.bye.reason)]) if hopeless else None
        if slot.kind == "mold" and not slot.was_ever_ready and event.exit_code is not None and event.incarnation == 1:
            # Whatever cannot be imported is said. Who ends in the middle of it was ended by what it imports.
            reason = (
                f"modules: the process that imports them ended with exit code {event.exit_code} in the middle of it; "
                f"look for os._exit in them and in what they import{_last_words(event)}"
            )
            return HandlerImportError([self._sentence(slot, reason)])
        if event.exit_code in _HOPELESS_EXITS and not slot.was_ever_ready and event.incarnation == 1:
            reason = slot.bye.reason if slot.bye is not None else _said(event)
            if slot.kind == "control_plane":
                sentence = f"control_plane.embedded: the control plane cannot start: {reason}"
                return ControlPlaneStartError(sentence, event.exit_code)
            if event.exit_code == ConfigurationError.exit_code:
                return ConfigurationError([self._sentence(slot, reason)])
        ends = [child.last_end for child in self.children if child.state is State.BACKOFF]
        refused = [end.detail for end in ends if end is not None and end.cause == "refused"]
        if self.settings.exit_when_refused and len(refused) == len(self.children):
            return RefusedError(refused[0])
        return None

    def _sentence(self, slot: Slot, reason: str) -> str:
        """What a process of a pool said of its settings, with the place of the key that it names."""
        return sentence_of_pool(next(index for index, pool in enumerate(self.pools) if pool.owns(slot.name)), reason)


def sentence_of_pool(index: int, reason: str) -> str:
    """What a process of a pool said, with the place in the pool file."""
    return f"pool[{index}].{reason}" if reason.startswith(_KEYS_OF_A_POOL) else f"pool[{index}]: {reason}"


def _drained(child: Slot) -> DrainedSlot:
    bye = child.bye
    return DrainedSlot(
        finished=bye.finished if bye is not None else 0,
        handed_back=bye.handed_back if bye is not None else 0,
        cut_off=bye.cut_off if bye is not None else 0,
        end=child.state.value if child.state is State.STUCK else "killed" if child.killed_in_stop else "drained",
    )


def _refused(event: Event) -> EventRefused:
    return EventRefused(
        pool="", slot=event.slot, incarnation=event.incarnation, state="gone", refused=type(event).__name__
    )


def _said(event: Died) -> str:
    last = event.output[-1] if event.output else f"exit code {event.exit_code}"
    return last.removeprefix("mobius-control-plane: ")


def _last_words(event: Died) -> str:
    return f" (its last words: {event.output[-1]})" if event.output else ""


def _cut_jobs_off(child: Slot) -> bool:
    return child.killed_in_stop or (child.bye is not None and child.bye.cut_off > 0)
