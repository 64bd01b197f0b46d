"""The routes of why: what keeps a job from running now, what its earlier attempts died of, what a run waits for."""

from datetime import datetime

from msgspec import UNSET, UnsetType

from control_plane.domain import why
from control_plane.domain.model import TERMINAL_RUN, JobStatus, RunStatus
from control_plane.domain.store import JobView
from control_plane.web import job_shapes, shapes
from control_plane.web.routes import Call, Route


class ReasonResponse(shapes.Response, frozen=True):
    """One thing that keeps the job or the run, and what would help; `until` where it ends by itself."""

    code: why.Code | why.RunCode
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
    state: why.State
    summary: str
    reasons: list[ReasonResponse]
    attempts: list[job_shapes.JobAttemptResponse]
    nearest_miss: NearestMissResponse | UnsetType = UNSET


class RunWhyResponse(shapes.Response, frozen=True):
    """What a run waits for: its turn, a time, a signal, or the job of the step that it has reached, with that job's
    own reasons."""

    run_id: str
    run_status: RunStatus
    state: why.State
    summary: str
    reasons: list[ReasonResponse]
    step_key: str | UnsetType = UNSET
    job: WhyResponse | UnsetType = UNSET


async def why_job(call: Call[shapes.NoQuery, None]) -> WhyResponse:
    """Why the job waits, computed now.

    For a job that failed before, each attempt says what it died of."""
    return _shape(*await _explained(call, call.path["id"]))


async def why_run(call: Call[shapes.NoQuery, None]) -> RunWhyResponse:
    """What the run waits for, computed now."""
    run = await call.store.run(call.project_id, call.path["id"])
    step = turn = job = None
    if run.status == "queued":
        turn = await call.store.turn(call.project_id, run.id)
    elif run.status not in TERMINAL_RUN:
        step = await call.store.open_step(call.project_id, run.id)
    if step is not None and step.job_id is not None:
        job = await _explained(call, step.job_id)
    now = call.services.wall_clock()
    explanation = why.explain_run(run, step, turn=turn, job=None if job is None else job[1], now=now)
    return RunWhyResponse(
        run_id=run.id,
        run_status=run.status,
        state=explanation.state,
        summary=explanation.summary,
        reasons=[_reason(reason) for reason in explanation.reasons],
        step_key=UNSET if step is None else step.step_key,
        job=UNSET if job is None else _shape(*job),
    )


async def _explained(call: Call[shapes.NoQuery, None], job_id: str) -> tuple[JobView, why.Explanation]:
    view = await call.store.job_view(call.project_id, job_id)
    now = call.services.wall_clock()
    if view.job.status != "pending":
        return view, why.explain(view.job, [], is_paused=False, limits=[], now=now)
    stale_before = shapes.stale_before(now)
    presences = [
        why.Presence(
            session=each.session,
            busy=len(each.current_jobs),
            is_stale=each.session.last_seen_at < stale_before or call.services.is_away(each.session.id),
        )
        for each in await call.store.sessions(call.project_id)
        if each.session.ended_at is None
    ]
    hold = await call.store.hold(view.job)
    limits = [
        why.Limit(what=f"{limit.kind} {limit.name}", most=limit.most, running=limit.running) for limit in hold.limits
    ]
    last = view.attempts[-1] if view.attempts else None
    return view, why.explain(view.job, presences, is_paused=hold.is_paused, limits=limits, last_attempt=last, now=now)


def _reason(reason: why.Reason) -> ReasonResponse:
    return ReasonResponse(
        code=reason.code,
        message=reason.message,
        remedy=reason.remedy,
        until=shapes.moment_if_known(reason.until),
    )


def _shape(view: JobView, explanation: why.Explanation) -> WhyResponse:
    miss = explanation.nearest_miss
    return WhyResponse(
        job_id=view.job.id,
        job_status=view.job.status,
        state=explanation.state,
        summary=explanation.summary,
        reasons=[_reason(reason) for reason in explanation.reasons],
        attempts=[job_shapes.attempt_shape(attempt) for attempt in view.attempts],
        nearest_miss=UNSET
        if miss is None
        else NearestMissResponse(
            worker_instance_id=miss.worker_instance_id, session_id=miss.session_id, differences=miss.differences
        ),
    )


ROUTES = (
    Route(method="GET", path="/v1/projects/{project}/jobs/{id}/why", handler=why_job, response=WhyResponse),
    Route(method="GET", path="/v1/projects/{project}/runs/{id}/why", handler=why_run, response=RunWhyResponse),
)
