"""The routes of actions: what is recorded of them, and asking for one and its result in one request."""

from control_plane.domain.enqueue import check_size
from control_plane.domain.model import TERMINAL_JOB
from control_plane.web import action_shapes, shapes
from control_plane.web.action_shapes import ActionInvocationResult, ActionResponse
from control_plane.web.routes import Accepted, Call, Route


async def list_actions(call: Call[action_shapes.ActionsQuery, None]) -> action_shapes.ActionListResponse:
    """One page of what is recorded; workers may know more actions than these.

    A page of large schemas is shorter than `limit`."""
    page = await call.store.actions(call.project_id, cursor=call.query.cursor or None, limit=call.query.limit)
    return action_shapes.action_page(page)


async def create_action(call: Call[shapes.NoQuery, action_shapes.CreateActionRequest]) -> ActionResponse:
    """Record an action that workers run."""
    fields = action_shapes.action_fields(call.body)
    return action_shapes.action_shape(await call.store.create_action(call.project_id, call.body.name, fields))


async def get_action(call: Call[shapes.NoQuery, None]) -> ActionResponse:
    """What is recorded of the action."""
    return action_shapes.action_shape(await call.store.action(call.project_id, call.path["action_name"]))


async def update_action(call: Call[shapes.NoQuery, action_shapes.UpdateActionRequest]) -> ActionResponse:
    """Change what the body names."""
    changes = action_shapes.action_fields(call.body)
    action = await call.store.update_action(call.project_id, call.path["action_name"], changes)
    return action_shapes.action_shape(action)


async def delete_action(call: Call[shapes.NoQuery, None]) -> None:
    """Forget what is recorded; its jobs stay, and workers go on running it."""
    await call.store.delete_action(call.project_id, call.path["action_name"])


async def invoke_action(
    call: Call[shapes.NoQuery, action_shapes.InvokeActionRequest],
) -> ActionInvocationResult | Accepted:
    """Enqueue a job of the action and wait for its result.

    The action need not be recorded. A job that has not ended after `timeout_seconds` goes on: the answer has status 202
    and names it. `dry_run` checks the request and runs nothing."""
    job = action_shapes.invocation(call.path["action_name"], call.body)
    if call.body.dry_run:
        check_size(job.spec, "input")
        return ActionInvocationResult(status="completed", output={"dry_run": True})
    (job_id,) = (await call.enqueue([job])).ids
    ended = await call.services.waits.end_of(call.project_id, job_id, call.body.timeout_seconds)
    result = action_shapes.invocation_result(ended)
    return result if ended.status in TERMINAL_JOB else Accepted(body=result)


_ACTIONS = "/v1/projects/{project}/actions"
_ACTION = _ACTIONS + "/{action_name}"

ROUTES = (
    Route(
        method="GET",
        path=_ACTIONS,
        handler=list_actions,
        query=action_shapes.ActionsQuery,
        response=action_shapes.ActionListResponse,
    ),
    Route(
        method="POST",
        path=_ACTIONS,
        handler=create_action,
        status=201,
        body=action_shapes.CreateActionRequest,
        response=ActionResponse,
    ),
    Route(method="GET", path=_ACTION, handler=get_action, response=ActionResponse),
    Route(
        method="PATCH",
        path=_ACTION,
        handler=update_action,
        body=action_shapes.UpdateActionRequest,
        response=ActionResponse,
    ),
    Route(method="DELETE", path=_ACTION, handler=delete_action, status=204),
    Route(
        method="POST",
        path=_ACTION + "/invocations",
        handler=invoke_action,
        body=action_shapes.InvokeActionRequest,
        response=ActionInvocationResult,
        timeout=action_shapes.LONGEST_WAIT + 30.0,
        may_go_on=True,
    ),
)
