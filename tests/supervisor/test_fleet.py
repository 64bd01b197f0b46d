"""Control plane and pools together: the order of starting and stopping, and when a start is hopeless."""

from typing import Any

import msgspec
import pytest

from supervisor import config, facts
from supervisor.errors import (
    ConfigurationError,
    ControlPlaneStartError,
    HandlerImportError,
    PackageReplacedError,
    RefusedError,
)
from supervisor.fleet import CUT_OFF_EXIT, Fleet, Phase
from supervisor.slots import (
    AskToDrain,
    BecameReady,
    Booted,
    Died,
    Event,
    KeepEvidence,
    KillProcess,
    LoopBeat,
    SaidBye,
    Spawned,
    SpawnProcess,
    State,
)
from wire import pipe

PLANE = "control-plane"


def settings(*, embedded: bool = True, pools: int = 1, workers: int = 2) -> config.Config:
    return config.Config(
        control_plane=config.ControlPlane(embedded=embedded),
        supervisor=config.Supervisor(),
        pool=[config.Pool(name=f"p{number}", workers=workers) for number in range(1, pools + 1)],
        credential=config.Credential(source="test", key_file="/nonexistent"),
    )


class Story:
    def __init__(self, wanted: config.Config) -> None:
        self.fleet = Fleet(wanted, "build")
        self.now = 100.0
        self.steps: list[Any] = []

    def tick(self) -> list[tuple[str, str]]:
        self.steps = self.fleet.tick(self.now)
        return orders(self.steps)

    def happened(self, kind: type[Event], slot: str, **fields: Any) -> None:
        found = next(one for one in self.fleet.slots if one.name == slot)
        self.steps = self.fleet.step(kind(slot=slot, incarnation=found.incarnation, **fields), self.now)

    def comes_up(self, *names: str) -> None:
        for slot in names:
            self.happened(Spawned, slot, pid=1)
            self.happened(Booted, slot, build="build")
            self.happened(BecameReady, slot)

    def dies(self, slot: str, *, exit_code: int | None = None, signal: int | None = None, said: str = "") -> None:
        self.happened(Died, slot, exit_code=exit_code, signal=signal, jitter=0.5, output=[said] if said else [])

    def bye(self, slot: str, **fields: Any) -> None:
        self.happened(SaidBye, slot, bye=pipe.Bye(slot=slot, incarnation=1, **({"reason": "drained"} | fields)))

    def full(self) -> None:
        self.tick()
        self.comes_up(*(slot.name for slot in self.fleet.slots if slot.kind != "child"))
        self.tick()
        self.comes_up(*(child.name for child in self.fleet.children))

    def stop(self) -> list[tuple[str, str]]:
        self.steps = self.fleet.stop("SIGTERM", self.now)
        return orders(self.steps)


def orders(steps: list[Any]) -> list[tuple[str, str]]:
    kinds = (SpawnProcess, AskToDrain, KillProcess)
    return [(type(step).__name__, step.slot) for step in steps if isinstance(step, kinds)]


def test_children_start_only_after_the_control_plane_serves() -> None:
    story = Story(settings())
    assert story.tick() == [("SpawnProcess", PLANE), ("SpawnProcess", "mold:p1")]
    story.comes_up("mold:p1")
    assert story.tick() == []
    story.comes_up(PLANE)
    assert story.tick() == [("SpawnProcess", "p1-1"), ("SpawnProcess", "p1-2")]
    assert not story.fleet.is_ready
    story.comes_up("p1-2")
    assert story.fleet.is_ready


def test_a_dead_control_plane_is_replaced_and_the_children_live_on() -> None:
    story = Story(settings())
    story.full()
    story.dies(PLANE, signal=9)
    assert not story.fleet.is_ready
    assert story.tick() == [("SpawnProcess", PLANE)]
    assert all(child.state is State.READY for child in story.fleet.children)


def test_children_are_replaced_while_the_control_plane_is_down() -> None:
    story = Story(settings())
    story.full()
    story.dies(PLANE, signal=9)
    story.dies("p1-1", signal=9)
    assert ("SpawnProcess", "p1-1") in story.tick()


def test_stopping_goes_from_the_children_to_the_control_plane() -> None:
    story = Story(settings())
    story.full()
    assert story.stop() == [("AskToDrain", "p1-1"), ("AskToDrain", "p1-2")]
    for child in ("p1-1", "p1-2"):
        story.bye(child, finished=1, handed_back=2)
        assert story.tick() == []
        story.dies(child, exit_code=0)
    assert story.tick() == [("AskToDrain", "mold:p1"), ("AskToDrain", PLANE)]
    story.dies("mold:p1", signal=15)
    assert story.fleet.phase is Phase.CLOSING
    story.dies(PLANE, exit_code=0)
    story.tick()
    assert story.fleet.phase is Phase.OVER
    (report,) = [step for step in story.steps if isinstance(step, facts.DrainFinished)]
    assert (report.finished, report.handed_back, report.cut_off, report.killed) == (2, 4, 0, [])
    assert story.fleet.exit_code == 0


def test_a_control_plane_that_dies_while_children_drain_is_replaced_for_their_last_reports() -> None:
    story = Story(settings())
    story.full()
    story.stop()
    story.dies(PLANE, signal=9)
    assert story.tick() == [("SpawnProcess", PLANE)]


def test_a_second_stop_shortens_the_grace_and_a_third_kills() -> None:
    story = Story(settings(embedded=False, workers=1))
    story.full()
    story.stop()
    assert [step.grace for step in story.steps if isinstance(step, AskToDrain)] == [30.0]
    story.stop()
    assert [step.grace for step in story.steps if isinstance(step, AskToDrain)] == [5.0]
    story.stop()
    assert [step.slot for step in story.steps if isinstance(step, KeepEvidence)] == ["p1-1"]
    assert ("KillProcess", "p1-1") in story.stop()
    story.dies("p1-1", signal=9)
    story.tick()
    story.dies("mold:p1", signal=15)
    story.tick()
    (report,) = [step for step in story.steps if isinstance(step, facts.DrainFinished)]
    assert report.killed == ["p1-1"]
    assert story.fleet.exit_code == CUT_OFF_EXIT


def test_a_child_that_cut_its_job_off_shows_in_the_exit_code() -> None:
    story = Story(settings(embedded=False, workers=1))
    story.full()
    story.stop()
    story.bye("p1-1", finished=0, cut_off=1)
    story.dies("p1-1", exit_code=0)
    story.tick()
    story.dies("mold:p1", signal=15)
    story.tick()
    assert story.fleet.phase is Phase.OVER
    assert story.fleet.exit_code == CUT_OFF_EXIT


def test_a_stuck_child_does_not_keep_the_supervisor() -> None:
    story = Story(settings(embedded=False, workers=1))
    story.full()
    story.steps = story.fleet.kill("SIGQUIT", story.now)
    # It is given up when it neither leaves evidence nor dies.
    for _ in range(2):
        story.now = story.fleet.next_deadline()
        story.tick()
    assert story.fleet.phase is Phase.CLOSING
    story.dies("mold:p1", signal=15)
    story.tick()
    assert story.fleet.phase is Phase.OVER
    (report,) = [step for step in story.steps if isinstance(step, facts.DrainFinished)]
    assert report.stuck == ["p1-1"]


def test_modules_that_cannot_be_imported_end_the_first_start() -> None:
    story = Story(settings(embedded=False, pools=2))
    story.tick()
    story.happened(Spawned, "mold:p2", pid=1)
    story.bye("mold:p2", reason="modules: there is no module 'nope'", refused=True)
    assert isinstance(story.fleet.error, HandlerImportError)
    assert isinstance(story.fleet.error, ConfigurationError)
    assert str(story.fleet.error) == "pool[1].modules: there is no module 'nope'"
    assert story.fleet.exit_code == 78
    story.dies("mold:p2", exit_code=78)
    story.tick()
    story.dies("mold:p1", signal=15)
    story.tick()
    assert story.fleet.phase is Phase.OVER


def test_modules_that_end_their_process_end_the_first_start() -> None:
    story = Story(settings(embedded=False, pools=2))
    story.tick()
    story.happened(Spawned, "mold:p2", pid=1)
    story.dies("mold:p2", exit_code=3, said="goodbye")
    assert isinstance(story.fleet.error, HandlerImportError)
    sentence = "pool[1].modules: the process that imports them ended with exit code 3 in the middle of it"
    assert str(story.fleet.error).startswith(sentence)
    assert "os._exit" in str(story.fleet.error)
    assert str(story.fleet.error).endswith("(its last words: goodbye)")


def test_a_mold_that_is_killed_at_its_first_start_is_tried_again() -> None:
    story = Story(settings(embedded=False))
    story.tick()
    story.happened(Spawned, "mold:p1", pid=1)
    story.dies("mold:p1", signal=9)
    assert story.fleet.error is None


def test_modules_that_cannot_be_imported_later_are_tried_again_slowly() -> None:
    story = Story(settings(embedded=False))
    story.full()
    story.dies("mold:p1", signal=9)
    story.tick()
    story.happened(Spawned, "mold:p1", pid=1)
    story.bye("mold:p1", reason="cannot import 'nope'", refused=True)
    story.dies("mold:p1", exit_code=78)
    assert story.fleet.error is None
    assert story.fleet.phase is Phase.RUNNING
    assert story.fleet.pools[0].mold.backoff_left(story.now) == 300.0


@pytest.mark.parametrize("exit_code", [64, 73, 78])
def test_a_control_plane_that_cannot_start_ends_the_whole_with_its_own_exit_code(exit_code: int) -> None:
    story = Story(settings())
    story.tick()
    story.happened(Spawned, PLANE, pid=1)
    story.dies(PLANE, exit_code=exit_code, said="mobius-control-plane: port 8780 is in use")
    assert isinstance(story.fleet.error, ControlPlaneStartError)
    assert str(story.fleet.error) == "control_plane.embedded: the control plane cannot start: port 8780 is in use"
    assert story.fleet.exit_code == exit_code


def test_a_control_plane_that_crashes_at_its_first_start_is_tried_again() -> None:
    story = Story(settings())
    story.tick()
    story.happened(Spawned, PLANE, pid=1)
    story.dies(PLANE, signal=11)
    assert story.fleet.error is None
    assert story.fleet.next_deadline() == pytest.approx(story.now + 0.05)


def test_a_child_that_cannot_work_with_its_settings_ends_the_first_start_only() -> None:
    story = Story(settings(embedded=False))
    story.tick()
    story.comes_up("mold:p1")
    story.tick()
    story.happened(Spawned, "p1-2", pid=1)
    story.bye("p1-2", reason="models: no generator is registered for 'ollama/llama3'")
    story.dies("p1-2", exit_code=78)
    assert isinstance(story.fleet.error, ConfigurationError)
    assert str(story.fleet.error) == "pool[0].models: no generator is registered for 'ollama/llama3'"
    later = Story(settings(embedded=False))
    later.full()
    later.dies("p1-2", exit_code=78)
    assert later.fleet.error is None


def refuse_all(story: Story) -> None:
    story.full()
    for child in ("p1-1", "p1-2"):
        story.bye(child, reason="401: the key is not known", refused=True)
        story.dies(child, exit_code=77)


def test_refused_children_end_the_supervisor_only_if_it_was_told_so() -> None:
    patient = Story(settings(embedded=False))
    refuse_all(patient)
    assert patient.fleet.phase is Phase.RUNNING
    assert [child.state for child in patient.fleet.children] == [State.BACKOFF, State.BACKOFF]
    impatient = Story(msgspec.structs.replace(settings(embedded=False), exit_when_refused=True))
    refuse_all(impatient)
    assert isinstance(impatient.fleet.error, RefusedError)
    assert str(impatient.fleet.error) == "401: the key is not known"
    assert impatient.fleet.exit_code == 77
    impatient.tick()
    impatient.dies("mold:p1", signal=15)
    impatient.tick()
    assert impatient.fleet.phase is Phase.OVER


def replaced_under(story: Story, mold: str) -> None:
    """The mold dies, and the next one is of another build."""
    story.dies(mold, signal=9)
    assert story.tick() == [("SpawnProcess", mold)]
    story.happened(Spawned, mold, pid=1)
    story.happened(Booted, mold, build="newer")
    assert orders(story.steps) == [("AskToDrain", mold)]


def skews(story: Story) -> list[str]:
    return [step.build for step in story.steps if isinstance(step, facts.BuildSkew)]


def test_a_mold_of_another_build_is_not_used_and_who_works_goes_on() -> None:
    story = Story(settings(embedded=False, pools=2))
    story.full()
    replaced_under(story, "mold:p1")
    assert skews(story) == ["newer"]
    story.happened(BecameReady, "mold:p1")
    story.dies("mold:p1", signal=15)
    assert story.tick() == []
    assert story.fleet.is_ready
    story.dies("p1-1", signal=9)
    story.dies("p2-1", signal=9)
    # The other pool's mold is ours.
    assert story.tick() == [("SpawnProcess", "p2-1")]
    replaced_under(story, "mold:p2")
    assert skews(story) == []
    assert story.fleet.phase is Phase.RUNNING


def test_a_supervisor_that_can_run_nothing_of_its_own_build_any_more_ends() -> None:
    story = Story(settings(embedded=False))
    story.full()
    replaced_under(story, "mold:p1")
    story.dies("mold:p1", signal=15)
    story.dies("p1-1", signal=9)
    story.tick()
    assert story.fleet.phase is Phase.RUNNING
    story.dies("p1-2", signal=9)
    for _ in range(3):
        story.tick()
    assert story.fleet.phase is Phase.OVER
    assert isinstance(story.fleet.error, PackageReplacedError)
    assert story.fleet.exit_code == 75


def test_a_control_plane_of_another_build_is_better_than_none() -> None:
    story = Story(settings())
    story.full()
    story.dies(PLANE, signal=9)
    story.tick()
    story.happened(Spawned, PLANE, pid=1)
    story.happened(Booted, PLANE, build="newer")
    assert skews(story) == ["newer"]
    assert orders(story.steps) == []
    story.happened(BecameReady, PLANE)
    assert story.fleet.is_ready


def test_the_jobs_in_hand_are_counted_when_a_stop_begins() -> None:
    story = Story(settings(embedded=False))
    story.full()
    beat = pipe.Beat(slot="p1-1", incarnation=1, source="loop", session="registered", jobs_in_hand=3)
    story.happened(LoopBeat, "p1-1", beat=beat)
    story.stop()
    (began,) = [step for step in story.steps if isinstance(step, facts.DrainStarted)]
    assert (began.why, began.grace, began.children, began.jobs_in_hand) == ("SIGTERM", 30.0, 2, 3)
