"""What an operator's command and the supervisor say to each other: one JSON line there, one JSON line back."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

MAX_REQUEST = 16 * 1024
"""Bytes, the end of the line included."""

MAX_ANSWER = 8 * 1024 * 1024
"""Bytes. What would be longer is cut by whoever writes it."""

_Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Request(Struct, frozen=True, kw_only=True, tag_field="command", forbid_unknown_fields=True):
    """Base of every request."""


class Reload(Request, frozen=True, tag="reload"):
    """Read the pool file again and take it over; with `dry_run`, only say what would be done."""

    dry_run: bool = False


class Scale(Request, frozen=True, tag="scale"):
    """Another number of children, until the next reload."""

    pool: _Name
    workers: Annotated[int, Meta(ge=1, le=1000)]


class Drain(Request, frozen=True, tag="drain"):
    """Let one child finish and leave its slot empty."""

    slot: _Name


class Restart(Request, frozen=True, tag="restart"):
    """Exchange one child, or all children of a pool one after the other."""

    target: _Name


class Status(Request, frozen=True, tag="status"):
    """Everything, or with `slot` one slot with its evidence."""

    slot: _Name | None = None


class Stacks(Request, frozen=True, tag="stacks"):
    """The Python stacks of all threads of one child."""

    slot: _Name


AnyRequest = Reload | Scale | Drain | Restart | Status | Stacks


class CrashLoopStatus(Struct, frozen=True, kw_only=True):
    """The slot's processes ended `times` times in a row in the same way: how, and what the last one said."""

    times: int
    how: str
    says: str


class SlotStatus(Struct, frozen=True, kw_only=True):
    """One slot. Ages are seconds; None where there is nothing to measure. `plan` is a phrase, empty for none; `health`
    is "ok" or the class of what is wrong, empty without a process."""

    slot: str
    pool: str
    kind: str
    state: str
    plan: str
    health: str
    session: str
    incarnation: int
    pid: int | None
    ready_for: float | None
    beat_age: float | None
    loop_lag: float | None
    jobs_in_hand: int
    oldest_job_age: float
    acknowledgement_age: float | None
    reports_waiting: int
    completed: int
    failed: int
    cancelled: int
    handed_back: int
    failures: int
    retry_in: float
    crash_loop: CrashLoopStatus | None


class PoolStatus(Struct, frozen=True, kw_only=True):
    """One pool. `rolling`: children are being exchanged."""

    pool: str
    workers: int
    working: int
    rolling: bool


class FleetStatus(Struct, frozen=True, kw_only=True):
    """The whole. `reload` is the outcome of the last one, empty before the first."""

    phase: str
    ready: bool
    build: str
    restart_needed: bool
    reload: str
    reload_problem: str
    pools: list[PoolStatus]
    slots: list[SlotStatus]


class JobProcessStatus(Struct, frozen=True, kw_only=True):
    """Runs one job of a worker. `age`: seconds since it was asked for; `pid` is None until it is there."""

    job_id: str
    action: str
    pid: int | None
    state: str
    age: float


class SlotDetail(Struct, frozen=True, kw_only=True):
    """One slot with what is known of its process and of the one before: last lines, what was seen of it while it is
    silent, and the newest exit record. `job_processes` run one job each, and are no slots."""

    status: SlotStatus
    output: list[str]
    job_processes: list[JobProcessStatus]
    silence: dict[str, Any] | None
    last_exit: dict[str, Any] | None


class Answer(Struct, frozen=True, kw_only=True):
    """`exit_code` is the command's own; `lines` are its output, `errors` sentences about what went wrong."""

    exit_code: int = 0
    lines: list[str] = msgspec.field(default_factory=list)
    errors: list[str] = msgspec.field(default_factory=list)
    status: FleetStatus | None = None
    detail: SlotDetail | None = None


_encoder = msgspec.json.Encoder()
_request: "msgspec.json.Decoder[AnyRequest]" = msgspec.json.Decoder(AnyRequest)
_answer: "msgspec.json.Decoder[Answer]" = msgspec.json.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    """One line."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> AnyRequest:
    """Raises msgspec.MsgspecError."""
    return _request.decode(line)


def decode_answer(line: bytes) -> Answer:
    """Raises msgspec.MsgspecError."""
    return _answer.decode(line)
