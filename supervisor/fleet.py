"""The whole: the embedded control plane and every pool, in the order in which they start and stop. Decides only.

running --stop--> draining (children) --all over--> closing (molds, control plane) --all over--> over
"""

from enum import StrEnum

from supervisor import config
from supervisor.errors import (
    ConfigurationError,
    ControlPlaneStartError,
    HandlerImportError,
    RefusedError,
    SupervisorError,
)
from supervisor.facts import BuildSkew, DrainFinished, DrainStarted
from supervisor.pool import Pool
from supervisor.slots import Booted, DeadlinePassed, Died, Drain, Event, SaidBye, Slot, Start, State, Step

CONTROL_PLANE_SLOT = "control-plane"

SHORT_GRACE = 5.0
"""Seconds that children have after a second request to stop."""

CLOSE_GRACE = 10.0
"""Seconds that the control plane has to end when the children are gone."""

_HOPELESS_EXITS = frozenset({64, 65, 73, 77, 78})
"""Exit codes by which a process says that its settings are at fault: a second try would end alike."""

_KEYS_OF_A_POOL = ("modules: ", "actions: ", "models: ", "queues: ")
"""How the sentence of a process begins that names a key of its pool."""

CUT_OFF_EXIT = 75
"""Exit code of a stop that ended jobs before they were done: they will be done again."""


class Phase(StrEnum):
    """Where the whole stands."""

    RUNNING = "running"
    DRAINING = "draining"
    CLOSING = "closing"
    OVER = "over"


class Fleet:
    """Every slot there is. `error` says why it stopped by itself, None when it was asked."""

    def __init__(self, settings: config.Config, build: str) -> None:
        self.settings = settings
        self.build = build
        self.build_skew = False
        self.phase = Phase.RUNNING
        self.error: SupervisorError | None = None
        self.pools = [Pool(pool) for pool in settings.pool]
        self.control_plane = (
            Slot(CONTROL_PLANE_SLOT, "", "control_plane", config.Limits(), config.Restart())
            if settings.control_plane.embedded
            else None
        )
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

    def next_deadline(self) -> float:
        """Monotonic seconds; infinity for none."""
        return min(slot.deadline for slot in self.slots)

    # --- what changes it -----------------------------------------------------------------------------------------

    def step(self, event: Event, now: float) -> list[Step]:
        """What a process did."""
        if self.control_plane is not None and event.slot == CONTROL_PLANE_SLOT:
            steps = self.control_plane.step(event, now)
        else:
            steps = next(pool for pool in self.pools if pool.owns(event.slot)).step(event, now)
        if isinstance(event, Booted) and event.build != self.build and not self.build_skew:
            self.build_skew = True
            steps.append(
                BuildSkew(pool="", slot=event.slot, incarnation=event.incarnation, build=event.build, ours=self.build)
            )
        if self.phase is Phase.RUNNING:
            steps += self._give_up(event, now)
        return steps

    def tick(self, now: float) -> list[Step]:
        """Deadlines that have passed, what is missing, and the next phase when it is due."""
        steps = self._tick_control_plane(now)
        open_for_children = self.control_plane is None or self.control_plane.was_ever_ready
        for pool in self.pools:
            steps += pool.tick(now, children_may_start=open_for_children)
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
        for slot in self.slots:
            slot.forgive(seconds)

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
        )

    def _give_up(self, event: Event, now: float) -> list[Step]:
        """A first start that cannot succeed ends the whole: nobody would look at a log that repeats itself."""
        error = self._hopeless(event)
        if error is None:
            return []
        self.error = error
        return self.kill(str(error), now) if not self._anything_in_hand() else self._stop(str(error), SHORT_GRACE, now)

    def _anything_in_hand(self) -> bool:
        return any(child.jobs_in_hand for child in self.children)

    def _hopeless(self, event: Event) -> SupervisorError | None:
        slot = next(slot for slot in self.slots if slot.name == event.slot)
        if isinstance(event, SaidBye) and slot.kind == "mold" and not slot.was_ever_ready:
            return HandlerImportError([self._sentence(slot, event.bye.reason)])
        if not isinstance(event, Died):
            return None
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
        pool = next(f"pool[{index}]" for index, pool in enumerate(self.pools) if pool.owns(slot.name))
        return f"{pool}.{reason}" if reason.startswith(_KEYS_OF_A_POOL) else f"{pool}: {reason}"


def _said(event: Died) -> str:
    last = event.output[-1] if event.output else f"exit code {event.exit_code}"
    return last.removeprefix("mobius-control-plane: ")


def _cut_jobs_off(child: Slot) -> bool:
    return child.killed_in_stop or (child.bye is not None and child.bye.cut_off > 0)
