"""Jobs that somebody hands in directly, without a run. Pure decisions.

An `external_id` names a job for as long as its record is kept: handing it in again gives the same job, so that a caller
who got no answer may simply ask again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

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


class Enqueued(Struct, frozen=True, kw_only=True):
    """The ids in the order in which the jobs were handed in; `existing` are those that were there before."""

    ids: list[str]
    existing: list[str]


def accept(
    handed_in: Sequence[NewJob],
    *,
    project_id: str,
    earlier: Mapping[str, str],
    new_id: Callable[[str], str],
    now: int,
    pending_deadline: float,
) -> tuple[Enqueued, list[Job]]:
    """The jobs to store, and the answer. `earlier` are ids of jobs by those external ids that are taken.

    Raises Invalid("invalid_job"), which names the first that cannot be taken: then none is."""
    known = dict(earlier)
    ids: list[str] = []
    existing: list[str] = []
    jobs: list[Job] = []
    for index, each in enumerate(handed_in):
        job_id = known.get(each.external_id) if each.external_id is not None else None
        if job_id is not None:
            existing.append(job_id)
        else:
            check_size(each.spec, f"jobs[{index}]")
            job_id = new_id("job")
            jobs.append(_new_job(each, project_id, job_id, now, pending_deadline))
            if each.external_id is not None:
                known[each.external_id] = job_id
        ids.append(job_id)
    return Enqueued(ids=ids, existing=existing), jobs


def check_size(spec: dict[str, Any], where: str) -> None:
    """Raises Invalid("invalid_job")."""
    size = len(_encoder.encode(spec))
    if size > MAX_SPEC_BYTES:
        sentence = f"{where}: {size} bytes of JSON are too many; a job carries at most {MAX_SPEC_BYTES}"
        raise Invalid("invalid_job", sentence)


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
