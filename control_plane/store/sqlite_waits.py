"""What runs wait for, in a SQLite store: the part of a Unit that knows it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

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
from control_plane.domain.recording import LONGEST_LINE, Line, Open
from control_plane.domain.store import TimerArmed
from control_plane.store import rows
from control_plane.store.sqlite_writer import Writing


class Waits(ABC):
    """Timers, kept signals and turns of one command's runs."""

    now: int
    _sql: dict[str, str]
    _execute: Callable[..., Any]
    _writing: Writing
    _run_seqs: dict[str, int]

    @abstractmethod
    def one(self, name: str, *bindings: Any) -> Any:
        """The first row of a named statement, or None."""

    @abstractmethod
    def opened(self, row: rows.Row) -> Open:
        """The run of these columns, with what it waits for."""

    # --- facts

    def signal(self, run_id: str, step_key: str) -> dict[str, Any] | None:
        """See domain.recording.Facts."""
        row = self.one("kept_signal", self._run_seqs.get(run_id), step_key)
        return None if row is None else dict(rows.from_json(row[0]))

    def outcome(self, run_id: str) -> dict[str, Any]:
        """See domain.recording.Facts."""
        _, payload = self.one("timer", self._run_seqs[run_id], "cleanup")
        return dict(rows.from_json(payload))

    def line(self, automation_id: str) -> Line:
        """See domain.recording.Facts."""
        holder, waiting = None, []
        for holds, run_seq in list(self._execute(self._sql["line"], (automation_id, automation_id, LONGEST_LINE))):
            opened = self.opened(self.one("run_by_seq", run_seq))
            if holds:
                holder = opened
            else:
                waiting.append(opened)
        return Line(holder=holder, waiting=tuple(waiting), is_longer=len(waiting) == LONGEST_LINE)

    def place(self, run_id: str) -> int:
        """See domain.recording.Facts."""
        return self._run_seqs[run_id]

    # --- changes

    def _begin_run(self, change: RunBegun) -> None:
        run = change.run
        bindings = (run.status, run.updated_at, run.completed_at, run.error_type, run.error_message)
        times = (run.started_at, run.wall_clock_deadline_at)
        self._execute(self._sql["begin_run"], (*bindings, *times, self._run_seqs[run.id]))

    def _set_timer(self, change: TimerSet) -> None:
        timer = change.timer
        bindings = (self._run_seqs[timer.run_id], timer.kind, timer.due_at, rows.to_json(timer.payload))
        self._execute(self._sql["set_timer"], bindings)
        self._writing.facts.append(TimerArmed(due_at=timer.due_at))

    def _clear_timer(self, change: TimerCleared) -> None:
        self._execute(self._sql["clear_timer"], (self._run_seqs[change.run_id], change.kind))

    def _keep_signal(self, change: SignalKept) -> None:
        bindings = (self._run_seqs[change.run_id], change.step_key, rows.to_json(change.result), self.now)
        self._execute(self._sql["keep_signal"], bindings)

    def _take_signal(self, change: SignalTaken) -> None:
        self._execute(self._sql["take_signal"], (self._run_seqs[change.run_id], change.step_key))

    def _set_turn(self, change: TurnTaken | TurnAwaited) -> None:
        holds = isinstance(change, TurnTaken)
        self._execute(self._sql["set_turn"], (self._run_seqs[change.run_id], change.automation_id, holds))

    def _leave_turn(self, change: TurnLeft) -> None:
        self._execute(self._sql["leave_turn"], (self._run_seqs[change.run_id],))

    APPLY: ClassVar[dict[type, Any]] = {
        RunBegun: _begin_run,
        TimerSet: _set_timer,
        TimerCleared: _clear_timer,
        SignalKept: _keep_signal,
        SignalTaken: _take_signal,
        TurnTaken: _set_turn,
        TurnAwaited: _set_turn,
        TurnLeft: _leave_turn,
    }
