"""Worker sessions over HTTP: who is online, who was, and who is to drain."""

from msgspec import UNSET, UnsetType

from control_plane.domain.model import Drain, DrainTarget
from control_plane.web import shapes
from control_plane.web.error_status import HttpError
from control_plane.web.routes import Call


async def list_worker_sessions(
    call: Call[shapes.WorkerSessionsQuery, None],
) -> shapes.WorkerSessionListResponse:
    """Who is online, and with what in hand; or, by `state`, the history."""
    query, now = call.query, call.services.wall_clock()
    if query.state is UNSET:
        if query.cursor is not UNSET:
            raise HttpError(400, "invalid_request", "query parameters: `cursor` goes with `state`, such as state=all")
        return shapes.worker_session_list(await call.store.sessions(call.project_id), now=now)
    page = await call.store.session_page(
        call.project_id,
        state=query.state,
        stale_before=shapes.stale_before(now),
        cursor=query.cursor or None,
        limit=query.limit,
    )
    return shapes.worker_session_page(page, now=now)


async def drain_worker_session(call: Call[shapes.NoQuery, None]) -> shapes.DrainResponse:
    """Have one session finish what it has and claim nothing more."""
    return await _drain(call, DrainTarget(kind="session", value=call.path["id"]))


async def undrain_worker_session(call: Call[shapes.NoQuery, None]) -> shapes.DrainResponse:
    """Undo it: the worker is connected anew, and claims again."""
    return await _undrain(call, DrainTarget(kind="session", value=call.path["id"]))


async def drain_worker_sessions(call: Call[shapes.NoQuery, shapes.DrainRequest]) -> shapes.DrainResponse:
    """Have all sessions of an instance or a version drain, and those that register until this is undone."""
    return await _drain(call, _target(call.body, "request body"))


async def undrain_worker_sessions(call: Call[shapes.DrainQuery, None]) -> shapes.DrainResponse:
    """Undo it."""
    return await _undrain(call, _target(call.query, "query parameters"))


async def list_drains(call: Call[shapes.NoQuery, None]) -> shapes.DrainListResponse:
    """Every drain that stands, with the sessions that it names and the jobs that they have left."""
    drains = await call.store.drains(call.project_id)
    views = await call.store.sessions(call.project_id) if drains else []
    now = call.services.wall_clock()
    return shapes.DrainListResponse(items=[shapes.drain_shape(drain, views, now=now) for drain in drains])


async def _drain(
    call: Call[shapes.NoQuery, shapes.DrainRequest] | Call[shapes.NoQuery, None], target: DrainTarget
) -> shapes.DrainResponse:
    await call.store.drain_sessions(call.project_id, target)
    views = await call.store.sessions(call.project_id)
    standing = {drain.target: drain for drain in await call.store.drains(call.project_id)}
    now = call.services.wall_clock()
    drain = standing.get(target)
    return shapes.drain_shape(drain or Drain(target=target, created_at=now), views, now=now)


async def _undrain(
    call: Call[shapes.NoQuery, None] | Call[shapes.DrainQuery, None], target: DrainTarget
) -> shapes.DrainResponse:
    await call.store.undrain_sessions(call.project_id, target)
    views = await call.store.sessions(call.project_id)
    now = call.services.wall_clock()
    return shapes.drain_shape(Drain(target=target, created_at=now), views, now=now, stands=False)


def _target(named: shapes.DrainRequest | shapes.DrainQuery, where: str) -> DrainTarget:
    instance: str | UnsetType = named.worker_instance_id
    if isinstance(instance, str) and named.version is UNSET:
        return DrainTarget(kind="worker_instance_id", value=instance)
    if isinstance(named.version, str) and instance is UNSET:
        return DrainTarget(kind="version", value=named.version)
    raise HttpError(400, "invalid_request", f"{where}: give either `worker_instance_id` or `version`")
