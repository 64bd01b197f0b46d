import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import frames
from worker_child import journal as journal_module
from worker_child.decisions import JournalClaimed, JournalSettled, Reported
from worker_child.errors import JournalError, JournalLocked
from worker_child.journal import Journal
from worker_child.journal_records import HEADER, Recovered, decode, encode

ROOT = Path(__file__).resolve().parent.parent.parent


def report(number: int, **fields: object) -> frames.Report:
    given: dict[str, object] = {"status": "completed", "result": {"n": number}} | fields
    return frames.Report(job_id=f"job-{number}", lease_token=f"lease-{number}", **given)  # type: ignore[arg-type]


def opened(path: Path, mode: journal_module.Mode = "write") -> Journal:
    journal = Journal(path, mode)
    journal.recover(5)
    return journal


def recovered(path: Path) -> Recovered:
    journal = Journal(path, "write")
    with contextlib.closing(journal):
        return journal.recover(5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "rig-1.journal"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with contextlib.closing(opened(path)) as journal:
        yield journal


def test_the_next_process_finds_jobs_in_hand_and_reports_that_are_owed(journal: Journal, path: Path) -> None:
    for number in (1, 2, 3, 4):
        journal.claimed(JournalClaimed(f"job-{number}", f"lease-{number}", "work"))
    failed = report(2, status="failed", result=None, error_type="ValueError", error_message="é")
    journal.reported(failed)
    journal.reported(report(3))
    journal.settled(JournalSettled("lease-3"))
    journal.settled(JournalSettled("lease-4"))
    journal.close()
    found = recovered(path)
    assert found == Recovered(claimed=[JournalClaimed("job-1", "lease-1", "work")], reported=[failed])


def test_a_result_that_is_raw_json_comes_back_as_an_object(journal: Journal, path: Path) -> None:
    journal.reported(report(1, result=msgspec.Raw(b'{"deep": [1, null]}')))
    journal.close()
    assert recovered(path).reported[0].result == {"deep": [1, None]}


def test_nothing_is_on_disk_before_flush_and_everything_after(journal: Journal, path: Path) -> None:
    journal.claimed(JournalClaimed("job-1", "lease-1", "work"))
    assert path.read_bytes() == HEADER
    journal.flush()
    assert b"lease-1" in path.read_bytes()
    assert path.stat().st_size == journal.size


def test_the_file_and_its_directory_are_private(journal: Journal, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_others_could_read_is_made_private(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(HEADER)
    path.chmod(0o644)
    opened(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", [1, 4, 9, 20])
def test_a_torn_last_record_is_dropped_and_what_follows_is_sound(path: Path, cut: int) -> None:
    with contextlib.closing(opened(path)) as journal:
        journal.reported(report(1))
        journal.flush()
        whole = journal.size
        journal.reported(report(2))
    torn = path.read_bytes()
    path.write_bytes(torn[:-cut])
    with contextlib.closing(Journal(path, "write")) as journal:
        found = journal.recover(5)
        assert (found.reported, found.damaged_bytes) == ([report(1)], len(torn) - cut - whole)
        assert path.stat().st_size == whole
        journal.reported(report(3))
    assert recovered(path).reported == [report(1), report(3)]


def test_what_one_flush_wrote_is_found_as_a_whole_or_not_at_all(path: Path) -> None:
    with contextlib.closing(opened(path)) as journal:
        for number in range(1000):
            journal.reported(report(number))
    assert recovered(path).reported == [report(number) for number in range(1000)]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    left = recovered(path).reported
    assert left == [report(number) for number in range(len(left))]
    assert 0 < len(left) < 1000, "what the system was told in one write may be cut between its groups"


def test_a_flipped_bit_costs_its_own_group_and_no_other(path: Path) -> None:
    with contextlib.closing(opened(path)) as journal:
        for number in (1, 2, 3):
            journal.reported(report(number))
            journal.flush()
    data = bytearray(path.read_bytes())
    data[data.index(b"lease-2")] ^= 1
    path.write_bytes(data)
    found = recovered(path)
    assert found.reported == [report(1), report(3)]
    assert 0 < found.damaged_bytes < len(data)
    assert recovered(path) == Recovered(claimed=[], reported=[report(1), report(3)]), "written anew without it"


@pytest.mark.parametrize("hole", [1, 8, 100, 4096])
def test_a_hole_that_a_power_cut_left_costs_what_was_in_it(path: Path, hole: int) -> None:
    with contextlib.closing(opened(path)) as journal:
        journal.reported(report(1))
        journal.flush()
        whole = journal.size
        journal.reported(report(2))
    path.write_bytes(path.read_bytes()[:whole] + bytes(hole))
    assert recovered(path).reported == [report(1)]
    with contextlib.closing(opened(path)) as journal:
        journal.reported(report(3))
    assert recovered(path).reported == [report(1), report(3)]


@given(data=st.binary(max_size=300), at=st.integers(0, 300))
def test_whatever_is_in_the_file_is_read(data: bytes, at: int) -> None:
    sound = HEADER + encode([JournalClaimed("job-1", "lease-1", "work")])
    decode(data)
    decode(HEADER + data)
    assert decode(sound + data).claimed == [JournalClaimed("job-1", "lease-1", "work")]
    decode(sound[:at] + data + sound[at:])


@pytest.mark.parametrize("size", [0, 5, len(HEADER)])
def test_a_torn_header_is_an_empty_journal(path: Path, size: int) -> None:
    path.parent.mkdir()
    path.write_bytes(HEADER[:size])
    assert recovered(path).reported == []
    assert path.read_bytes() == HEADER


def test_a_file_that_is_no_journal_is_kept_aside(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"somebody's notes")
    assert recovered(path).claimed == []
    assert path.with_name(path.name + ".unreadable").read_bytes() == b"somebody's notes"
    assert path.read_bytes() == HEADER


def test_a_journal_that_cannot_be_opened_says_which_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"file/state/journal: Not a directory"):
        Journal(tmp_path / "file" / "state" / "journal", "write").recover(1)


def test_a_disk_that_is_full_from_the_start_does_not_stop_the_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    journal = Journal(path, "write")
    assert journal.recover(1) == Recovered(claimed=[], reported=[])
    assert journal.degraded
    journal.reported(report(1))
    journal.flush()
    assert journal.compaction_due(outstanding=True)
    journal.rewrite([], [report(1)])
    assert journal.degraded
    monkeypatch.undo()
    journal.rewrite([], [report(1)])
    assert not journal.degraded
    journal.close()
    assert recovered(path).reported == [report(1)]


def test_what_a_predecessor_left_on_a_disk_that_comes_back_late_is_left_to_be_adopted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(opened(path)) as journal:
        journal.reported(report(1))
    opening = os.open

    def read_only(name: object, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, "Read-only file system")
        return opening(name, flags, *mode)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", read_only)
    journal = opened(path)
    assert journal.degraded
    monkeypatch.undo()
    journal.rewrite([], [report(2)])
    [left] = [file for file in path.parent.iterdir() if file != path]
    assert left.suffix == ".journal", "as the supervisor looks for them"
    assert recovered(left).reported == [report(1)]
    journal.close()
    assert recovered(path).reported == [report(2)]


def test_a_journal_that_cannot_be_read_is_not_emptied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(opened(path)) as journal:
        journal.reported(report(1))

    def broken(_: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    journal = opened(path)
    assert journal.degraded
    journal.rewrite([], [report(2)])
    assert journal.degraded
    journal.close()
    monkeypatch.undo()
    assert recovered(path).reported == [report(1)]


def test_a_name_is_synced_with_its_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), sync(fd)))
    with contextlib.closing(opened(path, "fsync")) as journal:
        assert synced == [f"{path}.new", str(path.parent)], "a new journal's name is safe before it is relied on"
        synced.clear()
        journal.reported(report(1))
        journal.rewrite([], [report(1)])
        assert synced == [f"{path}.new", str(path.parent)]


def test_without_anything_owed_no_token_stays_on_disk(journal: Journal, path: Path) -> None:
    journal.claimed(JournalClaimed("job-1", "lease-1", "work"))
    journal.flush()
    assert not journal.compaction_due(outstanding=True)
    journal.settled(JournalSettled("lease-1"))
    assert journal.compaction_due(outstanding=False)
    journal.empty()
    assert path.read_bytes() == HEADER
    assert not journal.compaction_due(outstanding=False)
    journal.reported(report(2))
    journal.close()
    assert recovered(path).reported == [report(2)]


def test_a_long_file_is_written_anew_with_what_is_owed(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_ABOVE", 2000)
    for number in range(100):
        journal.reported(report(number))
        journal.settled(JournalSettled(f"lease-{number}"))
    journal.flush()
    assert journal.compaction_due(outstanding=True)
    journal.rewrite([JournalClaimed("job-7", "lease-7", "work")], [report(8)])
    assert not journal.compaction_due(outstanding=True)
    assert path.stat().st_mode & 0o777 == 0o600
    journal.reported(report(9))
    journal.close()
    assert recovered(path) == Recovered(
        claimed=[JournalClaimed("job-7", "lease-7", "work")], reported=[report(8), report(9)]
    )


def test_work_goes_on_while_a_file_is_written_anew_and_both_files_have_it(journal: Journal, path: Path) -> None:
    journal.reported(report(1))
    rewrite = journal.begin_rewrite([], [report(1)])
    assert not journal.compaction_due(outstanding=False), "one rewrite at a time"
    journal.reported(report(2))
    journal.flush()
    rewrite.write()
    journal.claimed(JournalClaimed("job-3", "lease-3", "work"))
    journal.flush()
    with_all = Recovered(claimed=[JournalClaimed("job-3", "lease-3", "work")], reported=[report(1), report(2)])
    assert decode(path.read_bytes()) == with_all, "a death before the exchange loses nothing"
    journal.reported(report(4))
    journal.adopt(rewrite)
    assert decode(path.read_bytes()) == with_all
    journal.close()
    assert recovered(path) == Recovered(claimed=with_all.claimed, reported=[report(1), report(2), report(4)])


def test_a_file_that_cannot_be_written_anew_leaves_the_old_one_in_use(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.reported(report(1))
    rewrite = journal.begin_rewrite([], [report(1)])
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        journal.sync(rewrite)
    journal.reported(report(2))
    assert isinstance(journal.adopt(rewrite), OSError)
    assert not journal.degraded
    journal.close()
    assert recovered(path).reported == [report(1), report(2)]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_rewrite_heals_a_journal_that_failed_while_it_was_written(journal: Journal, path: Path) -> None:
    journal.reported(report(1))
    rewrite = journal.begin_rewrite([], [report(1)])
    rewrite.write()
    journal.degrade("write", OSError(errno.ENOSPC, "No space left on device"))
    journal.reported(report(2))
    journal.flush()
    assert decode(path.read_bytes()).reported == [report(1)]
    journal.adopt(rewrite)
    assert not journal.degraded
    journal.close()
    assert recovered(path).reported == [report(1), report(2)]


def test_in_mode_fsync_the_new_file_and_its_name_are_on_disk_before_anything_is_promised(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(word: str, call: Any) -> Any:
        return lambda *arguments: (order.append(word), call(*arguments))[1]

    with contextlib.closing(opened(path, "fsync")) as journal:
        journal.reported(report(1))
        rewrite = journal.begin_rewrite([], [report(1)])
        for word in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, word, noted(word, getattr(os, word)))
        monkeypatch.setattr(Path, "rename", noted("rename", Path.rename))
        journal.sync(rewrite)
        journal.adopt(rewrite)
        assert order == ["fdatasync", "fsync", "rename"], "until then the old file has what was promised"
        journal.sync()
        assert order[3:] == ["fsync", "fdatasync"], "the directory, then the new file"
        journal.sync()
        assert order[5:] == ["fdatasync"]


def test_what_is_settled_waits_for_the_next_record_that_must_be_written(journal: Journal, path: Path) -> None:
    journal.reported(report(1))
    journal.flush()
    before = journal.size
    journal.settled(JournalSettled("lease-1"))
    journal.flush()
    assert journal.size == before
    journal.reported(report(2))
    journal.flush()
    assert decode(path.read_bytes()).reported == [report(2)]


def test_mode_off_touches_no_disk(tmp_path: Path) -> None:
    journal = opened(tmp_path / "none" / "journal", "off")
    journal.reported(report(1))
    journal.flush()
    journal.dead_letter(report(1), "unknown_job", "no")
    journal.rewrite([], [report(1)])
    journal.close()
    assert not list(tmp_path.iterdir())
    assert not journal.must_sync


def test_mode_fsync_syncs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with contextlib.closing(opened(path, "fsync")) as journal:
        monkeypatch.setattr(os, "fdatasync", synced.append)
        assert journal.must_sync
        journal.reported(report(1))
        journal.flush()
        journal.sync()
        assert synced == [journal._descriptor]


def test_dead_letters_are_kept_without_the_token_and_settled(journal: Journal, path: Path) -> None:
    journal.reported(report(1))
    journal.dead_letter(report(1), "unknown_job", "there is no such job")
    journal.close()
    letters = path.with_name(path.name + ".dead-letters")
    assert letters.stat().st_mode & 0o777 == 0o600
    letter = msgspec.json.decode(letters.read_bytes())
    assert (letter["job_id"], letter["code"], letter["result"]) == ("job-1", "unknown_job", {"n": 1})
    assert b"lease-1" not in letters.read_bytes()
    assert recovered(path).reported == []


def test_without_a_journal_a_dead_letter_is_said_and_settled() -> None:
    journal = Journal(Path(), "off")
    journal.dead_letter(report(1), "unknown_job", "there is no such job")
    journal.close()


def test_dead_letters_are_bounded(journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "DEAD_LETTERS_LIMIT", 1000)
    for number in range(50):
        journal.dead_letter(report(number, error_message="x" * 100), "unknown_job", "no")
    total = sum(file.stat().st_size for file in path.parent.iterdir())
    assert total < 5000


# --- the lock ---------------------------------------------------------------------------------------------------------

HOLDER = """
    import sys
    from pathlib import Path
    from wire import frames
    from worker_child.journal import Journal
    from worker_child.decisions import JournalClaimed
    journal = Journal(Path(sys.argv[1]), "write")
    journal.recover(5)
    journal.claimed(JournalClaimed("job-1", "lease-1", "work"))
    journal.claimed(JournalClaimed("job-2", "lease-2", "work"))
    journal.reported(frames.Report(job_id="job-2", lease_token="lease-2", result={"n": 2}))
    journal.flush()
    if sys.argv[2] == "rewrite":
        print("waiting", flush=True)
        sys.stdin.readline()
        journal.rewrite([JournalClaimed("job-3", "lease-3", "work")], [])
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def holder(path: Path, behaviour: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(path), behaviour],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_killed_process_leaves_its_journal_to_the_next(path: Path) -> None:
    with holder(path, "hold") as process:
        assert heard(process) == "held"
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = recovered(path)
    assert [claimed.job_id for claimed in found.claimed] == ["job-1"]
    assert [kept.job_id for kept in found.reported] == ["job-2"]


def test_a_journal_in_use_is_refused_at_the_deadline(path: Path) -> None:
    with holder(path, "hold") as process:
        assert heard(process) == "held"
        with pytest.raises(JournalLocked, match="another process still holds it"):
            Journal(path, "write").recover(0.05)


@pytest.mark.parametrize("behaviour", ["hold", "rewrite"])
def test_a_successor_waits_for_the_lock_and_reads_what_was_written_last(path: Path, behaviour: str) -> None:
    found: list[Recovered] = []
    with holder(path, behaviour) as process:
        heard(process)
        successor = threading.Thread(target=lambda: found.append(recovered(path)))
        successor.start()
        if behaviour == "rewrite":
            # The file that the successor has opened and waits for is replaced under it.
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert heard(process) == "held"
        assert not found
        process.kill()
        successor.join(10)
    expected = ["job-3"] if behaviour == "rewrite" else ["job-1"]
    assert [claimed.job_id for claimed in found[0].claimed] == expected


# --- a disk that fails ------------------------------------------------------------------------------------------------

FULL_DISK = """
    import resource, sys
    from pathlib import Path
    from wire import frames
    from worker_child import log
    from worker_child.journal import Journal
    log.configure(level="info", log_format="json")
    def report(number):
        return frames.Report(job_id=f"job-{number}", lease_token=f"lease-{number}", result={"text": "x" * 500})
    journal = Journal(Path(sys.argv[1]), sys.argv[2])
    journal.recover(5)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    for number in range(20):
        journal.reported(report(number))
        journal.flush()
        if journal.must_sync:
            journal.sync()
    assert journal.degraded
    assert journal.compaction_due(outstanding=True)
    journal.rewrite([], [report(number) for number in range(20)])
    assert journal.degraded, "the disk is still full"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.rewrite([], [report(18), report(19)])
    assert not journal.degraded
    journal.reported(report(20))
    journal.close()
"""


@pytest.mark.parametrize("mode", ["write", "fsync"])
def test_a_full_disk_is_said_once_stops_nothing_and_heals(path: Path, mode: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(path), mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("journal.degraded") == 1
    assert run.stdout.count("journal.healed") == 1
    found = recovered(path)
    assert [kept.job_id for kept in found.reported] == ["job-18", "job-19", "job-20"]
    assert found.damaged_bytes == 0
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def test_a_journal_never_holds_a_spec() -> None:
    fields = {field for record in (JournalClaimed, Reported) for field in record.__struct_fields__}
    assert fields == {"job_id", "lease_token", "action", "frame"}
    assert "spec" not in frames.Report.__struct_fields__
