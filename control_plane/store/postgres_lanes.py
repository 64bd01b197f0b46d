"""The lanes (see lanes.py) as one of several replicas knows them.

Rows are never deleted, so what was read stays true; what another replica has made since is read once a second at the
latest, before a claim. A lane is made in a transaction of its own: nothing that is undone is remembered.
"""

from collections.abc import Iterable, Sequence

from control_plane.domain.model import Selector
from control_plane.domain.queues import Rules, rules_of
from control_plane.domain.selection import admits
from control_plane.domain.times import MICROSECONDS
from control_plane.store.lanes import Lane, Queued, lane_key, lane_of_row
from control_plane.store.postgres_connections import Connection

REREAD_AFTER = 1.0
"""Seconds for which the lanes of a project are believed to be all."""

SCAN_EVERY = 5.0
"""Seconds between claims that look at a lane from its beginning."""

LATE_COMMIT = 2 * MICROSECONDS
"""How long before the oldest job that was found last another one may still appear, in between such looks."""

_MOST_SELECTIONS = 10_000
_MOST_REMEMBERED_NAMES = 100

Key = tuple[str | int | None, ...]


class Lanes:
    """The lanes by project, and where in each the next claim begins to look. `now` is monotonic, in seconds."""

    def __init__(self, statements: dict[str, str]) -> None:
        self._sql = statements
        self._ids: dict[str, dict[Key, int]] = {}
        self._lanes: dict[str, list[Lane]] = {}
        self._rules: dict[str, Rules | None] = {}
        self._read_at: dict[str, float] = {}
        self._selections: dict[tuple[str, Selector], list[Lane]] = {}
        self._begin: dict[int, int] = {}
        self._scanned_at: dict[int, float] = {}

    def id_of(self, project_id: str, job: Queued) -> int | None:
        """The lane in which the job waits; None when it is not known here."""
        return self._ids.get(project_id, {}).get(lane_key(job))

    async def make(self, connection: Connection, project_id: str, jobs: Iterable[Queued], now: float) -> None:
        """Have the lanes of these jobs, outside of any transaction."""
        for key in sorted({lane_key(job) for job in jobs}, key=repr):
            await connection.execute(self._sql["insert_lane"], project_id, *key)
        await self._read(connection, project_id, now)

    async def refresh(self, connection: Connection, project_ids: Iterable[str], now: float) -> None:
        """Read the lanes of these projects, unless that was done a moment ago."""
        for project_id in project_ids:
            if now >= self._read_at.get(project_id, float("-inf")) + REREAD_AFTER:
                await self._read(connection, project_id, now)

    def heard_of(self, project_id: str, job: Queued) -> None:
        """Another replica has a job like this: a lane that is not known is read before the next claim, and so is what
        held it back."""
        rules = self.rules(project_id)
        held_back = rules is not None and (job.queue in rules.paused or rules.scopes(job))
        if held_back or self.id_of(project_id, job) is None:
            self.forget(project_id)

    def forget(self, project_id: str) -> None:
        """What is known of the project has changed: it is read before the next claim."""
        self._read_at.pop(project_id, None)

    def forget_all(self) -> None:
        """The server is another one, which may have given the same numbers to other lanes."""
        for known in (self._ids, self._lanes, self._rules, self._read_at, self._selections, self._begin):
            known.clear()
        self._scanned_at.clear()

    def rules(self, project_id: str) -> Rules | None:
        """What holds jobs of the project back, as last read; None: nothing."""
        return self._rules.get(project_id)

    def of_project(self, project_id: str) -> list[Lane]:
        """The known lanes of the project."""
        return self._lanes.get(project_id, [])

    def admitted(self, project_id: str, selector: Selector) -> list[Lane]:
        """The known lanes of the project whose jobs the selector admits."""
        names = len(selector.queues) + len(selector.action_names) + len(selector.models)
        key = (project_id, selector) if names <= _MOST_REMEMBERED_NAMES else None
        found = self._selections.get(key) if key is not None else None
        if found is None:
            found = [lane for lane in self._lanes.get(project_id, ()) if admits(selector, lane)]
            if key is not None:
                if len(self._selections) >= _MOST_SELECTIONS:
                    self._selections.clear()
                self._selections[key] = found
        return found

    # What was claimed leaves dead entries at the beginning of its lane's index until the table is vacuumed, which a
    # single old snapshot anywhere in the database can hold up for hours: a claim does not walk over them each time.

    def begin(self, lane_id: int, now: float) -> int:
        """The time of availability from which a claim looks."""
        if now >= self._scanned_at.get(lane_id, float("-inf")) + SCAN_EVERY:
            self._scanned_at[lane_id] = now
            return 0
        return self._begin.get(lane_id, 0)

    def found(self, lane_id: int, times: Sequence[int]) -> None:
        """The times of availability of what a claim found in the lane."""
        if times:
            self._begin[lane_id] = min(times) - LATE_COMMIT

    async def _read(self, connection: Connection, project_id: str, now: float) -> None:
        rows = await connection.fetch(self._sql["lanes_of_project"], project_id)
        if len(rows) != len(self._lanes.get(project_id, ())):
            self._selections.clear()
            self._lanes[project_id] = [lane_of_row(row) for row in rows]
            self._ids[project_id] = {tuple(row)[1:]: row[0] for row in rows}
        self._rules[project_id] = rules_of(
            [tuple(row) for row in await connection.fetch(self._sql["rules_of_project"], project_id)]
        )
        self._read_at[project_id] = now
