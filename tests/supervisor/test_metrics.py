"""Facts and the fleet's state as Prometheus text that its own parser accepts."""

import os
import shutil
import subprocess

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from supervisor import config, facts
from supervisor.fleet import Fleet
from supervisor.metrics import Metrics
from supervisor.slots import (
    BecameReady,
    Booted,
    DeadlinePassed,
    Died,
    Drain,
    Event,
    LoopBeat,
    MemorySampled,
    Spawned,
    SpawnFailed,
    Start,
    State,
)
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
    def __init__(self, *, embedded: bool = True) -> None:
        self.embedded = embedded
        self.fleet = Fleet(self.settings(), "build")
        self.now = 1000.0
        self.metrics = Metrics(
            self.fleet, build="1+abc", clock=lambda: self.now, dropped_lines=lambda: 7, round_lag=lambda: 0.0
        )

    def settings(self, concurrency: int = 4) -> config.Config:
        return config.Config(
            control_plane=config.ControlPlane(embedded=self.embedded),
            supervisor=config.Supervisor(),
            pool=[config.Pool(name="rig", workers=2, concurrency=concurrency)],
            credential=config.Credential(source="test", key_file="/nonexistent"),
        )

    def come_up(self, *, once: bool = False) -> None:
        """What was asked of a process happens, of one at a time."""
        for _ in range(1 if once else 20):
            self.fleet.tick(self.now)
            for one in self.fleet.slots:
                this = {"slot": one.name, "incarnation": one.incarnation}
                if one.state is State.SPAWNING:
                    self.feed(Spawned(**this, pid=1), Booted(**this, build="build"), BecameReady(**this))
                    break
                if one.state is State.DRAINING:
                    self.feed(Died(**this, exit_code=0, signal=None, jitter=0.0, output=[]))
                    break

    def beat(self, name: str, *, jobs_in_hand: int) -> None:
        this = {"slot": name, "incarnation": self.fleet.pools[0].find(name).incarnation}
        beat = pipe.Beat(**this, source="loop", session="registered", jobs_in_hand=jobs_in_hand)
        self.feed(LoopBeat(**this, beat=beat))

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
        Start(slot="rig-1", incarnation=0, concurrency=4),
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
    assert found["mobius_pool_workers_wanted", (("pool", "rig"),)] == 2
    assert found["mobius_pool_slots", (("pool", "rig"),)] == 2
    assert found["mobius_pool_job_capacity", (("pool", "rig"),)] == 4
    assert found["mobius_pool_saturation_ratio", (("pool", "rig"),)] == 3 / 4
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


def busy_story() -> Story:
    """Something of everything."""
    story = Story()
    first = {"slot": "rig-1", "incarnation": 1}
    counts = pipe.ActionCounts(completed=2, failed=1, seconds=3.5, durations=[1, 0, 0, 0, 1, 0, 1])
    beat = pipe.Beat(slot="rig-1", incarnation=1, source="loop", jobs_in_hand=2, actions={"mail.send": counts})
    story.feed(
        Start(slot="rig-1", incarnation=0),
        Spawned(**first, pid=4711),
        Booted(**first, build="build"),
        BecameReady(**first),
        LoopBeat(**first, beat=beat),
        MemorySampled(**first, private=3_000_000, shared_fairly=5_000_000),
    )
    hung = {"pool": "rig", **first, "silent_for": 45.0, "thread_silent_for": 0.1, "jobs_in_hand": 1, "lasted": 45.0}
    for fact in (
        facts.ChildHung(**hung, loop_silent=True, session="registered", hang="loop_blocked"),
        facts.CrashLoop(pool="rig", **first, times=5, how="exit code 1", says="KeyError"),
        facts.ChildRecycled(pool="rig", **first, reason="age", jobs_done=3, age=100.0, private_memory=None),
        facts.OrphanEnded(pid=1),
    ):
        story.metrics.publish(fact)
    return story


def test_jobs_are_counted_by_action_and_outlive_the_process() -> None:
    story = busy_story()
    for _ in range(2):
        found = samples(story.metrics)
        mail = (("action", "mail.send"), ("pool", "rig"))
        assert found["mobius_pool_jobs_finished_total", tuple(sorted([*mail, ("outcome", "failed")]))] == 1
        assert found["mobius_pool_job_duration_seconds_count", mail] == 3
        assert found["mobius_pool_job_duration_seconds_sum", mail] == 3.5
        buckets = {
            le: found["mobius_pool_job_duration_seconds_bucket", tuple(sorted([*mail, ("le", le)]))]
            for le in ("0.005", "0.25", "0.5", "+Inf")
        }
        assert buckets == {"0.005": 1, "0.25": 1, "0.5": 2, "+Inf": 3}
        story.feed(Died(slot="rig-1", incarnation=1, exit_code=None, signal=9, jitter=0.0, output=[]))


def test_a_restart_is_timed_from_the_first_death_to_the_next_ready_child() -> None:
    story = busy_story()
    pool = (("pool", "rig"),)
    story.feed(Died(slot="rig-1", incarnation=1, exit_code=None, signal=9, jitter=0.0, output=[]))
    for incarnation, last in ((2, False), (3, True)):
        story.now += 0.5
        again = {"slot": "rig-1", "incarnation": incarnation}
        story.feed(DeadlinePassed(slot="rig-1", incarnation=incarnation - 1))
        story.feed(
            Start(slot="rig-1", incarnation=incarnation - 1), Spawned(**again, pid=2), Booted(**again, build="build")
        )
        story.feed(BecameReady(**again) if last else Died(**again, exit_code=1, signal=None, jitter=0.0, output=[]))
    found = samples(story.metrics)
    assert found["mobius_pool_restart_seconds_count", pool] == 1
    assert found["mobius_pool_restart_seconds_sum", pool] == 1.0


def test_what_fails_on_trial_was_never_in_service() -> None:
    story = Story(embedded=False)
    story.come_up()
    story.fleet.begin_change(story.settings(concurrency=1), story.now)
    story.come_up(once=True)
    story.fleet.tick(story.now)
    tried = story.fleet.pools[0].find("rig-3")
    story.feed(
        Spawned(slot="rig-3", incarnation=tried.incarnation, pid=1),
        Died(slot="rig-3", incarnation=tried.incarnation, exit_code=78, signal=None, jitter=0.0, output=[]),
    )
    story.come_up()
    story.fleet.begin_change(story.settings(concurrency=1), story.now)
    story.come_up()
    found = samples(story.metrics)
    assert found["mobius_slot_exits_total", slot("rig-3", ("cause", "exit"))] == 1
    assert story.fleet.pools[0].find("rig-3").state is State.READY
    assert ("mobius_pool_restart_seconds_count", (("pool", "rig"),)) not in found


def test_times_of_hangs_and_drains() -> None:
    story = busy_story()
    story.feed(Drain(slot="rig-1", incarnation=1, grace=30.0))
    story.now += 2.0
    died = Died(slot="rig-1", incarnation=1, exit_code=0, signal=None, jitter=0.0, output=[])
    story.feed(msgspec.structs.replace(died, noticed_at=story.now - 0.125))
    found = samples(story.metrics)
    pool = (("pool", "rig"),)
    assert found["mobius_pool_drain_seconds_sum", pool] == 2.0
    assert found["mobius_pool_exit_detection_seconds_sum", pool] == 0.125
    assert found["mobius_supervisor_round_lag_seconds", ()] == 0.0
    assert found["mobius_pool_hang_detection_seconds_sum", pool] == 45.0
    assert found["mobius_slot_hangs_total", slot("rig-1", ("class", "loop_blocked"))] == 1
    assert found["mobius_slot_recycles_total", slot("rig-1", ("reason", "age"))] == 1
    assert found["mobius_slot_crash_loops_total", slot("rig-1")] == 1


def test_memory() -> None:
    found = samples(busy_story().metrics)
    assert found["mobius_slot_memory_private_bytes", slot("rig-1")] == 3_000_000
    assert found["mobius_slot_memory_shared_bytes", slot("rig-1")] == 5_000_000


def test_an_exchange_has_more_slots_and_counts_what_each_child_holds() -> None:
    """From 4 jobs in each of two children to 1: each child is as large as it was told, and one that goes counts not."""
    story = Story(embedded=False)
    story.come_up()
    story.beat("rig-1", jobs_in_hand=4)
    story.fleet.begin_change(story.settings(concurrency=1), story.now)
    seen = []
    for _ in range(20):
        found = samples(story.metrics)
        of_pool = [
            found.get((f"mobius_pool_{name}", (("pool", "rig"),)))
            for name in ("workers_wanted", "slots", "job_capacity", "saturation_ratio")
        ]
        seen += [of_pool] if of_pool not in seen else []
        story.come_up(once=True)
    assert seen == [
        [2, 2, 8, 0.5],
        [2, 3, 9, 4 / 9],
        [2, 3, 5, 0.0],
        [2, 3, 6, 0.0],
        [2, 3, 2, 0.0],
        [2, 2, 2, 0.0],
    ]


UNITS = ("_seconds", "_bytes", "_ratio")
COUNTS = (
    "children",
    "wanted",
    "slots",
    "capacity",
    "up",
    "in_hand",
    "waiting",
    "crash_loop",
    "degraded",
    "needed",
    "processes",
)


def test_names_say_kind_and_unit() -> None:
    """The rules of `promtool check metrics`, and that what has no unit is a count of things."""
    for family in text_string_to_metric_families(busy_story().metrics.render().decode()):
        if not family.name.startswith("mobius_"):
            continue
        assert family.documentation.endswith("."), family.name
        shown = {sample.name for sample in family.samples}
        match family.type:
            case "counter":
                assert all(name.endswith("_total") for name in shown), family.name
            case "histogram":
                assert family.name.endswith("_seconds")
            case "gauge":
                named = family.name.endswith((*UNITS, *COUNTS)) or family.name == "mobius_supervisor_build_info"
                assert named, family.name
                assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
            case other:
                raise AssertionError(f"{family.name}: {other}")


def test_promtool_accepts_it() -> None:
    if shutil.which("promtool") is None:
        installable = os.geteuid() == 0 and shutil.which("apt-get") is not None
        assert not (installable and os.environ.get("CI") == "true"), "promtool must not be missing here"
        pytest.skip("promtool (Debian package prometheus) is not installed")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=busy_story().metrics.render(), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_no_label_names_a_process() -> None:
    labels = {name for _, pairs in samples(busy_story().metrics) for name, _ in pairs}
    own = {"build", "pool", "slot", "state", "outcome", "cause", "class", "reason", "action", "le"}
    assert labels <= own | {"generation"}
