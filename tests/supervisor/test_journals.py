"""A journal that was left goes to one child, once, and never from under a process that holds it."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor import journals
from worker_child.decisions import JournalClaimed
from worker_child.journal import HEADER, Journal


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def write(path: Path) -> Path:
    """A journal with something outstanding."""
    journal = Journal(path, "write")
    journal.recover(1.0)
    journal.claimed(JournalClaimed("job_1", "lease_1", "print"))
    journal.flush()
    journal.close()
    return path


def test_the_size_of_an_empty_journal() -> None:
    assert len(HEADER) == journals.EMPTY_SIZE


@pytest.mark.parametrize("own", [None, HEADER])
def test_a_journal_of_a_slot_that_is_gone_is_adopted(directory: Path, own: bytes | None) -> None:
    left, mine = write(directory / "rig-7.journal"), directory / "rig-1.journal"
    if own is not None:
        mine.write_bytes(own)
    content = left.read_bytes()
    assert journals.adopt(mine, {"rig-1", "rig-2"}) == left
    assert mine.read_bytes() == content
    assert not left.exists()
    assert journals.adopt(directory / "rig-2.journal", {"rig-1", "rig-2"}) is None


def test_a_journal_that_is_needed_held_or_empty_stays_where_it_is(directory: Path) -> None:
    mine = directory / "rig-1.journal"
    write(directory / "rig-2.journal")
    (directory / "rig-8.journal").write_bytes(HEADER)
    held = write(directory / "rig-9.journal")
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert journals.adopt(mine, {"rig-1", "rig-2"}) is None
    assert journals.adopt(write(mine), {"rig-1", "rig-2"}) is None
    assert held.exists()


def test_a_directory_that_is_not_there_is_no_fault(directory: Path) -> None:
    assert journals.adopt(directory / "none" / "rig-1.journal", {"rig-1"}) is None


def test_a_stopped_process_that_an_earlier_supervisor_left_goes_on(tmp_path: Path) -> None:
    left = tmp_path / "rig-1.journal"
    program = (
        "import fcntl, os, signal, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "os.kill(os.getpid(), signal.SIGSTOP); os._exit(7)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(left)])
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert journals.continue_holders(tmp_path / "elsewhere") == []
        assert journals.continue_holders(tmp_path) == [process.pid]
        assert process.wait(30) == 7
        assert journals.continue_holders(tmp_path) == []
    finally:
        process.kill()
