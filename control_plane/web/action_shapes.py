"""What the HTTP side takes and gives of actions (see shapes.py)."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import asdict

from control_plane.domain.enqueue import NewJob
from control_plane.domain.model import TERMINAL_JOB, Job, RecordedAction
from control_plane.domain.store import Page
from control_plane.errors import Invalid
from control_plane.web.shapes import (
    Cursor,
    JsonObject,
    Limit,
    Name,
    Request,
    Response,
    TagValue,
    Text,
    changes_of,
    if_known,
    moment,
)

LONGEST_WAIT = 120
"""Seconds that an invocation may be waited for."""

DEFAULT_WAIT = 30

ActionName = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00]+\Z")]
EndpointKind = Literal["http", "worker"]
MaxRunning = Annotated[int, Meta(ge=1, le=1_000_000)]


class ActionAnnotations(Request, frozen=True):
    """`idempotent` false: a job whose worker was lost is not run again."""

    destructive: bool | UnsetType = UNSET
    idempotent: bool | UnsetType = UNSET
    read_only: bool | UnsetType = UNSET


class ActionsQuery(Request, frozen=True):
    """One page."""

    cursor: Cursor | UnsetType = UNSET
    limit: Limit = 50


class CreateActionRequest(Request, frozen=True):
    """Actions run on workers: `endpoint_kind` is "worker", and there is no `endpoint_url`."""

    name: ActionName
    title: Name | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    endpoint_kind: EndpointKind = "worker"
    endpoint_url: str | UnsetType = UNSET
    annotations: ActionAnnotations | UnsetType = UNSET
    input_schema: JsonObject | UnsetType = UNSET
    output_schema: JsonObject | UnsetType = UNSET
    tags: dict[str, TagValue] | UnsetType = UNSET
    max_running: MaxRunning | UnsetType | None = UNSET


class UpdateActionRequest(Request, frozen=True):
    """Only what is named is changed. `annotations` null takes all away, `max_running` null the limit."""

    title: Name | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    endpoint_url: str | UnsetType = UNSET
    annotations: ActionAnnotations | UnsetType | None = UNSET
    input_schema: JsonObject | UnsetType = UNSET
    output_schema: JsonObject | UnsetType = UNSET
    tags: dict[str, TagValue] | UnsetType = UNSET
    max_running: MaxRunning | UnsetType | None = UNSET


class InvokeActionRequest(Request, frozen=True):
    """`timeout_seconds`: how long the answer may take; the job goes on after that. `dry_run` runs nothing."""

    input: JsonObject | UnsetType = UNSET
    timeout_seconds: Annotated[int, Meta(ge=1, le=LONGEST_WAIT)] = DEFAULT_WAIT
    dry_run: bool = False


class ActionResponse(Response, frozen=True):
    """One recorded action."""

    id: str
    name: str
    endpoint_kind: EndpointKind
    created_at: datetime
    updated_at: datetime
    title: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    annotations: dict[str, bool] | UnsetType = UNSET
    input_schema: JsonObject | UnsetType = UNSET
    output_schema: JsonObject | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET
    max_running: int | UnsetType = UNSET


class ActionListResponse(Response, frozen=True):
    """One page, newest first."""

    items: list[ActionResponse]
    has_more: bool
    next_cursor: str | UnsetType = UNSET


class ActionInvocationResult(Response, frozen=True):
    """What came of an invocation. "active": its job goes on, and `job_id` says which it is."""

    status: Literal["active", "completed", "failed"]
    job_id: str | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    output: JsonObject | UnsetType = UNSET
    error: str | UnsetType = UNSET


def action_fields(request: CreateActionRequest | UpdateActionRequest) -> dict[str, Any]:
    """What is to be recorded. Raises Invalid("endpoint_kind_unsupported")."""
    fields = changes_of(request)
    url = fields.pop("endpoint_url", None)
    kind = fields.pop("endpoint_kind", "worker")
    if kind != "worker" or url is not None:
        sentence = (
            "actions run on workers here and are not called over HTTP: leave out endpoint_url, say endpoint_kind "
            "worker, and have a worker's handler make the request"
        )
        raise Invalid("endpoint_kind_unsupported", sentence)
    fields.pop("name", None)
    annotations = fields.get("annotations")
    if annotations is not None:
        fields["annotations"] = {name: value for name, value in asdict(annotations).items() if value is not UNSET}
    return fields


def invocation(name: str, request: InvokeActionRequest) -> NewJob:
    """The job that it is."""
    parameters = {} if request.input is UNSET else request.input
    return NewJob(action_name=name, spec={"parameters": parameters})


def invocation_result(job: Job) -> ActionInvocationResult:
    """As the job stands."""
    if job.status == "completed":
        return ActionInvocationResult(status="completed", job_id=job.id, output=job.result or {})
    if job.status not in TERMINAL_JOB:
        return ActionInvocationResult(status="active", job_id=job.id)
    error = f"{job.error_type or job.status}: {job.error_message or 'no reason was given'}"
    return ActionInvocationResult(status="failed", job_id=job.id, error=error)


def action_shape(action: RecordedAction) -> ActionResponse:
    """The record as the contract shows it; the limit only where there is one."""
    names = ("title", "description", "annotations", "input_schema", "output_schema", "tags", "max_running")
    fields = {name: value for name in names if (value := getattr(action, name)) is not None}
    return ActionResponse(
        id=action.id,
        name=action.name,
        endpoint_kind="worker",
        created_at=moment(action.created_at),
        updated_at=moment(action.updated_at),
        **fields,
    )


def action_page(page: Page) -> ActionListResponse:
    """One page of actions."""
    return ActionListResponse(
        items=[action_shape(action) for action in page.items],
        has_more=page.next_cursor is not None,
        next_cursor=if_known(page.next_cursor),
    )
