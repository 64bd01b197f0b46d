"""The route of why: what keeps a job from running now, and what its earlier attempts died of."""

from datetime import datetime
from typing import Literal

from msgspec import UNSET, UnsetType

from control_plane.domain import why
from control_plane.domain.model import JobStatus
from control_plane.domain.store import JobView
from control_plane.web import job_shapes, shapes
from control_plane.web.routes import Call, Route


class ReasonResponse(shapes.Response, frozen=True):
    """One thing that keeps the job, and what would help; `until` where it ends by itself."""

    code: why.Code
    message: str
    remedy: str
    until: datetime | UnsetType = UNSET


class NearestMissResponse(shapes.Response, frozen=True):
    """The worker that comes nearest to being able to run the job, and each way in which it is not."""

    worker_instance_id: str
    session_id: str
    differences: list[str]


class WhyResponse(shapes.Response, frozen=True):
    """Why a job is not running: reasons in the order in which they would have to go, none unless it waits."""

    job_id: str
    job_status: JobStatus
    state: Literal["waiting", "claimable", "running", "ended"]
    summary: str
    reasons: list[ReasonResponse]
    attempts: list[job_shapes.JobAttemptResponse]
    nearest_miss: NearestMissResponse | UnsetType = UNSET


async def why_job(call: Call[shapes.NoQuery, None]) -> WhyResponse:
    """Why the job waits, computed now.

    For a job that failed before, each attempt says what it died of."""
    view = await call.store.job_view(call.project_id, call.path["id"])
    now = call.services.wall_clock()
    presences: list[why.Presence] = []
    if view.job.status == "pending":
        stale_before = shapes.stale_before(now)
        presences = [
            why.Presence(
                session=each.session,
                busy=len(each.current_jobs),
                is_stale=each.session.last_seen_at < stale_before,
            )
            for each in await call.store.sessions(call.project_id)
            if each.session.ended_at is None
        ]
    hold = await call.store.hold(view.job)
    limits = [
        why.Limit(what=f"{limit.kind} {limit.name}", most=limit.most, running=limit.running) for limit in hold.limits
    ]
    return _shape(view, why.explain(view.job, presences, is_paused=hold.is_paused, limits=limits, now=now))


def _shape(view: JobView, explanation: why.Explanation) -> WhyResponse:
    miss = explanation.nearest_miss
    return WhyResponse(
        job_id=view.job.id,
        job_status=view.job.status,
        state=explanation.state,
        summary=explanation.summary,
        reasons=[
            ReasonResponse(
                code=reason.code,
                message=reason.message,
                remedy=reason.remedy,
                until=shapes.moment_if_known(reason.until),
            )
            for reason in explanation.reasons
        ],
        attempts=[job_shapes.attempt_shape(attempt) for attempt in view.attempts],
        nearest_miss=UNSET
        if miss is None
        else NearestMissResponse(
            worker_instance_id=miss.worker_instance_id, session_id=miss.session_id, differences=miss.differences
        ),
    )


ROUTES = (Route(method="GET", path="/v1/projects/{project}/jobs/{id}/why", handler=why_job, response=WhyResponse),)
