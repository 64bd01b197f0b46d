"""What /proc says of a process, and what that says of a hang."""

import os
import subprocess
import sys

import pytest

from supervisor.evidence import children_of, complete, hang_class
from supervisor.facts import ChildHung


def test_children_are_found() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in children_of(os.getpid())
        assert child.stdin is not None
        child.stdin.write(b"\n")
    assert child.pid not in children_of(os.getpid())


def test_a_process_that_is_gone_leaves_no_evidence_and_no_error() -> None:
    hung = ChildHung(
        pool="rig",
        slot="rig-1",
        incarnation=1,
        why="hung",
        silent_for=45.0,
        thread_silent_for=0.5,
        jobs_in_hand=1,
        session="registered",
    )
    found = complete(hung, 2**22 + 1)
    assert (found.process_state, found.wait_channel, found.hang) == ("", "", "loop_blocked")
    assert children_of(2**22 + 1) == set()


@pytest.mark.parametrize(
    ("state", "thread_silent_for", "expected"),
    [
        ("T", 0.5, "stopped"),
        ("D", 45.0, "uninterruptible"),
        ("S", 0.5, "loop_blocked"),
        ("R", 45.0, "interpreter_stuck"),
        ("", 45.0, "interpreter_stuck"),
    ],
)
def test_hangs_are_told_apart(state: str, thread_silent_for: float, expected: str) -> None:
    assert hang_class(state, thread_silent_for) == expected
