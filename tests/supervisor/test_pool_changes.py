"""Planned changes of one pool: replacements first, at most a share at a time, and back when the new is not ready."""

from typing import Any

import msgspec
import pytest

from supervisor import config, facts
from supervisor.config import Limits, Percent, PositiveDuration, Restart
from supervisor.pool import MOST_ASKED_FOR, Pool
from supervisor.recycle import RECYCLE_GRACE
from supervisor.slots import (
    AskToDrain,
    BecameReady,
    Booted,
    Died,
    Event,
    LoopBeat,
    SaidBye,
    Spawned,
    SpawnProcess,
    State,
)
from wire import pipe

GRACE = 30.0
Orders = list[tuple[str, str]]


class Story:
    """A full pool, and what was to be done last, as (what, slot)."""

    def __init__(self, workers: int = 4, *, unavailable: int = 50) -> None:
        self.settings = config.Pool(
            name="rig",
            workers=workers,
            restart=Restart(max_unavailable=Percent(unavailable)),
            limits=Limits(boot=PositiveDuration(10)),
        )
        self.pool = Pool(self.settings)
        self.now = 100.0
        self.tick()
        self.comes_up("mold:rig")
        self.tick()
        self.come_up()

    def tick(self) -> Orders:
        return orders(self.pool.tick(self.now, children_may_start=True))

    def happened(self, kind: type[Event], slot: str, **fields: Any) -> None:
        self.pool.step(kind(slot=slot, incarnation=self.pool.find(slot).incarnation, **fields), self.now)

    def comes_up(self, slot: str) -> None:
        self.happened(Spawned, slot, pid=1)
        self.happened(Booted, slot, build="1")
        self.happened(BecameReady, slot)

    def come_up(self) -> None:
        for child in self.pool.children:
            if child.state is State.SPAWNING:
                self.comes_up(child.name)

    def dies(self, slot: str, *, exit_code: int = 0) -> None:
        self.happened(Died, slot, exit_code=exit_code, signal=None, jitter=0.5, output=[])

    def drained(self) -> list[str]:
        """Every child that was asked to drain is gone."""
        going = [child.name for child in self.pool.children if child.state is State.DRAINING]
        for name in going:
            self.dies(name)
        return going

    def until_rolled(self) -> list[str]:
        """The names of all that drained, in order."""
        gone: list[str] = []
        for _ in range(20):
            self.tick()
            self.come_up()
            self.tick()
            working = sum(child.is_working or child.state is State.READY for child in self.pool.children)
            assert working >= self.settings.workers
            gone += self.drained()
            if not self.pool.is_rolling:
                break
        self.tick()
        return gone

    def names(self) -> list[str]:
        return [child.name for child in self.pool.children]


def orders(steps: list[Any]) -> Orders:
    return [(type(step).__name__, step.slot) for step in steps if isinstance(step, SpawnProcess | AskToDrain)]


def test_a_replacement_takes_a_free_number_above_and_is_ready_before_the_old_one_drains() -> None:
    story = Story(workers=2)
    story.pool.replace(["rig-1"], GRACE)
    assert story.tick() == [("SpawnProcess", "rig-3")]
    assert story.pool.role("rig-1") == "to be replaced by rig-3"
    assert story.tick() == []
    story.comes_up("rig-3")
    assert story.tick() == [("AskToDrain", "rig-1")]
    assert story.pool.role("rig-1") == "leaving"
    story.dies("rig-1")
    assert story.tick() == []
    assert story.names() == ["rig-2", "rig-3"]
    assert not story.pool.is_rolling


def test_no_more_than_the_share_at_a_time_and_never_fewer_than_wanted() -> None:
    story = Story(workers=4, unavailable=50)
    story.pool.replace(story.names(), GRACE)
    assert story.tick() == [("SpawnProcess", "rig-5"), ("SpawnProcess", "rig-6")]
    assert story.until_rolled() == ["rig-1", "rig-2", "rig-3", "rig-4"]
    assert story.names() == ["rig-5", "rig-6", "rig-7", "rig-8"]


def test_numbers_come_back_and_incarnations_go_on() -> None:
    story = Story(workers=1)
    for successor in ("rig-2", "rig-3", "rig-2"):
        story.pool.replace(story.names(), GRACE)
        story.until_rolled()
        assert story.names() == [successor]
    assert story.pool.find("rig-2").incarnation == 2
    assert story.pool.find("rig-2").last_end is not None


def test_a_child_that_dies_while_its_replacement_comes_up_is_not_started_again() -> None:
    story = Story(workers=2)
    story.pool.replace(["rig-1"], GRACE)
    story.tick()
    story.dies("rig-1", exit_code=1)
    assert story.tick() == []
    story.comes_up("rig-3")
    story.tick()
    story.tick()
    assert story.names() == ["rig-2", "rig-3"]


def test_a_replacement_that_dies_is_tried_again_and_the_old_one_works_on() -> None:
    story = Story(workers=2)
    story.pool.replace(["rig-1"], GRACE)
    story.tick()
    story.happened(Spawned, "rig-3", pid=1)
    story.dies("rig-3", exit_code=1)
    assert story.pool.find("rig-1").state is State.READY
    story.now = story.pool.find("rig-3").deadline
    assert ("SpawnProcess", "rig-3") in story.tick()


def test_a_child_drained_by_hand_stays_away_until_it_is_asked_for() -> None:
    story = Story(workers=2)
    assert orders(story.pool.hold("rig-2", GRACE, story.now)) == [("AskToDrain", "rig-2")]
    story.dies("rig-2")
    assert story.tick() == []
    assert (story.names(), story.pool.role("rig-2")) == (["rig-1", "rig-2"], "held")
    story.pool.replace(["rig-2"], GRACE)
    assert story.tick() == [("SpawnProcess", "rig-2")]


def test_scaling_takes_the_lowest_free_numbers_and_gives_up_the_highest() -> None:
    story = Story(workers=2)
    story.pool.scale(4, GRACE, story.now)
    assert story.tick() == [("SpawnProcess", "rig-3"), ("SpawnProcess", "rig-4")]
    story.come_up()
    assert orders(story.pool.scale(1, GRACE, story.now)) == [
        ("AskToDrain", "rig-2"),
        ("AskToDrain", "rig-3"),
        ("AskToDrain", "rig-4"),
    ]
    story.drained()
    story.tick()
    assert story.names() == ["rig-1"]
    assert story.pool.settings.workers == 1


@pytest.mark.parametrize(("old", "new"), [(4, 4), (4, 2), (4, 1), (2, 6), (1, 8)])
def test_new_settings_are_tried_then_rolled_out(old: int, new: int) -> None:
    story = Story(workers=old)
    before = list(story.pool.children)
    wanted = config.Pool(name="rig", workers=new, concurrency=7, restart=story.settings.restart)
    assert orders(story.pool.try_out(wanted, GRACE, story.now)) == [("SpawnProcess", "mold:rig:2")]
    assert story.pool.terms("mold:rig:2") == (wanted, "mold:rig:2")
    assert story.pool.terms("rig-1") == (story.settings, "mold:rig")
    story.comes_up("mold:rig:2")
    first = [slot for what, slot in story.tick() if what == "SpawnProcess"]
    assert len(first) == max(1, new // 2)
    trial = story.pool.trial
    assert trial is not None
    assert not trial.is_ready
    assert all(story.pool.terms(slot)[0] is wanted for slot in first)
    story.come_up()
    assert trial.is_ready
    # Until it is adopted, nobody is asked for anything.
    assert story.tick() == []
    story.pool.commit(GRACE, story.now)
    story.settings = config.Pool(name="rig", workers=min(old, new))
    story.until_rolled()
    assert len(story.names()) == new
    assert not any(child in before for child in story.pool.children)
    assert {child.state for child in story.pool.children} == {State.READY}
    assert ("mold:rig", State.DRAINING) in [(mold.name, mold.state) for mold in story.pool.molds]
    story.dies("mold:rig")
    story.tick()
    assert [mold.name for mold in story.pool.molds] == ["mold:rig:2"]


def failed_trial(story: Story, how: str) -> str:
    """The sentence with which a trial fails in that way."""
    story.pool.try_out(config.Pool(name="rig", workers=4, limits=story.settings.limits), GRACE, story.now)
    if how == "mold dies":
        story.happened(Spawned, "mold:rig:2", pid=1)
        story.dies("mold:rig:2", exit_code=70)
    elif how == "import fails":
        story.happened(Spawned, "mold:rig:2", pid=1)
        bye = pipe.Bye(slot="", incarnation=1, reason="no module named m", refused=True)
        story.happened(SaidBye, "mold:rig:2", bye=bye)
    elif how == "mold hangs":
        story.happened(Spawned, "mold:rig:2", pid=1)
        story.now += 10.0
    else:
        story.comes_up("mold:rig:2")
        story.tick()
        story.happened(Spawned, "rig-5", pid=1)
        if how == "child dies":
            story.dies("rig-5", exit_code=3)
        else:
            story.happened(Booted, "rig-5", build="1")
            story.now += 10.0
    story.tick()
    assert story.pool.trial is not None
    return story.pool.trial.failure


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("mold dies", "mold:rig:2: exit code 70"),
        ("import fails", "mold:rig:2: no module named m"),
        ("mold hangs", "mold:rig:2: not ready within 10s"),
        ("child dies", "rig-5: exit code 3"),
        ("child is never ready", "rig-5: not ready within 10s"),
    ],
)
def test_a_trial_that_fails_leaves_everything_as_it_was(how: str, sentence: str) -> None:
    story = Story(workers=4, unavailable=25)
    assert failed_trial(story, how).startswith(sentence)
    story.pool.abort(GRACE, story.now)
    story.drained()
    for mold in story.pool.molds[1:]:
        if mold.state is not State.EMPTY and not mold.is_over:
            story.dies(mold.name)
    story.tick()
    story.tick()
    assert story.names() == ["rig-1", "rig-2", "rig-3", "rig-4"]
    assert [mold.name for mold in story.pool.molds] == ["mold:rig"]
    assert story.pool.settings is story.settings
    assert not story.pool.is_rolling


def test_a_trial_that_fails_is_not_explained_by_the_one_before() -> None:
    story = Story(workers=4)
    assert failed_trial(story, "mold dies") == "mold:rig:2: exit code 70"
    story.pool.abort(GRACE, story.now)
    story.tick()
    assert failed_trial(story, "mold hangs") == "mold:rig:2: not ready within 10s"


def test_a_reload_ends_an_exchange_that_does_not_get_on() -> None:
    story = Story(workers=2)
    story.pool.replace(["rig-1", "rig-2"], GRACE)
    assert story.tick() == [("SpawnProcess", "rig-3")]
    wanted = config.Pool(name="rig", workers=2)
    assert orders(story.pool.try_out(wanted, GRACE, story.now)) == [
        ("AskToDrain", "rig-3"),
        ("SpawnProcess", "mold:rig:2"),
    ]
    assert not story.pool.is_rolling


def test_an_exchange_goes_on_when_the_reload_that_interrupted_it_is_aborted() -> None:
    story = Story(workers=2)
    story.pool.replace(["rig-1", "rig-2"], GRACE)
    story.tick()
    story.pool.try_out(config.Pool(name="rig", workers=2), GRACE, story.now)
    story.pool.abort(GRACE, story.now)
    assert [story.pool.role(name) for name in ("rig-1", "rig-2")] == ["to be replaced", "to be replaced"]


def test_a_replacement_is_neither_drained_nor_replaced_before_it_has_replaced() -> None:
    story = Story(workers=2)
    story.pool.replace(["rig-1"], GRACE)
    story.tick()
    assert story.pool.role("rig-3") == "replaces rig-1"
    story.pool.replace(["rig-3"], GRACE)
    assert story.pool.role("rig-3") == "replaces rig-1"


def test_a_stop_in_the_middle_of_a_trial_reaches_everybody() -> None:
    story = Story(workers=2)
    story.pool.try_out(config.Pool(name="rig", workers=2), GRACE, story.now)
    story.comes_up("mold:rig:2")
    story.tick()
    assert [slot for _, slot in orders(story.pool.drain(GRACE, story.now))] == ["rig-1", "rig-2", "rig-3"]
    story.drained()
    assert story.pool.is_drained
    assert [slot for _, slot in orders(story.pool.close(story.now))] == ["mold:rig", "mold:rig:2"]
    assert story.tick() == []


def beaten(story: Story, slot: str, *, jobs: int, in_hand: int = 0) -> None:
    incarnation = story.pool.find(slot).incarnation
    beat = pipe.Beat(slot=slot, incarnation=incarnation, source="loop", session="registered")
    story.happened(LoopBeat, slot, beat=msgspec.structs.replace(beat, completed=jobs, jobs_in_hand=in_hand))


def recycled(story: Story) -> list[str]:
    return [step.slot for step in story.pool.recycle(GRACE, story.now) if isinstance(step, facts.ChildRecycled)]


def test_children_that_reached_a_limit_are_exchanged_a_share_at_a_time() -> None:
    story = Story(workers=4, unavailable=50)
    story.pool.adjust(msgspec.structs.replace(story.settings, limits=Limits(max_jobs=10)), GRACE, story.now)
    assert recycled(story) == []
    for number in range(1, 5):
        beaten(story, f"rig-{number}", jobs=10, in_hand=number % 2)
    assert recycled(story) == ["rig-2", "rig-4"]
    assert recycled(story) == []
    assert sorted(story.until_rolled()) == ["rig-2", "rig-4"]
    assert all(child.failures == 0 for child in story.pool.children)
    story.now += 61.0
    assert recycled(story) == ["rig-1", "rig-3"]


def test_a_large_share_is_tried_and_exchanged_a_few_at_a_time() -> None:
    story = Story(workers=24, unavailable=100)
    for _ in range(4):
        story.come_up()
        story.tick()
    story.pool.try_out(msgspec.structs.replace(story.settings, concurrency=2), GRACE, story.now)
    story.comes_up("mold:rig:2")
    started = 0
    while story.pool.trial is not None and not story.pool.trial.is_ready:
        asked = [slot for what, slot in story.tick() if what == "SpawnProcess"]
        assert 0 < len(asked) <= MOST_ASKED_FOR
        started += len(asked)
        story.come_up()
    assert started == 24


def test_a_recycled_child_may_finish_what_it_holds_and_holds_up_nobody() -> None:
    story = Story(workers=4, unavailable=50)
    story.pool.adjust(msgspec.structs.replace(story.settings, limits=Limits(max_jobs=10)), GRACE, story.now)
    beaten(story, "rig-1", jobs=10, in_hand=1)
    assert recycled(story) == []
    story.now += 61.0
    for number in (1, 2, 3, 4):
        beaten(story, f"rig-{number}", jobs=10 if number == 1 else 0, in_hand=1)
    assert recycled(story) == ["rig-1"]
    story.tick()
    story.come_up()
    steps = story.pool.tick(story.now, children_may_start=True)
    assert [(step.slot, step.grace) for step in steps if isinstance(step, AskToDrain)] == [("rig-1", RECYCLE_GRACE)]
    assert not story.pool.is_rolling, "a restart or a scaling need not wait for it"
    assert story.pool.role("rig-1") == "leaving"
    # It still takes memory: only one more may join it.
    for number in (2, 3, 4):
        beaten(story, f"rig-{number}", jobs=10, in_hand=0)
    assert recycled(story) == ["rig-2"]


def test_nothing_is_recycled_while_children_are_missing() -> None:
    story = Story(workers=4, unavailable=25)
    story.pool.adjust(msgspec.structs.replace(story.settings, limits=Limits(max_jobs=10)), GRACE, story.now)
    beaten(story, "rig-1", jobs=10)
    story.dies("rig-2", exit_code=1)
    assert recycled(story) == []
