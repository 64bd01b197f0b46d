"""A reload of everything: tried by all pools, then adopted by all or by none."""

from typing import Any

import msgspec
import pytest

from supervisor import config, facts
from supervisor.fleet import Fleet, Phase
from supervisor.slots import AskToDrain, BecameReady, Booted, Died, Event, SaidBye, Spawned, SpawnProcess, State
from wire import pipe


def settings(*pools: config.Pool, **supervisor: Any) -> config.Config:
    return config.Config(
        control_plane=config.ControlPlane(),
        supervisor=config.Supervisor(**supervisor),
        pool=list(pools),
        credential=config.Credential(source="test", key_file="/nonexistent"),
    )


def pool(name: str, **changes: Any) -> config.Pool:
    return config.Pool(**({"name": name, "workers": 2, "modules": ["m"]} | changes))


class Story:
    """A fleet of which everything has come up."""

    def __init__(self, *pools: config.Pool) -> None:
        self.fleet = Fleet(settings(*pools), "build")
        self.now = 100.0
        self.facts: list[Any] = []
        self.settle()

    def took(self, steps: list[Any]) -> list[tuple[str, str]]:
        self.facts += [step for step in steps if isinstance(step, facts.Fact)]
        return [(type(step).__name__, step.slot) for step in steps if isinstance(step, SpawnProcess | AskToDrain)]

    def tick(self) -> list[tuple[str, str]]:
        return self.took(self.fleet.tick(self.now))

    def happened(self, kind: type[Event], slot: str, **fields: Any) -> None:
        found = next(one for one in self.fleet.slots if one.name == slot)
        self.took(self.fleet.step(kind(slot=slot, incarnation=found.incarnation, **fields), self.now))

    def settle(self) -> None:
        """Everybody does at once what was asked."""
        for _ in range(50):
            self.tick()
            for slot in self.fleet.slots:
                if slot.state is State.SPAWNING:
                    self.happened(Spawned, slot.name, pid=1)
                    self.happened(Booted, slot.name, build="build")
                    self.happened(BecameReady, slot.name)
                elif slot.state is State.DRAINING:
                    self.dies(slot.name)

    def dies(self, slot: str, exit_code: int = 0) -> None:
        self.happened(Died, slot, exit_code=exit_code, signal=None, jitter=0.5, output=[])

    def reload(self, wanted: config.Config) -> Any:
        change, steps = self.fleet.begin_change(wanted, self.now)
        self.took(steps)
        return change

    def names(self) -> list[str]:
        return [child.name for child in self.fleet.children]

    def fact(self, kind: type[facts.Fact]) -> Any:
        (found,) = [fact for fact in self.facts if isinstance(fact, kind)]
        return found


def test_pools_come_and_go_and_the_others_are_exchanged() -> None:
    story = Story(pool("a"), pool("b"))
    change = story.reload(settings(pool("a", concurrency=9), pool("c")))
    assert (change.outcome, story.fleet.busy()) == ("trying", "a reload is under way; ask again when it is done")
    assert story.names() == ["a-1", "a-2", "b-1", "b-2"]
    story.settle()
    assert change.outcome == "adopted"
    assert [one.name for one in story.fleet.pools] == ["a", "c"]
    assert story.names() == ["a-3", "a-4", "c-1", "c-2"]
    assert story.fleet.running.pool == [pool("a", concurrency=9), pool("c")]
    assert all(child.state is State.READY for child in story.fleet.children)
    assert story.fact(facts.ChangeAdopted)


def test_one_pool_that_cannot_import_its_modules_keeps_all_pools_as_they_were() -> None:
    story = Story(pool("a"), pool("b"))
    before = story.fleet.running
    change = story.reload(settings(pool("a"), pool("b", modules=["gone"]), pool("c")))
    bye = pipe.Bye(slot="", incarnation=1, reason="no module named gone", refused=True)
    story.happened(Spawned, "mold:b:2", pid=1)
    story.happened(SaidBye, "mold:b:2", bye=bye)
    story.dies("mold:b:2", exit_code=78)
    story.settle()
    assert (change.outcome, change.problem) == ("aborted", "mold:b:2: no module named gone")
    assert story.fleet.phase is Phase.RUNNING
    assert story.names() == ["a-1", "a-2", "b-1", "b-2"]
    assert story.fleet.running == before
    assert [slot.name for slot in story.fleet.slots if slot.kind == "mold"] == ["mold:a", "mold:b"]
    assert story.fact(facts.ChangeAborted).problem == change.problem
    # The next one is not harmed by it.
    assert story.reload(settings(pool("a"), pool("b"), pool("c"))).outcome == "trying"
    story.settle()
    assert story.fleet.change is not None
    assert story.fleet.change.outcome == "adopted"


def test_a_refused_file_changes_nothing() -> None:
    story = Story(pool("a"))
    change = story.reload(settings(pool("a"), state_dir="/elsewhere"))
    assert change.outcome == "aborted"
    assert change.problem.startswith("supervisor.state_dir: ")
    assert story.tick() == []
    assert story.fleet.busy() == ""


def test_limits_are_applied_in_place() -> None:
    story = Story(pool("a", modules=[]))
    limits = config.Limits(boot=config.PositiveDuration(7))
    story.reload(settings(pool("a", modules=[], limits=limits, workers=3)))
    story.settle()
    assert story.names() == ["a-1", "a-2", "a-3"]
    assert {child.limits.boot for child in story.fleet.children} == {7}
    assert {child.incarnation for child in story.fleet.children} == {1}


def test_new_children_are_told_the_new_settings_and_old_ones_the_old() -> None:
    story = Story(pool("a", workers=4))
    wanted = settings(pool("a", workers=4, concurrency=9), drain_timeout=config.PositiveDuration(5))
    story.reload(wanted)
    story.happened(Spawned, "mold:a:2", pid=1)
    story.happened(Booted, "mold:a:2", build="build")
    story.happened(BecameReady, "mold:a:2")
    assert story.tick() == [("SpawnProcess", "a-5")]
    assert story.fleet.terms("a-5") == (wanted, wanted.pool[0], "mold:a:2")
    assert story.fleet.terms("a-1")[0].supervisor.drain_timeout == 30
    assert story.fleet.terms("a-1")[2] == "mold:a"


def test_a_stop_ends_a_reload_and_whoever_waits_for_it_is_told() -> None:
    story = Story(pool("a"))
    change = story.reload(settings(pool("a"), pool("b")))
    story.took(story.fleet.stop("SIGTERM", story.now))
    assert (change.outcome, change.problem) == ("aborted", "the supervisor stops (SIGTERM)")
    assert story.fleet.busy() == "the supervisor is draining"
    story.settle()
    assert story.fleet.phase is Phase.OVER
    assert story.fact(facts.DrainFinished).slots["a-1"] == facts.DrainedSlot(
        finished=0, handed_back=0, cut_off=0, end="drained"
    )


def test_a_fault_of_a_later_child_ends_nothing_but_that_child() -> None:
    story = Story(pool("a"))
    story.took(story.fleet.pools[0].scale(3, 30.0, story.now))
    story.tick()
    story.happened(Spawned, "a-3", pid=1)
    story.dies("a-3", exit_code=78)
    assert story.fleet.phase is Phase.RUNNING


@pytest.mark.parametrize("workers", [1, 3])
def test_a_reload_goes_back_to_the_number_in_the_file(workers: int) -> None:
    story = Story(pool("a", modules=[]))
    story.took(story.fleet.pools[0].scale(workers, 30.0, story.now))
    story.settle()
    story.reload(settings(pool("a", modules=[])))
    story.settle()
    assert story.names() == ["a-1", "a-2"]


def test_an_event_of_a_slot_that_is_gone_is_refused() -> None:
    story = Story(pool("a"))
    (refused,) = story.fleet.step(Spawned(slot="a-9", incarnation=1, pid=1), story.now)
    assert isinstance(refused, facts.EventRefused)
    with pytest.raises(LookupError, match="a-9 is no slot"):
        story.fleet.terms("a-9")


def test_the_deadline_of_a_trial_is_waited_for() -> None:
    story = Story(pool("a"))
    wanted = msgspec.structs.replace(pool("a"), limits=config.Limits(boot=config.PositiveDuration(3)))
    change = story.reload(settings(wanted))
    assert story.fleet.next_deadline() == story.now + 3
    story.now += 3
    story.tick()
    assert change.outcome == "aborted"


def test_a_pool_that_still_ends_is_not_begun_again() -> None:
    story = Story(pool("a"), pool("b"))
    story.reload(settings(pool("a")))
    while story.fleet.change is None or story.fleet.change.outcome == "trying":
        for slot in story.fleet.slots:
            if slot.state is State.SPAWNING:
                story.happened(Spawned, slot.name, pid=1)
                story.happened(Booted, slot.name, build="build")
                story.happened(BecameReady, slot.name)
        story.tick()
    again = settings(pool("a"), pool("b"))
    assert story.fleet.busy(again) == "pool b was given up and still ends; ask again when it is gone"
    story.settle()
    assert story.fleet.busy(again) == ""
    story.reload(again)
    story.settle()
    assert story.names()[2:] == ["b-1", "b-2"]
    # The name came back, the process did not.
    assert {child.incarnation for child in story.fleet.children if child.pool == "b"} == {2}


def test_a_new_mold_of_another_build_aborts_the_reload_and_the_next_one_is_refused() -> None:
    story = Story(pool("a"), pool("b", modules=[]))
    change = story.reload(settings(pool("a"), pool("b", modules=[])))
    story.happened(Spawned, "mold:a:2", pid=1)
    story.happened(Booted, "mold:a:2", build="newer")
    story.happened(BecameReady, "mold:a:2")
    story.settle()
    assert (change.outcome, change.problem) == ("aborted", f"mold:a:2: {facts.REPLACED}")
    assert story.names() == ["a-1", "a-2", "b-1", "b-2"]
    assert all(child.state is State.READY for child in story.fleet.children)
    story.dies("a-1")
    story.settle()
    assert story.fleet.children[0].state is State.READY, "from the old mold, which is of our build"
    refused = story.reload(settings(pool("a"), pool("b", modules=[])))
    assert refused.plan.refused == [facts.REPLACED]
    # What needs no new code needs no mold.
    assert story.reload(settings(pool("b", modules=[], workers=3))).outcome == "trying"


def test_an_exchange_whose_mold_is_of_another_build_is_given_up() -> None:
    story = Story(pool("a"))
    story.fleet.pools[0].replace(["a-1", "a-2"], 30.0)
    story.tick()
    assert story.names() == ["a-1", "a-2", "a-3"]
    story.dies("mold:a")
    story.tick()
    story.happened(Spawned, "mold:a", pid=1)
    story.happened(Booted, "mold:a", build="newer")
    story.settle()
    assert story.names() == ["a-1", "a-2"]
    assert not story.fleet.pools[0].is_rolling
    assert all(child.state is State.READY for child in story.fleet.children)


def test_a_rehearsal_starts_the_new_molds_alone_and_leaves_nothing_behind() -> None:
    story = Story(pool("a"), pool("b", modules=[]))
    adopted = story.reload(settings(pool("a"), pool("b", modules=[])))
    story.settle()
    before = story.names()
    change, steps = story.fleet.rehearse(settings(pool("a"), pool("c")), story.now)
    assert story.took(steps) == [("SpawnProcess", "mold:a"), ("SpawnProcess", "mold:c")]
    assert story.fleet.busy() != ""
    told = len(story.facts)
    story.settle()
    assert change.outcome == "rehearsed"
    assert story.fleet.change is adopted
    assert story.names() == before
    assert [one.name for one in story.fleet.pools] == ["a", "b"]
    assert [slot.name for slot in story.fleet.slots if slot.kind == "mold"] == ["mold:a:2", "mold:b"]
    changes = (facts.ChangeBegan, facts.ChangeAdopted, facts.ChangeAborted)
    assert not [fact for fact in story.facts[told:] if isinstance(fact, changes)]


def test_a_rehearsal_that_fails_says_why() -> None:
    story = Story(pool("a"))
    change, steps = story.fleet.rehearse(settings(pool("a")), story.now)
    story.took(steps)
    story.happened(Spawned, "mold:a:2", pid=1)
    story.happened(SaidBye, "mold:a:2", bye=pipe.Bye(slot="", incarnation=1, reason="no module", refused=True))
    story.dies("mold:a:2", exit_code=78)
    story.settle()
    assert (change.outcome, change.problem) == ("aborted", "mold:a:2: no module")
    assert story.fleet.change is None
    assert story.names() == ["a-1", "a-2"]
