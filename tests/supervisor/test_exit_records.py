"""Exit records: complete, private, bounded, and read again by the next supervisor."""

import json
import threading
from pathlib import Path
from typing import Any

import msgspec

from supervisor import exit_records, facts
from supervisor.config import Limits, Restart
from supervisor.exit_records import KEPT, ExitRecords, previous_ends, prune, remember
from supervisor.slots import Slot
from wire.pipe import Beat, PreviousEnd

DIED = facts.ChildDied(
    pool="rig",
    slot="rig-1",
    incarnation=3,
    cause="hung",
    detail="killed by the supervisor (hung), signal 9",
    exit_code=None,
    signal=9,
    self_made=False,
    asked=False,
    lived=12.5,
    jobs_in_hand=2,
    output=["one", "two"],
    pid=4711,
    session="registered",
    beat=Beat(slot="rig-1", incarnation=3, source="loop", jobs_in_hand=2, oldest_job_age=40.0),
)
HUNG = facts.ChildHung(
    pool="rig",
    slot="rig-1",
    incarnation=3,
    why="hung",
    silent_for=45.0,
    thread_silent_for=0.5,
    loop_silent=True,
    jobs_in_hand=2,
    session="registered",
    hang="loop_blocked",
    evidence=facts.ProcessEvidence(state="S", stacks='Thread 0x1:\n  File "x.py", line 1 in block\n'),
)
SILENT = facts.ChildSilent(
    pool="rig",
    slot="rig-1",
    incarnation=3,
    silent_for=10.0,
    thread_silent_for=0.5,
    loop_silent=True,
    jobs_in_hand=2,
    session="registered",
    evidence=facts.ProcessEvidence(stacks="in begin_of_the_hang"),
)
SPAWNED = facts.ChildSpawned(pool="rig", slot="rig-1", incarnation=1, pid=4711)


def record(tmp_path: Path, *told: facts.Fact) -> list[str]:
    complaints: list[str] = []
    records = ExitRecords(tmp_path, complaints.append)
    for fact in told:
        records.publish(fact)
    records.close()
    return complaints


def files(tmp_path: Path, slot: str = "rig-1") -> list[Path]:
    return sorted((tmp_path / "exits" / slot).glob("*.json"))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_record_has_the_end_the_evidence_the_last_beat_and_the_output(tmp_path: Path) -> None:
    assert record(tmp_path, SILENT, HUNG, DIED) == []
    (path,) = files(tmp_path)
    found = read(path)
    assert (found["cause"], found["signal"], found["pid"], found["lived"]) == ("hung", 9, 4711, 12.5)
    assert found["output"] == ["one", "two"]
    assert found["beat"]["oldest_job_age"] == 40.0
    assert found["hang"]["hang"] == "loop_blocked"
    assert "in block" in found["hang"]["evidence"]["stacks"]
    assert found["silence"]["evidence"]["stacks"] == "in begin_of_the_hang"
    assert found["ended_at"].endswith("Z")


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    record(tmp_path, SPAWNED, DIED)
    (path,) = files(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_evidence_belongs_to_one_incarnation(tmp_path: Path) -> None:
    record(tmp_path, HUNG, msgspec.structs.replace(DIED, incarnation=4))
    (path,) = files(tmp_path)
    assert read(path)["hang"] is None


def test_the_oldest_go(tmp_path: Path) -> None:
    record(tmp_path, *(msgspec.structs.replace(DIED, incarnation=number) for number in range(KEPT + 7)))
    found = files(tmp_path)
    assert [read(path)["incarnation"] for path in found] == list(range(7, KEPT + 7))


def test_the_next_supervisor_knows_how_the_last_process_ended(tmp_path: Path) -> None:
    record(tmp_path, SPAWNED, DIED)
    slots = [Slot(name, "rig", "child", Limits(), Restart()) for name in ("rig-1", "rig-2")]
    remember(slots, tmp_path)
    assert slots[0].last_end == PreviousEnd(incarnation=3, cause="hung", detail=DIED.detail, self_made=False)
    assert slots[1].last_end is None


def test_a_process_that_outlived_its_supervisor_ended_unseen(tmp_path: Path) -> None:
    record(tmp_path, DIED, SPAWNED)
    end = previous_ends(tmp_path)["rig-1"]
    assert (end.cause, end.self_made) == ("supervisor_gone", False)


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    assert previous_ends(tmp_path) == {}
    record(tmp_path, DIED)
    for torn in (b"no json", b'{"cause": "\xff"}', b"[" * 100_000):
        files(tmp_path)[0].write_bytes(torn)
        assert previous_ends(tmp_path) == {}


def test_a_disk_that_refuses_is_told_and_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "exits").write_text("a file where a directory should be")
    (complaint,) = record(tmp_path, DIED)
    assert "could not be written" in complaint


def test_a_full_disk_is_told_with_the_files_name_and_leaves_no_half_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "exits" / "rig-1"
    folder.mkdir(parents=True)
    (folder / ".running.new").symlink_to("/dev/full")
    (complaint,) = record(tmp_path, SPAWNED)
    assert complaint.startswith(f"{folder / 'running'}: ")
    assert "No space left on device" in complaint
    assert list(folder.iterdir()) == []


def test_a_disk_that_does_not_keep_up_costs_records_and_no_time(tmp_path: Path) -> None:
    complaints: list[str] = []
    records = ExitRecords(tmp_path, complaints.append)
    go = threading.Event()
    records._enqueue(lambda: go.wait() and None)
    for _ in range(1000 + 2):
        records.publish(DIED)
    assert complaints
    assert set(complaints) == {f"{tmp_path}/exits: the disk does not keep up, and an exit record was not written"}
    go.set()
    records.close()


def test_records_of_slots_that_are_gone_are_bounded_in_all(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(exit_records, "KEPT_IN_ALL", 3)
    for slot in ("a-1", "b-1", "c-1"):
        record(tmp_path, *(msgspec.structs.replace(DIED, slot=slot, incarnation=number) for number in range(2)))
    prune(tmp_path)
    assert [len(files(tmp_path, slot)) for slot in ("a-1", "b-1", "c-1")] == [0, 1, 2]
    assert not (tmp_path / "exits" / "a-1").exists()
