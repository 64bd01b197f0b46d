"""Rows of the census statements -> what there is."""

from collections.abc import Iterable

from control_plane.domain.store import Census, QueueDepth
from control_plane.store.rows import Row


def counted(
    now: int, projects: Iterable[Row], lanes: Iterable[Row], claimed: Iterable[Row], sessions: Iterable[Row]
) -> Census:
    """What the rows say; a queue has several lanes."""
    queues: dict[tuple[str, str], QueueDepth] = {}
    for project_id, queue, due, delayed, oldest_at, is_paused in lanes:
        known = queues.get((project_id, queue), QueueDepth(project_id=project_id, queue=queue))
        ages = [at for at in (oldest_at, known.oldest_at) if at is not None and not is_paused]
        queues[project_id, queue] = QueueDepth(
            project_id=project_id,
            queue=queue,
            pending=known.pending + (0 if is_paused else due),
            delayed=known.delayed + delayed,
            paused=known.paused + (due if is_paused else 0),
            oldest_at=min(ages, default=None),
        )
    return Census(
        now=now,
        projects={row[0]: row[1] for row in projects},
        queues=list(queues.values()),
        claimed={row[0]: row[1] for row in claimed},
        sessions={(row[0], row[1]): row[2] for row in sessions},
    )
