"""The seed decides everything, and every kind of fault comes."""

import signal

import pytest

from tests.campaign.schedule import EXIT, KINDS, LONGEST_PAUSE, Fault, schedule, slot_names
from wire.pipe import STACKS_SIGNAL


def test_a_seed_decides_the_sequence() -> None:
    assert schedule(7, 200, 20) == schedule(7, 200, 20)
    assert schedule(7, 200, 20) != schedule(8, 200, 20)


def test_a_shorter_one_is_the_beginning_of_a_longer_one() -> None:
    assert schedule(7, 200, 20)[:25] == schedule(7, 25, 20)


def test_the_first_faults_of_a_seed_are_these() -> None:
    """A seed that somebody wrote down means the same faults on another day."""
    first, second = schedule(1, 2, 6)
    assert first == Fault(number=1, kind="kill", slot="default-1", signal=signal.SIGKILL, pause=0)
    assert second == Fault(number=2, kind="exit", slot="default-4", signal=EXIT, pause=2)


def test_every_kind_and_every_slot_is_hit_in_a_long_one() -> None:
    faults = schedule(1, 500, 20)
    assert {fault.kind for fault in faults} == set(KINDS)
    assert {fault.slot for fault in faults} == set(slot_names(20))
    assert [fault.number for fault in faults] == list(range(1, 501))


def test_many_come_at_once_and_none_is_waited_for_long() -> None:
    pauses = [fault.pause for fault in schedule(1, 500, 20)]
    assert sum(pause == 0 for pause in pauses) > 200
    assert max(pauses) == LONGEST_PAUSE


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_sends_what_it_may(name: str) -> None:
    kind = KINDS[name]
    sent = {fault.signal for fault in schedule(3, 2000, 20) if fault.kind == name}
    assert sent == set(kind.signals)
    # Both have another meaning to a worker.
    assert STACKS_SIGNAL not in sent
    assert signal.SIGCONT not in sent
    assert bool(kind.at_boot) == bool(kind.cause_at_boot)
    assert bool(kind.mold) == bool(kind.mold_cause)
