"""What is due happens, on any replica: what somebody else is deciding about is left to him, or to the next round."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog

from control_plane.domain.runs import Engine
from control_plane.domain.store import Committed, Fired
from control_plane.domain.times import to_microseconds
from control_plane.store.postgres_connections import Connection
from control_plane.store.postgres_decisions import Decision, Decisions, Known
from control_plane.store.postgres_facts import turn_key

PUT_OFF = 60.0
"""Seconds until a timer is tried again that could not be decided."""

_log = structlog.get_logger("control_plane.store")

Due = tuple[int, str, str, str, str]
"""Key of the run, kind of the timer, id of the run, its project and its automation."""


class Firing:
    """One round in one transaction; `now` is microseconds. Afterwards `facts` are what it made true once committed.

    Locks are taken in the order in which everybody takes them (turns, then runs), and none is waited for.
    """

    def __init__(self, known: Known, now: int, limit: int) -> None:
        self._known = known
        self._sql = known.sql
        self._now = now
        self._limit = limit
        self._decisions = Decisions(known)
        self._busy: set[str] = set()
        self.facts: list[Committed] = []

    async def run(self, connection: Connection, elsewhere: Callable[..., Any], steady: float) -> Fired:
        """See Store.fire_timers."""
        due: list[Due] = [tuple(row) for row in await connection.fetch(self._sql["due_timers"], self._now, self._limit)]
        if not due:
            return Fired()
        ready = await self._lock(connection, due)
        made: list[tuple[Due, Decision]] = []
        for timer in ready:
            facts = self._decisions.facts
            concerned = {timer[2]} | (facts.runs_in_line(timer[4]) if timer[1] == "turn" else set())
            if self._busy.isdisjoint(concerned):
                self._busy |= concerned
                now = max(self._now, *(facts.last_event_at(run_id) for run_id in concerned))
                made.append((timer, Decision(timer[3], now, partial(self._due, timer[2], timer[1]))))
        await self._decisions.make(connection, [decision for _, decision in made])
        await self._decisions.write(connection, elsewhere, steady)
        failed = [timer for timer, decision in made if decision.error is not None]
        await self._put_off(connection, failed)
        for _, decision in made:
            self.facts += decision.facts
        fired = len(made) - len(failed)
        return Fired(fired=fired, left=len(due) - fired)

    async def _lock(self, connection: Connection, due: Sequence[Due]) -> list[Due]:
        """Those of them that are due and whose runs we have, loaded."""
        automations = {turn_key(timer[4]): timer[4] for timer in due if timer[1] == "turn"}
        lines: list[tuple[str, bool, str, str, int]] = []
        if automations:
            taken = {row[0] for row in await connection.fetch(self._sql["try_keys"], sorted(automations))}
            automations = {key: automation for key, automation in automations.items() if key in taken}
            lines = await self._decisions.facts.find_lines(connection, list(automations.values()))
        wanted = sorted({timer[0] for timer in due} | {row[4] for row in lines})
        locked = {row[0] for row in await connection.fetch(self._sql["lock_runs_at_once"], wanted)}
        busy = {row[0] for row in lines if row[4] not in locked}
        ours = set(automations.values()) - busy
        still = {tuple(row) for row in await connection.fetch(self._sql["timers_still_due"], sorted(locked), self._now)}
        ready = [timer for timer in due if timer[:2] in still and (timer[1] != "turn" or timer[4] in ours)]
        named = {(timer[3], timer[2]) for timer in ready} | {(row[3], row[2]) for row in lines if row[0] in ours}
        if named:
            await self._decisions.facts.load_open_runs(connection, named)
            await self._decisions.facts.load_lines(connection, sorted(ours))
        return ready

    def _due(self, run_id: str, kind: Any, engine: Engine) -> None:
        engine.due(kind, self._decisions.facts.opened(run_id))

    async def _put_off(self, connection: Connection, failed: Sequence[Due]) -> None:
        """What cannot be decided must not be tried without end."""
        if failed:
            _log.error("timers could not fire", runs=[timer[2] for timer in failed])
            until = self._now + to_microseconds(PUT_OFF)
            keys = [timer[0] for timer in failed], [timer[1] for timer in failed]
            await connection.execute(self._sql["put_timers_off"], *keys, until)
