"""Jobs without a run into the SQLite file: a whole batch with two prepared statements."""

from collections.abc import Callable, Sequence

from control_plane.domain.enqueue import Enqueued, NewJob, accept, external_ids
from control_plane.domain.store import JobClaimable
from control_plane.store.sqlite_unit import Known, body_row, claimable, pending_row
from control_plane.store.sqlite_writer import Writing

JOBS_A_COMMAND = 8
"""So many jobs count as one command in a transaction of the writer."""


def enqueue(known: Known, project_id: str, handed_in: Sequence[NewJob]) -> Callable[[Writing], Enqueued]:
    """See Store.enqueue."""

    def command(writing: Writing) -> Enqueued:
        earlier = {}
        for external_id in external_ids(handed_in):
            for (job_id,) in writing.execute(known.sql["job_by_external_id"], (project_id, external_id)):
                earlier[external_id] = job_id
        enqueued, jobs = accept(
            handed_in,
            project_id=project_id,
            earlier=earlier,
            new_id=lambda prefix: known.identifiers.new(prefix, writing.now),
            now=writing.now,
            pending_deadline=known.terms.pending_deadline,
        )
        if not jobs:
            return enqueued
        lanes = [known.lanes.lane_of(writing.execute, project_id, job) for job in jobs]
        bodies = [body_row(job, lane_id, None, None) for job, lane_id in zip(jobs, lanes, strict=True)]
        writing.insert(known.sql["insert_job"], bodies)
        # One thread writes, so that the keys of the batch follow each other.
        first = writing.connection.last_insert_rowid() - len(jobs) + 1
        states = [pending_row(job, seq, lane) for seq, (job, lane) in enumerate(zip(jobs, lanes, strict=True), first)]
        writing.insert(known.sql["insert_pending"], states)
        alike: dict[tuple[int, int], list[JobClaimable]] = {}
        for job, lane_id in zip(jobs, lanes, strict=True):
            facts = alike.setdefault((lane_id, job.available_at), [])
            facts.append(facts[0] if facts else claimable(job))
        for (lane_id, available_at), facts in alike.items():
            known.lanes.job_came(lane_id, available_at)
            writing.facts += facts
        return enqueued

    return command
