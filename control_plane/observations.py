"""What a control plane counts and times while it works, for its metrics. Decides only: `now` is monotonic seconds.

It is told of what came together (the jobs of a claim, the reports of a read, the calls of a commit), never of a job by
itself. Labels are bounded: MOST_QUEUES queues have series of their own, all others are `other`.
"""

from collections import Counter
from collections.abc import Sequence

from control_plane.domain.retention import Retired
from control_plane.domain.store import JobReport, Lease, Reaped, ReportOutcome
from control_plane.domain.times import MICROSECONDS
from wire.histograms import Histogram

MOST_QUEUES = 100
"""Queues of all projects together that are told apart."""

MOST_RUNNING = 100_000
"""Jobs whose beginning is remembered until their report."""

OTHER = "other"

Queue = tuple[str, str]
"""Project id and queue."""

VERDICTS = ("accepted", "duplicate", "superseded", "handed_back", "unknown", "untakable")

_CLAIMS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
_EXECUTIONS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_COMMITS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_BATCHES = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)


class Observations:
    """See the module's docstring. The histograms by queue have the project's id and the queue for a key."""

    def __init__(self) -> None:
        self.claims = Histogram(_CLAIMS)
        self.waits: dict[Queue, Histogram] = {}
        self.executions: dict[tuple[Queue, str], Histogram] = {}
        self.commits = Histogram(_COMMITS)
        self.batches = Histogram(_BATCHES)
        self.reports: Counter[str] = Counter()
        self.retirements: Counter[Retired] = Counter()
        self.leases_lapsed = 0
        self.executions_timed_out = 0
        self._running: dict[str, tuple[Queue, float]] = {}

    def claimed(self, leases: Sequence[Lease], seconds: float, now: float) -> None:
        """The store answered a claim after so many seconds."""
        self.claims.observe(seconds)
        running = self._running
        by_queue: dict[Queue, list[float]] = {}
        for lease in leases:
            job = lease.job
            queue = (job.project_id, job.queue)
            waits = by_queue.get(queue)
            if waits is None:
                waits = by_queue[queue] = []
            waits.append(((job.claimed_at or job.available_at) - job.available_at) / MICROSECONDS)
            running[job.id] = (queue, now)
        for queue, waits in by_queue.items():
            self._histogram(queue).observe_all(waits)
        if len(running) > MOST_RUNNING:
            for job_id in list(running)[: len(running) - MOST_RUNNING]:
                del running[job_id]

    def reported(self, reports: Sequence[JobReport], outcomes: Sequence[ReportOutcome], now: float) -> None:
        """What became of reports that came together."""
        pop = self._running.pop
        by_key: dict[tuple[Queue, str], list[float]] = {}
        verdicts = [outcome.verdict for outcome in outcomes]
        self.reports.update(verdicts)
        for report, verdict in zip(reports, verdicts, strict=True):
            begun = pop(report.job_id, None)
            if begun is not None and verdict == "accepted":
                key = (begun[0], report.status)
                taken = by_key.get(key)
                if taken is None:
                    taken = by_key[key] = []
                taken.append(now - begun[1])
        for (queue, status), executions in by_key.items():
            key = (queue if queue in self.waits else self._told_apart(queue), status)
            if key not in self.executions:
                self.executions[key] = Histogram(_EXECUTIONS)
            self.executions[key].observe_all(executions)

    def committed(self, calls: int, seconds: float) -> None:
        """The store committed so many calls together, from the transaction's begin to its end."""
        self.batches.observe(calls)
        self.commits.observe(seconds)

    def reaped(self, reaped: Reaped) -> None:
        """What a sweep found."""
        self.leases_lapsed += reaped.leases_lapsed
        self.executions_timed_out += reaped.executions_timed_out

    def retired(self, what: Retired, number: int) -> None:
        """What a round of the retention has deleted."""
        self.retirements[what] += number

    def _histogram(self, queue: Queue) -> Histogram:
        found = self.waits.get(queue)
        return self.waits.setdefault(self._told_apart(queue), Histogram(_WAITS)) if found is None else found

    def _told_apart(self, queue: Queue) -> Queue:
        if len(self.waits) < MOST_QUEUES:
            return queue
        other = (queue[0], OTHER)
        return other if other in self.waits or len(self.waits) < 2 * MOST_QUEUES else (OTHER, OTHER)
