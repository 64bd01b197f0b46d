"""The table of a slot: every cell is walked, every refusal is listed; then the lives that matter, told as stories."""

import itertools
import math
import runpy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisor import facts, slots
from supervisor.config import Limits, PositiveDuration, Restart
from supervisor.slots import (
    EVENTS,
    TABLE,
    AbandonSpawn,
    AskToDrain,
    BecameReady,
    Booted,
    DeadlinePassed,
    Died,
    Drain,
    Event,
    EvidenceKept,
    Examine,
    Examined,
    KeepEvidence,
    Kill,
    KillProcess,
    LoopBeat,
    MemorySampled,
    Registered,
    SaidBye,
    Slot,
    Spawned,
    SpawnFailed,
    SpawnProcess,
    Stalled,
    Start,
    State,
    ThreadBeat,
)
from wire import pipe

DOCS = Path(__file__).parents[2] / "docs"

LIMITS = Limits(boot=PositiveDuration(120), silence=PositiveDuration(10), kill_after=PositiveDuration(45))
RESTART = Restart(
    backoff_min=PositiveDuration(0.1), backoff_max=PositiveDuration(300), healthy_after=PositiveDuration(60)
)

HUNG = facts.ChildHung(
    pool="rig",
    slot="rig-1",
    incarnation=1,
    why="hung",
    silent_for=45.0,
    thread_silent_for=0.5,
    loop_silent=True,
    jobs_in_hand=1,
    session="registered",
    hang="loop_blocked",
)
SILENT = facts.ChildSilent(
    pool="rig",
    slot="rig-1",
    incarnation=1,
    silent_for=10.0,
    thread_silent_for=0.5,
    loop_silent=True,
    jobs_in_hand=1,
    session="registered",
    hang="loop_blocked",
)

# Why a state has no use for an event. Everything that is not listed here must have a cell.
REFUSED: dict[State, set[type[Event]]] = {
    # No process: whatever is heard of one is late. Died and Spawned of the present incarnation cannot come twice.
    State.EMPTY: set(EVENTS) - {Start, Drain, Kill},
    State.BACKOFF: set(EVENTS) - {DeadlinePassed, Drain, Kill},
    # Not announced: it has no pidfd and no words yet; it is full, so it is not filled again.
    # None of what has no process, or is ended already, can be found to stand still.
    State.SPAWNING: set(EVENTS) - {Spawned, SpawnFailed, Drain, Kill, DeadlinePassed},
    # The first words are Hello, and beats follow them; Bye may stand in their place.
    State.BOOTING: {
        Spawned,
        SpawnFailed,
        Start,
        Registered,
        BecameReady,
        LoopBeat,
        ThreadBeat,
        MemorySampled,
        Examined,
        EvidenceKept,
        Stalled,
    },
    # Announced and booted only once, and filled only when empty.
    State.CONNECTING: {Spawned, SpawnFailed, Start, Booted, EvidenceKept},
    # Silence is the worse of the two, and has a deadline that runs.
    State.CONNECTING_SILENT: {Spawned, SpawnFailed, Start, Booted, EvidenceKept, Stalled},
    State.READY: {Spawned, SpawnFailed, Start, Booted, EvidenceKept},
    State.READY_SILENT: {Spawned, SpawnFailed, Start, Booted, EvidenceKept, Stalled},
    # After the last words only beats that were on their way.
    State.LEAVING: {Spawned, SpawnFailed, Start, Booted, Registered, BecameReady, SaidBye, EvidenceKept, Stalled},
    # An order may overtake an announcement, so that is heard; a kill for a hang cannot.
    # Evidence that nobody waits for any more was already told without it.
    State.DRAINING: {Start, EvidenceKept, Stalled},
    State.CONDEMNED: {Spawned, SpawnFailed, Start, Stalled},
    State.OVERDUE: {Start, Stalled},
    State.KILLED: {Spawned, SpawnFailed, Start, EvidenceKept, Stalled},
    State.ENDING: {Start, EvidenceKept, Stalled},
    State.STUCK: {Start, EvidenceKept, Stalled},
}


def event_of(kind: type[Event], incarnation: int = 1, **fields: Any) -> Any:
    """An event of that kind with plausible fields."""
    defaults: dict[type[Event], dict[str, Any]] = {
        Spawned: {"pid": 4711},
        SpawnFailed: {"message": "no memory", "jitter": 0.5},
        Booted: {"build": "1"},
        LoopBeat: {"beat": pipe.Beat(slot="rig-1", incarnation=1, source="loop", session="registered")},
        ThreadBeat: {"beat": pipe.Beat(slot="rig-1", incarnation=1, source="thread", session="registered")},
        SaidBye: {"bye": pipe.Bye(slot="rig-1", incarnation=1, reason="drained")},
        Died: {"exit_code": 0, "signal": None, "jitter": 0.5, "output": []},
        Examined: {"silent": SILENT},
        EvidenceKept: {"hung": HUNG},
        MemorySampled: {"private": 3_000_000, "shared_fairly": 5_000_000},
        Drain: {"grace": 30.0},
    }
    return kind(slot="rig-1", incarnation=incarnation, **(defaults.get(kind, {}) | fields))


class Life:
    """A slot, and what happened to it, at a time that the test tells."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.slot = Slot("rig-1", "rig", "child", limits, RESTART)
        self.now = 1000.0
        self.steps: list[Any] = []

    def feed(self, *kinds: type[Event], **fields: Any) -> list[Any]:
        self.steps = []
        for kind in kinds:
            self.steps += self.slot.step(event_of(kind, self.slot.incarnation, **fields), self.now)
        return self.steps

    def start(self, *, ready: bool = True) -> None:
        self.feed(Start, Spawned, Booted)
        if ready:
            self.feed(Registered, BecameReady)

    def pass_deadline(self) -> list[Any]:
        self.now = self.slot.deadline
        return self.feed(DeadlinePassed)

    def facts(self, kind: type[Any]) -> list[Any]:
        return [step for step in self.steps if isinstance(step, kind)]


ROADS: dict[State, tuple[type[Event], ...]] = {
    State.EMPTY: (),
    State.SPAWNING: (Start,),
    State.BOOTING: (Start, Spawned),
    State.CONNECTING: (Start, Spawned, Booted),
    State.CONNECTING_SILENT: (Start, Spawned, Booted, DeadlinePassed),
    State.READY: (Start, Spawned, Booted, BecameReady),
    State.READY_SILENT: (Start, Spawned, Booted, BecameReady, DeadlinePassed),
    State.LEAVING: (Start, Spawned, Booted, SaidBye),
    State.DRAINING: (Start, Spawned, Booted, BecameReady, Drain),
    State.CONDEMNED: (Start, Spawned, DeadlinePassed),
    State.OVERDUE: (Start, Spawned, Booted, BecameReady, Drain, DeadlinePassed),
    State.KILLED: (Start, Spawned, DeadlinePassed, EvidenceKept),
    State.ENDING: (Start, Spawned, Kill, Kill),
    State.STUCK: (Start, Spawned, Kill, Kill, DeadlinePassed),
    State.BACKOFF: (Start, Spawned, Booted, Died),
}


def test_a_road_leads_to_every_state() -> None:
    for state, road in ROADS.items():
        life = Life()
        life.feed(*road)
        assert life.slot.state is state
    assert set(ROADS) == set(State)


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, EVENTS)))
def test_every_cell(state: State, kind: type[Event]) -> None:
    life = Life()
    life.feed(*ROADS[state])
    before = dict(vars(life.slot))
    steps = life.feed(kind)
    if kind in REFUSED[state]:
        (refusal,) = steps
        assert isinstance(refusal, facts.EventRefused)
        assert (refusal.state, refusal.refused) == (state.value, kind.__name__)
        assert vars(life.slot) == before
        assert (state, kind) not in TABLE
    else:
        assert life.slot.state is TABLE[state, kind].next_state
        assert not any(isinstance(step, facts.EventRefused) for step in steps)


@pytest.mark.parametrize("state", [state for state in State if state is not State.EMPTY])
def test_every_state_with_a_process_or_a_plan_has_a_deadline(state: State) -> None:
    life = Life()
    life.feed(*ROADS[state])
    assert math.isfinite(life.slot.deadline)
    for _ in range(8):
        if life.slot.state is State.EMPTY:
            break
        life.pass_deadline()
    # Nobody ever answers: it ends where it can be filled again, is given up as stuck, or its spawn is abandoned.
    assert life.slot.state in (State.EMPTY, State.STUCK, State.SPAWNING)


def test_the_page_of_the_table_is_current() -> None:
    page = runpy.run_path(str(DOCS / "slots.py"))["page"]()
    assert (DOCS / "slots.md").read_text() == page, "run `make docs`"


@pytest.mark.parametrize("kind", [kind for kind in EVENTS if kind is not Start])
@pytest.mark.parametrize("incarnation", [1, 3])
def test_an_event_of_another_incarnation_changes_nothing(kind: type[Event], incarnation: int) -> None:
    life = Life()
    life.start()
    life.feed(Died)
    life.pass_deadline()
    life.start()
    assert (life.slot.incarnation, life.slot.state) == (2, State.READY)
    before = dict(vars(life.slot))
    steps = life.slot.step(event_of(kind, incarnation), life.now)
    assert [type(step) for step in steps] == [facts.EventRefused]
    assert vars(life.slot) == before


def died_of(**fields: Any) -> dict[str, Any]:
    return {"exit_code": None, "signal": None} | fields


def restart_after(life: Life, **end: Any) -> float:
    life.feed(Died, **died_of(**end))
    (scheduled,) = life.facts(facts.RestartScheduled)
    return float(scheduled.delay)


def bring_back(life: Life, *, ready: bool) -> None:
    life.pass_deadline()
    assert life.slot.state is State.EMPTY
    life.start(ready=ready)


def test_the_first_death_of_a_ready_child_is_made_good_at_once() -> None:
    life = Life()
    life.start()
    assert restart_after(life, exit_code=1) == 0.0


def test_a_crash_loop_backs_off_with_jitter_up_to_the_slow_retry_and_never_ends() -> None:
    life = Life()
    life.start()
    delays = [restart_after(life, signal=11, jitter=0.5)]
    for _ in range(20):
        bring_back(life, ready=True)
        life.now += 1.0
        delays.append(restart_after(life, signal=11, jitter=0.5))
    assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 150.0
    assert life.slot.failures == 21


def test_deaths_before_ready_back_off_from_the_first_on() -> None:
    life = Life()
    delays = []
    for _ in range(3):
        life.start(ready=False)
        delays.append(restart_after(life, signal=9, jitter=1.0))
        life.pass_deadline()
    assert delays == [0.1, 0.2, 0.4]


def test_somebody_elses_signal_is_no_failure_however_often() -> None:
    life = Life()
    for _ in range(5):
        life.start()
        assert restart_after(life, signal=9) == 0.0
        life.pass_deadline()
    assert life.slot.failures == 0


def test_a_healthy_life_forgets_the_failures_before_it() -> None:
    life = Life()
    life.start(ready=False)
    restart_after(life, exit_code=3)
    bring_back(life, ready=True)
    life.now += 60.0
    assert restart_after(life, exit_code=3) == 0.0
    assert life.slot.failures == 0


def test_a_refused_child_waits_the_longest_at_once() -> None:
    life = Life()
    life.start(ready=False)
    bye = pipe.Bye(slot="rig-1", incarnation=1, reason="401: the key is not known", refused=True)
    life.feed(SaidBye, bye=bye)
    assert restart_after(life, exit_code=77) == 300.0
    (died,) = life.facts(facts.ChildDied)
    assert (died.cause, died.detail) == ("refused", "401: the key is not known")


def fail(life: Life, sentence: str, **end: Any) -> list[Any]:
    life.feed(Died, **died_of(exit_code=1, output=["Traceback:", sentence]) | end)
    told = life.facts(facts.CrashLoop) + life.facts(facts.CrashLoopOver)
    bring_back(life, ready=False)
    return told


def test_the_same_fault_again_and_again_is_named_with_what_it_says() -> None:
    life = Life()
    life.start(ready=False)
    told = [fail(life, f"KeyError: no port, at {number}") for number in range(10)]
    assert [len(one) for one in told] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert (told[4][0].times, told[4][0].how, told[4][0].says) == (5, "exit code 1", "KeyError: no port, at 4")
    assert life.slot.crash_loop is not None
    assert life.slot.crash_loop.times == 10
    (over,) = fail(life, "ValueError: something else")
    assert isinstance(over, facts.CrashLoopOver)
    assert life.slot.crash_loop is None


def test_a_child_that_lives_well_ends_a_crash_loop() -> None:
    life = Life()
    life.start(ready=False)
    for _ in range(5):
        fail(life, "KeyError: no port")
    life.feed(Registered, BecameReady)
    assert life.feed(LoopBeat) == []
    life.now += RESTART.healthy_after
    (over,) = life.feed(LoopBeat)
    assert over == facts.CrashLoopOver(pool="rig", slot="rig-1", incarnation=6, times=5)


def test_what_others_do_to_a_child_makes_no_crash_loop() -> None:
    life = Life()
    life.start(ready=False)
    for _ in range(12):
        assert fail(life, "", exit_code=None, signal=9) == []


@pytest.mark.parametrize(
    ("verdict", "cause", "self_made"),
    [(True, "out_of_memory", True), (False, "signal", False), (None, "signal", False)],
)
def test_a_kill_for_want_of_memory_is_the_childs_own_doing(verdict: bool | None, cause: str, self_made: bool) -> None:
    life = Life()
    life.start()
    life.feed(Died, **died_of(signal=9, out_of_memory=verdict))
    (died,) = life.facts(facts.ChildDied)
    assert (died.cause, died.self_made) == (cause, self_made)
    assert ("unknown" in died.detail) is (verdict is None)


def test_a_requested_exit_is_no_fault_of_the_child() -> None:
    life = Life()
    life.start()
    life.feed(SaidBye)
    assert restart_after(life, exit_code=0) == 0.0
    assert life.slot.failures == 0
    assert life.slot.last_end is not None
    assert not life.slot.last_end.self_made


def test_an_exit_without_a_word_is_the_childs_own_doing_even_with_code_0() -> None:
    life = Life()
    life.start()
    restart_after(life, exit_code=0)
    assert life.slot.failures == 1


def test_silence_is_named_then_ends_in_evidence_and_a_kill() -> None:
    life = Life()
    life.start()
    began = life.now
    life.pass_deadline()
    assert life.now == began + 10.0
    (examine,) = life.steps
    assert isinstance(examine, Examine)
    assert (examine.silent.silent_for, life.slot.health) == (10.0, "silent")
    seen = msgspec.structs.replace(examine.silent, hang="loop_blocked")
    assert life.feed(Examined, silent=seen) == [seen]
    assert (life.slot.suspicion, life.slot.health) == (seen, "loop_blocked")
    life.feed(ThreadBeat)
    life.pass_deadline()
    assert life.now == began + 45.0
    (evidence,) = life.steps
    assert isinstance(evidence, KeepEvidence)
    assert [type(step) for step in life.feed(EvidenceKept, hung=evidence.hung)] == [facts.ChildHung, KillProcess]
    assert (evidence.hung.silent_for, evidence.hung.thread_silent_for, evidence.hung.session) == (45, 35, "registered")
    assert (evidence.hung.lasted, evidence.hung.loop_silent) == (45, True)
    # Hung within healthy_after, for the first time after having been ready: at once, and counted.
    assert restart_after(life, signal=9) == 0.0
    assert life.slot.failures == 1
    assert life.slot.last_end is not None
    assert life.slot.last_end.cause == "hung"


def test_a_beat_ends_the_silence() -> None:
    life = Life()
    life.start()
    life.pass_deadline()
    life.now += 5.0
    (again,) = life.feed(LoopBeat)
    assert isinstance(again, facts.ChildHeardAgain)
    assert again.silent_for == 15.0
    assert life.slot.state is State.READY
    assert life.slot.deadline == life.now + 10.0
    # What was seen of it comes late, and is told all the same.
    assert life.feed(Examined) == [SILENT]
    assert (life.slot.suspicion, life.slot.health) == (None, "ok")


def stalled_beat(seconds: float, **fields: Any) -> pipe.Beat:
    beat = pipe.Beat(slot="rig-1", incarnation=1, source="loop", session="registered", stalled_for=seconds)
    return msgspec.structs.replace(beat, **fields)


def test_a_session_that_stands_still_is_named_then_may_be_ended() -> None:
    life = Life()
    life.start()
    assert [len(life.feed(LoopBeat, beat=stalled_beat(10.0 + second))) for second in range(5)] == [0, 0, 1, 0, 0]
    assert (life.slot.health, life.slot.is_stalled) == ("not_progressing", False)
    life.feed(LoopBeat, beat=stalled_beat(45.0, jobs_in_hand=1))
    assert not life.slot.is_stalled, "what it has in hand may be done all the same"
    life.feed(LoopBeat, beat=stalled_beat(46.0))
    assert life.slot.is_stalled
    (evidence,) = life.feed(Stalled)
    assert isinstance(evidence, KeepEvidence)
    assert (evidence.hung.why, evidence.hung.lasted, evidence.hung.loop_silent) == ("hung", 46.0, False)
    assert "owed a step" in evidence.hung.detail
    life.feed(EvidenceKept, hung=evidence.hung)
    assert restart_after(life, signal=9) == 0.0


def test_a_session_that_stood_still_and_goes_on_is_let_alone() -> None:
    life = Life()
    life.start()
    for _ in range(3):
        life.feed(LoopBeat, beat=stalled_beat(100.0))
    assert life.slot.is_stalled
    (again,) = life.feed(LoopBeat)
    assert isinstance(again, facts.ChildMovesAgain)
    assert (life.slot.is_stalled, life.slot.health) == (False, "ok")


def test_one_beat_after_a_pause_of_the_machine_is_no_stall() -> None:
    life = Life()
    life.start()
    assert life.feed(LoopBeat, beat=stalled_beat(3600.0)) == []
    assert not life.slot.is_stalled
    assert life.feed(LoopBeat) == []


def test_a_process_that_does_not_leave_is_killed_and_not_called_silent() -> None:
    life = Life()
    life.start()
    life.feed(SaidBye)
    life.pass_deadline()
    (evidence,) = life.steps
    assert isinstance(evidence, KeepEvidence)
    assert (evidence.hung.loop_silent, evidence.hung.detail) == (False, "it said its last words and did not go")


def test_a_child_that_does_not_boot_is_killed_and_counts_as_a_failure() -> None:
    life = Life()
    life.feed(Start, Spawned)
    life.pass_deadline()
    assert life.now == 1120.0
    assert [type(step) for step in life.steps] == [KeepEvidence]
    assert [type(step) for step in life.feed(EvidenceKept)] == [facts.ChildHung, KillProcess]
    assert restart_after(life, signal=9, jitter=1.0) == 0.1


def test_a_kill_does_not_wait_long_for_evidence() -> None:
    life = Life()
    life.feed(Start, Spawned)
    life.pass_deadline()
    condemned = life.now
    life.pass_deadline()
    assert life.now == condemned + slots.EVIDENCE_PATIENCE
    hung, kill = life.steps
    assert isinstance(hung, facts.ChildHung)
    assert hung.evidence == facts.ProcessEvidence()
    assert isinstance(kill, KillProcess)
    assert [type(step) for step in life.feed(EvidenceKept)] == [facts.EventRefused]


@pytest.mark.parametrize("event", [Died, Drain, Kill])
def test_a_condemned_process_that_ends_otherwise_is_told_as_hung_all_the_same(event: type[Event]) -> None:
    life = Life()
    life.start()
    life.pass_deadline()
    life.pass_deadline()
    life.feed(event)
    if event is not Died:
        assert (life.steps, life.slot.state) == ([], State.OVERDUE), "evidence is waited for all the same"
        life.feed(Died, **died_of(signal=9))
    assert len(life.facts(facts.ChildHung)) == 1
    (died,) = life.facts(facts.ChildDied)
    assert died.cause == "hung"
    assert life.slot.state is (State.BACKOFF if event is Died else State.EMPTY)


def test_who_orders_a_kill_gets_evidence_first_and_who_insists_gets_it_at_once() -> None:
    life = Life()
    life.start()
    (evidence,) = life.feed(Kill)
    assert isinstance(evidence, KeepEvidence)
    assert (evidence.hung.why, evidence.hung.ordered, evidence.hung.loop_silent) == ("killed", True, False)
    told, kill = life.feed(Kill)
    assert (told, type(kill)) == (evidence.hung, KillProcess)
    life.feed(Died, **died_of(signal=9))
    (died,) = life.facts(facts.ChildDied)
    assert (died.cause, life.slot.state) == ("killed", State.EMPTY)


def test_a_spawn_that_is_never_announced_is_abandoned() -> None:
    life = Life()
    life.feed(Start)
    asked_at = life.now
    (abandoned,) = life.pass_deadline()
    assert isinstance(abandoned, AbandonSpawn)
    assert abandoned.asked_at == asked_at
    assert life.now == asked_at + LIMITS.kill_after
    assert life.slot.deadline == life.now + LIMITS.kill_after
    life.feed(SpawnFailed)
    assert life.slot.state is State.BACKOFF


def test_a_drain_asks_once_and_a_shorter_one_wins() -> None:
    life = Life()
    life.start()
    (ask,) = life.feed(Drain, grace=30.0)
    assert isinstance(ask, AskToDrain)
    assert life.slot.deadline == life.now + 30.0 + slots.DRAIN_MARGIN
    life.feed(Drain, grace=5.0)
    assert life.slot.deadline == life.now + 5.0 + slots.DRAIN_MARGIN
    life.feed(Drain, grace=60.0)
    assert life.slot.deadline == life.now + 5.0 + slots.DRAIN_MARGIN
    life.feed(SaidBye, Died)
    (died,) = life.facts(facts.ChildDied)
    assert (died.cause, died.asked) == ("drained", True)
    assert life.slot.state is State.EMPTY


def test_a_drain_that_outlasts_its_grace_ends_by_force_and_says_so() -> None:
    life = Life()
    life.start()
    life.feed(Drain)
    assert [type(step) for step in life.pass_deadline()] == [KeepEvidence]
    life.feed(EvidenceKept)
    assert [type(step) for step in life.steps] == [facts.ChildHung, KillProcess]
    life.feed(Died, **died_of(signal=9))
    (died,) = life.facts(facts.ChildDied)
    assert died.cause == "killed"
    assert life.slot.killed_in_stop


def test_a_drain_that_overtakes_the_announcement_is_repeated_with_a_signal() -> None:
    life = Life()
    life.feed(Start)
    life.feed(Drain, grace=30.0)
    life.now += 1.0
    spawned, ask = life.feed(Spawned)
    assert isinstance(spawned, facts.ChildSpawned)
    assert isinstance(ask, AskToDrain)
    assert ask.grace == 29.0


def test_a_process_that_survives_sigkill_is_called_stuck_and_killed_again() -> None:
    life = Life()
    life.start()
    life.feed(Kill, Kill)
    assert [type(step) for step in life.pass_deadline()] == [facts.ChildStuck]
    assert life.slot.is_over
    life.pass_deadline()
    assert [type(step) for step in life.steps] == [KillProcess, facts.ChildStuck]


def test_the_next_incarnation_is_told_how_the_last_one_ended() -> None:
    life = Life()
    life.feed(Start)
    (first,) = [step for step in life.steps if isinstance(step, SpawnProcess)]
    assert first.previous_end is None
    life.feed(Spawned, Booted, BecameReady)
    life.feed(Died, **died_of(signal=11))
    life.pass_deadline()
    life.feed(Start)
    (second,) = [step for step in life.steps if isinstance(step, SpawnProcess)]
    assert second.previous_end == pipe.PreviousEnd(incarnation=1, cause="signal", detail="signal 11", self_made=True)
    assert second.incarnation == 2


def test_counters_add_up_over_incarnations() -> None:
    life = Life()
    life.start()
    beat = pipe.Beat(slot="rig-1", incarnation=1, source="loop", completed=3, failed=1, reconnects=2, jobs_in_hand=1)
    life.feed(LoopBeat, beat=beat)
    life.feed(Died, **died_of(signal=9))
    assert (life.slot.totals.completed, life.slot.jobs_in_hand) == (3, 0)
    bring_back(life, ready=True)
    life.feed(LoopBeat, beat=msgspec.structs.replace(beat, completed=2))
    assert (life.slot.totals.completed, life.slot.totals.failed, life.slot.totals.reconnects) == (5, 2, 4)


def test_time_in_which_the_supervisor_slept_counts_against_nobody() -> None:
    life = Life()
    life.start()
    due = life.slot.deadline
    life.slot.forgive(100.0)
    assert life.slot.deadline == due + 100.0


def test_a_ready_child_that_lost_its_connection_does_not_work() -> None:
    life = Life()
    life.start()
    assert life.slot.is_working
    beat = pipe.Beat(slot="rig-1", incarnation=1, source="loop", session="connecting")
    life.feed(LoopBeat, beat=beat)
    assert life.slot.state is State.READY
    assert not life.slot.is_working
    life.feed(Registered)
    assert life.slot.is_working
