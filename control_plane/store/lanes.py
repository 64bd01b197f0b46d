"""What a claim selects by: jobs of one project, queue, environment, work and priority wait in one lane, in order.

A lane is a row that is never deleted, so that the writer may keep what it has read. What was read or made in a
transaction that is undone is forgotten.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from msgspec import Struct

from control_plane.domain.model import Selector
from control_plane.domain.queues import Rules, rules_of
from control_plane.domain.selection import Routed, admits

NEVER = 1 << 62
_MOST_SELECTIONS = 10_000
_MOST_REMEMBERED_NAMES = 100

Execute = Callable[..., Iterable[Any]]


class Lane(Struct, frozen=True, kw_only=True):
    """One row of `lanes`."""

    id: int
    queue: str
    environment_id: str | None
    action_name: str | None
    provider: str | None
    model: str | None
    priority: int


class Queued(Routed, Protocol):
    """What of a job decides about its lane."""

    @property
    def priority(self) -> int:
        """Higher ones are claimed first."""


def lane_key(job: Queued) -> tuple[str | int | None, ...]:
    """What the jobs of one lane of a project have in common."""
    return (job.queue, job.environment_id, job.action_name, job.provider, job.model, job.priority)


def lane_of_row(row: Any) -> Lane:
    """Of lanes_of_project."""
    return Lane(
        id=row[0],
        queue=row[1],
        environment_id=row[2],
        action_name=row[3],
        provider=row[4],
        model=row[5],
        priority=row[6],
    )


class KnownRules:
    """What holds jobs back, by project, as the one writer of a file knows it."""

    def __init__(self, statements: dict[str, str]) -> None:
        self._sql = statements
        self._rules: dict[str, Rules | None] = {}

    def of(self, execute: Execute, project_id: str) -> Rules | None:
        """None: nothing does."""
        try:
            return self._rules[project_id]
        except KeyError:
            rules = self._rules[project_id] = rules_of(execute(self._sql["rules_of_project"], (project_id,)))
            return rules

    def forget(self, project_id: str | None = None) -> None:
        """They have changed; None: perhaps, of any project."""
        if project_id is None:
            self._rules.clear()
        else:
            self._rules.pop(project_id, None)


class Lanes:
    """The lanes by project, and until when each is known to have nothing to claim. Used by the writer alone."""

    def __init__(self, statements: dict[str, str]) -> None:
        self._sql = statements
        self._ids: dict[str, dict[tuple[str | int | None, ...], int]] = {}
        self._lanes: dict[str, list[Lane]] = {}
        self._selections: dict[tuple[str, Selector], list[Lane]] = {}
        self._quiet_until: dict[int, int] = {}

    def forget(self) -> None:
        """Something was rolled back."""
        for known in (self._ids, self._lanes, self._selections, self._quiet_until):
            known.clear()

    def lane_of(self, execute: Execute, project_id: str, job: Queued) -> int:
        """The lane in which the job waits, made if it is new."""
        key = lane_key(job)
        ids = self._ids_of(execute, project_id)
        lane_id = ids.get(key)
        if lane_id is None:
            ((lane_id,),) = execute(self._sql["insert_lane"], (project_id, *key))
            self._lanes.pop(project_id)
            self._ids.pop(project_id)
            self._selections.clear()
        return lane_id

    def admitted(self, execute: Execute, project_id: str, selector: Selector) -> list[Lane]:
        """The lanes of the project whose jobs the selector admits, those of the highest priority first."""
        names = len(selector.queues) + len(selector.action_names) + len(selector.models)
        key = (project_id, selector) if names <= _MOST_REMEMBERED_NAMES else None
        found = self._selections.get(key) if key is not None else None
        if found is None:
            self._ids_of(execute, project_id)
            found = [lane for lane in self._lanes[project_id] if admits(selector, lane)]
            found.sort(key=lambda lane: -lane.priority)
            if key is not None:
                if len(self._selections) >= _MOST_SELECTIONS:
                    self._selections.clear()
                self._selections[key] = found
        return found

    def of_project(self, execute: Execute, project_id: str) -> list[Lane]:
        """All lanes of the project."""
        self._ids_of(execute, project_id)
        return self._lanes[project_id]

    def quiet(self, lane_id: int, now: int) -> bool:
        """Whether the lane is known to have nothing to claim at `now`."""
        return self._quiet_until.get(lane_id, 0) > now

    def set_quiet(self, lane_id: int, until: int | None) -> None:
        """The lane's earliest job becomes available at `until`; None: it has none."""
        self._quiet_until[lane_id] = NEVER if until is None else until

    def job_came(self, lane_id: int, available_at: int) -> None:
        """A job waits in the lane from now on."""
        if self._quiet_until.get(lane_id, 0) > available_at:
            self._quiet_until[lane_id] = available_at

    def _ids_of(self, execute: Execute, project_id: str) -> dict[tuple[str | int | None, ...], int]:
        ids = self._ids.get(project_id)
        if ids is None:
            rows = list(execute(self._sql["lanes_of_project"], (project_id,)))
            self._lanes[project_id] = [lane_of_row(row) for row in rows]
            ids = self._ids[project_id] = {tuple(row[1:]): row[0] for row in rows}
        return ids
