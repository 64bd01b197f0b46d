"""Jobs without a run into the SQLite file: those that are alike with two statements, however many they are."""

from collections.abc import Callable, Sequence

import apsw
from msgspec.structs import replace

from control_plane.domain.enqueue import Alike, Enqueued, NewJob, accept, each_job, external_ids
from control_plane.store.announced import claimable
from control_plane.store.sqlite_unit import Known, body_row, pending_row
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
        enqueued, accepted = accept(
            handed_in,
            project_id=project_id,
            earlier=earlier,
            new_id=lambda prefix: known.identifiers.new(prefix, writing.now),
            now=writing.now,
            pending_deadline=known.terms.pending_deadline,
        )
        for alike in accepted:
            lane_id = known.lanes.lane_of(writing.execute, project_id, alike.job)
            _insert(known, writing, alike, lane_id)
            known.lanes.job_came(lane_id, alike.job.available_at)
            writing.facts.append(replace(claimable(alike.job), count=len(alike.ids)))
        return enqueued

    return command


def _insert(known: Known, writing: Writing, alike: Alike, lane_id: int) -> None:
    job, count = alike.job, len(alike.ids)
    body = body_row(job, lane_id, None, None)
    if any(each.external_id is not None for each in alike.handed_in):
        bodies = [body_row(each, lane_id, None, None) for each in each_job([alike])]
        writing.insert(known.sql["insert_job"], bodies)
    else:
        # What differs goes to SQLite as one array of texts, each an id with the spec behind it.
        texts = tuple([job_id + spec for job_id, spec in zip(alike.ids, alike.specs, strict=True)])
        bindings = (apsw.carray(texts), len(job.id), *body[1:-1])
        writing.execute(known.sql["insert_alike_jobs"], bindings)
    # One thread writes, so that the keys of the batch follow each other.
    last = writing.connection.last_insert_rowid()
    state = pending_row(job, last, lane_id)
    writing.execute(known.sql["insert_alike_pending"], (last - count + 1, *state))
