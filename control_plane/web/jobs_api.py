"""The routes of jobs: handed in without a run, and looked at, whoever they belong to."""

from control_plane.web import job_shapes, shapes
from control_plane.web.routes import Call, Route


async def enqueue_jobs(
    call: Call[shapes.NoQuery, job_shapes.EnqueueJobsRequest],
) -> job_shapes.EnqueueJobsResponse:
    """All of them, or none: when this answers they are stored."""
    return job_shapes.enqueued_shape(await call.enqueue(job_shapes.new_jobs(call.body)))


async def list_jobs(call: Call[job_shapes.JobsQuery, None]) -> job_shapes.JobListResponse:
    """One page of jobs."""
    query = call.query
    page = await call.store.jobs(
        call.project_id, job_shapes.job_filter(query), cursor=query.cursor or None, limit=query.limit
    )
    return job_shapes.job_page(page)


async def get_job(call: Call[shapes.NoQuery, None]) -> job_shapes.JobResponse:
    """The job of the path, with what its attempts died of."""
    return job_shapes.job_view_shape(await call.store.job_view(call.project_id, call.path["id"]))


async def cancel_job(call: Call[shapes.NoQuery, job_shapes.CancelJobRequest]) -> job_shapes.JobResponse:
    """Cancel the job, and its run with it if it has one.

    One that waits is cancelled at once; one that a worker holds is cancelled when the worker has stopped it. A job that
    has ended is answered as it is."""
    job = await call.store.cancel_job(call.project_id, call.path["id"], call.body.reason or None)
    return job_shapes.job_shape(job)


async def retry_job(call: Call[shapes.NoQuery, None]) -> job_shapes.JobResponse:
    """Put a failed job back into its queue, with all its attempts.

    A job of a run is refused: the run's outcome stands."""
    return job_shapes.job_shape(await call.store.retry_job(call.project_id, call.path["id"]))


_JOBS = "/v1/projects/{project}/jobs"

ROUTES = (
    Route(
        method="POST",
        path=_JOBS,
        handler=enqueue_jobs,
        status=201,
        body=job_shapes.EnqueueJobsRequest,
        response=job_shapes.EnqueueJobsResponse,
    ),
    Route(
        method="GET",
        path=_JOBS,
        handler=list_jobs,
        query=job_shapes.JobsQuery,
        response=job_shapes.JobListResponse,
    ),
    Route(method="GET", path=_JOBS + "/{id}", handler=get_job, response=job_shapes.JobResponse),
    Route(
        method="POST",
        path=_JOBS + "/{id}/cancellations",
        handler=cancel_job,
        body=job_shapes.CancelJobRequest,
        response=job_shapes.JobResponse,
    ),
    Route(method="POST", path=_JOBS + "/{id}/retries", handler=retry_job, response=job_shapes.JobResponse),
)
