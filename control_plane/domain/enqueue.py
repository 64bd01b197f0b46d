"""Jobs that somebody hands in directly, without a run. Pure decisions.

An `external_id` names a job for as long as its record is kept: handing it in again gives the same job, so that a caller
who got no answer may simply ask again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from control_plane.domain.model import Job, JobKind
from control_plane.domain.retries import DEFAULT_ATTEMPTS, DEFAULT_EXECUTION_TIMEOUT
from control_plane.domain.times import to_microseconds
from control_plane.errors import Invalid

DEFAULT_QUEUE = "default"

DIRECT_ORIGIN = "direct_action_invoke"
"""How the wire calls a job that no run asked for."""

MAX_SPEC_BYTES = 768 * 1024
"""Of a job's spec: what a frame of 1 MiB can carry beside everything else."""

MOST_JOBS = 1000
"""Jobs that are handed in at once."""

HIGHEST_PRIORITY = 100
"""Priorities reach from its negative to it; each that is in use costs a claim a look."""

_encoder = msgspec.json.Encoder()


class NewJob(Struct, frozen=True, kw_only=True):
    """What is handed in; names as of Job. `run_at` is microseconds, `delay` seconds from now; the later one counts."""

    spec: dict[str, Any]
    kind: JobKind = "action_execution"
    queue: str = DEFAULT_QUEUE
    action_name: str | None = None
    provider: str | None = None
    model: str | None = None
    environment_id: str | None = None
    priority: int = 0
    run_at: int | None = None
    delay: float = 0.0
    max_attempts: int = DEFAULT_ATTEMPTS
    retry_delay: float = 0.0
    retry_backoff: float = 1.0
    retry_max_delay: float | None = None
    non_retryable: tuple[str, ...] = ()
    execution_timeout: float = DEFAULT_EXECUTION_TIMEOUT
    external_id: str | None = None


_pattern = attrgetter(*(name for name in NewJob.__struct_fields__ if name not in ("spec", "external_id")))


class Enqueued(Struct, frozen=True, kw_only=True):
    """The ids in the order in which the jobs were handed in; `existing` are those that were there before."""

    ids: list[str]
    existing: list[str]


class Alike(Struct, frozen=True, kw_only=True):
    """New jobs in a row that differ in nothing but id, spec and external id: `job` is the first of them. `specs` are
    JSON text."""

    job: Job
    ids: list[str]
    specs: list[str]
    handed_in: list[NewJob]


def accept(
    handed_in: Sequence[NewJob],
    *,
    project_id: str,
    earlier: Mapping[str, str],
    new_id: Callable[[str], str],
    now: int,
    pending_deadline: float,
) -> tuple[Enqueued, list[Alike]]:
    """The jobs to store, and the answer. `earlier` are ids of jobs by those external ids that are taken.

    Raises Invalid("invalid_job"), which names the first that cannot be taken: then none is."""
    known = dict(earlier)
    ids: list[str] = []
    existing: list[str] = []
    accepted: list[Alike] = []
    pattern: Any = None
    for index, each in enumerate(handed_in):
        job_id = known.get(each.external_id) if each.external_id is not None else None
        if job_id is not None:
            existing.append(job_id)
            ids.append(job_id)
            continue
        spec = _encoder.encode(each.spec)
        if len(spec) > MAX_SPEC_BYTES:
            raise _too_large(len(spec), f"jobs[{index}]")
        job_id = new_id("job")
        if (what := _pattern(each)) != pattern:
            pattern = what
            job = _new_job(each, project_id, job_id, now, pending_deadline)
            accepted.append(Alike(job=job, ids=[], specs=[], handed_in=[]))
        alike = accepted[-1]
        alike.ids.append(job_id)
        alike.specs.append(spec.decode())
        alike.handed_in.append(each)
        if each.external_id is not None:
            known[each.external_id] = job_id
        ids.append(job_id)
    return Enqueued(ids=ids, existing=existing), accepted


def each_job(accepted: Sequence[Alike]) -> Iterator[Job]:
    """All of them, one by one."""
    for alike in accepted:
        for job_id, each in zip(alike.ids, alike.handed_in, strict=True):
            yield replace(alike.job, id=job_id, spec=each.spec, external_id=each.external_id)


def check_size(spec: dict[str, Any], where: str) -> None:
    """Raises Invalid("invalid_job")."""
    size = len(_encoder.encode(spec))
    if size > MAX_SPEC_BYTES:
        raise _too_large(size, where)


def _too_large(size: int, where: str) -> Invalid:
    sentence = f"{where}: {size} bytes of JSON are too many; a job carries at most {MAX_SPEC_BYTES}"
    return Invalid("invalid_job", sentence)


def external_ids(handed_in: Sequence[NewJob]) -> list[str]:
    """Those that are to be looked up, each once."""
    return list(dict.fromkeys(each.external_id for each in handed_in if each.external_id is not None))


def _new_job(each: NewJob, project_id: str, job_id: str, now: int, pending_deadline: float) -> Job:
    available_at = max(now + to_microseconds(each.delay), each.run_at or 0)
    return Job(
        id=job_id,
        project_id=project_id,
        kind=each.kind,
        origin=DIRECT_ORIGIN,
        queue=each.queue,
        status="pending",
        spec=each.spec,
        created_at=now,
        updated_at=now,
        available_at=available_at,
        action_name=each.action_name,
        provider=each.provider,
        model=each.model,
        environment_id=each.environment_id,
        priority=each.priority,
        max_attempts=each.max_attempts,
        retry_delay=each.retry_delay,
        retry_backoff=each.retry_backoff,
        retry_max_delay=each.retry_max_delay,
        non_retryable=list(each.non_retryable),
        execution_timeout=each.execution_timeout,
        external_id=each.external_id,
        pending_deadline_at=available_at + to_microseconds(pending_deadline),
    )
