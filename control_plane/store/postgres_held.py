"""Leases that this process has given out, remembered so that the usual report needs no reading.

A job of no run that completes concerns nobody else: its row moves, and that is all. What is needed to decide it was
known when it was leased; if it is not as remembered, the fence of `finish_held` finds nothing, and the report takes the
long way. Locking and loading such jobs first took more of the database than all that was then written.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from control_plane.domain import jobs
from control_plane.domain.model import Job
from control_plane.domain.store import JobReport
from control_plane.store import rows
from control_plane.store.postgres_connections import Connection

MOST_HELD = 10_000
"""Leases that are remembered; of older ones the reports take the long way."""


class HeldReport(Struct, frozen=True, kw_only=True):
    """A report of a job as it was leased, and the job's key."""

    seq: int
    job: Job
    reported: jobs.Reported


class Held:
    """The jobs of no run that were leased here and not reported yet, by id."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[int, Job]] = {}

    def leased(self, seq: int, job: Job) -> None:
        """Remember it, if its end concerns nobody else; it need not be committed yet."""
        if job.run_id is not None:
            return
        if len(self._jobs) >= MOST_HELD:
            del self._jobs[next(iter(self._jobs))]
        self._jobs[job.id] = (seq, job)

    def take(self, project_id: str, report: JobReport) -> HeldReport | None:
        """The report, if it is of a lease that is remembered and completes its job. It is not remembered any more."""
        found = self._jobs.get(report.job_id)
        if found is None or report.status != "completed":
            return None
        seq, job = found
        reported = jobs.read_report(report)
        if job.project_id != project_id or not jobs.holds(job, reported.token_hash):
            return None
        del self._jobs[report.job_id]
        return HeldReport(seq=seq, job=job, reported=reported)


class Finishing:
    """Reports of one transaction. Afterwards `xid` is its id, `finished` the last job of each session, by its id."""

    def __init__(self, statement: str, pending_deadline: float) -> None:
        self._statement = statement
        self._pending_deadline = pending_deadline
        self._jobs: dict[int, Job] = {}
        self._results: dict[str, str] = {}
        self._at = 0
        self.job_ids: set[str] = set()
        self.left: set[int] = set()
        """Keys of the jobs that have finished."""
        self.xid: str | None = None
        self.finished: dict[str, str] = {}

    @property
    def ended(self) -> list[Job]:
        """The jobs that have finished."""
        return [self._jobs[seq] for seq in sorted(self.left)]

    def add(self, reports: Sequence[HeldReport], now: int) -> None:
        """Decide them; what is decided together ends at the same time."""
        self._at = max(self._at, now)
        for report in reports:
            try:
                after = jobs.reported(report.job, report.reported, self._pending_deadline, now).after
                result = rows.to_json(after.result) if after is not None else None
            except Exception:  # noqa: BLE001, S112 - the long way says whose fault it is, and harms no neighbour
                continue
            if after is not None and after.status == "completed":
                if result is not None:
                    self._results[str(report.seq)] = result
                self._jobs[report.seq] = after
                self.job_ids.add(after.id)

    @property
    def wait(self) -> bool:
        """Whether there are some that are decided and not written."""
        return bool(self._jobs) and self.xid is None

    async def write(
        self, connection: Connection, looking: Sequence[Sequence[Any]] = ((), (), (), ())
    ) -> list[Sequence[Any]]:
        """Move their rows, in the order of their keys; returns what claim_candidates would with the bindings `looking`,
        by default nothing."""
        seqs = sorted(self._jobs)
        leases = [self._jobs[seq].lease_token_hash for seq in seqs]
        results = rows.to_json(self._results)
        (*_, self.xid, left), *picked = await connection.fetch(
            self._statement, *looking, seqs, leases, self._at, results
        )
        self.left = set(left)
        for seq in left:
            job = self._jobs[seq]
            if job.session_id is not None:
                self.finished[job.session_id] = job.id
        return [tuple(row)[:-2] for row in picked]
