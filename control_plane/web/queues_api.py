"""The routes of queues."""

from typing import Any

from control_plane.domain import queues
from control_plane.web import queue_shapes, shapes
from control_plane.web.error_status import HttpError
from control_plane.web.queue_shapes import QueueListResponse, QueueResponse
from control_plane.web.routes import Call, Route


async def list_queues(call: Call[shapes.NoQuery, None]) -> QueueListResponse:
    """Every queue, with what waits in it, what runs, and what holds it back."""
    now = call.services.wall_clock()
    views = await call.store.queues(call.project_id, now=now)
    return QueueListResponse(items=[queue_shapes.queue_shape(view, now=now) for view in views])


async def get_queue(call: Call[shapes.NoQuery, None]) -> QueueResponse:
    """The queue of the path."""
    return await _as_it_stands(call)


async def update_queue(call: Call[shapes.NoQuery, queue_shapes.UpdateQueueRequest]) -> QueueResponse:
    """Pause or resume the queue, or limit how many of its jobs run at once.

    A queue need not have had a job. Jobs that run go on; on every replica what is said counts within a second."""
    name = call.path["queue"]
    if not queues.is_name(name):
        raise HttpError(400, "invalid_request", f"{name[:128]!r} is no name of a queue")
    await call.store.update_queue(call.project_id, name, shapes.changes_of(call.body))
    return await _as_it_stands(call)


async def _as_it_stands(call: Call[shapes.NoQuery, Any]) -> QueueResponse:
    now = call.services.wall_clock()
    return queue_shapes.queue_shape(await call.store.queue(call.project_id, call.path["queue"], now=now), now=now)


_QUEUES = "/v1/projects/{project}/queues"
_QUEUE = _QUEUES + "/{queue}"

ROUTES = (
    Route(method="GET", path=_QUEUES, handler=list_queues, response=QueueListResponse),
    Route(method="GET", path=_QUEUE, handler=get_queue, response=QueueResponse),
    Route(
        method="PATCH",
        path=_QUEUE,
        handler=update_queue,
        body=queue_shapes.UpdateQueueRequest,
        response=QueueResponse,
    ),
)
