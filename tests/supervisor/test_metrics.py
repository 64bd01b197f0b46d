"""Facts and the fleet's state as Prometheus text that its own parser accepts."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from supervisor import config, facts
from supervisor.fleet import Fleet
from supervisor.metrics import Metrics
from supervisor.slots import BecameReady, Booted, Died, Event, LoopBeat, Spawned, SpawnFailed, Start
from wire import pipe


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def slot(name: str, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted([("pool", "rig"), ("slot", name), *more]))


class Story:
    def __init__(self) -> None:
        settings = config.Config(
            control_plane=config.ControlPlane(embedded=True),
            supervisor=config.Supervisor(),
            pool=[config.Pool(name="rig", workers=2, concurrency=4)],
            credential=config.Credential(source="test", key_file="/nonexistent"),
        )
        self.fleet = Fleet(settings, "build")
        self.now = 1000.0
        self.metrics = Metrics(self.fleet, build="1+abc", clock=lambda: self.now, dropped_lines=lambda: 7)

    def feed(self, *events: Event) -> None:
        for event in events:
            for step in self.fleet.step(event, self.now):
                if isinstance(step, facts.Fact):
                    self.metrics.publish(step)


def test_what_a_scrape_says() -> None:
    story = Story()
    first = {"slot": "rig-1", "incarnation": 1}
    beat = pipe.Beat(
        slot="rig-1",
        incarnation=1,
        source="loop",
        session="registered",
        jobs_in_hand=3,
        completed=10,
        failed=2,
        reports_waiting=1,
        reconnects=4,
        loop_lag=0.25,
    )
    story.feed(
        Start(slot="rig-1", incarnation=0),
        Spawned(**first, pid=4711),
        Booted(**first, build="build"),
        BecameReady(**first),
        LoopBeat(**first, beat=beat),
    )
    story.now += 2.0
    found = samples(story.metrics)
    assert found["mobius_supervisor_build_info", (("build", "1+abc"),)] == 1
    assert found["mobius_pool_children", (("pool", "rig"), ("state", "ready"))] == 1
    assert found["mobius_pool_children", (("pool", "rig"), ("state", "empty"))] == 1
    assert found["mobius_pool_slots", (("pool", "rig"),)] == 2
    assert found["mobius_pool_job_capacity", (("pool", "rig"),)] == 8
    assert found["mobius_slot_spawns_total", slot("rig-1")] == 1
    assert found["mobius_slot_jobs_in_hand", slot("rig-1")] == 3
    assert found["mobius_slot_jobs_finished_total", slot("rig-1", ("outcome", "completed"))] == 10
    assert found["mobius_slot_jobs_finished_total", slot("rig-1", ("outcome", "failed"))] == 2
    assert found["mobius_slot_heartbeat_age_seconds", slot("rig-1")] == 2.0
    assert ("mobius_slot_heartbeat_age_seconds", slot("rig-2")) not in found
    assert found["mobius_slot_reconnects_total", slot("rig-1")] == 4
    assert found["mobius_slot_reports_waiting", slot("rig-1")] == 1
    assert found["mobius_slot_loop_lag_seconds", slot("rig-1")] == 0.25
    assert found["mobius_control_plane_up", ()] == 0
    assert found["mobius_supervisor_log_lines_dropped_total", ()] == 7


def test_counters_survive_the_child_and_exits_have_a_cause() -> None:
    story = Story()
    first = {"slot": "rig-1", "incarnation": 1}
    beat = pipe.Beat(slot="rig-1", incarnation=1, source="loop", completed=10)
    story.feed(
        Start(slot="rig-1", incarnation=0),
        Spawned(**first, pid=4711),
        Booted(**first, build="build"),
        LoopBeat(**first, beat=beat),
        Died(**first, exit_code=None, signal=11, jitter=1.0, output=[]),
    )
    found = samples(story.metrics)
    assert found["mobius_slot_exits_total", slot("rig-1", ("cause", "signal"))] == 1
    assert found["mobius_slot_jobs_finished_total", slot("rig-1", ("outcome", "completed"))] == 10
    assert found["mobius_slot_restart_backoff_seconds", slot("rig-1")] == pytest.approx(0.1)
    assert ("mobius_slot_jobs_in_hand", slot("rig-1")) in found
    story.feed(
        Start(slot="rig-2", incarnation=0),
        SpawnFailed(slot="rig-2", incarnation=1, message="no memory", jitter=1.0),
    )
    assert samples(story.metrics)["mobius_slot_exits_total", slot("rig-2", ("cause", "spawn_failed"))] == 1


def test_no_label_names_a_process() -> None:
    labels = {name for _, pairs in samples(Story().metrics) for name, _ in pairs}
    assert labels <= {"build", "pool", "slot", "state", "outcome", "cause", "class", "generation"}
