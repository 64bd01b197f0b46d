"""What people see of a status; a child's text cannot steer their terminal."""

import io
from typing import Any

from rich.console import Console

from supervisor import live_view, view
from supervisor.control_messages import (
    CrashLoopStatus,
    FleetStatus,
    JobProcessStatus,
    PoolStatus,
    SlotDetail,
    SlotStatus,
)


def slot(**changes: Any) -> SlotStatus:
    fields: dict[str, Any] = {
        "slot": "rig-1",
        "pool": "rig",
        "kind": "child",
        "state": "ready",
        "plan": "",
        "health": "ok",
        "session": "registered",
        "incarnation": 3,
        "pid": 4711,
        "ready_for": 7300.0,
        "beat_age": 0.25,
        "loop_lag": None,
        "jobs_in_hand": 2,
        "oldest_job_age": 1.5,
        "acknowledgement_age": 0.5,
        "reports_waiting": 0,
        "completed": 10,
        "failed": 1,
        "cancelled": 0,
        "handed_back": 0,
        "failures": 0,
        "retry_in": 0.0,
        "crash_loop": None,
    }
    return SlotStatus(**(fields | changes))


def fleet(*slots: SlotStatus, **changes: Any) -> FleetStatus:
    fields: dict[str, Any] = {
        "phase": "running",
        "ready": True,
        "build": "1",
        "restart_needed": False,
        "reload": "",
        "reload_problem": "",
        "pools": [PoolStatus(pool="rig", workers=2, working=1, rolling=True)],
        "slots": list(slots),
    }
    return FleetStatus(**(fields | changes))


def test_the_headline() -> None:
    assert view.headline(fleet()) == "running, ready: rig 1 of 2 (rolling)"
    told = view.headline(fleet(ready=False, reload="aborted", reload_problem="rig-3: no", restart_needed=True))
    assert told == (
        "running, not ready: rig 1 of 2 (rolling); last reload aborted (rig-3: no); "
        "the package was replaced under a running supervisor: restart the service"
    )


def test_rows_are_aligned_and_say_when_a_slot_is_tried_again() -> None:
    failing = slot(slot="rig-12", state="backoff", session="", pid=None, beat_age=None, ready_for=None, retry_in=90.0)
    titles, first, second = view.aligned(view.rows(fleet(slot(), failing)))
    assert titles.index("STATE") == first.index("ready") == second.index("backoff, again in 90s")
    assert first.split()[-5:] == ["10", "1", "250ms", "-", "2h"]


def test_a_crash_loop_says_what_it_says() -> None:
    loop = CrashLoopStatus(times=7, how="exit code 1", says="KeyError: '[/x]'\x1b[2J")
    failing = slot(slot="rig-2", state="backoff", crash_loop=loop)
    sentence = "crash loop, 7 times in a row the same: exit code 1; it says: KeyError: '[/x]'\\x1b[2J"
    assert view.warnings(fleet(slot(), failing)) == [f"rig-2: {sentence}"]
    console = Console(file=io.StringIO(), width=160)
    console.print(live_view.table(fleet(slot(), failing)))
    assert f"rig-2: {sentence}" in " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    detail = view.detail_lines(SlotDetail(status=failing, output=[], job_processes=[], silence=None, last_exit=None))
    assert any(line.startswith("crash_loop ") and line.endswith(sentence) for line in detail)
    silent = CrashLoopStatus(times=5, how="signal 11", says="signal 11")
    assert view.warnings(fleet(slot(crash_loop=silent)))[0].endswith("the same: signal 11")


def test_the_live_table_has_every_slot() -> None:
    console = Console(file=io.StringIO(), width=160)
    console.print(live_view.table(fleet(slot(), slot(slot="rig-2", state="backoff"))))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "rig-1" in shown
    assert "rig-2" in shown


def test_a_slot_in_detail() -> None:
    last_exit = {"cause": "hung", "evidence": {"stacks": "Thread 1\n  in block", "status": ["State: S"]}, "none": None}
    lines = view.detail_lines(
        SlotDetail(
            status=slot(),
            output=["at work", "\x1b[2Jgone"],
            job_processes=[
                JobProcessStatus(job_id="job_1", action="resize", pid=4712, state="running", age=3.2),
                JobProcessStatus(job_id="job_2", action="\x1b[2J", pid=None, state="asked", age=0.01),
            ],
            silence={"hang": "stopped"},
            last_exit=last_exit,
        )
    )
    assert "process of job_1  resize: running, pid 4712, 3s" in lines
    assert "process of job_2  \\x1b[2J: asked, 10ms" in lines
    assert "pid                  4711" in lines
    assert lines[lines.index("its event loop is silent:") + 1] == "  hang: stopped"
    start = lines.index("last exit:")
    assert lines[start + 1 : start + 7] == [
        "  cause: hung",
        "  evidence:",
        "    stacks:",
        "      Thread 1",
        "        in block",
        "    status:",
    ]
    assert lines[-2:] == ["  at work", "  \\x1b[2Jgone"]
