"""What /proc says of a process, and what that says of a hang."""

import os
import signal
import subprocess
import sys

import pytest

from supervisor.evidence import children_of, complete, hang_class, why_no_stacks
from supervisor.facts import ChildHung, EndCause, ProcessEvidence
from wire.pipe import STACKS_SIGNAL


def test_children_are_found() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in children_of(os.getpid())
        assert child.stdin is not None
        child.stdin.write(b"\n")
    assert child.pid not in children_of(os.getpid())


def condemned(why: EndCause, silent_for: float, thread_silent_for: float) -> ChildHung:
    return ChildHung(
        pool="rig",
        slot="rig-1",
        incarnation=1,
        why=why,
        silent_for=silent_for,
        thread_silent_for=thread_silent_for,
        loop_silent=why != "boot_timeout" and silent_for > 1.0,
        jobs_in_hand=1,
        session="registered",
    )


def test_a_process_that_is_gone_leaves_no_evidence_and_no_error() -> None:
    found = complete(condemned("hung", 45.0, 0.5), 2**22 + 1)
    assert (found.evidence, found.hang) == (ProcessEvidence(), "loop_blocked")
    assert why_no_stacks(2**22 + 1) == "the process has ended"
    assert children_of(2**22 + 1) == set()


@pytest.mark.parametrize(
    ("state", "why", "silent_for", "thread_silent_for", "expected"),
    [
        ("T", "hung", 45.0, 0.5, "stopped"),
        ("D", "hung", 45.0, 45.0, "uninterruptible"),
        ("S", "hung", 45.0, 0.5, "loop_blocked"),
        ("S", "hung", 1.5, 0.5, "loop_blocked"),
        ("S", "hung", 1.5, 1.5, "interpreter_stuck"),
        ("R", "hung", 45.0, 45.0, "interpreter_stuck"),
        ("", "hung", 45.0, 45.0, "interpreter_stuck"),
        ("S", "killed", 0.5, 0.5, "not_progressing"),
        ("R", "killed", 45.0, 45.0, "interpreter_stuck"),
        ("S", "boot_timeout", 120.0, 120.0, "not_progressing"),
        ("T", "boot_timeout", 120.0, 120.0, "stopped"),
    ],
)
def test_hangs_are_told_apart(
    state: str, why: EndCause, silent_for: float, thread_silent_for: float, expected: str
) -> None:
    assert hang_class(state, condemned(why, silent_for, thread_silent_for)) == expected


def test_a_process_is_asked_for_stacks_only_if_it_would_answer_and_not_die() -> None:
    catching = f"""
import faulthandler
faulthandler.register({STACKS_SIGNAL})
print("registered", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", catching], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert why_no_stacks(child.pid) == ""
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert "stopped" in why_no_stacks(child.pid)
        child.kill()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert "does not answer" in why_no_stacks(child.pid)
        child.kill()
