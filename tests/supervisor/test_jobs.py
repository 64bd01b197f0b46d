"""The table of a job's process: every cell is walked, then the lives that matter are told as stories."""

import itertools
import math

import pytest

from supervisor.jobs import (
    EVENTS,
    EVIDENCE_PATIENCE,
    KILL_RETRY,
    SPAWN_PATIENCE,
    TABLE,
    Action,
    Announced,
    DeadlinePassed,
    Ended,
    Event,
    JobProcess,
    KeepEvidence,
    Kill,
    NotMade,
    OwnerGone,
    State,
    Stop,
    TellNotMade,
    Terminate,
)

# Why a state has no use for an event. Everything that is not listed here must have a cell.
REFUSED: dict[State, set[type[Event]]] = {
    # Not announced: nobody can have seen its end.
    State.ASKED: {Ended},
    State.UNWANTED: {Ended},
    # Announced once, so it was made; and left alone it may run for as long as its job.
    State.RUNNING: {Announced, NotMade, DeadlinePassed},
    State.STOPPING: {Announced, NotMade},
    State.CONDEMNED: {Announced, NotMade},
    State.KILLED: {Announced, NotMade},
    State.OVER: set(EVENTS),
}

WAYS: dict[State, list[Event]] = {
    State.ASKED: [],
    State.UNWANTED: [OwnerGone()],
    State.RUNNING: [Announced()],
    State.STOPPING: [Announced(), Stop(grace=10.0)],
    State.CONDEMNED: [Announced(), Stop(grace=0.0), DeadlinePassed()],
    State.KILLED: [Announced(), OwnerGone()],
    State.OVER: [Announced(), Ended()],
}


def event_of(kind: type[Event]) -> Event:
    return kind(grace=10.0) if kind is Stop else kind(message="no memory") if kind is NotMade else kind()


def led_to(state: State) -> JobProcess:
    process = JobProcess(0.0)
    for event in WAYS[state]:
        process.step(event, 0.0)
    assert process.state is state
    return process


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, EVENTS)))
def test_every_cell(state: State, kind: type[Event]) -> None:
    process = led_to(state)
    deadline = process.deadline
    actions = process.step(event_of(kind), 1.0)
    if kind in REFUSED[state]:
        assert (state, kind) not in TABLE
        assert (process.state, process.deadline, actions) == (state, deadline, [])
    else:
        assert process.state is TABLE[state, kind].next_state


@pytest.mark.parametrize("state", [state for state in State if state not in (State.RUNNING, State.OVER)])
def test_every_state_but_the_job_itself_has_a_deadline(state: State) -> None:
    assert led_to(state).deadline < math.inf
    assert led_to(State.RUNNING).deadline == math.inf


def told(process: JobProcess, *events: tuple[float, Event]) -> list[Action]:
    return [action for now, event in events for action in process.step(event, now)]


def test_a_job_that_ends_by_itself() -> None:
    process = JobProcess(0.0)
    assert told(process, (0.1, Announced()), (3600.0, Ended())) == []
    assert (process.state, process.was_killed) == (State.OVER, False)


def test_a_stop_is_a_signal_then_evidence_then_a_kill() -> None:
    process = JobProcess(0.0)
    assert told(process, (0.1, Announced()), (5.0, Stop(grace=10.0))) == [Terminate()]
    assert process.deadline == 15.0
    assert process.step(DeadlinePassed(), 15.0) == [KeepEvidence()]
    assert process.deadline == 15.0 + EVIDENCE_PATIENCE
    assert process.step(DeadlinePassed(), 16.0) == [Kill()]
    assert process.step(Ended(), 16.1) == []
    assert (process.state, process.was_killed) == (State.OVER, True)


def test_a_shorter_grace_wins_and_a_longer_one_does_not() -> None:
    process = led_to(State.STOPPING)
    assert process.step(Stop(grace=30.0), 1.0) == [Terminate()]
    assert process.deadline == 10.0
    process.step(Stop(grace=2.0), 1.0)
    assert process.deadline == 3.0


def test_what_survives_a_kill_is_killed_again() -> None:
    process = led_to(State.KILLED)
    assert process.deadline == KILL_RETRY
    assert process.step(DeadlinePassed(), KILL_RETRY) == [Kill()]
    assert process.deadline == 2 * KILL_RETRY


def test_the_process_of_a_child_that_is_gone_is_killed_at_once() -> None:
    for state in (State.RUNNING, State.STOPPING, State.CONDEMNED):
        assert led_to(state).step(OwnerGone(), 1.0) == [Kill()]


def test_one_that_is_not_wanted_any_more_is_killed_when_it_comes() -> None:
    process = JobProcess(0.0)
    assert process.step(Stop(grace=10.0), 1.0) == []
    assert process.deadline == SPAWN_PATIENCE
    assert process.step(Announced(), 2.0) == [Kill()]


def test_one_that_does_not_come_is_told() -> None:
    assert JobProcess(0.0).step(NotMade(message="no memory"), 1.0) == [TellNotMade("no memory")]
    assert JobProcess(0.0).step(DeadlinePassed(), SPAWN_PATIENCE) == [TellNotMade("the mold did not answer in time")]
