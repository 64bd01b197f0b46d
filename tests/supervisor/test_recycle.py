"""When a child is exchanged, as tables: its own limit, its idle moments, and how many at a time."""

import pytest

from supervisor.config import Duration, Limits, Restart, Size
from supervisor.recycle import IDLE_PATIENCE, SPREAD, Recycler, due
from supervisor.slots import BecameReady, Booted, Died, Drain, LoopBeat, MemorySampled, Slot, Spawned, Start
from wire.pipe import Beat

NONE = Limits()


def child(
    name: str = "rig-1", *, ready_at: float = 0.0, jobs: int = 0, in_hand: int = 0, private: int = 0, overdue: int = 0
) -> Slot:
    slot = Slot(name, "rig", "child", NONE, Restart())
    first = {"slot": name, "incarnation": 1}
    beat = Beat(
        slot=name,
        incarnation=1,
        source="loop",
        session="registered",
        completed=jobs,
        jobs_in_hand=in_hand,
        overdue=overdue,
    )
    slot.step(Start(slot=name, incarnation=0), ready_at)
    for event in (
        Spawned(**first, pid=1),
        Booted(**first, build="b"),
        BecameReady(**first),
        LoopBeat(**first, beat=beat),
        MemorySampled(**first, private=private, shared_fairly=private + 1),
    ):
        slot.step(event, ready_at)
    return slot


@pytest.mark.parametrize(
    ("limits", "fields", "now", "expected"),
    [
        (NONE, {"jobs": 10**6, "private": 2**40}, 10.0**9, None),
        (NONE, {"overdue": 1}, 0.0, "overdue"),
        (Limits(max_jobs=100), {"jobs": 79}, 0.0, None),
        (Limits(max_jobs=100), {"jobs": 100}, 0.0, "jobs"),
        (Limits(max_jobs=1), {"jobs": 0}, 0.0, None),
        (Limits(max_jobs=1), {"jobs": 1}, 0.0, "jobs"),
        (Limits(max_age=Duration(100)), {}, 79.0, None),
        (Limits(max_age=Duration(100)), {}, 100.0, "age"),
        (Limits(max_memory=Size(1000)), {"private": 799}, 0.0, None),
        (Limits(max_memory=Size(1000)), {"private": 1000}, 0.0, "memory"),
    ],
)
def test_limits(limits: Limits, fields: dict[str, int], now: float, expected: str | None) -> None:
    assert due(child(**fields), limits, now) == expected


def test_each_child_has_a_limit_of_its_own_and_the_next_incarnation_another() -> None:
    limits = Limits(max_age=Duration(1000))

    def turns(slot: Slot) -> int:
        return next(age for age in range(1001) if due(slot, limits, float(age)) is not None)

    ages = [turns(child(f"rig-{number}")) for number in range(1, 51)]
    assert min(ages) >= 1000 * (1 - SPREAD)
    assert max(ages) <= 1000
    assert len(set(ages)) > 35
    assert len([age for age in ages if age > 900]) > 15


def test_only_a_child_that_works_is_exchanged() -> None:
    slot = child(jobs=5)
    slot.step(Drain(slot="rig-1", incarnation=1, grace=1.0), 0.0)
    assert due(slot, Limits(max_jobs=1), 0.0) is None
    slot.step(Died(slot="rig-1", incarnation=1, exit_code=0, signal=None, jitter=0.0, output=[]), 0.0)
    assert due(slot, Limits(max_jobs=1), 0.0) is None
    # And what was planned is no failure.
    assert (slot.failures, slot.crash_loop) == (0, None)


LIMITS = Limits(max_jobs=1)


def names(recycler: Recycler, children: list[Slot], room: int, now: float) -> list[str]:
    return [slot.name for slot, _ in recycler.choose(children, LIMITS, room, now)]


def test_an_idle_moment_is_waited_for_but_not_for_ever() -> None:
    recycler, busy, idle = Recycler(), child("rig-1", jobs=9, in_hand=1), child("rig-2", jobs=9)
    assert names(recycler, [busy, idle], 2, 0.0) == ["rig-2"]
    assert names(recycler, [busy], 2, IDLE_PATIENCE - 1) == []
    assert names(recycler, [busy], 2, IDLE_PATIENCE) == ["rig-1"]


def test_the_clock_of_patience_is_the_incarnations_own() -> None:
    recycler = Recycler()
    assert names(recycler, [child("rig-1", jobs=9, in_hand=1)], 1, 0.0) == []
    assert names(recycler, [child("rig-1", jobs=0)], 1, 10.0) == []
    assert names(recycler, [child("rig-1", jobs=9, in_hand=1)], 1, IDLE_PATIENCE) == []


@pytest.mark.parametrize(("room", "expected"), [(-1, 0), (0, 0), (1, 1), (2, 2), (9, 4)])
def test_never_more_than_there_is_room_for(room: int, expected: int) -> None:
    children = [child(f"rig-{number}", jobs=9) for number in range(1, 5)]
    assert len(names(Recycler(), children, room, 0.0)) == expected
