"""Queues in the SQLite file: what was said of them, and what it does to claims."""

from collections.abc import Callable
from typing import Any

import apsw

from control_plane.domain import queues
from control_plane.domain.model import Job, Queue
from control_plane.domain.queues import LimitScope, Room, Rules
from control_plane.domain.store import COUNTED_UP_TO, ClaimOrder, Hold, QueueView, Running
from control_plane.errors import NotFound
from control_plane.store import rows
from control_plane.store.lanes import Lane
from control_plane.store.sqlite_unit import Known, Unit
from control_plane.store.sqlite_writer import Writing

MOST_HINTED = 1000
"""Jobs of a lane that are announced when its queue is opened."""


def update_queue(known: Known, project_id: str, name: str, changes: dict[str, Any]) -> Callable[[Writing], Queue]:
    """See Store.update_queue."""

    def command(writing: Writing) -> Queue:
        unit = Unit(known, writing)
        row = unit.one("queue_by_name", project_id, name)
        queue = rows.queue(row) if row is not None else Queue(project_id=project_id, name=name, updated_at=writing.now)
        queue = queues.updated(queue, changes, writing.now)
        writing.execute(known.sql["put_queue"], rows.queue_row(queue))
        known.rules.forget(project_id)
        unit.announce_lanes(project_id, {("queue", name): MOST_HINTED})
        return queue

    return command


def candidates(known: Known, writing: Writing, order: ClaimOrder, rules: Rules) -> list[int]:
    """As of a claim in a project without rules, of lanes that are not paused, up to the limits."""
    wanted = order.limit + len(order.excluded)
    lanes = [
        lane
        for lane in known.lanes.admitted(writing.execute, order.project_id, order.selector)
        if lane.queue not in rules.paused and not known.lanes.quiet(lane.id, writing.now)
    ]
    scopes = {lane.id: rules.scopes(lane) for lane in lanes}
    concerned = {scope for each in scopes.values() for scope in each}
    running = {scope: _running(known.sql, writing.connection, order.project_id, scope) for scope in concerned}
    room = Room({scope: rules.limits[scope] for scope in concerned}, running)
    heads: list[tuple[int, int, int, Lane]] = []
    for lane in lanes:
        if room.left(scopes[lane.id]):
            head = list(writing.execute(known.sql["heads_of_lanes"], (lane.id, writing.now, wanted)))
            heads += [(-lane.priority, available_at, seq, lane) for seq, available_at in head]
            if not head:
                ((following,),) = writing.execute(known.sql["lane_next"], (lane.id,))
                known.lanes.set_quiet(lane.id, following)
    heads.sort(key=lambda head: head[:3])
    return [seq for *_, seq, lane in heads if room.take(scopes[lane.id])][:wanted]


def _running(sql: dict[str, str], connection: apsw.Connection, project_id: str, scope: LimitScope) -> int:
    kind, name = scope
    ((number,),) = connection.execute(sql[f"running_of_{kind}"], (project_id, name))
    return int(number)


def views(connection: apsw.Connection, sql: dict[str, str], project_id: str, now: int) -> list[QueueView]:
    """See Store.queues."""
    with connection:
        said = [rows.queue(row) for row in connection.execute(sql["queues_of_project"], (project_id,))]
        found = {queue.name: QueueView(queue=queue) for queue in said}
        claimed = dict(connection.execute(sql["claimed_by_queue"], (project_id,)))
        waiting: dict[str, tuple[int, int | None]] = {}
        for lane_id, queue, *_ in list(connection.execute(sql["lanes_of_project"], (project_id,))):
            ((number, oldest),) = connection.execute(sql["pending_in_lane"], (lane_id, COUNTED_UP_TO, now))
            pending, before = waiting.get(queue, (0, None))
            oldest = before if oldest is None else oldest if before is None else min(oldest, before)
            waiting[queue] = (pending + number, oldest)
    for name, (pending, oldest) in waiting.items():
        queue = found[name].queue if name in found else Queue(project_id=project_id, name=name, updated_at=now)
        found[name] = QueueView(queue=queue, pending=pending, claimed=claimed.get(name, 0), oldest_available_at=oldest)
    return [found[name] for name in sorted(found)]


def view(connection: apsw.Connection, sql: dict[str, str], project_id: str, name: str, now: int) -> QueueView:
    """See Store.queue."""
    for each in views(connection, sql, project_id, now):
        if each.queue.name == name:
            return each
    raise NotFound(f"no queue {name} in this project: no job ever named it")


def hold(connection: apsw.Connection, sql: dict[str, str], job: Job) -> Hold:
    """See Store.hold."""
    rules = queues.rules_of(connection.execute(sql["rules_of_project"], (job.project_id,)))
    if rules is None:
        return Hold()
    limits = [
        Running(
            kind=kind,
            name=name,
            most=rules.limits[kind, name],
            running=_running(sql, connection, job.project_id, (kind, name)),
        )
        for kind, name in rules.scopes(job)
    ]
    return Hold(is_paused=job.queue in rules.paused, limits=limits)
