"""Facts and the fleet's state -> Prometheus. Labels are pool, slot and a registered action, never a pid."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from supervisor import facts
from supervisor.facts import Fact
from supervisor.fleet import Fleet
from supervisor.slots import Slot, State
from wire.histograms import Histogram
from wire.pipe import DURATION_BUCKETS, Beat

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SLOT = ("pool", "slot")
_RESTARTS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_EXIT_DETECTIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)
_DETECTIONS = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0)
_DRAINS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Metrics(Collector):
    """`publish` facts; `render` answers a scrape. Everything is read when asked, nothing is sampled."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        build: str,
        clock: Callable[[], float],
        dropped_lines: Callable[[], int],
        round_lag: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._build = build
        self._clock = clock
        self._dropped_lines = dropped_lines
        self._round_lag = round_lag
        self._counted: Counter[tuple[str, ...]] = Counter()
        self._died_at: dict[str, float] = {}
        self._restarts: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_RESTARTS))
        self._detections: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_DETECTIONS))
        self._exit_detections: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_EXIT_DETECTIONS))
        self._drains: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_DRAINS))
        self._jobs = _Jobs()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def publish(self, fact: Fact) -> None:
        """Count what is counted."""
        match fact:
            case facts.ChildSpawned():
                self._counted["spawns", fact.pool, fact.slot] += 1
            case facts.ChildReady():
                died_at = self._died_at.pop(fact.slot, None)
                if died_at is not None:
                    self._restarts[fact.pool].observe(self._clock() - died_at)
            case facts.ChildDied():
                self._count_end(fact)
            case facts.ChildHung() if not fact.ordered:
                self._counted["hangs", fact.pool, fact.slot, fact.hang or "unknown"] += 1
                if fact.why != "killed":
                    self._detections[fact.pool].observe(fact.lasted)
            case facts.CrashLoop():
                self._counted["crash_loops", fact.pool, fact.slot] += 1
            case facts.ChildRecycled():
                self._counted["recycles", fact.pool, fact.slot, fact.reason] += 1
            case facts.JobProcessStarted():
                self._counted["job_processes", fact.pool, fact.slot] += 1
            case facts.JobProcessEnded():
                self._counted["job_processes", fact.pool, fact.slot] -= 1
                self._counted["job_process_exits", fact.pool, fact.slot, fact.cause] += 1
            case facts.OrphanEnded():
                self._counted["orphans",] += 1

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the registry would otherwise collect once to find out."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Everything, as of now."""
        yield InfoMetricFamily("mobius_supervisor_build", "What runs.", value={"build": self._build})
        yield GaugeMetricFamily(
            "mobius_supervisor_restart_needed",
            "1 when the package was replaced under the supervisor.",
            value=float(self._fleet.build_skew),
        )
        yield from self._by_pool()
        yield from self._counters()
        yield from self._times()
        yield from self._by_slot()
        yield from self._by_beat()
        yield from self._jobs.collect(self._fleet.children)

    def _count_end(self, died: facts.ChildDied) -> None:
        self._counted["exits", died.pool, died.slot, died.cause] += 1
        pool = self._fleet.pool_of(died.slot)
        wanted = pool is not None and any(child.name == died.slot for child in pool.staying)
        if wanted and not died.asked:
            # A slot that fails again before it is ready is out of service since its first death.
            self._died_at.setdefault(died.slot, self._clock())
        else:
            self._died_at.pop(died.slot, None)
        if died.detected_in is not None:
            self._exit_detections[died.pool].observe(died.detected_in)
        if died.drained_for is not None:
            self._drains[died.pool].observe(died.drained_for)
        if died.beat is not None:
            self._jobs.keep(died.pool, died.beat)

    def _by_pool(self) -> Iterable[Metric]:
        children = GaugeMetricFamily(
            "mobius_pool_children", "Slots of the pool by the state of their child.", labels=["pool", "state"]
        )
        wanted = GaugeMetricFamily("mobius_pool_workers_wanted", "Children that the pool is to have.", labels=["pool"])
        slots = GaugeMetricFamily(
            "mobius_pool_slots",
            "Slots of the pool: those wanted, and for as long as an exchange or a drain takes, those that come or go.",
            labels=["pool"],
        )
        capacity = GaugeMetricFamily(
            "mobius_pool_job_capacity", "Jobs that the children at work can hold in flight.", labels=["pool"]
        )
        saturation = GaugeMetricFamily(
            "mobius_pool_saturation_ratio",
            "Jobs in flight as a share of the capacity; no sample while no child is at work.",
            labels=["pool"],
        )
        for pool in self._fleet.pools:
            states = Counter(child.state for child in pool.children)
            for state in State:
                children.add_metric([pool.name, state.value], states[state])
            wanted.add_metric([pool.name], 0 if pool.retired else pool.settings.workers)
            slots.add_metric([pool.name], len(pool.children))
            at_work = [child for child in pool.children if child.is_working]
            places = sum(child.concurrency for child in at_work)
            capacity.add_metric([pool.name], places)
            if places:
                saturation.add_metric([pool.name], sum(child.jobs_in_hand for child in at_work) / places)
        yield from (children, wanted, slots, capacity, saturation)
        if self._fleet.control_plane is not None:
            up = float(self._fleet.control_plane.is_working)
            yield GaugeMetricFamily("mobius_control_plane_up", "1 while the embedded control plane serves.", value=up)

    def _counters(self) -> Iterable[Metric]:
        yield self._counter("spawns", "mobius_slot_spawns", "Processes started for the slot.")
        yield self._counter("exits", "mobius_slot_exits", "Processes of the slot that ended.", "cause")
        yield self._counter("hangs", "mobius_slot_hangs", "Processes killed for hanging.", "class")
        yield self._counter("crash_loops", "mobius_slot_crash_loops", "Times that a crash loop was named.")
        yield self._counter("recycles", "mobius_slot_recycles", "Children that reached a limit.", "reason")
        yield self._counter(
            "job_process_exits", "mobius_slot_job_process_exits", "Processes of single jobs that ended.", "cause"
        )
        yield CounterMetricFamily(
            "mobius_supervisor_orphans",
            "Processes left behind by handlers and ended.",
            value=self._counted["orphans",],
        )
        yield GaugeMetricFamily(
            "mobius_supervisor_round_lag_seconds", "How late the last round came.", value=self._round_lag()
        )
        yield CounterMetricFamily(
            "mobius_supervisor_log_lines_dropped", "Log lines that nobody read in time.", value=self._dropped_lines()
        )

    def _counter(self, kind: str, name: str, documentation: str, *more: str) -> CounterMetricFamily:
        family = CounterMetricFamily(name, documentation, labels=[*_SLOT, *more])
        for (own, *labels), count in sorted(self._counted.items()):
            if own == kind:
                family.add_metric(labels, count)
        return family

    def _times(self) -> Iterable[Metric]:
        for name, documentation, found in (
            ("mobius_pool_restart_seconds", "From an unplanned death to the slot's next ready child.", self._restarts),
            ("mobius_pool_hang_detection_seconds", "From the first sign to the decision to kill.", self._detections),
            (
                "mobius_pool_exit_detection_seconds",
                "From the kernel's word of a child's end to its being known.",
                self._exit_detections,
            ),
            ("mobius_pool_drain_seconds", "From the request to drain to the child's end.", self._drains),
        ):
            family = HistogramMetricFamily(name, documentation, labels=["pool"])
            for pool, histogram in sorted(found.items()):
                family.add_metric([pool], histogram.buckets(), histogram.sum)
            yield family

    def _by_slot(self) -> Iterable[Metric]:
        now = self._clock()
        slots, children = self._fleet.slots, self._fleet.children
        yield _gauge("mobius_slot_jobs_in_hand", "Jobs the child holds.", children, lambda slot: slot.jobs_in_hand)
        yield _gauge(
            "mobius_slot_job_processes",
            "Processes that run one job each.",
            children,
            lambda slot: self._counted["job_processes", slot.pool, slot.name],
        )
        yield _gauge(
            "mobius_slot_heartbeat_age_seconds",
            "Since the last beat of the child's event loop.",
            children,
            lambda slot: slot.beat_age(now),
        )
        yield _gauge(
            "mobius_slot_restart_backoff_seconds",
            "Until the slot is filled again; 0 outside of a back-off.",
            slots,
            lambda slot: slot.backoff_left(now),
        )
        yield _gauge(
            "mobius_slot_crash_loop",
            "1 while the slot's processes end of the same fault again and again.",
            slots,
            lambda slot: float(slot.crash_loop is not None),
        )
        yield _gauge(
            "mobius_slot_memory_private_bytes",
            "What the process's end would give back.",
            slots,
            lambda slot: slot.private_memory,
        )
        yield _gauge(
            "mobius_slot_memory_shared_bytes",
            "Private memory and the process's share of what it has in common with others (PSS).",
            slots,
            lambda slot: slot.shared_memory,
        )

    def _by_beat(self) -> Iterable[Metric]:
        children = self._fleet.children
        for name, documentation, field in (
            ("mobius_slot_loop_lag_seconds", "How late the child's last beat was.", "loop_lag"),
            (
                "mobius_slot_reports_waiting",
                "Reports in the child's journal that are not acknowledged.",
                "reports_waiting",
            ),
            (
                "mobius_slot_journal_degraded",
                "1 while the disk refuses the child's journal: finished work is in its memory alone.",
                "journal_degraded",
            ),
            ("mobius_slot_oldest_job_age_seconds", "Since the oldest job in hand was claimed.", "oldest_job_age"),
            (
                "mobius_slot_acknowledgement_age_seconds",
                "Since the control plane last acknowledged anything.",
                "last_acknowledgement_age",
            ),
            (
                "mobius_slot_stalled_seconds",
                "For how long the child's session has owed a step that it does not make.",
                "stalled_for",
            ),
        ):
            yield _gauge(name, documentation, children, lambda slot, field=field: getattr(slot.beat, field, None))  # type: ignore[misc]
        finished = CounterMetricFamily(
            "mobius_slot_jobs_finished", "Jobs the slot's children finished.", labels=[*_SLOT, "outcome"]
        )
        reconnects = CounterMetricFamily("mobius_slot_reconnects", "Reconnects of the slot's children.", labels=_SLOT)
        for slot in children:
            totals, key = slot.totals, [slot.pool, slot.name]
            for outcome in ("completed", "failed", "cancelled", "handed_back"):
                finished.add_metric([*key, outcome], getattr(totals, outcome))
            reconnects.add_metric(key, totals.reconnects)
        yield from (finished, reconnects)


class _Jobs:
    """What came of jobs, by pool and action: of the processes that ended, and of those that live."""

    def __init__(self) -> None:
        self._outcomes: Counter[tuple[str, str, str]] = Counter()
        self._durations: dict[tuple[str, str], Histogram] = {}

    def keep(self, pool: str, beat: Beat) -> None:
        """The last beat of a process counts for good."""
        _add(self._outcomes, self._durations, pool, beat)

    def collect(self, children: list[Slot]) -> Iterable[Metric]:
        """As of now."""
        outcomes = self._outcomes.copy()
        durations = {key: histogram.copy() for key, histogram in self._durations.items()}
        for child in children:
            if child.beat is not None:
                _add(outcomes, durations, child.pool, child.beat)
        finished = CounterMetricFamily(
            "mobius_pool_jobs_finished", "Jobs the pool finished.", labels=["pool", "action", "outcome"]
        )
        for key, count in sorted(outcomes.items()):
            finished.add_metric(key, count)
        duration = HistogramMetricFamily(
            "mobius_pool_job_duration_seconds", "From a job's claim to its outcome.", labels=["pool", "action"]
        )
        for pool_action, histogram in sorted(durations.items()):
            duration.add_metric(pool_action, histogram.buckets(), histogram.sum)
        yield from (finished, duration)


def _add(
    outcomes: Counter[tuple[str, str, str]], durations: dict[tuple[str, str], Histogram], pool: str, beat: Beat
) -> None:
    for action, counts in beat.actions.items():
        for outcome in ("completed", "failed", "cancelled"):
            outcomes[pool, action, outcome] += getattr(counts, outcome)
        histogram = durations.setdefault((pool, action), Histogram(DURATION_BUCKETS))
        histogram.add(counts.durations, counts.seconds)


def _gauge(
    name: str, documentation: str, slots: list[Slot], value: Callable[[Slot], float | None]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=_SLOT)
    for slot in slots:
        number = value(slot)
        if number is not None:
            family.add_metric([slot.pool, slot.name], number)
    return family
