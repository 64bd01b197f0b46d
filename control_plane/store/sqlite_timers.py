"""Commands on runs that wait: a signal comes, a timer is due."""

from collections.abc import Callable
from typing import Any

import structlog

from control_plane.domain.model import Run
from control_plane.domain.store import Fired
from control_plane.domain.times import to_microseconds
from control_plane.store.sqlite_unit import Known, Unit
from control_plane.store.sqlite_writer import FAULTS, Writing

PUT_OFF = 60.0
"""Seconds until a timer is tried again that could not be decided."""

_log = structlog.get_logger("control_plane.store")


def signal_run(
    known: Known, project_id: str, run_id: str, step_key: str, result: dict[str, Any]
) -> Callable[[Writing], Run]:
    """See Store.signal_run."""

    def command(writing: Writing) -> Run:
        unit = Unit(known, writing)
        opened = unit.opened(unit.run_row(project_id, run_id))
        engine = unit.engine(project_id)
        run = engine.signal(opened, step_key, result)
        unit.apply(engine.changes)
        return run

    return command


def fire(known: Known, limit: int) -> Callable[[Writing], Fired]:
    """See Store.fire_timers."""

    def command(writing: Writing) -> Fired:
        due = list(writing.execute(known.sql["due_timers"], (writing.now, limit)))
        fired = sum(_fire(known, writing, run_seq, kind) for run_seq, kind in due)
        return Fired(fired=fired, left=len(due) - fired)

    return command


def _fire(known: Known, writing: Writing, run_seq: int, kind: Any) -> bool:
    """One timer in a savepoint of its own: one that cannot be decided must not hold up all the others."""
    facts = len(writing.facts)
    writing.execute("SAVEPOINT timer")
    try:
        unit = Unit(known, writing)
        timer = unit.one("timer", run_seq, kind)
        if timer is not None and timer[0] <= writing.now:  # the one before it may have cleared it
            opened = unit.opened(unit.one("run_by_seq", run_seq))
            engine = unit.engine(opened.run.project_id)
            engine.due(kind, opened)
            unit.apply(engine.changes)
    except FAULTS:
        raise
    except Exception:  # noqa: BLE001 - the last resort of one timer
        _log.exception("a timer could not fire", run_seq=run_seq, kind=kind)
        writing.execute("ROLLBACK TO timer")
        writing.execute("RELEASE timer")
        del writing.facts[facts:]
        known.forget()
        writing.execute(known.sql["put_timer_off"], (writing.now + to_microseconds(PUT_OFF), run_seq, kind))
        return False
    writing.execute("RELEASE timer")
    return True
