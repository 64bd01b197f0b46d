"""Many decisions of one transaction: each is made with the facts that are loaded, and again when it missed one."""

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from control_plane.domain.model import Job
from control_plane.domain.recording import Line, Published
from control_plane.domain.runs import Engine
from control_plane.domain.store import Committed, LeaseTerms
from control_plane.errors import ControlPlaneError
from control_plane.keys import Identifiers
from control_plane.store.postgres_changes import Statements, Writing
from control_plane.store.postgres_connections import Connection
from control_plane.store.postgres_facts import Facts, Missing, Versions
from control_plane.store.postgres_held import Held
from control_plane.store.postgres_lanes import Lanes
from control_plane.store.postgres_waiting import Waiting

_log = structlog.get_logger("control_plane.store")

Decide = Callable[[Engine], Any]


class Known:
    """What the store keeps between transactions: nothing that another replica may change."""

    def __init__(self, statements: dict[str, str], terms: LeaseTerms) -> None:
        self.sql = statements
        self.terms = terms
        self.identifiers = Identifiers()
        self.lanes = Lanes(statements)
        self.versions = Versions()
        self.watched: set[str] = set()
        self.changes = Statements(statements)
        self.held = Held()
        self.waiting = Waiting()


class Decision:
    """One decision to make. Afterwards `error` is set, or `result` and the `facts` that it makes true.

    `decide` is called with an Engine, perhaps several times until all of its facts are loaded; `now` is microseconds.
    """

    __slots__ = ("decide", "error", "facts", "now", "project_id", "result")

    def __init__(self, project_id: str, now: int, decide: Decide) -> None:
        self.project_id = project_id
        self.now = now
        self.decide = decide
        self.result: Any = None
        self.error: Exception | None = None
        self.facts: list[Committed] = []


class _FactsOfProject:
    """See domain.recording.Facts."""

    def __init__(self, facts: Facts, project_id: str) -> None:
        self._facts = facts
        self._project_id = project_id

    def published(self, handle: str) -> Published:
        return self._facts.published(self._project_id, handle)

    def saved(self, run_id: str, step_key: str) -> Any:
        return self._facts.saved(run_id, step_key)

    def kept_bytes(self, run_id: str) -> int:
        return self._facts.kept_bytes(run_id)

    def signal(self, run_id: str, step_key: str) -> dict[str, Any] | None:
        return self._facts.signal(run_id, step_key)

    def outcome(self, run_id: str) -> dict[str, Any]:
        return self._facts.outcome(run_id)

    def line(self, automation_id: str) -> Line:
        return self._facts.line(automation_id)

    def place(self, run_id: str) -> int:
        return self._facts.run_seqs[run_id]


class Decisions:
    """Of one transaction: load `facts`, `make` decisions, then `write` what they changed."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self.facts = Facts(known.sql, known.versions)
        self.writing = Writing(known.changes, self.facts, known.identifiers.new, known.watched)

    async def make(self, connection: Connection, decisions: Sequence[Decision]) -> None:
        """Make them; one that fails changes nothing and harms no other."""
        loaded: set[tuple[str, ...]] = set()
        open_decisions = list(decisions)
        while open_decisions:
            missing: dict[tuple[str, ...], None] = {}
            unmade = []
            for decision in open_decisions:
                key = self._make(decision)
                if key in loaded:
                    decision.error = RuntimeError(f"{key} is not there")
                elif key is not None:
                    missing[key] = None
                    unmade.append(decision)
            open_decisions = unmade
            if missing:
                await self.writing.keys_are_given()
                await self.facts.load(connection, missing)
                loaded |= missing.keys()

    def _make(self, decision: Decision) -> tuple[str, ...] | None:
        """The key of a fact that it misses."""
        known = self._known
        engine = Engine(
            _FactsOfProject(self.facts, decision.project_id),
            lambda prefix: known.identifiers.new(prefix, decision.now),
            decision.now,
            known.terms.pending_deadline,
        )
        try:
            decision.result = decision.decide(engine)
        except Missing as missing:
            return missing.key
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this decision's caller alone
            decision.error = error
            if not isinstance(error, ControlPlaneError):
                _log.error("a store command failed", exc_info=error)
        else:
            decision.facts = self.writing.add(engine.changes, decision.now)
        return None

    async def write(self, connection: Connection, elsewhere: Callable[..., Any], now: float) -> str | None:
        """Write what was decided; returns the transaction's id, None when that is nothing. Raises FenceBrokenError.

        Lanes that are new are made by `elsewhere(work)`, which lends another connection; `now` is monotonic seconds.
        """
        lanes = self._known.lanes
        unknown: dict[str, list[Job]] = {}
        for job in self.writing.queued:
            if lanes.id_of(job.project_id, job) is None:
                unknown.setdefault(job.project_id, []).append(job)
        for project_id, jobs in unknown.items():
            await elsewhere(lambda other, p=project_id, j=jobs: lanes.make(other, p, j, now))
        return await self.writing.write(connection, self._lane_of)

    def _lane_of(self, job: Job) -> int:
        lane_id = self._known.lanes.id_of(job.project_id, job)
        if lane_id is None:
            raise RuntimeError(f"the lane of {job.id} is not there")
        return lane_id
