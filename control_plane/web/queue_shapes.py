"""What the HTTP side takes and gives of queues (see shapes.py)."""

from datetime import datetime

from msgspec import UNSET, UnsetType

from control_plane.domain.store import COUNTED_UP_TO, QueueView
from control_plane.domain.times import MICROSECONDS
from control_plane.web.action_shapes import MaxRunning
from control_plane.web.shapes import Request, Response, if_known, moment_if_known


class UpdateQueueRequest(Request, frozen=True):
    """Only what is named is changed; `max_running` null takes the limit away."""

    paused: bool | UnsetType = UNSET
    max_running: MaxRunning | UnsetType | None = UNSET


class QueueResponse(Response, frozen=True):
    """A queue and what is in it. `pending` counts delayed jobs too; `pending_is_more`: there are more than counted.
    `oldest_age_seconds` is how long the oldest job has been there to be claimed."""

    name: str
    paused: bool
    pending: int
    claimed: int
    pending_is_more: bool | UnsetType = UNSET
    paused_at: datetime | UnsetType = UNSET
    max_running: int | UnsetType = UNSET
    oldest_age_seconds: float | UnsetType = UNSET


class QueueListResponse(Response, frozen=True):
    """Every queue that ever had a job or of which something was said, by name."""

    items: list[QueueResponse]


def queue_shape(view: QueueView, *, now: int) -> QueueResponse:
    """As it stands at `now` (microseconds)."""
    queue, oldest = view.queue, view.oldest_available_at
    return QueueResponse(
        name=queue.name,
        paused=queue.paused_at is not None,
        pending=view.pending,
        claimed=view.claimed,
        pending_is_more=True if view.pending >= COUNTED_UP_TO else UNSET,
        paused_at=moment_if_known(queue.paused_at),
        max_running=if_known(queue.max_running),
        oldest_age_seconds=UNSET if oldest is None else max(0, now - oldest) / MICROSECONDS,
    )
