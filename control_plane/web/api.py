"""What each route does: a decoded call in, a shape out. The route table is `ROUTES`."""

import asyncio

import msgspec

from control_plane.web import (
    actions_api,
    generations_api,
    jobs_api,
    key_api,
    metrics_api,
    queues_api,
    runs_api,
    sessions_api,
    shapes,
    why_api,
)
from control_plane.web.error_status import HttpError
from control_plane.web.events import EventStream
from control_plane.web.routes import Call, Route

READINESS_TIMEOUT = 2.0
"""Seconds that the store has to answer /readyz."""


async def healthz(_: Call[shapes.NoQuery, None]) -> shapes.HealthResponse:
    """The process answers."""
    return shapes.HealthResponse(status="ok")


async def readyz(call: Call[shapes.NoQuery, None]) -> shapes.HealthResponse:
    """The store would take a write now."""
    try:
        async with asyncio.timeout(READINESS_TIMEOUT):
            await call.store.ping()
    except TimeoutError as error:
        message = f"the store did not answer within {READINESS_TIMEOUT:g} seconds"
        raise HttpError(503, "store_unavailable", message, headers={"retry-after": "2"}) from error
    return shapes.HealthResponse(status="ok")


async def list_projects(call: Call[shapes.ProjectsQuery, None]) -> shapes.ProjectListResponse:
    """The key's own project: projects never see each other."""
    return shapes.visible_projects(await call.store.projects(), call.key, call.query)


async def get_project(call: Call[shapes.NoQuery, None]) -> shapes.ProjectResponse:
    """The project of the path."""
    return shapes.project_shape(await call.store.project(call.path["project"]))


async def list_automations(call: Call[shapes.AutomationsQuery, None]) -> shapes.AutomationListResponse:
    """One page of automations; one of large settings is shorter than `limit`."""
    query = call.query
    page = await call.store.automations(
        call.project_id, status=query.status or None, cursor=query.cursor or None, limit=query.limit
    )
    return shapes.automation_page(page)


async def create_automation(
    call: Call[shapes.NoQuery, shapes.CreateAutomationRequest],
) -> shapes.AutomationResponse:
    """A new automation, in status draft."""
    fields = shapes.changes_of(call.body)
    handle, name = fields.pop("handle"), fields.pop("name")
    return shapes.automation_shape(await call.store.create_automation(call.project_id, handle, name, fields))


async def get_automation(call: Call[shapes.NoQuery, None]) -> shapes.AutomationResponse:
    """The automation of the path."""
    return shapes.automation_shape(await call.store.automation(call.project_id, call.path["handle"]))


async def update_automation(
    call: Call[shapes.NoQuery, shapes.UpdateAutomationRequest],
) -> shapes.AutomationResponse:
    """Change what the body names."""
    changes = shapes.changes_of(call.body)
    return shapes.automation_shape(await call.store.update_automation(call.project_id, call.path["handle"], changes))


async def delete_automation(call: Call[shapes.NoQuery, None]) -> None:
    """Archive it: its runs stay readable."""
    await call.store.archive_automation(call.project_id, call.path["handle"])


async def list_versions(call: Call[shapes.VersionsQuery, None]) -> shapes.VersionListResponse:
    """One page of versions, newest first; one of large specs is shorter than `limit`."""
    query = call.query
    page = await call.store.versions(
        call.project_id, call.path["handle"], cursor=query.cursor or None, limit=query.limit
    )
    return shapes.version_page(page)


async def create_version(call: Call[shapes.NoQuery, shapes.CreateVersionRequest]) -> shapes.VersionResponse:
    """A new draft, with what its validation found."""
    version = await call.store.create_version(
        call.project_id, call.path["handle"], call.body.spec, call.body.compiled_plan or None
    )
    return shapes.version_shape(version)


async def publish_version(call: Call[shapes.NoQuery, None]) -> shapes.AutomationResponse:
    """New runs execute this version."""
    number = call.path["version"]
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise HttpError(404, "not_found", f"there is no version {number!r}: versions are numbers")
    automation = await call.store.publish_version(call.project_id, call.path["handle"], int(number))
    return shapes.automation_shape(automation)


async def start_run(call: Call[shapes.NoQuery, shapes.StartRunRequest]) -> shapes.RunResponse:
    """Start the published version."""
    body = call.body
    run = await call.store.start_run(
        call.project_id,
        call.path["handle"],
        inputs=shapes.given(body.inputs),
        source=shapes.run_source(body.source),
        external_id=body.external_id or None,
    )
    return shapes.run_shape(run)


async def get_run(call: Call[shapes.NoQuery, None]) -> shapes.RunResponse:
    """The run of the path."""
    return shapes.run_shape(await call.store.run(call.project_id, call.path["id"], with_result=True))


async def cancel_run(call: Call[shapes.NoQuery, shapes.CancelRunRequest]) -> shapes.RunResponse:
    """Cancel the run; one that has ended is answered as it is."""
    run = await call.store.cancel_run(call.project_id, call.path["id"], call.body.reason or None)
    return shapes.run_shape(run)


async def list_events(call: Call[shapes.EventsQuery, None]) -> shapes.EventListResponse:
    """One page of a run's events; the store may end it early where payloads are large."""
    run_id, query = call.path["id"], call.query
    events = await call.store.events(call.project_id, run_id, since=query.since_sequence, limit=query.limit)
    last = events[-1].sequence if events else query.since_sequence
    more = bool(events) and bool(await call.store.events(call.project_id, run_id, since=last, limit=1))
    return shapes.EventListResponse(
        items=[shapes.event_shape(event) for event in events], has_more=more, next_sequence=last
    )


async def stream_events(call: Call[shapes.EventStreamQuery, None]) -> EventStream:
    """The run's events as they happen. A browser that reconnects repeats the URL, so the later position counts."""
    since = call.query.since_sequence
    if call.last_event_id is not None:
        since = max(since, _sequence(call.last_event_id))
    run = await call.store.run(call.project_id, call.path["id"])
    services = call.services
    return EventStream(services.store, services.streams, run.project_id, run.id, since, services.clock)


async def list_steps(call: Call[shapes.NoQuery, None]) -> shapes.StepListResponse:
    """Every step of the run."""
    steps = await call.store.steps(call.project_id, call.path["id"])
    return shapes.StepListResponse(items=[shapes.step_shape(step) for step in steps])


async def open_worker_socket(_: Call[shapes.NoQuery, None]) -> None:
    """The worker socket, for a WebSocket client."""
    # What asks for it like for a page is told so, and not with a 404 that would end a worker.
    message = "this is the worker socket: connect to it with a WebSocket client"
    raise HttpError(426, "upgrade_required", message, headers={"upgrade": "websocket"})


async def open_own_worker_socket(call: Call[shapes.NoQuery, None]) -> None:
    """The worker socket of the key's own project, for a WebSocket client."""
    await open_worker_socket(call)


def _sequence(text: str) -> int:
    try:
        return msgspec.convert(text, shapes.Sequence, strict=False)
    except msgspec.ValidationError as error:
        message = f"Last-Event-ID is {text[:64]!r}; expected the sequence of an event"
        raise HttpError(400, "invalid_request", message) from error


_PROJECT = "/v1/projects/{project}"
_AUTOMATION = _PROJECT + "/automations/{handle}"
_SESSIONS = _PROJECT + "/worker-sessions"
_RUN = _PROJECT + "/runs/{id}"

ROUTES = (
    Route(method="GET", path="/healthz", handler=healthz, response=shapes.HealthResponse, key_needed=False),
    Route(method="GET", path="/readyz", handler=readyz, response=shapes.HealthResponse, key_needed=False),
    Route(method="GET", path="/metrics", handler=metrics_api.read_metrics, media_type="text/plain"),
    Route(
        method="GET",
        path="/v1/projects",
        handler=list_projects,
        query=shapes.ProjectsQuery,
        response=shapes.ProjectListResponse,
    ),
    Route(method="GET", path=_PROJECT, handler=get_project, response=shapes.ProjectResponse),
    Route(
        method="GET",
        path=_PROJECT + "/automations",
        handler=list_automations,
        query=shapes.AutomationsQuery,
        response=shapes.AutomationListResponse,
    ),
    Route(
        method="POST",
        path=_PROJECT + "/automations",
        handler=create_automation,
        status=201,
        body=shapes.CreateAutomationRequest,
        response=shapes.AutomationResponse,
    ),
    Route(method="GET", path=_AUTOMATION, handler=get_automation, response=shapes.AutomationResponse),
    Route(
        method="PATCH",
        path=_AUTOMATION,
        handler=update_automation,
        body=shapes.UpdateAutomationRequest,
        response=shapes.AutomationResponse,
    ),
    Route(method="DELETE", path=_AUTOMATION, handler=delete_automation, status=204),
    Route(
        method="GET",
        path=_AUTOMATION + "/versions",
        handler=list_versions,
        query=shapes.VersionsQuery,
        response=shapes.VersionListResponse,
    ),
    Route(
        method="POST",
        path=_AUTOMATION + "/versions",
        handler=create_version,
        status=201,
        body=shapes.CreateVersionRequest,
        response=shapes.VersionResponse,
    ),
    Route(
        method="POST",
        path=_AUTOMATION + "/versions/{version}/publication",
        handler=publish_version,
        response=shapes.AutomationResponse,
    ),
    Route(
        method="POST",
        path=_AUTOMATION + "/runs",
        handler=start_run,
        status=202,
        body=shapes.StartRunRequest,
        response=shapes.RunResponse,
    ),
    Route(
        method="GET",
        path=_PROJECT + "/runs",
        handler=runs_api.list_runs,
        query=shapes.RunsQuery,
        response=shapes.RunListResponse,
    ),
    Route(method="GET", path=_RUN, handler=get_run, response=shapes.RunResponse),
    Route(
        method="POST",
        path=_RUN + "/cancellations",
        handler=cancel_run,
        body=shapes.CancelRunRequest,
        response=shapes.RunResponse,
    ),
    Route(
        method="POST",
        path=_RUN + "/signals",
        handler=runs_api.signal_run,
        body=shapes.SignalRunRequest,
        response=shapes.RunResponse,
    ),
    Route(
        method="GET",
        path=_RUN + "/events",
        handler=list_events,
        query=shapes.EventsQuery,
        response=shapes.EventListResponse,
    ),
    Route(
        method="GET",
        path=_RUN + "/events.stream",
        handler=stream_events,
        query=shapes.EventStreamQuery,
        response=shapes.EventResponse,
    ),
    Route(method="GET", path=_RUN + "/steps", handler=list_steps, response=shapes.StepListResponse),
    Route(
        method="GET",
        path=_PROJECT + "/jobs/{id}/deltas.stream",
        handler=generations_api.stream_deltas,
        query=shapes.DeltaStreamQuery,
        response=shapes.GenerationEvent,
    ),
    Route(
        method="GET",
        path=_SESSIONS,
        handler=sessions_api.list_worker_sessions,
        query=shapes.WorkerSessionsQuery,
        response=shapes.WorkerSessionListResponse,
    ),
    Route(method="GET", path=_SESSIONS + "/drain", handler=sessions_api.list_drains, response=shapes.DrainListResponse),
    Route(
        method="POST",
        path=_SESSIONS + "/drain",
        handler=sessions_api.drain_worker_sessions,
        body=shapes.DrainRequest,
        response=shapes.DrainResponse,
    ),
    Route(
        method="DELETE",
        path=_SESSIONS + "/drain",
        handler=sessions_api.undrain_worker_sessions,
        query=shapes.DrainQuery,
        response=shapes.DrainResponse,
    ),
    Route(
        method="POST",
        path=_SESSIONS + "/{id}/drain",
        handler=sessions_api.drain_worker_session,
        response=shapes.DrainResponse,
    ),
    Route(
        method="DELETE",
        path=_SESSIONS + "/{id}/drain",
        handler=sessions_api.undrain_worker_session,
        response=shapes.DrainResponse,
    ),
    Route(method="GET", path=_PROJECT + "/workers/socket", handler=open_worker_socket, scope="worker"),
    Route(method="GET", path="/v1/workers/socket", handler=open_own_worker_socket, scope="worker"),
    *jobs_api.ROUTES,
    *actions_api.ROUTES,
    *queues_api.ROUTES,
    *why_api.ROUTES,
    *key_api.ROUTES,
)
