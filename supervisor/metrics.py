"""Facts and the fleet's state -> Prometheus. Labels are pool and slot, never a pid."""

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from supervisor import facts
from supervisor.facts import Fact
from supervisor.fleet import Fleet
from supervisor.slots import Slot, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SLOT = ("pool", "slot")


class Metrics(Collector):
    """`publish` facts; `render` answers a scrape. Everything is read when asked, nothing is sampled."""

    def __init__(
        self, fleet: Fleet, *, build: str, clock: Callable[[], float], dropped_lines: Callable[[], int]
    ) -> None:
        self._fleet = fleet
        self._build = build
        self._clock = clock
        self._dropped_lines = dropped_lines
        self._spawns: Counter[tuple[str, str]] = Counter()
        self._exits: Counter[tuple[str, str, str]] = Counter()
        self._hangs: Counter[tuple[str, str, str]] = Counter()
        self._orphans = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def publish(self, fact: Fact) -> None:
        """Count what is counted."""
        match fact:
            case facts.ChildSpawned():
                self._spawns[fact.pool, fact.slot] += 1
            case facts.ChildDied():
                self._exits[fact.pool, fact.slot, fact.cause] += 1
            case facts.ChildHung():
                self._hangs[fact.pool, fact.slot, fact.hang or "unknown"] += 1
            case facts.OrphanEnded():
                self._orphans += 1

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the registry would otherwise collect once to find out."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Everything, as of now."""
        yield InfoMetricFamily("mobius_supervisor_build", "What runs.", value={"build": self._build})
        yield from self._by_pool()
        yield from self._counted()
        yield from self._by_slot()

    def _by_pool(self) -> Iterable[Metric]:
        children = GaugeMetricFamily(
            "mobius_pool_children", "Slots of the pool by the state of their child.", labels=["pool", "state"]
        )
        slots = GaugeMetricFamily("mobius_pool_slots", "Wanted children of the pool.", labels=["pool"])
        capacity = GaugeMetricFamily("mobius_pool_job_capacity", "Jobs the pool can hold in flight.", labels=["pool"])
        for pool in self._fleet.pools:
            states = Counter(child.state for child in pool.children)
            for state in State:
                children.add_metric([pool.name, state.value], states[state])
            slots.add_metric([pool.name], len(pool.children))
            capacity.add_metric([pool.name], len(pool.children) * pool.settings.concurrency)
        yield from (children, slots, capacity)
        if self._fleet.control_plane is not None:
            up = float(self._fleet.control_plane.is_working)
            yield GaugeMetricFamily("mobius_control_plane_up", "1 while the embedded control plane serves.", value=up)

    def _counted(self) -> Iterable[Metric]:
        spawns = CounterMetricFamily("mobius_slot_spawns", "Processes started for the slot.", labels=_SLOT)
        for key, count in sorted(self._spawns.items()):
            spawns.add_metric(key, count)
        exits = CounterMetricFamily("mobius_slot_exits", "Processes of the slot that ended.", labels=[*_SLOT, "cause"])
        for cause_key, count in sorted(self._exits.items()):
            exits.add_metric(cause_key, count)
        hangs = CounterMetricFamily("mobius_slot_hangs", "Processes killed for hanging.", labels=[*_SLOT, "class"])
        for class_key, count in sorted(self._hangs.items()):
            hangs.add_metric(class_key, count)
        yield from (spawns, exits, hangs)
        yield CounterMetricFamily(
            "mobius_supervisor_orphans", "Processes left behind by handlers and ended.", value=self._orphans
        )
        yield CounterMetricFamily(
            "mobius_supervisor_log_lines_dropped", "Log lines that nobody read in time.", value=self._dropped_lines()
        )

    def _by_slot(self) -> Iterable[Metric]:
        now = self._clock()
        children = self._fleet.children
        yield _gauge("mobius_slot_jobs_in_hand", "Jobs the child holds.", children, lambda slot: slot.jobs_in_hand)
        yield _gauge(
            "mobius_slot_heartbeat_age_seconds",
            "Since the last beat of the child's event loop.",
            children,
            lambda slot: slot.beat_age(now),
        )
        yield _gauge(
            "mobius_slot_loop_lag_seconds",
            "How late the child's last beat was.",
            children,
            lambda slot: slot.beat.loop_lag if slot.beat is not None else None,
        )
        yield _gauge(
            "mobius_slot_reports_waiting",
            "Reports in the child's journal that are not acknowledged.",
            children,
            lambda slot: slot.beat.reports_waiting if slot.beat is not None else None,
        )
        yield _gauge(
            "mobius_slot_restart_backoff_seconds",
            "Until the slot is filled again; 0 outside of a back-off.",
            self._fleet.slots,
            lambda slot: slot.backoff_left(now),
        )
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


def _gauge(
    name: str, documentation: str, slots: list[Slot], value: Callable[[Slot], float | None]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=_SLOT)
    for slot in slots:
        number = value(slot)
        if number is not None:
            family.add_metric([slot.pool, slot.name], number)
    return family
