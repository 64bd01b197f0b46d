"""A pool is fed with what its processes did, and answers with what is to be done. No process is needed for that."""

from typing import Any

from supervisor import config
from supervisor.pool import MOST_ASKED_FOR, Pool
from supervisor.slots import (
    STALLED_BEATS,
    AbandonSpawn,
    AskToDrain,
    BecameReady,
    Booted,
    Died,
    Event,
    EvidenceKept,
    KeepEvidence,
    KillProcess,
    LoopBeat,
    Spawned,
    SpawnFailed,
    SpawnProcess,
    State,
)
from wire.pipe import Beat

LIMITS = config.Limits()


class Story:
    """A pool of two, its time, and what was to be done last, as (what, slot, incarnation)."""

    def __init__(self, workers: int = 2) -> None:
        self.pool = Pool(config.Pool(name="rig", workers=workers))
        self.now = 100.0

    def tick(self, *, children_may_start: bool = True) -> list[tuple[str, str, int]]:
        return orders(self.pool.tick(self.now, children_may_start=children_may_start))

    def happened(self, kind: type[Event], slot: str, **fields: Any) -> list[tuple[str, str, int]]:
        found = next(one for one in self.pool.slots if one.name == slot)
        event = kind(slot=slot, incarnation=found.incarnation, **fields)
        return orders(self.pool.step(event, self.now))

    def comes_up(self, slot: str) -> None:
        self.happened(Spawned, slot, pid=1)
        self.happened(Booted, slot, build="1")
        self.happened(BecameReady, slot)

    def dies(self, slot: str, *, signal: int = 9, jitter: float = 0.5) -> None:
        self.happened(Died, slot, exit_code=None, signal=signal, jitter=jitter, output=[])

    def full(self) -> None:
        self.tick()
        self.comes_up("mold:rig")
        self.tick()
        for child in self.pool.children:
            self.comes_up(child.name)


def orders(steps: list[Any]) -> list[tuple[str, str, int]]:
    kinds = (SpawnProcess, AskToDrain, KillProcess, AbandonSpawn)
    return [(type(step).__name__, step.slot, step.incarnation) for step in steps if isinstance(step, kinds)]


def test_the_mold_comes_first_and_the_children_when_it_is_ready() -> None:
    story = Story()
    assert story.tick() == [("SpawnProcess", "mold:rig", 1)]
    assert story.tick() == []
    story.comes_up("mold:rig")
    assert story.tick() == [("SpawnProcess", "rig-1", 1), ("SpawnProcess", "rig-2", 1)]
    assert story.tick() == []


def test_children_wait_until_they_may_start() -> None:
    story = Story()
    story.tick(children_may_start=False)
    story.comes_up("mold:rig")
    assert story.tick(children_may_start=False) == []
    assert len(story.tick(children_may_start=True)) == 2


def test_a_dead_child_is_replaced_in_the_same_round_and_the_other_one_is_left_alone() -> None:
    story = Story()
    story.full()
    story.dies("rig-1")
    assert story.tick() == [("SpawnProcess", "rig-1", 2)]


def test_a_dead_mold_takes_no_child_with_it_and_the_next_one_forks_what_is_missing() -> None:
    story = Story()
    story.full()
    story.dies("mold:rig")
    assert story.tick() == [("SpawnProcess", "mold:rig", 2)]
    story.dies("rig-2")
    assert story.tick() == []
    assert story.pool.children[0].state is State.READY
    story.comes_up("mold:rig")
    assert story.tick() == [("SpawnProcess", "rig-2", 2)]


def test_a_mold_that_leaves_a_spawn_unanswered_is_replaced() -> None:
    story = Story(workers=1)
    story.tick()
    story.comes_up("mold:rig")
    story.tick()
    story.now = story.pool.next_deadline()
    steps = story.pool.tick(story.now, children_may_start=True)
    assert orders(steps) == [("AbandonSpawn", "rig-1", 1)]
    (evidence,) = (step for step in steps if isinstance(step, KeepEvidence))
    assert (evidence.slot, evidence.hung.why, evidence.hung.lasted) == ("mold:rig", "hung", LIMITS.kill_after)
    assert evidence.hung.detail == "it was asked for a worker and did not answer"
    story.happened(SpawnFailed, "rig-1", message="no answer", jitter=0.0)
    assert story.happened(EvidenceKept, "mold:rig", hung=evidence.hung) == [("KillProcess", "mold:rig", 1)]
    story.dies("mold:rig")
    assert story.tick() == [("SpawnProcess", "mold:rig", 2)]


def test_a_mold_that_leaves_many_spawns_unanswered_is_condemned_once() -> None:
    story = Story(workers=3)
    story.tick()
    story.comes_up("mold:rig")
    story.tick()
    story.now = story.pool.next_deadline()
    steps = story.pool.tick(story.now, children_may_start=True)
    assert [slot for kind, slot, _ in orders(steps) if kind == "AbandonSpawn"] == ["rig-1", "rig-2", "rig-3"]
    assert sum(isinstance(step, KeepEvidence) for step in steps) == 1


def test_the_next_deadline_is_the_nearest_of_all_slots() -> None:
    story = Story()
    story.full()
    assert story.pool.next_deadline() == 110.0
    story.now = 105.0
    story.happened(BecameReady, "rig-1")
    assert story.pool.next_deadline() == 110.0
    story.happened(BecameReady, "rig-2")
    assert story.pool.next_deadline() == 115.0


def test_a_drained_pool_starts_nothing_and_asks_everybody_in_order() -> None:
    story = Story(workers=3)
    story.full()
    assert orders(story.pool.drain(30.0, story.now)) == [
        ("AskToDrain", "rig-1", 1),
        ("AskToDrain", "rig-2", 1),
        ("AskToDrain", "rig-3", 1),
    ]
    for child in ("rig-1", "rig-2"):
        story.dies(child, signal=15)
    assert story.tick() == []
    assert not story.pool.is_drained
    story.dies("rig-3", signal=15)
    assert story.pool.is_drained
    assert not story.pool.is_over
    assert orders(story.pool.close(story.now)) == [("AskToDrain", "mold:rig", 1)]
    story.dies("mold:rig", signal=15)
    assert story.pool.is_over
    assert story.tick() == []


def test_a_child_that_outlasts_its_grace_is_killed() -> None:
    story = Story(workers=1)
    story.full()
    story.pool.drain(30.0, story.now)
    story.now = story.pool.next_deadline()
    assert story.now == 132.0
    assert story.tick() == []  # evidence first
    story.now = story.pool.next_deadline()
    assert story.tick() == [("KillProcess", "rig-1", 1)]


def test_kill_ends_everybody_and_asks_for_evidence_only_once() -> None:
    story = Story()
    story.full()
    assert [type(step) for step in story.pool.kill(story.now)] == [KeepEvidence, KeepEvidence]
    assert orders(story.pool.kill(story.now)) == [("KillProcess", "rig-1", 1), ("KillProcess", "rig-2", 1)]


def stands_still(story: Story, slot: str, **fields: Any) -> None:
    incarnation = next(one for one in story.pool.children if one.name == slot).incarnation
    beat = Beat(slot=slot, incarnation=incarnation, source="loop", stalled_for=60.0, **fields)
    for _ in range(STALLED_BEATS):
        story.happened(LoopBeat, slot, beat=beat)


def test_children_that_stand_still_are_ended_a_share_at_a_time_and_never_with_jobs_in_hand() -> None:
    story = Story(workers=8)
    story.full()
    for number in (1, 2, 3, 4):
        stands_still(story, f"rig-{number}", jobs_in_hand=int(number == 1))

    def condemned() -> list[str]:
        return [child.name for child in story.pool.children if child.state is State.CONDEMNED]

    story.tick()
    assert condemned() == ["rig-2", "rig-3"]
    story.tick()
    assert condemned() == ["rig-2", "rig-3"], "the others wait until these are back"
    for slot in ("rig-2", "rig-3"):
        story.dies(slot)
    story.tick()
    story.comes_up("rig-2")
    story.tick()
    assert condemned() == ["rig-4"]
    stands_still(story, "rig-1")
    story.comes_up("rig-3")
    story.tick()
    assert condemned() == ["rig-1", "rig-4"]


def test_a_child_that_fails_again_and_again_keeps_nobody_from_being_ended() -> None:
    story = Story()
    story.full()
    story.dies("rig-1", signal=11)
    story.tick()
    story.happened(Spawned, "rig-1", pid=2)
    story.dies("rig-1", signal=11, jitter=1.0)
    story.tick()
    stands_still(story, "rig-2")
    story.tick()
    assert [child.state for child in story.pool.children] == [State.BACKOFF, State.CONDEMNED]


def test_a_mold_is_asked_for_a_few_children_at_a_time() -> None:
    story = Story(workers=50)
    story.tick()
    story.comes_up("mold:rig")
    asked = [slot for _, slot, _ in story.tick()]
    assert asked == [f"rig-{number}" for number in range(1, MOST_ASKED_FOR + 1)]
    assert story.tick() == []
    story.happened(Spawned, "rig-3", pid=1)
    assert story.tick() == [("SpawnProcess", f"rig-{MOST_ASKED_FOR + 1}", 1)]


def test_a_mass_death_is_no_mass_start() -> None:
    story = Story(workers=8)
    story.full()
    for child in story.pool.children:
        story.dies(child.name)
    assert story.tick() == [("SpawnProcess", "rig-1", 2), ("SpawnProcess", "rig-2", 2)]
    assert story.tick() == []
    story.happened(Spawned, "rig-1", pid=1)
    assert story.tick() == []
    story.happened(Booted, "rig-1", build="1")
    # It need not be registered: an unreachable control plane must not keep the others from being there.
    assert story.tick() == [("SpawnProcess", "rig-3", 2)]
