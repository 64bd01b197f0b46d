"""Jobs without a run into the SQLite file: those that are alike with two statements, however many they are.

The second, which has them wait, comes as late as it can: where an idle worker's claim is in the same transaction, its
jobs are stored as claimed. To write a job down as pending, find it there, read it and remove it again took 0.3 ms of
the 2 in which an idle system begins a job.
"""

from collections.abc import Callable, Sequence

import apsw
from msgspec.structs import replace

from control_plane.domain.enqueue import Alike, Enqueued, NewJob, accept, each_job, external_ids
from control_plane.store.announced import claimable
from control_plane.store.sqlite_unit import Known, NewJobs, body_row, pending_row
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
            known.new.append(NewJobs(alike, _insert(known, writing, alike, lane_id), lane_id))
            writing.facts.append(replace(claimable(alike.job), count=len(alike.ids)))
        if any(alike.job.available_at > writing.now for alike in accepted):
            # No claim of this transaction could have them, and a time that cannot be stored is this command's fault.
            settle(known, writing.connection)
        return enqueued

    return command


def settle(known: Known, connection: apsw.Connection) -> None:
    """Write down as pending what no claim has taken of what the transaction stores."""
    for new in known.new:
        job = new.alike.job
        state = pending_row(job, new.first + len(new.alike.ids) - 1, new.lane_id)
        connection.execute(known.sql["insert_alike_pending"], (new.first + new.taken, *state))
        known.lanes.job_came(new.lane_id, job.available_at)
    # Not before all of it is written: a command that fails in the middle is undone, one that fails before is not.
    known.new.clear()


def _insert(known: Known, writing: Writing, alike: Alike, lane_id: int) -> int:
    """Store the jobs; returns the key of the first."""
    job = alike.job
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
    return writing.connection.last_insert_rowid() - len(alike.ids) + 1
