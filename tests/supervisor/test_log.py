"""Facts become lines; children's lines become entries; a reader that does not read holds up nobody."""

import json
import os
import threading

import pytest

from supervisor import facts, log
from supervisor.log import LineWriter, Log, resolve_format


class Lines:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.kept.append(line)


def written(log_format: log.Format, level: str = "info") -> tuple[Log, list[bytes]]:
    lines = Lines()
    return Log(lines, level=level, log_format=log_format, colors=False), lines.kept  # type: ignore[arg-type]


SILENT = facts.ChildSilent(
    pool="rig", slot="rig-1", incarnation=2, silent_for=10.123456, thread_silent_for=0.5, jobs_in_hand=1
)
SPAWNED = facts.ChildSpawned(pool="rig", slot="rig-1", incarnation=2, pid=4711)


def test_every_fact_has_a_line_or_is_left_out_on_purpose() -> None:
    kinds = {
        kind
        for kind in vars(facts).values()
        if isinstance(kind, type) and issubclass(kind, facts.Fact) and kind not in (facts.Fact, facts.SlotFact)
    }
    assert kinds == set(log._LINES)


def test_json() -> None:
    out, lines = written("json")
    out.publish(SILENT)
    entry = json.loads(lines[0])
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "level": "warning",
        "event": "event loop is silent",
        "pool": "rig",
        "slot": "rig-1",
        "incarnation": 2,
        "silent_for": 10.123,
        "thread_silent_for": 0.5,
        "jobs_in_hand": 1,
    }


def test_console_and_journald() -> None:
    out, lines = written("console")
    out.publish(SILENT)
    assert b"event loop is silent" in lines[0]
    assert b"slot=rig-1" in lines[0]
    out, lines = written("journald")
    out.publish(SILENT)
    assert lines[0].startswith(b"<4>event loop is silent pool=rig slot=rig-1")


def test_nothing_that_is_logged_steers_a_terminal() -> None:
    out, lines = written("console")
    steering = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\r"
    out.forward("rig-1", [steering.encode(), json.dumps({"event": "print", "level": "info", "m": steering}).encode()])
    assert [line.count(b"\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\u202e") for line in lines] == [1, 1]
    assert all(line.decode().isprintable() for line in lines)


def test_a_line_in_the_journal_stays_one_line() -> None:
    out, lines = written("journald")
    out.forward("rig-1", [b'{"event":"two\\nlines","level":"error","detail":"a b"}'])
    assert lines == [b'<3>two\\nlines detail="a b" slot=rig-1']


def test_what_is_below_the_level_is_left_out() -> None:
    out, lines = written("json")
    out.publish(SPAWNED)
    assert lines == []
    out, lines = written("json", level="debug")
    out.publish(SPAWNED)
    assert len(lines) == 1


def test_lines_of_children_get_the_name_of_their_slot() -> None:
    out, lines = written("json")
    out.forward(
        "rig-1", [b'{"event":"claimed","level":"info","job_id":"job_1"}', b"printed", b'{"not":"a line"}', b"\xff"]
    )
    entries = [json.loads(line) for line in lines]
    assert {entry["slot"] for entry in entries} == {"rig-1"}
    assert [entry["event"] for entry in entries] == ["claimed", "printed", '{"not":"a line"}', "\ufffd"]
    assert [entry.get("stream") for entry in entries] == [None, "output", "output", "output"]
    assert entries[0]["job_id"] == "job_1"


@pytest.mark.parametrize(
    ("wanted", "is_terminal", "expected"),
    [("auto", True, "console"), ("auto", False, "json"), ("journald", True, "journald"), ("console", False, "console")],
)
def test_the_format_follows_the_reader(wanted: str, is_terminal: bool, expected: str) -> None:
    assert resolve_format(wanted, is_terminal=is_terminal) == expected


def test_a_reader_that_does_not_read_loses_lines_and_stops_nobody() -> None:
    reader, writer_fd = os.pipe()
    writer = LineWriter(writer_fd)
    line = b"x" * 1000
    lines = log._MAX_WAITING // 1000 + 1000
    for _ in range(lines):
        writer.write(line)
    dropped = writer.dropped
    assert dropped > 0
    received = 0

    def read_all() -> None:
        nonlocal received
        while data := os.read(reader, 1 << 20):
            received += len(data)

    thread = threading.Thread(target=read_all)
    thread.start()
    writer.close()
    os.close(writer_fd)
    thread.join()
    os.close(reader)
    assert received == (lines - dropped) * 1001


def test_a_reader_that_is_gone_stops_nobody() -> None:
    reader, writer_fd = os.pipe()
    os.close(reader)
    writer = LineWriter(writer_fd)
    writer.write(b"into the void")
    writer.close()
    os.close(writer_fd)
