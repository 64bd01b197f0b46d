"""Queues in PostgreSQL: what was said of them, and what it does to claims.

A limit holds across replicas because whoever claims under it has locked its row, counts what runs, and commits. A claim
waits for no such lock: what another one keeps is left out, and asked for again a moment later.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from control_plane.domain import queues
from control_plane.domain.model import Job, Queue
from control_plane.domain.queues import LimitScope, Room, Rules
from control_plane.domain.store import COUNTED_UP_TO, Hold, JobClaimable, QueueView, Running
from control_plane.errors import NotFound
from control_plane.store import rows
from control_plane.store.announced import claimable_row
from control_plane.store.lanes import Lane
from control_plane.store.postgres_connections import Connection
from control_plane.store.postgres_lanes import Lanes

MOST_HINTED = 1000
"""Jobs of a lane that are announced when its queue is opened."""


class Allowed:
    """What the claims of one transaction may take in one project that has rules."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._room = Room({}, {})
        self._kept: set[LimitScope] = set()

    async def lock(self, connection: Connection, sql: dict[str, str], project_id: str, lanes: Iterable[Lane]) -> None:
        """Keep the limits that count for these lanes, where nobody else does, until the transaction ends."""
        scopes = {scope for lane in lanes for scope in self._rules.scopes(lane)}
        if not scopes:
            return
        named = {kind: sorted(name for of, name in scopes if of == kind) for kind in ("queue", "action")}
        limits: dict[LimitScope, int] = {}
        for name, most in await connection.fetch(sql["lock_queue_limits"], project_id, named["queue"]):
            limits["queue", name] = most
        for name, most in await connection.fetch(sql["lock_action_limits"], project_id, named["action"]):
            limits["action", name] = most
        self._kept = set(limits)
        self._room = Room(limits, await _running(connection, sql, project_id, named["queue"], named["action"]))

    def lanes(self, lanes: Sequence[Lane]) -> tuple[list[Lane], bool]:
        """Those that may be claimed from, and whether another transaction keeps the limit of others."""
        allowed = []
        kept_out = False
        for lane in lanes:
            if lane.queue in self._rules.paused:
                continue
            scopes = self._rules.scopes(lane)
            if not self._kept.issuperset(scopes):
                kept_out = True
            elif self._room.left(scopes):
                allowed.append(lane)
        return allowed, kept_out

    def take(self, lane: Lane) -> bool:
        """Whether one more job of the lane may be claimed; then it is counted."""
        return self._room.take(self._rules.scopes(lane))


async def _running(
    connection: Connection, sql: dict[str, str], project_id: str, queue_names: list[str], action_names: list[str]
) -> dict[LimitScope, int]:
    running: dict[LimitScope, int] = {}
    for queue, action, number in await connection.fetch(sql["running_by_scope"], project_id, queue_names, action_names):
        of_row: tuple[LimitScope, LimitScope] = (("queue", queue), ("action", action))
        for scope in of_row:
            running[scope] = running.get(scope, 0) + number
    return running


async def announce(
    connection: Connection,
    sql: dict[str, str],
    lanes: Lanes,
    scopes: Mapping[tuple[str, LimitScope], int],
    now: int,
) -> list[JobClaimable]:
    """Say of so many jobs of each project's scope, in each lane, that they can be claimed."""
    asked: dict[int, list[int]] = {}
    for (project_id, (kind, name)), number in scopes.items():
        for lane in lanes.of_project(project_id):
            if name == (lane.queue if kind == "queue" else lane.action_name):
                asked.setdefault(number, []).append(lane.id)
    facts = []
    for number, lane_ids in asked.items():
        found = await connection.fetch(sql["heads_of_lanes"], lane_ids, now, number)
        facts += [claimable_row(row) for row in found]
    return facts


def freed(lanes: Lanes, left: Iterable[Job]) -> dict[tuple[str, LimitScope], int]:
    """How many slots under limits the jobs have freed that are not claimed any more."""
    numbers: dict[tuple[str, LimitScope], int] = {}
    for job in left:
        rules = lanes.rules(job.project_id)
        if rules is not None:
            for scope in rules.scopes(job):
                key = (job.project_id, scope)
                numbers[key] = numbers.get(key, 0) + 1
    return numbers


async def update_queue(
    connection: Connection, sql: dict[str, str], project_id: str, name: str, changes: dict[str, Any], *, now: int
) -> Queue:
    """See Store.update_queue."""
    await connection.execute(sql["make_queue"], project_id, name, now)
    row = await connection.fetchrow(sql["queue_by_name"] + " FOR UPDATE", project_id, name)
    queue = queues.updated(rows.queue(tuple(row)), changes, now)
    await connection.execute(sql["put_queue"], *rows.queue_row(queue))
    return queue


async def views(connection: Connection, sql: dict[str, str], project_id: str, now: int) -> list[QueueView]:
    """See Store.queues."""
    said = [rows.queue(tuple(row)) for row in await connection.fetch(sql["queues_of_project"], project_id)]
    found = {queue.name: QueueView(queue=queue) for queue in said}
    claimed = {row[0]: row[1] for row in await connection.fetch(sql["claimed_by_queue"], project_id)}
    for name, pending, oldest in await connection.fetch(sql["pending_by_queue"], project_id, COUNTED_UP_TO, now):
        queue = found[name].queue if name in found else Queue(project_id=project_id, name=name, updated_at=now)
        found[name] = QueueView(queue=queue, pending=pending, claimed=claimed.get(name, 0), oldest_available_at=oldest)
    return [found[name] for name in sorted(found)]


async def view(connection: Connection, sql: dict[str, str], project_id: str, name: str, now: int) -> QueueView:
    """See Store.queue."""
    for each in await views(connection, sql, project_id, now):
        if each.queue.name == name:
            return each
    raise NotFound(f"no queue {name} in this project: no job ever named it")


async def hold(connection: Connection, sql: dict[str, str], job: Job) -> Hold:
    """See Store.hold."""
    found = [tuple(row) for row in await connection.fetch(sql["rules_of_project"], job.project_id)]
    rules = queues.rules_of(found)
    if rules is None:
        return Hold()
    scopes = rules.scopes(job)
    running = await _running(connection, sql, job.project_id, [job.queue], [job.action_name or ""]) if scopes else {}
    limits = [
        Running(kind=kind, name=name, most=rules.limits[kind, name], running=running.get((kind, name), 0))
        for kind, name in scopes
    ]
    return Hold(is_paused=job.queue in rules.paused, limits=limits)
