"""Generations over HTTP: what they say while they say it."""

from control_plane.web import shapes
from control_plane.web.deltas import DeltaStream, position_of
from control_plane.web.error_status import HttpError
from control_plane.web.routes import Call


async def stream_deltas(call: Call[shapes.DeltaStreamQuery, None]) -> DeltaStream:
    """The job's deltas as they arrive, from the first one on.

    `generation.delta` has one delta; its id is `<attempt>-<sequence>`. `generation.started` comes before the first of
    each attempt: what an attempt that it `supersedes` has said is void. `generation.ended` is the last event.
    """
    since = call.query.since or ""
    for text, name in ((call.last_event_id, "Last-Event-ID"), (since, "since")):
        if text is None:
            continue
        try:
            position_of(text)
        except ValueError:
            message = f"{name} is {text[:64]!r}; expected the id of a delta, such as 1-57"
            raise HttpError(400, "invalid_request", message) from None
    # A browser that reconnects repeats the URL, so the later position counts.
    position = max(position_of(since), position_of(call.last_event_id or ""))
    job = await call.store.job(call.project_id, call.path["id"])
    services = call.services
    return DeltaStream(services.store, services.deltas, job, position, services.clock)
