"""What replicas tell each other through PostgreSQL's NOTIFY: facts that one has committed and another may wait for.

A hint is never needed: whoever waits looks for himself now and then. So it is sent after the commit, a few times a
second for everything together, and by a connection whose commits wait for no disk: NOTIFY locks all others out while
its transaction commits.
"""

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from control_plane.domain.store import (
    CancelRequested,
    Committed,
    JobClaimable,
    KeyChanged,
    RunChanged,
    SessionDrainLifted,
    SessionDrainRequested,
    SessionTaken,
)

MAX_PAYLOAD = 7800
"""Bytes: PostgreSQL takes less than 8000."""

_MOST_JOBS = 64
"""More jobs of one kind than this wake nobody more."""

_LONGEST_REASON = 500


class Hint(Struct, frozen=True, array_like=True):
    """Base of what is in a payload."""


class Jobs(Hint, frozen=True, tag="j"):
    """So many jobs of one kind can be claimed from `available_at` on; one of them is named."""

    project_id: str
    queue: str
    action_name: str | None
    provider: str | None
    model: str | None
    environment_id: str | None
    available_at: int
    job_id: str
    count: int
    priority: int = 0


class Run(Hint, frozen=True, tag="r"):
    """See RunChanged."""

    project_id: str
    run_id: str
    last_sequence: int


class Cancel(Hint, frozen=True, tag="c"):
    """See CancelRequested."""

    project_id: str
    job_id: str
    session_id: str
    reason: str | None
    requested_at: int


class Drain(Hint, frozen=True, tag="d"):
    """See SessionDrainRequested."""

    session_id: str


class Lift(Hint, frozen=True, tag="l"):
    """See SessionDrainLifted."""

    session_id: str


class Taken(Hint, frozen=True, tag="t"):
    """See SessionTaken."""

    session_id: str
    before: int


class Key(Hint, frozen=True, tag="k"):
    """See KeyChanged."""

    key_id: str
    ends_at: int


class Contest(Hint, frozen=True, tag="q"):
    """`replica_id` is asked whether the session's socket answers."""

    replica_id: str
    contest_id: str
    session_id: str


class Answer(Hint, frozen=True, tag="a"):
    """The answer to a Contest."""

    contest_id: str
    alive: bool


class Beat(Hint, frozen=True, tag="b"):
    """The sender listens. `number` counts its beats."""

    number: int


AnyHint = Jobs | Run | Cancel | Drain | Lift | Taken | Key | Contest | Answer | Beat


class Payload(Struct, frozen=True, array_like=True):
    """What one NOTIFY carries."""

    replica_id: str
    hints: list[AnyHint]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Payload)


def encode(replica_id: str, hints: Iterable[AnyHint]) -> list[str]:
    """As many payloads as it takes."""
    payloads: list[str] = []
    head = _encoder.encode(replica_id).decode()
    parts: list[str] = []
    size = 0
    for hint in hints:
        part = _encoder.encode(hint).decode()
        length = len(part.encode()) + 1
        if parts and size + length > MAX_PAYLOAD - len(head) - 8:
            payloads.append(f"[{head},[{','.join(parts)}]]")
            parts, size = [], 0
        parts.append(part)
        size += length
    if parts:
        payloads.append(f"[{head},[{','.join(parts)}]]")
    return payloads


def decode(payload: str) -> Payload | None:
    """None for what another program, or another version of ours, has sent."""
    try:
        return _decoder.decode(payload)
    except msgspec.MsgspecError:
        return None


class Gathered:
    """The facts of a moment, each once."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[object, ...], Jobs] = {}
        self._runs: dict[str, Run] = {}
        self._others: list[AnyHint] = []

    def __bool__(self) -> bool:
        return bool(self._jobs or self._runs or self._others)

    def add(self, facts: Sequence[Committed], now: int) -> None:
        """`now` is the store's clock."""
        for fact in facts:
            if isinstance(fact, JobClaimable):
                self._add_job(fact, now)
            elif isinstance(fact, RunChanged):
                self._runs[fact.run_id] = Run(fact.project_id, fact.run_id, fact.last_sequence)
            elif isinstance(fact, CancelRequested):
                reason = fact.reason[:_LONGEST_REASON] if fact.reason is not None else None
                self._others.append(Cancel(fact.project_id, fact.job_id, fact.session_id, reason, fact.requested_at))
            elif isinstance(fact, SessionDrainRequested):
                self._others.append(Drain(fact.session_id))
            elif isinstance(fact, SessionDrainLifted):
                self._others.append(Lift(fact.session_id))
            elif isinstance(fact, SessionTaken):
                self._others.append(Taken(fact.session_id, fact.before))
            elif isinstance(fact, KeyChanged):
                self._others.append(Key(fact.key_id, fact.ends_at))

    def hints(self) -> list[AnyHint]:
        """What is urgent first."""
        return [*self._others, *self._jobs.values(), *self._runs.values()]

    def _add_job(self, fact: JobClaimable, now: int) -> None:
        kind = (fact.project_id, fact.queue, fact.action_name, fact.provider, fact.model, fact.environment_id)
        key = (*kind, fact.available_at > now)
        known = self._jobs.get(key)
        count = min(_MOST_JOBS, fact.count + (known.count if known is not None else 0))
        available_at = min(known.available_at, fact.available_at) if known is not None else fact.available_at
        self._jobs[key] = Jobs(*kind, available_at, fact.job_id, count, fact.priority)


def facts_of(hint: AnyHint) -> list[Committed]:
    """The facts that a hint tells of; none for what replicas only say among themselves."""
    if isinstance(hint, Jobs):
        fact = JobClaimable(
            project_id=hint.project_id,
            job_id=hint.job_id,
            queue=hint.queue,
            available_at=hint.available_at,
            action_name=hint.action_name,
            provider=hint.provider,
            model=hint.model,
            environment_id=hint.environment_id,
            priority=hint.priority,
        )
        return [fact] * min(hint.count, _MOST_JOBS)
    if isinstance(hint, Run):
        return [RunChanged(project_id=hint.project_id, run_id=hint.run_id, last_sequence=hint.last_sequence)]
    if isinstance(hint, Cancel):
        return [
            CancelRequested(
                project_id=hint.project_id,
                job_id=hint.job_id,
                session_id=hint.session_id,
                reason=hint.reason,
                requested_at=hint.requested_at,
            )
        ]
    if isinstance(hint, Drain):
        return [SessionDrainRequested(session_id=hint.session_id)]
    if isinstance(hint, Lift):
        return [SessionDrainLifted(session_id=hint.session_id)]
    if isinstance(hint, Taken):
        return [SessionTaken(session_id=hint.session_id, before=hint.before)]
    if isinstance(hint, Key):
        return [KeyChanged(key_id=hint.key_id, ends_at=hint.ends_at)]
    return []
