"""What every store announces of a job, made from what it has read or written."""

from collections.abc import Sequence
from typing import Any

from control_plane.domain.changes import CancelAnnounced
from control_plane.domain.model import Job
from control_plane.domain.store import CancelRequested, JobClaimable

_CLAIMABLE = ("available_at", "job_id", "project_id", "queue", "action_name", "provider", "model", "environment_id")


def claimable(job: Job) -> JobClaimable:
    """Of a pending job."""
    return JobClaimable(
        project_id=job.project_id,
        job_id=job.id,
        queue=job.queue,
        available_at=job.available_at,
        action_name=job.action_name,
        provider=job.provider,
        model=job.model,
        environment_id=job.environment_id,
        priority=job.priority,
    )


def claimable_row(row: Sequence[Any]) -> JobClaimable:
    """Of the columns of `claimable`: when it is available, then who it is."""
    return JobClaimable(**dict(zip(_CLAIMABLE, row, strict=True)))


def cancel_requested(change: CancelAnnounced) -> CancelRequested:
    """Of a claimed job that is to be cancelled."""
    return CancelRequested(
        project_id=change.job.project_id,
        job_id=change.job.id,
        session_id=change.session_id,
        reason=change.reason,
        requested_at=change.requested_at,
    )
