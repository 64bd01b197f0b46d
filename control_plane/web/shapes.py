"""What the HTTP side takes and gives: one Struct per request and response body, and per set of query parameters.

Field names and optionality are the contract's. A request with a field that is not here is refused; a response never
carries a field that is not here, and leaves out what is not set, because the public clients validate strictly.
"""

import collections.abc
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from control_plane.domain.model import (
    ORG_ID,
    ApiKey,
    Automation,
    AutomationStatus,
    Drain,
    EndReason,
    Event,
    Job,
    JobStatus,
    Project,
    Run,
    RunStatus,
    SessionState,
    Step,
    StepKind,
    StepStatus,
    Version,
    VersionStatus,
)
from control_plane.domain.store import Page, RunFilter, SessionView
from control_plane.domain.times import MICROSECONDS, to_microseconds
from wire.frames import ModelCapability

SESSION_STALE_AFTER = 90.0
"""Seconds without a sign of life after which a presence row is shown as stale."""

Handle = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*\Z",
        description="lower-case letters and digits, in words joined by single `.`, `_` or `-`",
    ),
]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
TagValue = Annotated[str, Meta(max_length=256)]
Limit = Annotated[int, Meta(ge=1, le=200)]
Sequence = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Cursor = Annotated[str, Meta(max_length=512)]
Moment = Annotated[datetime, Meta(tz=True)]
JsonObject = dict[str, Any]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every request body and of every set of query parameters. Optional fields cannot be null."""


class Response(Struct, frozen=True, kw_only=True):
    """Base of every response body. A field that is UNSET is left out."""


# --- query parameters -----------------------------------------------------------------------------------------------


class NoQuery(Request, frozen=True):
    """A route without query parameters."""


class ProjectsQuery(Request, frozen=True):
    """`tag` may be repeated."""

    search: str | UnsetType = UNSET
    status: Literal["active", "archived", "all"] = "active"
    tag: list[str] | UnsetType = UNSET


class AutomationsQuery(Request, frozen=True):
    """Without `status` archived automations are left out."""

    status: Literal["draft", "active", "paused", "archived", "all"] | UnsetType = UNSET
    cursor: Cursor | UnsetType = UNSET
    limit: Limit = 50


class VersionsQuery(Request, frozen=True):
    """As many as there are, but for very many or very large ones."""

    cursor: Cursor | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000


class RunsQuery(Request, frozen=True):
    """All that is given must fit. `source_event_id` selects the runs that this event started, `created_after` those
    created then or later, `created_before` those created before."""

    status: RunStatus | UnsetType = UNSET
    automation_id: str | UnsetType = UNSET
    external_id: str | UnsetType = UNSET
    parent_run_id: str | UnsetType = UNSET
    created_after: Moment | UnsetType = UNSET
    created_before: Moment | UnsetType = UNSET
    source_event_id: str | UnsetType = UNSET
    cursor: Cursor | UnsetType = UNSET
    limit: Limit = 50


class EventsQuery(Request, frozen=True):
    """Events with a sequence greater than `since_sequence`."""

    since_sequence: Sequence = 0
    limit: Limit = 50


class EventStreamQuery(Request, frozen=True):
    """Events with a sequence greater than `since_sequence`."""

    since_sequence: Sequence = 0


class DeltaStreamQuery(Request, frozen=True):
    """Deltas after this one; `since` is the id of a delta's event."""

    since: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET


class WorkerSessionsQuery(Request, frozen=True):
    """Without `state`: those that have not ended, or still have jobs in hand, all at once. With it: pages of the
    history, with when and why sessions ended."""

    state: SessionState | UnsetType = UNSET
    cursor: Cursor | UnsetType = UNSET
    limit: Limit = 50


class DrainQuery(Request, frozen=True):
    """One of the two names the drain."""

    worker_instance_id: Name | UnsetType = UNSET
    version: Name | UnsetType = UNSET


# --- request bodies -------------------------------------------------------------------------------------------------


class DrainRequest(Request, frozen=True):
    """One of the two says what is to drain: all sessions of an instance, or of a version of the worker's program."""

    worker_instance_id: Name | UnsetType = UNSET
    version: Name | UnsetType = UNSET


class CreateAutomationRequest(Request, frozen=True):
    """A new automation, without a version yet."""

    handle: Handle
    name: Name
    description: Text | UnsetType = UNSET
    default_agent_id: Name | UnsetType = UNSET
    default_inputs: JsonObject | UnsetType = UNSET
    settings: JsonObject | UnsetType = UNSET
    tags: dict[str, TagValue] | UnsetType = UNSET


class UpdateAutomationRequest(Request, frozen=True):
    """Only what is named is changed."""

    name: Name | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    default_agent_id: Name | UnsetType = UNSET
    default_inputs: JsonObject | UnsetType = UNSET
    settings: JsonObject | UnsetType = UNSET
    status: AutomationStatus | UnsetType = UNSET
    tags: dict[str, TagValue] | UnsetType = UNSET


class CreateVersionRequest(Request, frozen=True):
    """The spec is judged by the domain, which lists every fault in the version's `validation`."""

    spec: JsonObject
    compiled_plan: JsonObject | UnsetType = UNSET


class RunSource(Request, frozen=True):
    """What started a run, in the caller's words."""

    id: str | UnsetType = UNSET
    label: str | UnsetType = UNSET
    trigger_fire_id: str | UnsetType = UNSET
    trigger_id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class StartRunRequest(Request, frozen=True):
    """`external_id`: the same run as long as it is not terminal (contract, "The HTTP side")."""

    external_id: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType = UNSET
    inputs: JsonObject | UnsetType = UNSET
    source: RunSource | UnsetType = UNSET


class CancelRunRequest(Request, frozen=True):
    """The reason reaches the handler that runs."""

    reason: Text | UnsetType = UNSET


class SignalRunRequest(Request, frozen=True):
    """What the step was waiting for, in `result`; its match, condition and payload_mapping work on that."""

    step_key: Name
    result: JsonObject | UnsetType = UNSET


# --- response bodies ------------------------------------------------------------------------------------------------


class ErrorBody(Response, frozen=True):
    """A stable code, a sentence for people, and what else is known."""

    code: str
    message: str
    details: JsonObject | UnsetType = UNSET


class ErrorResponse(Response, frozen=True):
    """The envelope of every answer that is not a success."""

    error: ErrorBody


class HealthResponse(Response, frozen=True):
    """Answer of /healthz and /readyz."""

    status: Literal["ok"] | UnsetType = UNSET


class ProjectResponse(Response, frozen=True):
    """One project."""

    id: str
    name: str
    handle: str
    access_mode: Literal["org_open", "restricted"]
    created_at: datetime
    updated_at: datetime
    description: str | UnsetType = UNSET


class ProjectListResponse(Response, frozen=True):
    """The projects that the key can see."""

    items: list[ProjectResponse]


class AutomationResponse(Response, frozen=True):
    """One automation. Triggers are part of a version's spec and none is kept beside it."""

    id: str
    org_id: str
    project_id: str
    handle: str
    name: str
    status: AutomationStatus
    latest_version: int
    triggers: list[JsonObject]
    created_at: datetime
    updated_at: datetime
    published_version: int | UnsetType = UNSET
    description: str | UnsetType = UNSET
    default_agent_id: str | UnsetType = UNSET
    default_inputs: JsonObject | UnsetType = UNSET
    settings: JsonObject | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET
    last_run_at: datetime | UnsetType = UNSET
    archived_at: datetime | UnsetType = UNSET


class AutomationListResponse(Response, frozen=True):
    """One page, newest first."""

    items: list[AutomationResponse]
    has_more: bool
    next_cursor: str | UnsetType = UNSET


class VersionResponse(Response, frozen=True):
    """One version of an automation, with what its validation found."""

    id: str
    org_id: str
    project_id: str
    automation_id: str
    version: int
    status: VersionStatus
    created_at: datetime
    spec: JsonObject
    validation: JsonObject
    compiled_plan: JsonObject | UnsetType = UNSET


class VersionListResponse(Response, frozen=True):
    """Newest first. Where there are more, `next_cursor` alone says so: public clients know no field but `items`."""

    items: list[VersionResponse]
    next_cursor: str | UnsetType = UNSET


class RunResponse(Response, frozen=True):
    """One run; `result` is keyed by each step's `save_as` and absent until success."""

    id: str
    org_id: str
    project_id: str
    automation_id: str
    automation_version_id: str
    automation_version: int
    status: RunStatus
    created_at: datetime
    updated_at: datetime
    automation_name: str | UnsetType = UNSET
    inputs: JsonObject | UnsetType = UNSET
    result: JsonObject | UnsetType = UNSET
    source: JsonObject | UnsetType = UNSET
    parent_run_id: str | UnsetType = UNSET
    parent_automation_id: str | UnsetType = UNSET
    parent_step_key: str | UnsetType = UNSET
    error_type: str | UnsetType = UNSET
    error_message: str | UnsetType = UNSET
    wall_clock_deadline_at: datetime | UnsetType = UNSET
    wake_at: datetime | UnsetType = UNSET
    started_at: datetime | UnsetType = UNSET
    completed_at: datetime | UnsetType = UNSET


class RunListResponse(Response, frozen=True):
    """One page, newest first."""

    items: list[RunResponse]
    has_more: bool
    next_cursor: str | UnsetType = UNSET


class EventResponse(Response, frozen=True):
    """One entry of a run's stream."""

    id: str
    org_id: str
    project_id: str
    run_id: str
    sequence: int
    event_type: str
    created_at: datetime
    payload: JsonObject | UnsetType = UNSET
    step_id: str | UnsetType = UNSET
    step_key: str | UnsetType = UNSET


class EventListResponse(Response, frozen=True):
    """One page in order; `next_sequence` is the `since_sequence` of the next page."""

    items: list[EventResponse]
    has_more: bool
    next_sequence: int


class StepResponse(Response, frozen=True):
    """One step of a run."""

    id: str
    org_id: str
    project_id: str
    run_id: str
    step_key: str
    kind: StepKind
    status: StepStatus
    seq: int
    attempt: int
    created_at: datetime
    updated_at: datetime
    step_name: str | UnsetType = UNSET
    wait_id: str | UnsetType = UNSET
    job_id: str | UnsetType = UNSET
    inputs: JsonObject | UnsetType = UNSET
    parameters: JsonObject | UnsetType = UNSET
    result: Any = UNSET
    error_type: str | UnsetType = UNSET
    error_message: str | UnsetType = UNSET
    started_at: datetime | UnsetType = UNSET
    completed_at: datetime | UnsetType = UNSET


class StepListResponse(Response, frozen=True):
    """Every step of the run, in order."""

    items: list[StepResponse]


class JobReference(Response, frozen=True):
    """A job as a presence row shows it."""

    id: str
    run_id: str
    step_name: str
    action: str
    status: JobStatus
    updated_at: datetime
    claimed_at: datetime | UnsetType = UNSET
    heartbeat_at: datetime | UnsetType = UNSET


class WorkerSessionResponse(Response, frozen=True):
    """One presence row. Only where the history is asked for: what begins at `created_at`, and the status `ended`."""

    id: str
    worker_instance_id: str
    concurrency_limit: int
    instance_status: Literal["active", "stale", "draining", "ended"]
    stale: bool
    busy_job_count: int
    current_jobs: list[JobReference]
    last_seen_at: datetime | UnsetType = UNSET
    last_activity_at: datetime | UnsetType = UNSET
    last_job: JobReference | UnsetType = UNSET
    name: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    environment_id: str | UnsetType = UNSET
    api_key_id: str | UnsetType = UNSET
    queues: list[str] | UnsetType = UNSET
    action_names: list[str] | UnsetType = UNSET
    models: list[ModelCapability] | UnsetType = UNSET
    capabilities: list[str] | UnsetType = UNSET
    created_at: datetime | UnsetType = UNSET
    saturation: float | UnsetType = UNSET
    """The share of its slots that are busy."""
    drain_requested: bool | UnsetType = UNSET
    ended_at: datetime | UnsetType = UNSET
    end_reason: EndReason | UnsetType = UNSET


class WorkerSessionTotals(Response, frozen=True):
    """Over the rows that are not stale, and how many are."""

    active_instances: int
    slots: int
    busy: int
    stale: int


class WorkerSessionListResponse(Response, frozen=True):
    """Every presence row of the project; or, where the history is asked for, a page of it, newest first."""

    items: list[WorkerSessionResponse]
    totals: WorkerSessionTotals
    has_more: bool | UnsetType = UNSET
    next_cursor: str | UnsetType = UNSET


class GenerationEvent(Response, frozen=True):
    """What an event of a generation's stream says. The word `status` is not among its names: clients of event streams
    take it for the run's."""

    job_id: str
    attempt: int
    sequence: int | UnsetType = UNSET
    delta: JsonObject | UnsetType = UNSET
    supersedes: int | UnsetType = UNSET
    """The attempt whose text is void."""
    outcome: Literal["completed", "failed", "cancelled"] | UnsetType = UNSET
    error_type: str | UnsetType = UNSET
    error_message: str | UnsetType = UNSET

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)


class DrainResponse(Response, frozen=True):
    """A drain that stands, or was just lifted: the sessions that it names, and the jobs that they have in hand."""

    jobs_left: int
    items: list[WorkerSessionResponse]
    created_at: datetime | UnsetType = UNSET
    worker_session_id: str | UnsetType = UNSET
    worker_instance_id: str | UnsetType = UNSET
    version: str | UnsetType = UNSET


class DrainListResponse(Response, frozen=True):
    """Every drain that stands, newest first."""

    items: list[DrainResponse]


# --- records -> shapes ----------------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(microseconds: int) -> datetime:
    """A time of the store as a UTC datetime; msgspec writes it as RFC 3339 with `Z`."""
    return _EPOCH + timedelta(microseconds=microseconds)


def moment_if_known(microseconds: int | None) -> datetime | UnsetType:
    """The same of a time that may not be known: then the response leaves it out."""
    return UNSET if microseconds is None else moment(microseconds)


def if_known(value: Any) -> Any:
    """A field of a response, which leaves out what is None."""
    return UNSET if value is None else value


def given(value: Any) -> Any:
    """A field of a request; None: it does not have it."""
    return None if value is UNSET else value


def microseconds_of(at: datetime | UnsetType) -> int | None:
    """A time of a request as the store's; None: it names none."""
    return None if isinstance(at, UnsetType) else round(at.timestamp() * MICROSECONDS)


def project_shape(project: Project) -> ProjectResponse:
    """Every key of a project can do everything in it, which the contract calls `org_open`."""
    return ProjectResponse(
        id=project.id,
        name=project.name,
        handle=project.handle,
        access_mode="org_open",
        created_at=moment(project.created_at),
        updated_at=moment(project.updated_at),
        description=if_known(project.description),
    )


def automation_shape(automation: Automation) -> AutomationResponse:
    """The record as the contract shows it."""
    return AutomationResponse(
        id=automation.id,
        org_id=ORG_ID,
        project_id=automation.project_id,
        handle=automation.handle,
        name=automation.name,
        status=automation.status,
        latest_version=automation.latest_version,
        triggers=[],
        created_at=moment(automation.created_at),
        updated_at=moment(automation.updated_at),
        published_version=if_known(automation.published_version),
        description=if_known(automation.description),
        default_agent_id=if_known(automation.default_agent_id),
        default_inputs=if_known(automation.default_inputs),
        settings=if_known(automation.settings),
        tags=if_known(automation.tags),
        last_run_at=moment_if_known(automation.last_run_at),
        archived_at=moment_if_known(automation.archived_at),
    )


def automation_page(page: Page) -> AutomationListResponse:
    """One page of automations."""
    return AutomationListResponse(
        items=[automation_shape(item) for item in page.items],
        has_more=page.next_cursor is not None,
        next_cursor=if_known(page.next_cursor),
    )


def version_shape(version: Version) -> VersionResponse:
    """The record as the contract shows it."""
    return VersionResponse(
        id=version.id,
        org_id=ORG_ID,
        project_id=version.project_id,
        automation_id=version.automation_id,
        version=version.version,
        status=version.status,
        created_at=moment(version.created_at),
        spec=version.spec,
        validation=version.validation,
        compiled_plan=if_known(version.compiled_plan),
    )


def version_page(page: Page) -> VersionListResponse:
    """One page of versions."""
    return VersionListResponse(
        items=[version_shape(item) for item in page.items], next_cursor=if_known(page.next_cursor)
    )


def run_shape(run: Run) -> RunResponse:
    """The record as the contract shows it."""
    return RunResponse(
        id=run.id,
        org_id=ORG_ID,
        project_id=run.project_id,
        automation_id=run.automation_id,
        automation_version_id=run.version_id,
        automation_version=run.version,
        status=run.status,
        created_at=moment(run.created_at),
        updated_at=moment(run.updated_at),
        automation_name=run.automation_name,
        inputs=run.inputs,
        result=if_known(run.result),
        source=if_known(run.source),
        parent_run_id=if_known(run.parent_run_id),
        parent_automation_id=if_known(run.parent_automation_id),
        parent_step_key=if_known(run.parent_step_key),
        error_type=if_known(run.error_type),
        error_message=if_known(run.error_message),
        wall_clock_deadline_at=moment_if_known(run.wall_clock_deadline_at),
        wake_at=moment_if_known(run.wake_at),
        started_at=moment_if_known(run.started_at),
        completed_at=moment_if_known(run.completed_at),
    )


def run_page(page: Page) -> RunListResponse:
    """One page of runs."""
    return RunListResponse(
        items=[run_shape(item) for item in page.items],
        has_more=page.next_cursor is not None,
        next_cursor=if_known(page.next_cursor),
    )


def event_shape(event: Event) -> EventResponse:
    """The record as the contract shows it."""
    return EventResponse(
        id=event.id,
        org_id=ORG_ID,
        project_id=event.project_id,
        run_id=event.run_id,
        sequence=event.sequence,
        event_type=event.event_type,
        created_at=moment(event.created_at),
        payload=event.payload,
        step_id=if_known(event.step_id),
        step_key=if_known(event.step_key),
    )


def step_shape(step: Step) -> StepResponse:
    """The record as the contract shows it."""
    return StepResponse(
        id=step.id,
        org_id=ORG_ID,
        project_id=step.project_id,
        run_id=step.run_id,
        step_key=step.step_key,
        kind=step.kind,
        status=step.status,
        seq=step.seq,
        attempt=step.attempt,
        created_at=moment(step.created_at),
        updated_at=moment(step.updated_at),
        step_name=if_known(step.step_name),
        wait_id=step.id.replace("step_", "wait_", 1) if step.kind == "wait_for_event" else UNSET,
        job_id=if_known(step.job_id),
        inputs=if_known(step.inputs),
        parameters=if_known(step.parameters),
        result=if_known(step.result),
        error_type=if_known(step.error_type),
        error_message=if_known(step.error_message),
        started_at=moment_if_known(step.started_at),
        completed_at=moment_if_known(step.completed_at),
    )


def _job_reference(job: Job, step_names: dict[str, str]) -> JobReference:
    return JobReference(
        id=job.id,
        run_id=job.run_id or "",
        step_name=step_names.get(job.id, job.step_key or ""),
        action=job.action_name or "",
        status=job.status,
        updated_at=moment(job.updated_at),
        claimed_at=moment_if_known(job.claimed_at),
        heartbeat_at=moment_if_known(job.heartbeat_at),
    )


def worker_session_shape(view: SessionView, *, now: int) -> WorkerSessionResponse:
    """A presence row at `now` (microseconds)."""
    return WorkerSessionResponse(**_presence(view, now))


def worker_session_record(view: SessionView, *, now: int) -> WorkerSessionResponse:
    """A row of the history at `now` (microseconds)."""
    session = view.session
    fields = _presence(view, now)
    if session.ended_at is not None:
        fields |= {"instance_status": "ended", "stale": False}
    return WorkerSessionResponse(
        **fields,
        created_at=moment(session.created_at),
        saturation=round(min(1.0, len(view.current_jobs) / session.concurrency_limit), 3),
        drain_requested=session.drain_requested,
        ended_at=moment_if_known(session.ended_at),
        end_reason=if_known(session.end_reason),
    )


def _presence(view: SessionView, now: int) -> dict[str, Any]:
    session = view.session
    stale = session.last_seen_at < stale_before(now)
    draining = session.draining or session.drain_requested
    return {
        "id": session.id,
        "worker_instance_id": session.worker_instance_id,
        "concurrency_limit": session.concurrency_limit,
        "instance_status": "stale" if stale else "draining" if draining else "active",
        "stale": stale,
        "busy_job_count": len(view.current_jobs),
        "current_jobs": [_job_reference(job, view.step_names) for job in view.current_jobs],
        "last_seen_at": moment(session.last_seen_at),
        "last_activity_at": moment_if_known(_last_activity(view)),
        "last_job": UNSET if view.last_job is None else _job_reference(view.last_job, view.step_names),
        "name": if_known(session.name),
        "version": if_known(session.version),
        "environment_id": if_known(session.selector.environment_id),
        "api_key_id": if_known(session.api_key_id),
        "queues": list(session.selector.queues),
        "action_names": list(session.selector.action_names),
        "models": [ModelCapability(provider=provider, model=model) for provider, model in session.selector.models],
        "capabilities": list(session.capabilities),
    }


def stale_before(now: int) -> int:
    """Microseconds: a session last seen before is stale at `now`."""
    return now - to_microseconds(SESSION_STALE_AFTER)


def _last_activity(view: SessionView) -> int | None:
    jobs = view.current_jobs if view.last_job is None else [*view.current_jobs, view.last_job]
    return max((job.updated_at for job in jobs), default=None)


def worker_session_list(views: list[SessionView], *, now: int) -> WorkerSessionListResponse:
    """All presence rows at `now` (microseconds), with their totals."""
    items = [worker_session_shape(view, now=now) for view in views]
    return WorkerSessionListResponse(items=items, totals=_totals(items))


def worker_session_page(page: Page, *, now: int) -> WorkerSessionListResponse:
    """A page of the history at `now` (microseconds), with the totals of the page."""
    items = [worker_session_record(view, now=now) for view in page.items]
    open_rows = [item for item in items if item.ended_at is UNSET]
    return WorkerSessionListResponse(
        items=items,
        totals=_totals(open_rows),
        has_more=page.next_cursor is not None,
        next_cursor=if_known(page.next_cursor),
    )


def _totals(items: collections.abc.Sequence[WorkerSessionResponse]) -> WorkerSessionTotals:
    live = [item for item in items if not item.stale]
    return WorkerSessionTotals(
        active_instances=len(live),
        slots=sum(item.concurrency_limit for item in live),
        busy=sum(item.busy_job_count for item in live),
        stale=len(items) - len(live),
    )


def drain_shape(drain: Drain, views: list[SessionView], *, now: int, stands: bool = True) -> DrainResponse:
    """What is left of the sessions that the drain names, of all that are open or have jobs in hand."""
    target = drain.target
    named = [view for view in views if target.names(view.session)]
    name = {"session": "worker_session_id"}.get(target.kind, target.kind)
    return DrainResponse(
        jobs_left=sum(len(view.current_jobs) for view in named),
        items=[worker_session_record(view, now=now) for view in named],
        created_at=moment(drain.created_at) if stands else UNSET,
        **{name: target.value},
    )


def changes_of(request: Request) -> dict[str, Any]:
    """The fields that a request sets, by name."""
    return {name: value for name in request.__struct_fields__ if (value := getattr(request, name)) is not UNSET}


def run_filter(query: RunsQuery) -> RunFilter:
    """What the query asks beside status and automation."""
    return RunFilter(
        external_id=query.external_id or None,
        parent_run_id=query.parent_run_id or None,
        created_after=_microseconds(query.created_after),
        created_before=_microseconds(query.created_before),
    )


def _microseconds(time: datetime | UnsetType) -> int | None:
    return None if isinstance(time, UnsetType) else (time - _EPOCH) // timedelta(microseconds=1)


def run_source(source: RunSource | UnsetType) -> JsonObject | None:
    """The source of a run as plain data."""
    return None if source is UNSET else msgspec.to_builtins(source)


def visible_projects(projects: list[Project], key: ApiKey, query: ProjectsQuery) -> ProjectListResponse:
    """The key's own project, where the query selects it: no project is archived and none has tags."""
    search = "" if query.search is UNSET else query.search.casefold()
    selected = [] if query.status == "archived" or query.tag else projects
    return ProjectListResponse(
        items=[
            project_shape(project)
            for project in selected
            if project.id == key.project_id and (search in project.handle or search in project.name.casefold())
        ]
    )
