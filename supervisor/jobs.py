"""The process of one job: a table of state x event -> next state + actions. Decides only; time is an argument.

It is no slot: it lives for one job of one child, is never started again, and its end is told to that child, whose job
it ends. It is asked to stop by its child, and killed when it does not, or when its child is gone.
"""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from msgspec import Struct

SPAWN_PATIENCE = 15.0
"""Seconds that a mold has to fork the process; its job goes back then."""

EVIDENCE_PATIENCE = 1.0
"""Seconds that a process has to write its Python stacks before it is killed."""

KILL_RETRY = 60.0
"""Seconds between two SIGKILLs of a process that does not die of them."""


class State(StrEnum):
    """Where the process stands."""

    ASKED = "asked"
    UNWANTED = "unwanted"
    RUNNING = "running"
    STOPPING = "stopping"
    CONDEMNED = "condemned"
    KILLED = "killed"
    OVER = "over"


class Event(Struct, frozen=True, kw_only=True):
    """Base: what happened to the process, or is asked of it."""


class Announced(Event, frozen=True):
    """The mold has forked it, and it is a child of ours."""


class NotMade(Event, frozen=True):
    """It could not be made."""

    message: str


class Stop(Event, frozen=True):
    """Order of its child: SIGTERM, and after `grace` seconds SIGKILL."""

    grace: float


class OwnerGone(Event, frozen=True):
    """Its child has ended: whatever it does is for nobody."""


class Ended(Event, frozen=True):
    """It is reaped, with its group."""


class DeadlinePassed(Event, frozen=True):
    """The state's own deadline is over."""


EVENTS: tuple[type[Event], ...] = (Announced, NotMade, Stop, OwnerGone, Ended, DeadlinePassed)


class Action(Struct, frozen=True):
    """Base: what is to be done."""


class Terminate(Action, frozen=True):
    """SIGTERM, and SIGCONT: a stopped process ignores the first until it is continued."""


class KeepEvidence(Action, frozen=True):
    """Say what the kernel knows of it, and have it write its stacks."""


class Kill(Action, frozen=True):
    """SIGKILL to its group."""


class TellNotMade(Action, frozen=True):
    """Its child is told that there is no process."""

    message: str


class JobProcess:
    """One process's state. `step` is the only way to change it."""

    def __init__(self, now: float) -> None:
        self.state = State.ASKED
        self.was_killed = False
        self._deadline = now + SPAWN_PATIENCE

    @property
    def deadline(self) -> float:
        """Monotonic seconds at which DeadlinePassed is due; infinity for none."""
        return self._deadline

    def step(self, event: Event, now: float) -> list[Action]:
        """What follows from an event. One that the state has no use for changes nothing."""
        cell = TABLE.get((self.state, type(event)))
        if cell is None:
            return []
        if cell.next_state is not self.state:
            self.state = cell.next_state
            if self.state is not State.UNWANTED:
                # Whoever is not wanted any more is still waited for as long as before.
                self._deadline = now + _PATIENCE.get(self.state, math.inf)
        return [action for effect in cell.effects for action in effect(self, event, now)]

    def terminate(self, event: Stop, now: float) -> list[Action]:
        """A second, shorter grace wins over the first, a longer one does not."""
        self._deadline = min(self._deadline, now + event.grace)
        return [Terminate()]

    def keep_evidence(self, _event: Event, _now: float) -> list[Action]:
        """Before it is killed."""
        return [KeepEvidence()]

    def kill(self, _event: Event, now: float) -> list[Action]:
        """And again, should it survive that."""
        self.was_killed = True
        self._deadline = now + KILL_RETRY
        return [Kill()]

    def tell_not_made(self, event: NotMade, _now: float) -> list[Action]:
        """Its job goes back."""
        return [TellNotMade(event.message)]

    def give_up(self, _event: DeadlinePassed, _now: float) -> list[Action]:
        """Should it be announced after all, it is a process that nobody ordered."""
        return [TellNotMade("the mold did not answer in time")]


class Cell(Struct, frozen=True):
    """What one event does in one state."""

    next_state: State
    effects: tuple[Callable[[JobProcess, Any, float], list[Action]], ...] = ()


_PATIENCE = {State.CONDEMNED: EVIDENCE_PATIENCE}
_DIES = Cell(State.KILLED, (JobProcess.kill,))
_ENDED = Cell(State.OVER)

TABLE: dict[tuple[State, type[Event]], Cell] = {
    (State.ASKED, Announced): Cell(State.RUNNING),
    (State.ASKED, NotMade): Cell(State.OVER, (JobProcess.tell_not_made,)),
    (State.ASKED, Stop): Cell(State.UNWANTED),
    (State.ASKED, OwnerGone): Cell(State.UNWANTED),
    (State.ASKED, DeadlinePassed): Cell(State.OVER, (JobProcess.give_up,)),
    (State.UNWANTED, Announced): _DIES,
    (State.UNWANTED, NotMade): Cell(State.OVER, (JobProcess.tell_not_made,)),
    (State.UNWANTED, Stop): Cell(State.UNWANTED),
    (State.UNWANTED, OwnerGone): Cell(State.UNWANTED),
    (State.UNWANTED, DeadlinePassed): Cell(State.OVER, (JobProcess.give_up,)),
    (State.RUNNING, Stop): Cell(State.STOPPING, (JobProcess.terminate,)),
    (State.RUNNING, OwnerGone): _DIES,
    (State.RUNNING, Ended): _ENDED,
    (State.STOPPING, Stop): Cell(State.STOPPING, (JobProcess.terminate,)),
    (State.STOPPING, OwnerGone): _DIES,
    (State.STOPPING, Ended): _ENDED,
    (State.STOPPING, DeadlinePassed): Cell(State.CONDEMNED, (JobProcess.keep_evidence,)),
    (State.CONDEMNED, Stop): Cell(State.CONDEMNED),
    (State.CONDEMNED, OwnerGone): _DIES,
    (State.CONDEMNED, Ended): _ENDED,
    (State.CONDEMNED, DeadlinePassed): _DIES,
    (State.KILLED, Stop): Cell(State.KILLED),
    (State.KILLED, OwnerGone): Cell(State.KILLED),
    (State.KILLED, Ended): _ENDED,
    (State.KILLED, DeadlinePassed): Cell(State.KILLED, (JobProcess.kill,)),
}
"""Every accepted cell. A pair that is not here changes nothing: OVER has no event at all, and nothing is announced
twice, or ends before it was announced."""
