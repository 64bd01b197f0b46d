"""The records of the control plane, as plain frozen data.

Times are integer microseconds since the epoch, UTC, by the store's clock. Durations are seconds. Objects that users
gave us (specs, inputs, results) are JSON values. `org_id` exists for the public clients: one server, one organization.
"""

from typing import Any, Literal

from msgspec import Struct, field

ORG_ID = "org_default"

Dialect = Literal["automations", "loops", "org"]
AutomationStatus = Literal["draft", "active", "paused", "archived"]
VersionStatus = Literal["draft", "published", "superseded"]
RunStatus = Literal["queued", "running", "suspended", "completed", "failed", "cancelled"]
StepStatus = Literal["pending", "running", "suspended", "completed", "failed", "skipped", "cancelled"]
StepKind = Literal["agent", "action", "sleep", "wait_for_event", "cleanup"]
TimerKind = Literal["step", "run", "cleanup", "turn"]
JobStatus = Literal["pending", "claimed", "completed", "failed", "cancelled"]
EndReason = Literal["drained", "superseded", "unseen"]
"""Why a session ended: it left after a drain, another process took its identity, or nothing was seen of it for long."""
SessionState = Literal["live", "stale", "draining", "ended", "all"]
Scope = Literal["operator", "reader", "worker"]
JobKind = Literal["action_execution", "llm_generation"]

TERMINAL_RUN = frozenset({"completed", "failed", "cancelled"})
TERMINAL_STEP = frozenset({"completed", "failed", "skipped", "cancelled"})
TERMINAL_JOB = frozenset({"completed", "failed", "cancelled"})


class Record(Struct, frozen=True, kw_only=True):
    """Base of every record."""


class Project(Record, frozen=True):
    """`dialect` overrides the server's default on the project's worker socket; None follows it."""

    id: str
    handle: str
    name: str
    created_at: int
    updated_at: int
    description: str | None = None
    dialect: Dialect | None = None


class ApiKey(Record, frozen=True):
    """A credential, without the secret. `expires_at` None: never. `replaced_by` is the key that a rotation made."""

    id: str
    project_id: str
    project_handle: str
    name: str
    created_at: int
    scopes: tuple[Scope, ...] = ("operator", "reader", "worker")
    expires_at: int | None = None
    revoked_at: int | None = None
    replaced_by: str | None = None
    last_used_at: int | None = None


class Automation(Record, frozen=True):
    """A named thing to run; its spec lives in versions."""

    id: str
    project_id: str
    handle: str
    name: str
    status: AutomationStatus
    latest_version: int
    created_at: int
    updated_at: int
    published_version: int | None = None
    description: str | None = None
    default_agent_id: str | None = None
    default_inputs: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    tags: dict[str, str] | None = None
    last_run_at: int | None = None
    archived_at: int | None = None


class Version(Record, frozen=True):
    """One immutable spec of an automation. `validation` is `{"valid": bool, "errors": [str]}`."""

    id: str
    project_id: str
    automation_id: str
    version: int
    status: VersionStatus
    spec: dict[str, Any]
    validation: dict[str, Any]
    created_at: int
    compiled_plan: dict[str, Any] | None = None


class Run(Record, frozen=True):
    """One execution of a published version. `result` has the steps' results by `save_as`, where it was asked for."""

    id: str
    project_id: str
    automation_id: str
    automation_name: str
    version_id: str
    version: int
    status: RunStatus
    created_at: int
    updated_at: int
    inputs: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    source: dict[str, Any] | None = None
    external_id: str | None = None
    parent_run_id: str | None = None
    parent_automation_id: str | None = None
    parent_step_key: str | None = None
    depth: int = 0
    """How many runs it descends from."""
    error_type: str | None = None
    error_message: str | None = None
    wall_clock_deadline_at: int | None = None
    wake_at: int | None = None
    """When the step that sleeps wakes, or the one that waits gives up; known of a single run that is read."""
    started_at: int | None = None
    completed_at: int | None = None


class Step(Record, frozen=True):
    """One step of a run. `kind` is what the API shows (an `automation` step shows as `action`, see runs.py)."""

    id: str
    project_id: str
    run_id: str
    step_key: str
    kind: StepKind
    status: StepStatus
    seq: int
    attempt: int
    created_at: int
    updated_at: int
    step_name: str | None = None
    save_as: str | None = None
    """The name of its result in what templates see, and in the run's result."""
    job_id: str | None = None
    inputs: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None
    result: Any = None
    error_type: str | None = None
    error_message: str | None = None
    started_at: int | None = None
    completed_at: int | None = None


class Timer(Record, frozen=True):
    """Something that is to happen to a run at `due_at`; a run has one of each kind at the most.

    `step`: its step has slept or waited for long enough. `run`: it must be over. `cleanup`: its cleanup must be over;
    `payload` is then how the run ends. `turn`: it is seen who of its automation may run now.
    """

    run_id: str
    kind: TimerKind
    due_at: int
    payload: dict[str, Any] | None = None


class Event(Record, frozen=True):
    """One entry of a run's stream. `sequence` starts at 1 and has no gaps within the run."""

    id: str
    project_id: str
    run_id: str
    sequence: int
    event_type: str
    created_at: int
    step_id: str | None = None
    step_key: str | None = None
    payload: dict[str, Any] = field(default_factory=dict)


class Job(Record, frozen=True):
    """The persistent record of one piece of work for a worker.

    `claim_attempt` counts started claims; `attempts_charged` the handler failures and lost leases that count against
    `max_attempts`; `hand_backs` the claims that were given back unstarted. Lease fields are set while claimed.
    """

    id: str
    project_id: str
    kind: JobKind
    origin: str
    queue: str
    status: JobStatus
    spec: dict[str, Any]
    created_at: int
    updated_at: int
    available_at: int
    action_name: str | None = None
    provider: str | None = None
    model: str | None = None
    environment_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    step_key: str | None = None
    priority: int = 0
    """A claim takes the jobs of the highest first."""
    external_id: str | None = None
    """Who handed it in calls it so."""
    claim_attempt: int = 0
    attempts_charged: int = 0
    hand_backs: int = 0
    max_attempts: int = 1
    retry_delay: float = 0.0
    """Seconds before the second attempt; `retry_backoff` times as long before each further one, at most
    `retry_max_delay`."""
    retry_backoff: float = 1.0
    retry_max_delay: float | None = None
    non_retryable: list[str] = field(default_factory=list)
    execution_timeout: float = 86400.0
    pending_deadline_at: int | None = None
    execution_deadline_at: int | None = None
    lease_token_hash: bytes | None = None
    """Of the newest claim; it stays while a lapsed lease is not superseded, and after the job has ended."""
    reported_token_hash: bytes | None = None
    """Of the newest claim whose report was accepted."""
    lease_expires_at: int | None = None
    session_id: str | None = None
    worker_instance_id: str | None = None
    claimed_at: int | None = None
    heartbeat_at: int | None = None
    cancel_requested_at: int | None = None
    cancel_reason: str | None = None
    result: dict[str, Any] | None = None
    error_type: str | None = None
    error_message: str | None = None
    completed_at: int | None = None


class RecordedAction(Record, frozen=True):
    """What is recorded of an action. `annotations` are flags by name; `max_running` bounds its claimed jobs."""

    id: str
    project_id: str
    name: str
    created_at: int
    updated_at: int
    title: str | None = None
    description: str | None = None
    annotations: dict[str, bool] | None = None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    tags: dict[str, str] | None = None
    max_running: int | None = None

    @property
    def only_once(self) -> bool:
        """Whether a job of it whose worker was lost must not be run again."""
        return (self.annotations or {}).get("idempotent") is False


class Queue(Record, frozen=True):
    """What was said of a queue. `max_running` bounds its claimed jobs."""

    project_id: str
    name: str
    updated_at: int
    paused_at: int | None = None
    max_running: int | None = None


class Attempt(Record, frozen=True):
    """An attempt of a job that failed, and what of. `attempt` is the job's claim_attempt then."""

    attempt: int
    error_type: str
    error_message: str
    started_at: int
    ended_at: int
    session_id: str | None = None
    worker_instance_id: str | None = None


class Selector(Record, frozen=True):
    """What a session is able to run (contract, "Obligations of a server").

    Empty `queues`: every queue of the project. Empty `action_names` without models: every action; with models:
    generation only. `models` are (provider, model) pairs; empty: no generation. A session in an environment gets the
    jobs pinned to it and no others; a session without one gets the jobs that are not pinned.
    """

    queues: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    models: tuple[tuple[str, str], ...] = ()
    environment_id: str | None = None


class Session(Record, frozen=True):
    """What the control plane knows of one worker process: its presence row.

    `draining`: the worker said that it drains; `drain_requested`: a drain stands that names it. A `superseded`
    session has lost its identity to a newer process, and its token is refused from then on.
    """

    id: str
    project_id: str
    worker_instance_id: str
    token_hash: bytes
    concurrency_limit: int
    selector: Selector
    created_at: int
    last_seen_at: int
    name: str | None = None
    version: str | None = None
    capabilities: tuple[str, ...] = ()
    api_key_id: str | None = None
    draining: bool = False
    drain_requested: bool = False
    superseded: bool = False
    ended_at: int | None = None
    end_reason: EndReason | None = None


class DrainTarget(Record, frozen=True):
    """What is to drain: one session by its id, or all sessions of an instance or of a version."""

    kind: Literal["session", "worker_instance_id", "version"]
    value: str

    def names(self, session: Session) -> bool:
        """Whether the session is meant."""
        own = {"session": session.id, "worker_instance_id": session.worker_instance_id, "version": session.version}
        return own[self.kind] == self.value


class Drain(Record, frozen=True):
    """A drain that stands: sessions that register while it does are asked to drain too."""

    target: DrainTarget
    created_at: int
