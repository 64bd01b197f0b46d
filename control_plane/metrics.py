"""Observations and a look at the store -> Prometheus. No label names a worker, a session or a job.

What is counted is in memory; what there is now is one bounded look at the store, at most every CENSUS_MAX_AGE seconds
however many ask, and never part of a claim's transaction. It begins with a write: a store that can only be read accepts
nothing.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import get_args

from msgspec import Struct
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from control_plane.domain.retention import Retired
from control_plane.domain.store import Census, Store
from control_plane.domain.times import MICROSECONDS, to_microseconds
from control_plane.errors import StoreUnavailable
from control_plane.observations import MOST_QUEUES, OTHER, VERDICTS, Observations, Queue
from wire.build import package_version
from wire.histograms import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

CENSUS_MAX_AGE = 5.0
"""Seconds."""

CENSUS_TIMEOUT = 5.0
"""Seconds that the store has to answer."""

SESSION_STATES = ("live", "stale", "draining")
JOB_STATES = ("pending", "delayed", "paused", "claimed")
_QUEUE = ("project", "queue")


class Live(Struct, frozen=True, kw_only=True):
    """What this process can be asked at any time; each gives a number."""

    worker_sockets: Callable[[], int]
    run_readers: Callable[[], int]
    generation_readers: Callable[[], int]
    generations: Callable[[], int]
    deltas_taken: Callable[[], int]
    deltas_refused: Callable[[], int]
    deltas_left_out: Callable[[], int]
    delta_chunks: Callable[[], int]


class Metrics:
    """`render` answers a scrape. `stale_after`: seconds without a sign of life after which a session is stale; `clock`
    gives monotonic seconds."""

    def __init__(
        self, store: Store, observations: Observations, live: Live, *, stale_after: float, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._observations = observations
        self._live = live
        self._stale_after = to_microseconds(stale_after)
        self._clock = clock
        self._census: Census | None = None
        self._census_at = float("-inf")
        self._counting = asyncio.Lock()
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)

    async def render(self, project_id: str | None = None) -> bytes:
        """The text exposition format. Of projects, queues and sessions only what is `project_id`'s, if given."""
        census, up = await self._look()
        registry = CollectorRegistry()
        registry.register(_Scrape(self._observations, self._live, census, store_up=up, project_id=project_id))
        return generate_latest(registry) + generate_latest(self._process)

    async def _look(self) -> tuple[Census, bool]:
        async with self._counting:
            if self._census is None or self._clock() >= self._census_at + CENSUS_MAX_AGE:
                try:
                    async with asyncio.timeout(CENSUS_TIMEOUT):
                        await self._store.ping()
                        census = await self._store.census(stale_before=self._store.now() - self._stale_after)
                except (StoreUnavailable, TimeoutError):
                    return self._census or Census(now=0), False
                self._census, self._census_at = census, self._clock()
            return self._census, True


class _Scrape(Collector):
    """One scrape."""

    def __init__(
        self, observations: Observations, live: Live, census: Census, *, store_up: bool, project_id: str | None
    ) -> None:
        self._observations = observations
        self._live = live
        self._census = census
        self._store_up = store_up
        self._project_id = project_id

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the registry would otherwise collect once to find out."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Everything, as of now."""
        yield InfoMetricFamily("mobius_control_plane_build", "What runs.", value={"version": package_version()})
        yield GaugeMetricFamily(
            "mobius_control_plane_store_up",
            "1 when the store takes writes and answers; what it would have said has no samples otherwise.",
            value=float(self._store_up),
        )
        if self._store_up:
            yield from self._by_state()
            yield from self._by_queue()
        yield from self._times()
        yield from self._counters()
        yield from self._streams()

    def _is_shown(self, project_id: str) -> bool:
        return self._project_id is None or project_id == self._project_id

    def _labels(self, queue: Queue) -> list[str]:
        return [self._census.projects.get(queue[0], OTHER), queue[1]]

    def _by_state(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily(
            "mobius_control_plane_jobs", "Jobs that have not ended, by state.", labels=["project", "state"]
        )
        sessions = GaugeMetricFamily(
            "mobius_control_plane_worker_sessions", "Worker sessions that have not ended.", labels=["project", "state"]
        )
        census = self._census
        for project_id, handle in census.projects.items():
            if not self._is_shown(project_id):
                continue
            depths = [depth for depth in census.queues if depth.project_id == project_id]
            numbers = (
                sum(depth.pending for depth in depths),
                sum(depth.delayed for depth in depths),
                sum(depth.paused for depth in depths),
                census.claimed.get(project_id, 0),
            )
            for state, number in zip(JOB_STATES, numbers, strict=True):
                jobs.add_metric([handle, state], number)
            for state in SESSION_STATES:
                sessions.add_metric([handle, state], census.sessions.get((project_id, state), 0))
        yield from (jobs, sessions)

    def _by_queue(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily(
            "mobius_control_plane_queue_jobs", "Jobs of the queue that can be claimed now.", labels=_QUEUE
        )
        age = GaugeMetricFamily(
            "mobius_control_plane_queue_oldest_job_age_seconds",
            "For how long the oldest of them could have been claimed; 0 while there is none.",
            labels=_QUEUE,
        )
        found = sorted(self._census.queues, key=lambda each: (-each.pending, each.project_id, each.queue))
        numbers: Counter[Queue] = Counter()
        oldest: dict[Queue, float] = {}
        for place, each in enumerate(found):
            if self._is_shown(each.project_id):
                key = (each.project_id, each.queue if place < MOST_QUEUES else OTHER)
                waited = 0.0 if each.oldest_at is None else max(0, self._census.now - each.oldest_at) / MICROSECONDS
                numbers[key] += each.pending
                oldest[key] = max(oldest.get(key, 0.0), waited)
        for key, number in sorted(numbers.items()):
            depth.add_metric(self._labels(key), number)
            age.add_metric(self._labels(key), oldest[key])
        yield from (depth, age)

    def _times(self) -> Iterable[Metric]:
        observed = self._observations
        for name, documentation, histogram in (
            ("claim_seconds", "From a claim's question to the store to its answer.", observed.claims),
            ("store_commit_seconds", "From a group commit's begin to its end.", observed.commits),
            ("store_commit_calls", "Calls that were committed together.", observed.batches),
        ):
            family = HistogramMetricFamily(f"mobius_control_plane_{name}", documentation)
            family.add_metric([], histogram.buckets(), histogram.sum)
            yield family
        waits = HistogramMetricFamily(
            "mobius_control_plane_schedule_to_start_seconds",
            "From the moment from which a job could be claimed to its claim.",
            labels=_QUEUE,
        )
        _add(waits, [(self._labels(key), one) for key, one in observed.waits.items() if self._is_shown(key[0])])
        executions = HistogramMetricFamily(
            "mobius_control_plane_execution_seconds",
            "From a job's claim to its accepted report, of those for which both came to this process.",
            labels=[*_QUEUE, "outcome"],
        )
        shown = [(key, one) for key, one in observed.executions.items() if self._is_shown(key[0][0])]
        _add(executions, [([*self._labels(queue), outcome], one) for (queue, outcome), one in shown])
        yield from (waits, executions)

    def _counters(self) -> Iterable[Metric]:
        observed = self._observations
        reports = CounterMetricFamily(
            "mobius_control_plane_reports", "Reports by what became of them.", labels=["verdict"]
        )
        for verdict in VERDICTS:
            reports.add_metric([verdict], observed.reports[verdict])
        yield reports
        for name, documentation, value in (
            ("leases_lapsed", "Leases that nobody renewed; their jobs went back or failed.", observed.leases_lapsed),
            ("executions_timed_out", "Jobs ended by their execution deadline.", observed.executions_timed_out),
        ):
            yield CounterMetricFamily(f"mobius_control_plane_{name}", documentation, value=value)

        retired = CounterMetricFamily(
            "mobius_control_plane_retired", "What was deleted because it was past.", labels=["kind"]
        )
        for kind in get_args(Retired):
            retired.add_metric([kind], observed.retirements[kind])
        yield retired

    def _streams(self) -> Iterable[Metric]:
        live = self._live
        yield GaugeMetricFamily(
            "mobius_control_plane_worker_sockets", "Worker sockets that are open here.", value=live.worker_sockets()
        )
        readers = GaugeMetricFamily(
            "mobius_control_plane_stream_readers", "Event streams that are read here.", labels=["stream"]
        )
        readers.add_metric(["run"], live.run_readers())
        readers.add_metric(["generation"], live.generation_readers())
        yield readers
        yield GaugeMetricFamily(
            "mobius_control_plane_generations", "Generations whose deltas arrive here.", value=live.generations()
        )
        deltas = CounterMetricFamily(
            "mobius_control_plane_deltas", "Deltas of generations that arrived here.", labels=["verdict"]
        )
        deltas.add_metric(["taken"], live.deltas_taken())
        deltas.add_metric(["refused"], live.deltas_refused())
        deltas.add_metric(["left_out"], live.deltas_left_out())
        yield deltas
        yield CounterMetricFamily(
            "mobius_control_plane_delta_chunks_written", "Rows that they became.", value=live.delta_chunks()
        )


def _add(family: HistogramMetricFamily, found: list[tuple[list[str], Histogram]]) -> None:
    # Two keys may have the same labels: all that are `other`.
    merged: dict[tuple[str, ...], Histogram] = {}
    for labels, histogram in found:
        known = merged.get(tuple(labels))
        if known is None:
            merged[tuple(labels)] = histogram.copy()
        else:
            known.add(histogram.counts, histogram.sum)
    for key, histogram in sorted(merged.items(), key=lambda each: each[0]):
        family.add_metric(list(key), histogram.buckets(), histogram.sum)
