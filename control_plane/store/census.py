"""Rows of the census statements -> what there is."""

from collections.abc import Iterable

from control_plane.domain.store import Census, QueueDepth
from control_plane.store.rows import Row


def counted(
    now: int, projects: Iterable[Row], lanes: Iterable[Row], claimed: Iterable[Row], sessions: Iterable[Row]
) -> Census:
    """What the rows say; a queue has several lanes."""
    queues: dict[tuple[str, str], QueueDepth] = {}
    for project_id, queue, pending, delayed, oldest_at in lanes:
        known = queues.get((project_id, queue))
        ages = [at for at in (oldest_at, known.oldest_at if known is not None else None) if at is not None]
        queues[project_id, queue] = QueueDepth(
            project_id=project_id,
            queue=queue,
            pending=pending + (known.pending if known is not None else 0),
            delayed=delayed + (known.delayed if known is not None else 0),
            oldest_at=min(ages, default=None),
        )
    return Census(
        now=now,
        projects={row[0]: row[1] for row in projects},
        queues=list(queues.values()),
        claimed={row[0]: row[1] for row in claimed},
        sessions={(row[0], row[1]): row[2] for row in sessions},
    )
