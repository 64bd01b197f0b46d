"""Every frame of the Mobius worker socket, one frozen Struct each, in two tagged unions.

Field names and optionality are the contract's; `type` is the tag. A Struct forgives what a peer adds (unknown
fields are ignored) and never sends what is not set (`omit_defaults`), because the public clients drop the
connection over one unknown field or one `null` too many.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

LARGEST = 2**63 - 1
"""JSON knows no largest integer, but clocks and databases do."""

MOST_CONCURRENT = 10_000
"""Jobs that one worker may say it holds in flight."""

Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
NonNegative = Annotated[int, Meta(ge=0, le=LARGEST)]
MessageId = Annotated[str, Meta(max_length=256)]
Identifier = Annotated[str, Meta(min_length=1, max_length=256)]
Label = Annotated[str, Meta(max_length=256)]
Labels = Annotated[list[Label], Meta(max_length=1000)]

ReportStatus = Literal["completed", "failed", "cancelled"]

LEASE_LOST = "lease_lost"
"""`cancel.reason` of a heartbeat whose lease is gone."""

INVALID_ACTOR = "invalid_actor"
"""`error.code`: the credential was revoked; ends the worker."""

WORKER_INSTANCE_CONFLICT = "worker_instance_conflict"
"""`error.code`: another live session owns this worker_instance_id."""


class Frame(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of every frame. `message_id` correlates an answer with its question; the server echoes the client's."""

    message_id: MessageId | None = None


class ModelCapability(Struct, frozen=True, kw_only=True):
    """One provider/model pair that a worker can generate with."""

    provider: Identifier
    model: Identifier


Models = Annotated[list[ModelCapability], Meta(max_length=1000)]


class Lease(Struct, frozen=True, kw_only=True):
    """How long a claimed job is held (seconds), and how often it should be heartbeaten (seconds)."""

    lease_duration_seconds: Positive
    heartbeat_cadence_seconds: Positive


class CancelDirective(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Asks for the cancellation of one job; `requested_at` is an RFC 3339 time."""

    job_id: str
    reason: str | None = None
    requested_at: str | None = None


class ProtocolError(Struct, frozen=True, kw_only=True):
    """Stable code and a sentence for people."""

    code: str
    message: str


class ClaimedJob(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One leased job as the server hands it to a worker.

    `kind`, `origin` and `executor_kind` stay open strings: a worker accepts values it does not know, so that one job of
    a newer server's kind is refused by itself and does not take the others of its frame along. `spec` is an open
    object; action parameters are `spec["parameters"]`.
    """

    id: Identifier
    kind: Label
    origin: str
    executor_kind: str
    queue: str
    spec: dict[str, Any]
    lease_token: str
    claim_attempt: Positive
    lease_duration_seconds: Positive
    heartbeat_cadence_seconds: Positive
    action_name: str | None = None
    environment_id: str | None = None
    provider: str | None = None
    model: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    agent_turn_id: str | None = None
    session_id: str | None = None
    tool_call_id: str | None = None

    @property
    def work(self) -> str:
        """What logs, journals and metrics call the work: its action, or `provider/model` of a generation."""
        return f"{self.provider}/{self.model}" if self.kind == "llm_generation" else self.action_name or ""


class Register(Frame, frozen=True, tag="worker.register"):
    """First frame of a worker on every connection; the token only when the same process reconnects."""

    worker_instance_id: Identifier
    worker_session_token: str | None = None
    concurrency_limit: Annotated[int, Meta(ge=1, le=MOST_CONCURRENT)] | None = None
    available_slots: NonNegative | None = None
    name: Label | None = None
    version: Label | None = None
    environment_id: Label | None = None
    capabilities: Labels | None = None
    queues: Labels | None = None
    action_names: Labels | None = None
    models: Models | None = None


class Ready(Frame, frozen=True, tag="worker.ready"):
    """Capacity and selectivity of a worker, without a claim."""

    available_slots: NonNegative | None = None
    queues: Labels | None = None
    action_names: Labels | None = None
    models: Models | None = None


class Claim(Frame, frozen=True, tag="jobs.claim"):
    """Asks for up to `available_slots` jobs; the server may hold it open for one heartbeat cadence."""

    available_slots: NonNegative | None = None
    queues: Labels | None = None
    action_names: Labels | None = None
    models: Models | None = None


class Heartbeat(Frame, frozen=True, tag="job.heartbeat"):
    """Extends the lease of one job."""

    job_id: Identifier
    lease_token: str


class Report(Frame, frozen=True, tag="job.report"):
    """The outcome of one job. Kept and sent again until it is acknowledged or settled by an error."""

    job_id: Identifier
    lease_token: str
    status: ReportStatus = "completed"
    result: dict[str, Any] | None = None
    error_type: str | None = None
    error_message: str | None = None

    @property
    def any_result(self) -> Any:
        """`result` in whatever form: in a report that is made here it is JSON as it was written, a msgspec.Raw."""
        return self.result


class GenerationDelta(Frame, frozen=True, tag="generation.delta"):
    """One streamed piece of an `llm_generation` job; `sequence` increases within the job."""

    job_id: Identifier
    lease_token: str
    sequence: NonNegative
    delta: dict[str, Any]


class Draining(Frame, frozen=True, tag="worker.draining"):
    """The worker claims no more and finishes what it holds."""


class Keepalive(Frame, frozen=True, tag="keepalive"):
    """Sent by either side; a worker answers every one and never begins (contract, "Frames")."""


class Registered(Frame, frozen=True, tag="worker.registered"):
    """Answer to `worker.register`: the session token to send on reconnect, and the lease terms."""

    worker_session_token: str
    lease: Lease


class Claimed(Frame, frozen=True, tag="jobs.claimed"):
    """Answer to `jobs.claim`; may be empty."""

    jobs: list[ClaimedJob]


class WorkAvailable(Struct, frozen=True, kw_only=True, tag="work.available"):
    """A hint that a claim would find something. It has no field at all, not even `message_id`."""


class HeartbeatAck(Frame, frozen=True, tag="job.heartbeat.ack"):
    """Answer to `job.heartbeat`; may ask for the job's cancellation."""

    job_id: str
    cancel: CancelDirective | None = None


class ReportAck(Frame, frozen=True, tag="job.report.ack"):
    """Answer to `job.report`; `duplicate` when this lease's report had been accepted before."""

    job_id: str
    duplicate: bool | None = None


class GenerationDeltaAck(Frame, frozen=True, tag="generation.delta.ack"):
    """Answer to `generation.delta`."""

    job_id: str
    received_sequence: int


class JobCancel(Frame, frozen=True, tag="job.cancel"):
    """Asks for the cancellation of one job at once."""

    job_id: str
    reason: str | None = None
    requested_at: str | None = None


class DrainingAck(Frame, frozen=True, tag="worker.draining.ack"):
    """Answer to `worker.draining`."""


class Drain(Frame, frozen=True, tag="worker.drain"):
    """Asks the worker to drain; sticky: sent again after every register."""


class Error(Frame, frozen=True, tag="error"):
    """A protocol error; with the `message_id` of a question it settles that question."""

    error: ProtocolError


FromWorker = Register | Ready | Claim | Heartbeat | Report | GenerationDelta | Draining | Keepalive
FromServer = (
    Registered
    | Claimed
    | WorkAvailable
    | HeartbeatAck
    | ReportAck
    | GenerationDeltaAck
    | JobCancel
    | DrainingAck
    | Drain
    | Keepalive
    | Error
)

FROM_WORKER: tuple[type[Struct], ...] = FromWorker.__args__
FROM_SERVER: tuple[type[Struct], ...] = FromServer.__args__


def frame_type(frame: Struct | type[Struct]) -> str:
    """The `type` a frame (or every frame of a Struct) has on the wire."""
    return str(frame.__struct_config__.tag)
