"""What the HTTP side takes and gives of jobs (see shapes.py)."""

from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from control_plane.domain.enqueue import HIGHEST_PRIORITY, MOST_JOBS, Enqueued, NewJob
from control_plane.domain.model import ORG_ID, Attempt, Job, JobKind, JobStatus
from control_plane.domain.retries import DEFAULT_EXECUTION_TIMEOUT, LONGEST_DELAY, MAX_ATTEMPTS, MOST_BACKOFF
from control_plane.domain.store import JobFilter, JobView, Page
from control_plane.domain.times import LATEST, parse_duration, rfc3339
from control_plane.errors import Invalid
from control_plane.web.shapes import (
    Cursor,
    JsonObject,
    Limit,
    Name,
    Request,
    Response,
    Text,
    given,
    if_known,
    microseconds_of,
    moment,
)

QueueName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*\Z",
        description="letters, digits, `.`, `_`, `:`, `@` and `-`, beginning with a letter or digit",
    ),
]
ExternalId = Annotated[str, Meta(min_length=1, max_length=256)]
Priority = Annotated[int, Meta(ge=-HIGHEST_PRIORITY, le=HIGHEST_PRIORITY)]
Duration = Annotated[str, Meta(min_length=1, max_length=64)]

YEAR = 366 * 86_400.0


class JobsQuery(Request, frozen=True):
    """A page looks at a bounded number of jobs: it may be short and not be the last."""

    status: JobStatus | UnsetType = UNSET
    queue: QueueName | UnsetType = UNSET
    action_name: Name | UnsetType = UNSET
    cursor: Cursor | UnsetType = UNSET
    limit: Limit = 50


class JobRetryRequest(Request, frozen=True):
    """As of an automation's step, and `backoff`: each delay is so many times as long as the one before it, up to
    `max_delay`."""

    max_attempts: Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS)] = 1
    delay: Duration | UnsetType = UNSET
    backoff: Annotated[float, Meta(ge=1.0, le=MOST_BACKOFF)] = 1.0
    max_delay: Duration | UnsetType = UNSET
    non_retryable: Annotated[list[Name], Meta(max_length=100)] | UnsetType = UNSET


class NewJobRequest(Request, frozen=True):
    """An action (`action_name`) with its `parameters`, or a generation (`provider`, `model`) with its `spec`."""

    kind: JobKind | UnsetType = UNSET
    action_name: Name | UnsetType = UNSET
    provider: Name | UnsetType = UNSET
    model: Name | UnsetType = UNSET
    queue: QueueName = "default"
    parameters: JsonObject | UnsetType = UNSET
    spec: JsonObject | UnsetType = UNSET
    priority: Priority = 0
    run_at: Annotated[datetime, Meta(tz=True)] | UnsetType = UNSET
    delay_seconds: Annotated[float, Meta(ge=0.0, le=YEAR)] = 0.0
    retry: JobRetryRequest | UnsetType = UNSET
    timeout_seconds: Annotated[float, Meta(gt=0.0, le=LONGEST_DELAY)] = DEFAULT_EXECUTION_TIMEOUT
    environment_id: Name | UnsetType = UNSET
    external_id: ExternalId | UnsetType = UNSET


class EnqueueJobsRequest(Request, frozen=True):
    """All of them are taken, or none is."""

    jobs: Annotated[list[NewJobRequest], Meta(min_length=1, max_length=MOST_JOBS)]


class EnqueueJobsResponse(Response, frozen=True):
    """The ids in the order of the request; `existing` are those that their external ids already had."""

    ids: list[str]
    existing: list[str] | UnsetType = UNSET


class CancelJobRequest(Request, frozen=True):
    """The reason reaches the handler that runs."""

    reason: Text | UnsetType = UNSET


class JobAttemptResponse(Response, frozen=True):
    """What one attempt died of."""

    attempt: int
    error_type: str
    error_message: str
    started_at: datetime
    ended_at: datetime
    worker_instance_id: str | UnsetType = UNSET
    session_id: str | UnsetType = UNSET


class JobRetryResponse(Response, frozen=True):
    """The policy that the job follows, in seconds."""

    max_attempts: int
    delay_seconds: float
    backoff: float
    max_delay_seconds: float | UnsetType = UNSET
    non_retryable: list[str] | UnsetType = UNSET


class JobResponse(Response, frozen=True):
    """One job. A listing leaves out `spec`, `result` and `attempts`."""

    id: str
    org_id: str
    project_id: str
    kind: JobKind
    origin: str
    status: JobStatus
    queue: str
    priority: int
    claim_attempt: int
    attempts_charged: int
    hand_backs: int
    retry: JobRetryResponse
    timeout_seconds: float
    created_at: datetime
    updated_at: datetime
    available_at: datetime
    action_name: str | UnsetType = UNSET
    provider: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    environment_id: str | UnsetType = UNSET
    external_id: str | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    step_id: str | UnsetType = UNSET
    step_key: str | UnsetType = UNSET
    worker_instance_id: str | UnsetType = UNSET
    session_id: str | UnsetType = UNSET
    claimed_at: datetime | UnsetType = UNSET
    heartbeat_at: datetime | UnsetType = UNSET
    lease_expires_at: datetime | UnsetType = UNSET
    execution_deadline_at: datetime | UnsetType = UNSET
    cancel_requested_at: datetime | UnsetType = UNSET
    cancel_reason: str | UnsetType = UNSET
    completed_at: datetime | UnsetType = UNSET
    error_type: str | UnsetType = UNSET
    error_message: str | UnsetType = UNSET
    spec: JsonObject | UnsetType = UNSET
    result: JsonObject | UnsetType = UNSET
    attempts: list[JobAttemptResponse] | UnsetType = UNSET


class JobListResponse(Response, frozen=True):
    """One page, newest first. It may be short and not be the last."""

    items: list[JobResponse]
    has_more: bool
    next_cursor: str | UnsetType = UNSET


_pattern = attrgetter(*(name for name in NewJobRequest.__struct_fields__ if name not in ("parameters", "spec")))


def new_jobs(request: EnqueueJobsRequest) -> list[NewJob]:
    """What the domain is handed. Raises Invalid("invalid_job") that names the job and the field."""
    made: list[NewJob] = []
    pattern: Any = None
    for index, each in enumerate(request.jobs):
        if (what := _pattern(each)) == pattern and each.spec is UNSET:
            # As the one before, but for its parameters.
            made.append(replace(made[-1], spec=_parameters(each)))
        else:
            made.append(_new_job(each, index))
            pattern = what if each.action_name is not UNSET and each.external_id is UNSET else None
    return made


def _new_job(each: NewJobRequest, index: int) -> NewJob:
    kind, spec = _work(each, f"jobs[{index}]")
    run_at = microseconds_of(each.run_at)
    if run_at is not None and run_at > LATEST:
        raise _invalid(f"jobs[{index}].run_at", f"at the latest {rfc3339(LATEST)}")
    return NewJob(
        kind=kind,
        spec=spec,
        queue=each.queue,
        action_name=given(each.action_name),
        provider=given(each.provider),
        model=given(each.model),
        environment_id=given(each.environment_id),
        priority=each.priority,
        run_at=run_at,
        delay=each.delay_seconds,
        execution_timeout=each.timeout_seconds,
        external_id=given(each.external_id),
        **({} if each.retry is UNSET else _retry(each.retry, f"jobs[{index}].retry")),
    )


def _retry(retry: JobRetryRequest, where: str) -> dict[str, Any]:
    return {
        "max_attempts": retry.max_attempts,
        "retry_delay": _seconds(retry.delay, f"{where}.delay") or 0.0,
        "retry_backoff": retry.backoff,
        "retry_max_delay": _seconds(retry.max_delay, f"{where}.max_delay"),
        "non_retryable": tuple(given(retry.non_retryable) or ()),
    }


def _work(each: NewJobRequest, where: str) -> tuple[JobKind, JsonObject]:
    generation = each.provider is not UNSET or each.model is not UNSET
    if generation == (each.action_name is not UNSET):
        raise _invalid(where, "say what is to be done: either `action_name`, or `provider` and `model`")
    kind: JobKind = "llm_generation" if generation else "action_execution"
    if each.kind is not UNSET and each.kind != kind:
        raise _invalid(where, f"`kind` is {each.kind}, but what it names makes it {kind}; leave it out")
    if generation:
        if each.provider is UNSET or each.model is UNSET:
            raise _invalid(where, "a generation needs both `provider` and `model`")
        if each.spec is UNSET or each.parameters is not UNSET:
            raise _invalid(where, "a generation has a `spec` with its `request`, and no `parameters`")
        return kind, each.spec
    if each.spec is UNSET:
        return kind, _parameters(each)
    if each.parameters is not UNSET:
        raise _invalid(where, "give either `parameters` or a whole `spec`, not both")
    return kind, each.spec


def _parameters(each: NewJobRequest) -> JsonObject:
    return {"parameters": {} if each.parameters is UNSET else each.parameters}


def _seconds(text: str | UnsetType, where: str) -> float | None:
    if text is UNSET:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise _invalid(where, str(error)) from error
    if seconds > LONGEST_DELAY:
        raise _invalid(where, f"at most {LONGEST_DELAY / 86_400:g} days, got {text!r}")
    return seconds


def _invalid(where: str, sentence: str) -> Invalid:
    return Invalid("invalid_job", f"{where}: {sentence}")


def enqueued_shape(enqueued: Enqueued) -> EnqueueJobsResponse:
    """What was handed in, by id."""
    return EnqueueJobsResponse(ids=enqueued.ids, existing=enqueued.existing or UNSET)


def job_filter(query: JobsQuery) -> JobFilter:
    """What the listing is asked for."""
    return JobFilter(status=given(query.status), queue=given(query.queue), action_name=given(query.action_name))


_PLAIN = (
    "id", "project_id", "kind", "origin", "status", "queue", "priority", "claim_attempt", "attempts_charged",
    "hand_backs",
)  # fmt: skip
_OPTIONAL = (
    "action_name", "provider", "model", "environment_id", "external_id", "run_id", "step_id", "step_key",
    "worker_instance_id", "session_id", "cancel_reason", "error_type", "error_message",
)  # fmt: skip
_TIMES = (
    "created_at", "updated_at", "available_at", "claimed_at", "heartbeat_at", "lease_expires_at",
    "execution_deadline_at", "cancel_requested_at", "completed_at",
)  # fmt: skip


def job_shape(job: Job, *, attempts: list[Attempt] | None = None) -> JobResponse:
    """The record, without what only its holder may know. `attempts` None: as a listing shows it."""
    fields: dict[str, Any] = {name: getattr(job, name) for name in _PLAIN}
    fields |= {name: value for name in _OPTIONAL if (value := getattr(job, name)) is not None}
    fields |= {name: moment(value) for name in _TIMES if (value := getattr(job, name)) is not None}
    retry = JobRetryResponse(
        max_attempts=job.max_attempts,
        delay_seconds=job.retry_delay,
        backoff=job.retry_backoff,
        max_delay_seconds=if_known(job.retry_max_delay),
        non_retryable=job.non_retryable or UNSET,
    )
    if attempts is not None:
        fields["spec"] = job.spec
        fields["attempts"] = [attempt_shape(attempt) for attempt in attempts]
        if job.result is not None:
            fields["result"] = job.result
    return JobResponse(org_id=ORG_ID, retry=retry, timeout_seconds=job.execution_timeout, **fields)


def attempt_shape(attempt: Attempt) -> JobAttemptResponse:
    """The record as it is shown."""
    return JobAttemptResponse(
        attempt=attempt.attempt,
        error_type=attempt.error_type,
        error_message=attempt.error_message,
        started_at=moment(attempt.started_at),
        ended_at=moment(attempt.ended_at),
        worker_instance_id=if_known(attempt.worker_instance_id),
        session_id=if_known(attempt.session_id),
    )


def job_view_shape(view: JobView) -> JobResponse:
    """The whole job."""
    return job_shape(view.job, attempts=view.attempts)


def job_page(page: Page) -> JobListResponse:
    """One page of jobs."""
    return JobListResponse(
        items=[job_shape(job) for job in page.items],
        has_more=page.next_cursor is not None,
        next_cursor=if_known(page.next_cursor),
    )
