"""Entries of a log in, the picture of a pool out."""

from typing import Any

from tests.campaign.watch import MOLD, Watch


def entry(event: str, slot: str = "default-1", incarnation: int = 1, **fields: Any) -> dict[str, Any]:
    return {"event": event, "slot": slot, "incarnation": incarnation} | fields


def lived(watch: Watch, slot: str = "default-1", incarnation: int = 1) -> None:
    watch.hear(entry("process started", slot, incarnation, pid=100 + incarnation))
    watch.hear(entry("ready", slot, incarnation, seconds=0.1))


def test_a_process_starts_becomes_ready_and_ends() -> None:
    watch = Watch()
    watch.hear(entry("process started", pid=101))
    assert watch.by_pid[101] == "default-1"
    assert not watch.all_ready(["default-1"])
    watch.hear(entry("ready"))
    lived(watch, MOLD)
    assert watch.all_ready(["default-1"])
    watch.hear(entry("process ended", cause="signal"))
    assert not watch.all_ready(["default-1"])
    assert not watch.ready_after("default-1", 1)
    lived(watch, incarnation=2)
    assert watch.ready_after("default-1", 1)
    assert watch.seat("default-1").pid == 102
    assert watch.causes() == {"signal": 1}


def test_an_end_that_nobody_brought_about_is_kept() -> None:
    watch = Watch()
    lived(watch)
    watch.victims.add(("default-1", 1))
    watch.hear(entry("process ended", cause="signal"))
    lived(watch, incarnation=2)
    watch.hear(entry("process ended", incarnation=2, cause="hung", detail="killed by the supervisor"))
    assert watch.unexpected_ends == ["default-1 incarnation 2: hung (killed by the supervisor)"]


def test_an_end_that_was_asked_for_or_that_came_before_it_was_ready_is_no_surprise() -> None:
    watch = Watch()
    watch.hear(entry("process started", pid=101))
    watch.hear(entry("process ended", cause="exit"))
    lived(watch, incarnation=2)
    watch.hear(entry("process ended", incarnation=2, cause="drained", asked=True))
    assert watch.unexpected_ends == []


def test_silence_orphans_and_faults_of_its_own() -> None:
    watch = Watch()
    lived(watch)
    watch.hear(entry("event loop is silent"))
    watch.hear(entry("event loop is heard again"))
    watch.hear({"event": "ended a process that nobody ordered", "pid": 7})
    watch.hear({"event": "unexpected", "what": "a round failed", "problem": "KeyError: 1"})
    watch.hear({"event": "session.registered", "slot": "default-1"})
    seat = watch.seat("default-1")
    assert (seat.silent, seat.heard_again, seat.is_ready) == (1, 1, True)
    assert watch.orphans_ended == 1
    assert len(watch.faults_of_its_own) == 1
