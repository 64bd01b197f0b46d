"""One sweep over the deadlines, on any replica: what somebody else is deciding about is left to him."""

from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from control_plane.domain import jobs
from control_plane.domain.runs import Engine
from control_plane.domain.store import Committed, Reaped
from control_plane.domain.times import to_microseconds
from control_plane.errors import ControlPlaneError
from control_plane.store import postgres_queues
from control_plane.store.postgres_connections import Connection
from control_plane.store.postgres_decisions import Decision, Decisions, Known
from control_plane.store.postgres_facts import LoadedJob

_log = structlog.get_logger("control_plane.store")


class Sweep:
    """One sweep in one transaction; `now` is microseconds, a replica that has not beaten since `gone_before` is gone.
    Afterwards `facts` are what it made true once committed."""

    def __init__(self, known: Known, now: int, limit: int, gone_before: int, *, leases_may_lapse: bool) -> None:
        self._known = known
        self._now = now
        self._limit = limit
        self._gone_before = gone_before
        self._leases_may_lapse = leases_may_lapse
        self._decisions = Decisions(known)
        self.facts: list[Committed] = []

    async def run(self, connection: Connection, elsewhere: Callable[..., Any], steady: float) -> Reaped:
        """See Store.reap."""
        found = await self._find(connection)
        made: dict[str, list[Decision]] = {"timed_out": [], "lapsed": [], "renewed": []}
        if found:
            await self._decisions.facts.load_jobs(connection, sorted(found))
            lapsed = (item.job for seq, item in self._decisions.facts.jobs.items() if found[seq] == "lease")
            await self._decisions.facts.load_only_once(connection, lapsed)
            for seq, loaded in self._decisions.facts.jobs.items():
                kind, decide = self._verdict(found[seq], loaded)
                made[kind].append(Decision(loaded.job.project_id, self._now, decide))
            await self._decisions.make(connection, [decision for kind in made.values() for decision in kind])
            await self._decisions.write(connection, elsewhere, steady)
            freed = postgres_queues.freed(self._known.lanes, self._decisions.writing.left_claimed)
            if freed:
                lanes = self._known.lanes
                self.facts += await postgres_queues.announce(connection, self._known.sql, lanes, freed, self._now)
        counts = {kind: self._count(decisions) for kind, decisions in made.items()}
        return Reaped(
            leases_lapsed=counts["lapsed"],
            executions_timed_out=counts["timed_out"],
            pending_renewed=counts["renewed"],
        )

    async def _find(self, connection: Connection) -> dict[int, str]:
        """The keys of the jobs that we have locked, with their runs, and what is over for each."""
        sql = self._known.sql
        found: dict[int, str] = {}
        runs: dict[int, int | None] = {}
        duration = to_microseconds(self._known.terms.lease_duration)
        over: dict[str, tuple[str, tuple[int, ...]]] = {
            "execution": ("overrun_claims", ()),
            "lease": ("lapsed_leases", (duration, self._gone_before)),
            "waiting": ("lapsed_pending", ()),
        }
        if not self._leases_may_lapse:
            del over["lease"]
        for kind, (statement, more) in over.items():
            for seq, run_seq in await connection.fetch(sql[statement], self._now, self._limit, *more):
                found.setdefault(seq, kind)
                runs[seq] = run_seq
        wanted = sorted({run_seq for run_seq in runs.values() if run_seq is not None})
        if wanted:
            locked = {row[0] for row in await connection.fetch(sql["lock_runs_at_once"], wanted)}
            # A run that is not there is for the decision to find out; one that is locked is being decided about.
            taken = {row[0] for row in await connection.fetch(sql["runs_of"], wanted)} - locked
            found = {seq: kind for seq, kind in found.items() if runs[seq] not in taken}
        return found

    def _verdict(self, over: str, loaded: LoadedJob) -> tuple[str, Callable[[Engine], Any]]:
        job = loaded.job
        deadline = job.execution_deadline_at
        if over == "execution" or (over == "waiting" and deadline is not None and deadline <= self._now):
            return "timed_out", partial(self._time_out, loaded)
        if over == "lease":
            return "lapsed", partial(self._lapse, loaded)
        return "renewed", partial(self._renew, loaded)

    def _time_out(self, loaded: LoadedJob, engine: Engine) -> None:
        engine.timed_out(loaded.job, self._decisions.facts.running(loaded))

    def _lapse(self, loaded: LoadedJob, engine: Engine) -> None:
        only_once = self._decisions.facts.only_once(loaded.job)
        outcome = jobs.lapsed(loaded.job, self._known.terms.pending_deadline, self._now, only_once=only_once)
        engine.job_moved(loaded.job, outcome, self._decisions.facts.running(loaded))

    def _renew(self, loaded: LoadedJob, engine: Engine) -> None:
        engine.renewed(loaded.job)

    def _count(self, decisions: list[Decision]) -> int:
        done = 0
        for decision in decisions:
            if decision.error is None:
                done += 1
                self.facts += decision.facts
            elif isinstance(decision.error, ControlPlaneError):
                _log.error("a job could not be swept", error=str(decision.error))
        return done
