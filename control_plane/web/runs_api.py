"""Routes on runs that have more to them than what the path names: which are listed, and signals."""

from msgspec import UNSET

from control_plane.web import shapes
from control_plane.web.routes import Call


async def list_runs(call: Call[shapes.RunsQuery, None]) -> shapes.RunListResponse:
    """One page of runs, newest first; a page of large inputs is shorter than `limit`.

    No run is started by an event, so a `source_event_id` selects none."""
    query = call.query
    if query.source_event_id:
        return shapes.RunListResponse(items=[], has_more=False)
    page = await call.store.runs(
        call.project_id,
        status=query.status or None,
        automation_id=query.automation_id or None,
        cursor=query.cursor or None,
        limit=query.limit,
        more=shapes.run_filter(query),
    )
    return shapes.run_page(page)


async def signal_run(call: Call[shapes.NoQuery, shapes.SignalRunRequest]) -> shapes.RunResponse:
    """End the step that waits for this signal.

    One that comes before its step waits is kept for it. One that does not match what the step waits for is refused, and
    the step waits on."""
    result = call.body.result
    run = await call.store.signal_run(
        call.project_id, call.path["id"], call.body.step_key, {} if result is UNSET else result
    )
    return shapes.run_shape(run)
