import errno
import os
from pathlib import Path

import pytest

from wire import pipe
from worker_child import suspects as suspects_module
from worker_child.decisions import JournalClaimed
from worker_child.suspects import NOBODY, Suspects
from worker_child.suspicion import CONVICTIONS

CRASH = pipe.PreviousEnd(incarnation=1, cause="signal", detail="signal 11", self_made=True)
KILLED = pipe.PreviousEnd(incarnation=1, cause="signal", detail="signal 9", self_made=False)


def claimed(number: int | str, lease: int = 0) -> JournalClaimed:
    return JournalClaimed(f"job-{number}", f"lease-{number}-{lease}", "work")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "rig-1.journal"


def test_what_one_worker_finds_all_workers_of_the_box_know(journal: Path) -> None:
    mine, other = Suspects(journal, "rig-1"), Suspects(journal.with_name("rig-2.journal"), "rig-2")
    assert dict(other.current()) == {}
    mine.accuse([claimed(1), claimed(2)], CRASH)
    assert dict(other.current()) == dict(mine.current()) == {"job-1": None, "job-2": None}
    other.clear("job-1")
    assert dict(mine.current()) == {"job-2": None}


@pytest.mark.replaces_code
def test_what_does_not_change_is_not_read_again(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suspects = Suspects(journal, "rig-1")
    suspects.accuse([claimed(1)], CRASH)
    folder = journal.parent / "suspects"
    os.utime(folder, (1_600_000_000, 1_600_000_000))
    assert dict(suspects.current()) == {"job-1": None}
    monkeypatch.setattr(suspects, "_read", lambda: pytest.fail("it was read again"))
    assert dict(suspects.current()) == {"job-1": None}
    monkeypatch.undo()
    suspects.accuse([claimed(2)], CRASH)
    assert dict(suspects.current()) == {"job-1": None, "job-2": None}


def test_poison_is_known_with_its_reason(journal: Path) -> None:
    for lease in range(CONVICTIONS):
        [report] = Suspects(journal, "rig-1").accuse([claimed(1, lease)], CRASH)
    assert report.error_type == "PoisonJob"
    suspects = Suspects(journal, "rig-2")
    assert suspects.current()["job-1"] == report.error_message
    suspects.clear("job-1")
    assert suspects.current()["job-1"] == report.error_message, "convictions stay"


def test_an_operators_kill_leaves_nothing(journal: Path) -> None:
    [report] = Suspects(journal, "rig-1").accuse([claimed(1)], KILLED)
    assert report.error_type == "WorkerCrashed"
    assert dict(Suspects(journal, "rig-1").current()) == {}


def test_files_are_private_and_named_by_nobody_else(journal: Path) -> None:
    Suspects(journal, "rig-1").accuse([claimed("../../evil")], CRASH)
    folder = journal.parent / "suspects"
    [file] = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert "lease" not in file.read_text().replace('"lease"', "")


def test_old_ones_are_forgotten_when_the_next_comes(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suspects = Suspects(journal, "rig-1")
    with monkeypatch.context() as past:
        past.setattr(suspects_module.time, "time", lambda: 1_600_000_000.0)
        suspects.accuse([claimed(1)], CRASH)
    suspects.accuse([claimed(2)], CRASH)
    assert dict(suspects.current()) == {"job-2": None}


def test_a_disk_that_fails_costs_the_suspicion_alone(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suspects = Suspects(journal, "rig-1")
    opening = os.open

    def full(name: object, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opening(name, flags, *mode)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", full)
    [report] = suspects.accuse([claimed(1)], CRASH)
    assert report.error_type == "WorkerCrashed"
    assert dict(suspects.current()) == {}


def test_what_is_unreadable_is_removed(journal: Path) -> None:
    suspects = Suspects(journal, "rig-1")
    suspects.accuse([claimed(1)], CRASH)
    (journal.parent / "suspects" / "torn.json").write_text('{"job_id": "job-')
    assert dict(suspects.current()) == {"job-1": None}
    assert len(list((journal.parent / "suspects").iterdir())) == 1


def test_without_a_journal_nobody_is_suspected() -> None:
    [report] = NOBODY.accuse([claimed(1)], CRASH)
    assert report.error_type == "WorkerCrashed"
    assert dict(NOBODY.current()) == {}
