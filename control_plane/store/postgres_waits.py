"""What decisions change of that for which runs wait, gathered for the one statement of postgres_changes.py."""

from typing import Any

from control_plane.domain.changes import (
    RunBegun,
    SignalKept,
    SignalTaken,
    TimerCleared,
    TimerSet,
    TurnAwaited,
    TurnLeft,
    TurnTaken,
)
from control_plane.domain.model import Run, Timer
from control_plane.domain.store import Committed, TimerArmed
from control_plane.store import rows

PARTS = ("begin_runs", "set_timers", "clear_timers", "keep_signals", "take_signals", "set_turns", "leave_turns")

IN_ORDER = frozenset({"begin_runs", "set_timers", "clear_timers"})

UNCOUNTED = frozenset({"clear_timers", "take_signals", "leave_turns"})
"""What is gone already need not go."""

CHANGES = (RunBegun, TimerSet, TimerCleared, SignalKept, SignalTaken, TurnAwaited, TurnTaken, TurnLeft)
AnyWait = RunBegun | TimerSet | TimerCleared | SignalKept | SignalTaken | TurnAwaited | TurnTaken | TurnLeft


class Waits:
    """Of one transaction; of several changes of one thing the last one counts."""

    def __init__(self) -> None:
        self._begun: dict[str, Run] = {}
        self._timers: dict[tuple[str, str], Timer | None] = {}
        self._signals: dict[tuple[str, str], tuple[dict[str, Any], int] | None] = {}
        self._turns: dict[str, tuple[str, bool] | None] = {}

    def add(self, change: AnyWait, facts: list[Committed], now: int) -> None:
        """Take it up."""
        match change:
            case RunBegun():
                self._begun[change.run.id] = change.run
            case TimerSet():
                self._timers[change.timer.run_id, change.timer.kind] = change.timer
                facts.append(TimerArmed(due_at=change.timer.due_at))
            case TimerCleared():
                self._timers[change.run_id, change.kind] = None
            case SignalKept():
                self._signals[change.run_id, change.step_key] = (change.result, now)
            case SignalTaken():
                self._signals[change.run_id, change.step_key] = None
            case TurnLeft():
                self._turns[change.run_id] = None
            case TurnAwaited() | TurnTaken():
                self._turns[change.run_id] = (change.automation_id, isinstance(change, TurnTaken))

    def fill(self, parts: dict[str, list[Any]], run_seqs: dict[str, int]) -> None:
        """Their rows."""
        for run in self._begun.values():
            times = (run.started_at, run.wall_clock_deadline_at)
            ended = (run.status, run.updated_at, run.completed_at, run.error_type, run.error_message)
            parts["begin_runs"].append((run_seqs[run.id], *ended, *times))
        for (run_id, kind), timer in self._timers.items():
            if timer is None:
                parts["clear_timers"].append((run_seqs[run_id], kind))
            else:
                parts["set_timers"].append((run_seqs[run_id], kind, timer.due_at, rows.to_json(timer.payload)))
        for (run_id, step_key), kept in self._signals.items():
            if kept is None:
                parts["take_signals"].append((run_seqs[run_id], step_key))
            else:
                parts["keep_signals"].append((run_seqs[run_id], step_key, rows.to_json(kept[0]), kept[1]))
        for run_id, turn in self._turns.items():
            if turn is None:
                parts["leave_turns"].append((run_seqs[run_id],))
            else:
                parts["set_turns"].append((run_seqs[run_id], *turn))
