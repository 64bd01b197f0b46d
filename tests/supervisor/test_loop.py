"""The loop's own faults: it slept, an action failed, a round failed. None of them ends supervision."""

import asyncio
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from service_manager.log_writer import LogWriter, to_stream
from service_manager.notify import Notifier
from supervisor import config, facts, journals
from supervisor import loop as loop_module
from supervisor.children import Children
from supervisor.fleet import Fleet
from supervisor.log import Log
from supervisor.loop import OVERSLEPT, ROUND_INTERVAL, Loop
from supervisor.slots import BecameReady, Booted, Spawned, SpawnFailed, SpawnProcess, Start


class Told(Log):
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.facts: list[Any] = []
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def publish(self, fact: facts.Fact) -> None:
        self.facts.append(fact)

    def write(self, level: str, event: str, entry: dict[str, Any]) -> None:
        self.lines.append((level, event, entry))


@pytest.fixture
async def loop(tmp_path: Path) -> Loop:
    settings = config.build(
        {"pool": [{"name": "rig"}], "supervisor": {"state_dir": "state", "listen": ""}},
        tmp_path,
        {"MOBIUS_API_KEY": "mbx_test"},
    )
    writer = LogWriter(to_stream(2))
    made = Loop(
        settings,
        fleet=Fleet(settings, "build"),
        instance_prefix="box",
        environ={},
        log=Told(),
        writer=writer,
        notifier=Notifier("", None),
    )
    made._loop = asyncio.get_running_loop()
    made._children = Children(
        made._loop,
        deliver=made._deliver,
        publish=made._publish,
        forward=lambda _slot, _incarnation, _lines: None,
        mold_of=lambda slot: slot,
        unexplained=made._wake,
    )
    writer.close()
    return made


def told(loop: Loop) -> Told:
    assert isinstance(loop._log, Told)
    return loop._log


async def test_time_in_which_the_loop_did_not_run_counts_against_no_child(loop: Loop) -> None:
    now = 1000.0
    (child, *_) = loop._fleet.children
    for event in (
        Start(slot=child.name, incarnation=0),
        Spawned(slot=child.name, incarnation=1, pid=1),
        Booted(slot=child.name, incarnation=1, build="build"),
        BecameReady(slot=child.name, incarnation=1),
    ):
        child.step(event, now)
    due = child.deadline
    loop._expected = now
    loop._notice_own_absence(now + OVERSLEPT)
    assert (child.deadline, told(loop).facts) == (due, [])
    loop._notice_own_absence(now + 100.0)
    assert child.deadline == due + 100.0
    assert told(loop).facts == [facts.Overslept(seconds=100.0)]


async def test_a_process_that_cannot_be_made_is_told_as_failed(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    loop._perform([SpawnProcess(slot="mold:rig", incarnation=1, previous_end=None)])
    (fact,) = told(loop).facts
    assert isinstance(fact, facts.ActionFailed)
    assert (fact.slot, fact.action) == ("mold:rig", "SpawnProcess")
    assert "No such file" in fact.problem
    (event,) = loop._events
    assert isinstance(event, SpawnFailed)


async def test_a_child_without_a_mold_is_told_as_failed(loop: Loop) -> None:
    loop._perform([SpawnProcess(slot="rig-1", incarnation=1, previous_end=None)])
    (forking,) = loop._forking
    await forking
    failed = told(loop).facts[0]
    assert isinstance(failed, facts.ActionFailed)
    assert (failed.slot, failed.problem) == ("rig-1", "LookupError: mold:rig has no process")


async def test_a_disk_that_stands_still_holds_up_neither_the_loop_nor_a_start_for_long(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr(loop_module, "ADOPTION_PATIENCE", 0.05)
    monkeypatch.setattr(journals, "adopt", lambda *_arguments: never.wait(30) or None)
    loop._perform([SpawnProcess(slot="rig-1", incarnation=1, previous_end=None)])
    (forking,) = loop._forking
    await forking
    never.set()
    assert isinstance(told(loop).facts[0], facts.ActionFailed), "it went on without, as far as there is a mold"


async def test_a_round_that_fails_is_logged_and_the_next_one_is_due(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_now: float) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(loop._fleet, "tick", fail)
    loop._round()
    assert told(loop).lines == [("error", "unexpected", {"what": "a round failed", "problem": "RuntimeError: a bug"})]
    assert loop._timer is not None
    loop._timer.cancel()


@pytest.mark.parametrize(("interval", "expected"), [(None, ROUND_INTERVAL), (30.0, ROUND_INTERVAL), (0.5, 0.25)])
async def test_rounds_come_often_enough_for_the_watchdog(
    tmp_path: Path, interval: float | None, expected: float
) -> None:
    settings = config.build({"pool": [{}], "supervisor": {"state_dir": "state"}}, tmp_path, {"MOBIUS_API_KEY": "mbx_t"})
    writer = LogWriter(to_stream(2))
    loop = Loop(
        settings,
        fleet=Fleet(settings, "build"),
        instance_prefix="box",
        environ={},
        log=Told(),
        writer=writer,
        notifier=Notifier("", interval),
    )
    loop._loop = asyncio.get_running_loop()
    began = time.monotonic()
    loop._schedule()
    assert loop._timer is not None
    loop._timer.cancel()
    assert began + expected <= loop._expected <= time.monotonic() + expected
    writer.close()
