"""Rows of a store <-> records of the domain. JSON columns are UTF-8 text, whatever the database."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from control_plane.domain.model import (
    ApiKey,
    Attempt,
    Automation,
    Drain,
    DrainTarget,
    Event,
    Job,
    Project,
    Queue,
    RecordedAction,
    Run,
    Selector,
    Session,
    Step,
    Version,
)
from control_plane.store.lanes import NEVER

Row = Sequence[Any]

Reading = Callable[[str | None], Any]
"""What becomes of JSON text: from_json for who looks into it, raw_json for who answers it."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()
_selector = msgspec.json.Decoder(Selector)

_PROJECT = ("id", "handle", "name", "description", "dialect", "created_at", "updated_at")
_API_KEY = (
    "id", "project_id", "project_handle", "name", "created_at", "scopes", "expires_at", "revoked_at", "replaced_by",
    "last_used_at",
)  # fmt: skip
_AUTOMATION = (
    "id", "project_id", "handle", "name", "status", "latest_version", "published_version", "description",
    "default_agent_id", "default_inputs", "settings", "tags", "last_run_at", "archived_at", "created_at", "updated_at",
)  # fmt: skip
_VERSION = (
    "id", "project_id", "automation_id", "version", "status", "spec", "validation", "compiled_plan", "created_at",
)  # fmt: skip
RUN = (
    "id", "project_id", "automation_id", "automation_name", "version_id", "version", "status", "depth", "created_at",
    "updated_at", "started_at", "completed_at", "wall_clock_deadline_at", "external_id", "parent_run_id",
    "parent_automation_id", "parent_step_key", "error_type", "error_message", "source", "inputs",
)  # fmt: skip
STEP = (
    "id", "project_id", "run_id", "step_key", "step_name", "save_as", "kind", "status", "seq", "attempt", "job_id",
    "created_at", "updated_at", "started_at", "completed_at", "error_type", "error_message", "inputs", "parameters",
    "result",
)  # fmt: skip
_SESSION = (
    "id", "project_id", "worker_instance_id", "token_hash", "concurrency_limit", "selector", "created_at",
    "last_seen_at", "name", "version", "capabilities", "api_key_id", "draining", "drain_requested", "superseded",
    "ended_at", "end_reason",
)  # fmt: skip
JOB = (
    "id", "project_id", "kind", "origin", "queue", "action_name", "provider", "model", "environment_id", "run_id",
    "step_id", "step_key", "max_attempts", "retry_delay", "non_retryable", "execution_timeout", "priority",
    "retry_backoff", "retry_max_delay", "external_id", "created_at", "status", "available_at", "pending_deadline_at",
    "execution_deadline_at", "claim_attempt", "attempts_charged", "hand_backs", "lease_token_hash",
    "reported_token_hash", "lease_expires_at", "session_id", "worker_instance_id", "claimed_at", "heartbeat_at",
    "cancel_requested_at", "cancel_reason", "updated_at", "completed_at", "error_type", "error_message", "result",
)  # fmt: skip

JOB_KEYS = 3
"""A job's row begins with its seq, run_seq and step_seq."""


class _JobInOrder(Job, array_like=True, frozen=True):
    """As an array of its fields: SQLite makes it and msgspec reads it in half the time of an object with names."""


class PendingJob(Struct, array_like=True, frozen=True):
    """One of pending_jobs. `spec` None: it is long."""

    seq: int
    run_seq: int | None
    step_seq: int | None
    spec: str | None
    reported_token_hash: str
    job: _JobInOrder


_pending_jobs = msgspec.json.Decoder(list[PendingJob])
_places = msgspec.json.Decoder(list[tuple[int, int]])


def to_json(value: Any) -> str | None:
    """JSON text of a value; None stays NULL."""
    if value is None or value == []:
        return None if value is None else "[]"
    return _encoder.encode(value).decode()


def from_json(text: str | None) -> Any:
    """The value of JSON text; NULL is None."""
    return None if text is None else _decoder.decode(text)


def raw_json(text: str | None) -> Any:
    """JSON text that goes into an answer as it is; NULL is None. Decoded, a text may be a hundred times as large, and
    reading and writing it anew holds up the event loop."""
    return None if text is None else msgspec.Raw(text)


def project(row: Row) -> Project:
    """Of project_columns."""
    return Project(**dict(zip(_PROJECT, row, strict=True)))


def api_key(row: Row) -> ApiKey:
    """Of key_columns."""
    fields = dict(zip(_API_KEY, row, strict=True))
    return ApiKey(**fields | {"scopes": tuple(from_json(fields["scopes"]))})


def api_key_row(key: ApiKey, secret_hash: bytes, now: int) -> Row:
    """For insert_key."""
    return (key.id, key.project_id, key.name, secret_hash, key.created_at, to_json(key.scopes), key.expires_at, now)


def automation(row: Row, read: Reading = from_json) -> Automation:
    """Of automation_columns."""
    return Automation(**_decoded(_AUTOMATION, row, ("default_inputs", "settings", "tags"), read))


def automation_row(record: Automation) -> Row:
    """For insert_automation."""
    return _encoded(_AUTOMATION, record, ("default_inputs", "settings", "tags"))


def version(row: Row, read: Reading = from_json) -> Version:
    """Of version_columns."""
    fields = _decoded(_VERSION, row, ("spec", "compiled_plan"), read)
    return Version(**fields | {"validation": from_json(fields["validation"])})


def version_row(record: Version) -> Row:
    """For insert_version."""
    return _encoded(_VERSION, record, ("spec", "validation", "compiled_plan"))


def run(row: Row, read: Reading = from_json) -> Run:
    """Of run_columns, behind the seq; without its result."""
    return Run(**_decoded(RUN, row[1:], ("source", "inputs"), read))


def run_row(record: Run) -> Row:
    """For insert_run."""
    return _encoded(RUN, record, ("source", "inputs"))


def step(row: Row, read: Reading = from_json) -> Step:
    """Of step_columns."""
    return Step(**_decoded(STEP, row, ("inputs", "parameters", "result"), read))


def step_row(record: Step) -> Row:
    """For insert_step, behind run_seq and seq."""
    names = tuple(name for name in STEP if name != "seq")
    return _encoded(names, record, ("inputs", "parameters", "result"))


def event(project_id: str, run_id: str, row: Row) -> Event:
    """Of events_of_run, to be answered."""
    event_id, sequence, event_type, created_at, step_id, step_key, payload = row
    return Event(
        id=event_id,
        project_id=project_id,
        run_id=run_id,
        sequence=sequence,
        event_type=event_type,
        created_at=created_at,
        step_id=step_id,
        step_key=step_key,
        payload=raw_json(payload),
    )


def session(row: Row) -> Session:
    """Of session_columns."""
    fields = dict(zip(_SESSION, row, strict=True))
    fields["selector"] = _selector.decode(fields["selector"])
    fields["capabilities"] = tuple(from_json(fields["capabilities"]))
    for flag in ("draining", "drain_requested", "superseded"):
        fields[flag] = bool(fields[flag])
    return Session(**fields)


def session_row(record: Session) -> Row:
    """For insert_session."""
    return _encoded(_SESSION, record, ("selector", "capabilities"))


def drain(row: Row) -> Drain:
    """Of drains."""
    kind, target, created_at = row
    return Drain(target=DrainTarget(kind=kind, value=target), created_at=created_at)


def job(row: Row, spec: dict[str, Any]) -> Job:
    """Of pending_job, claimed_job or finished_job; `spec` is {} where the caller does not need it."""
    fields = dict(zip(JOB, row[JOB_KEYS:], strict=True))
    fields["non_retryable"] = from_json(fields["non_retryable"])
    fields["result"] = from_json(fields["result"])
    return Job(spec=spec, **fields)


_ACTION = (
    "id", "project_id", "name", "title", "description", "annotations", "input_schema", "output_schema", "tags",
    "only_once", "max_running", "created_at", "updated_at",
)  # fmt: skip
_ACTION_JSON = ("annotations", "input_schema", "output_schema", "tags")
_ACTION_CHANGES = (
    "title", "description", "annotations", "input_schema", "output_schema", "tags", "only_once", "max_running",
    "updated_at", "id",
)  # fmt: skip


def action(row: Row, read: Reading = from_json) -> RecordedAction:
    """Of action_columns."""
    fields = _decoded(_ACTION, row, _ACTION_JSON, read)
    del fields["only_once"]
    return RecordedAction(**fields)


def action_row(record: RecordedAction) -> Row:
    """For insert_action."""
    return _encoded(_ACTION, record, _ACTION_JSON)


def action_changes(record: RecordedAction) -> Row:
    """For update_action."""
    return _encoded(_ACTION_CHANGES, record, _ACTION_JSON)


def pending_job_fields(body: str, state: str) -> str:
    """The columns of a pending job (the texts of job_body and pending_state) in the order of Job's fields, for
    pending_jobs; those behind the deadlines are left out, since a claim writes them anew or finds them empty."""
    columns = [column.strip() for column in f"{body}, {state}".split(",")][JOB_KEYS:]
    fields = dict(zip(JOB, columns, strict=True)) | {"spec": "json('{}')", "non_retryable": "json(j.non_retryable)"}
    names = Job.__struct_fields__
    return ", ".join(fields[name] for name in names[: names.index("execution_deadline_at") + 1])


def pending_jobs(text: str) -> list[PendingJob]:
    """Of pending_jobs."""
    return _pending_jobs.decode(text)


def places(text: str) -> list[tuple[int, int]]:
    """Of lane_head: times and keys."""
    return _places.decode(text)


_QUEUE = ("project_id", "name", "paused_at", "max_running", "updated_at")


def queue(row: Row) -> Queue:
    """Of queue_columns."""
    return Queue(**dict(zip(_QUEUE, row, strict=True)))


def queue_row(record: Queue) -> Row:
    """For put_queue."""
    return _encoded(_QUEUE, record, ())


ATTEMPT = (
    "attempt", "session_id", "worker_instance_id", "error_type", "error_message", "started_at", "ended_at",
)  # fmt: skip


def attempt(row: Row) -> Attempt:
    """Of attempts_of_job."""
    return Attempt(**dict(zip(ATTEMPT, row, strict=True)))


def attempt_row(record: Attempt) -> Row:
    """For insert_attempt, behind the job's seq."""
    return _encoded(ATTEMPT, record, ())


def _decoded(names: Sequence[str], row: Row, json_names: Sequence[str], read: Reading) -> dict[str, Any]:
    fields = dict(zip(names, row, strict=True))
    for name in json_names:
        fields[name] = read(fields[name])
    return fields


def _encoded(names: Sequence[str], record: Any, json_names: Sequence[str]) -> list[Any]:
    return [to_json(getattr(record, name)) if name in json_names else getattr(record, name) for name in names]


def deadline_at(job: Job) -> int:
    """The column of a pending job: the earlier of its two deadlines."""
    return min(job.pending_deadline_at or NEVER, job.execution_deadline_at or NEVER)
