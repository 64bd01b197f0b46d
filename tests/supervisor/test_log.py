"""Facts become lines; children's lines become entries; a reader that does not read holds up nobody."""

import functools
import json
from pathlib import Path

import pytest

from service_manager.journal import Journal
from supervisor import facts, log
from supervisor.errors import ConfigurationError
from supervisor.log import Log, Source, open_log, resolve_format
from supervisor.output import Line
from tests.support.journal import fields_of


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
    pool="rig",
    slot="rig-1",
    incarnation=2,
    silent_for=10.123456,
    thread_silent_for=0.5,
    loop_silent=True,
    jobs_in_hand=1,
    session="registered",
)
SPAWNED = facts.ChildSpawned(pool="rig", slot="rig-1", incarnation=2, pid=4711)


def test_every_fact_has_a_line_or_is_left_out_on_purpose() -> None:
    kinds = {kind for kind in vars(facts).values() if isinstance(kind, type) and issubclass(kind, facts.Fact)} - {
        facts.Fact,
        facts.SlotFact,
        facts.SuspectFact,
        facts.JobFact,
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
        "session": "registered",
    }


def test_console_and_journald() -> None:
    out, lines = written("console")
    out.publish(SILENT)
    assert b"event loop is silent" in lines[0]
    assert b"slot=rig-1" in lines[0]


def test_a_fact_in_the_journal_has_its_fields() -> None:
    out, lines = written("journald")
    out.publish(SILENT)
    fields = fields_of(lines[0])
    assert fields.pop("MESSAGE").startswith("event loop is silent pool=rig slot=rig-1 incarnation=2 silent_for=10.123")
    assert fields == {
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "mobius-supervisor",
        "MOBIUS_EVENT": "ChildSilent",
        "MOBIUS_POOL": "rig",
        "MOBIUS_SLOT": "rig-1",
        "MOBIUS_INCARNATION": "2",
        "MOBIUS_SILENT_FOR": "10.123456",
        "MOBIUS_THREAD_SILENT_FOR": "0.5",
        "MOBIUS_JOBS_IN_HAND": "1",
        "MOBIUS_SESSION": "registered",
    }


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(facts).values() if isinstance(kind, type) and issubclass(kind, facts.Fact)]
)
def test_no_fact_hides_what_a_line_is_made_of(kind: type[facts.Fact]) -> None:
    assert not {"event", "level", "timestamp"} & set(kind.__struct_fields__)


def test_stacks_are_read_below_the_line() -> None:
    out, lines = written("journald")
    evidence = facts.ProcessEvidence(state="S", stacks='Thread 0x1:\n  File "a.py", line 1\n')
    hung = facts.ChildHung(
        pool="rig",
        slot="rig-1",
        incarnation=1,
        why="hung",
        silent_for=45.0,
        thread_silent_for=0.1,
        loop_silent=True,
        jobs_in_hand=1,
        session="registered",
        evidence=evidence,
    )
    out.publish(hung)
    line, *below = fields_of(lines[0])["MESSAGE"].split("\n")
    assert 'session=registered evidence={"state":"S"}' in line
    assert below == ["Thread 0x1:", '  File "a.py", line 1']


RIG = Source(pool="rig", slot="rig-1", incarnation=2)
OF_RIG = {"MOBIUS_POOL": "rig", "MOBIUS_SLOT": "rig-1", "MOBIUS_INCARNATION": "2"}


def own(*texts: bytes) -> list[Line]:
    return [Line(text, is_own=True) for text in texts]


def printed(*texts: bytes) -> list[Line]:
    return [Line(text, is_own=False) for text in texts]


def test_nothing_that_is_logged_steers_a_terminal() -> None:
    steering = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\r"
    for log_format in ("console", "journald"):
        out, lines = written(log_format)  # type: ignore[arg-type]
        out.forward(RIG, printed(steering.encode()))
        out.forward(RIG, own(json.dumps({"event": "print", "level": "info", "m": steering}).encode()))
        shown = [fields_of(line)["MESSAGE"] if log_format == "journald" else line.decode() for line in lines]
        assert [text.count("\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\u202e") for text in shown] == [1, 1]
        assert all(text.isprintable() for text in shown)


def test_a_childs_line_in_the_journal_says_which_job_wrote_it() -> None:
    out, lines = written("journald")
    entry = {
        "event": "resized",
        "level": "error",
        "job_id": "job_1",
        "run_id": "run_1",
        "action": "image.resize",
        "attempt": 3,
        "width": 640,
        "exception": "Traceback:\nKeyError",
    }
    out.forward(RIG, own(json.dumps(entry).encode()))
    assert fields_of(lines[0]) == OF_RIG | {
        "MESSAGE": "resized job_id=job_1 run_id=run_1 action=image.resize attempt=3 width=640 pool=rig slot=rig-1 "
        "incarnation=2\nTraceback:\nKeyError",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "mobius-supervisor",
        "MOBIUS_EVENT": "resized",
        "MOBIUS_JOB": "job_1",
        "MOBIUS_RUN": "run_1",
        "MOBIUS_ACTION": "image.resize",
        "MOBIUS_ATTEMPT": "3",
    }


def test_what_the_process_of_a_job_prints_says_which_job_it_is() -> None:
    out, lines = written("journald")
    out.forward(RIG, own(b'{"event":"printed","level":"info","stream":"output","job_id":"job_1"}'))
    fields = fields_of(lines[0])
    assert (fields["MOBIUS_STREAM"], fields["MOBIUS_JOB"]) == ("output", "job_1")
    assert "MOBIUS_EVENT" not in fields


FORGED = (
    b'{"event":"x\\nPRIORITY=0","level":"info","slot":"rig-9","pool":"p","incarnation":7,"PRIORITY":"0","job_id":[1]}'
)


def test_no_text_of_a_child_pretends_to_a_field() -> None:
    out, lines = written("journald")
    out.forward(RIG, own(FORGED))
    assert fields_of(lines[0]) == OF_RIG | {
        "MESSAGE": "x\nPRIORITY=0 slot=rig-1 pool=rig incarnation=2 PRIORITY=0 job_id=[1]",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "mobius-supervisor",
        "MOBIUS_EVENT": "x\nPRIORITY=0",
    }


def test_what_is_printed_is_text_whatever_it_looks_like() -> None:
    out, lines = written("journald")
    out.forward(RIG, printed(FORGED, b"MOBIUS_JOB=job_1"))
    assert [fields_of(line) for line in lines] == [
        OF_RIG
        | {
            "MESSAGE": f"{text} stream=output pool=rig slot=rig-1 incarnation=2",
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "mobius-supervisor",
            "MOBIUS_STREAM": "output",
        }
        for text in (FORGED.decode(), "MOBIUS_JOB=job_1")
    ]


def test_what_is_below_the_level_is_left_out() -> None:
    out, lines = written("json")
    out.publish(SPAWNED)
    assert lines == []
    out, lines = written("json", level="debug")
    out.publish(SPAWNED)
    assert len(lines) == 1


def test_lines_of_children_get_the_name_of_their_slot() -> None:
    out, lines = written("json")
    torn = [b"printed", b'{"not":"a line"}', b"\xff", b'{"event":"\xed\xa0\x80","level":"info"}', b"[" * 10_000]
    out.forward(RIG, own(b'{"event":"claimed","level":"info","job_id":"job_1"}', *torn))
    entries = [json.loads(line) for line in lines]
    assert {(entry["slot"], entry["pool"], entry["incarnation"]) for entry in entries} == {("rig-1", "rig", 2)}
    assert [entry["event"] for entry in entries] == ["claimed", *(text.decode("utf-8", "replace") for text in torn)]
    assert [entry.get("stream") for entry in entries] == [None, *["output"] * len(torn)]
    assert entries[0]["job_id"] == "job_1"


@pytest.mark.parametrize(
    ("wanted", "is_terminal", "is_behind_journal", "expected"),
    [
        ("auto", True, False, "console"),
        ("auto", False, False, "json"),
        ("auto", False, True, "journald"),
        ("journald", True, False, "journald"),
        ("console", False, True, "console"),
        ("json", False, True, "json"),
    ],
)
def test_the_format_follows_the_reader(wanted: str, is_terminal: bool, is_behind_journal: bool, expected: str) -> None:
    assert resolve_format(wanted, is_terminal=is_terminal, is_behind_journal=is_behind_journal) == expected


def test_a_journal_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = functools.partial(Journal, str(tmp_path / "socket"))
    monkeypatch.setattr(log.journal, "Journal", missing)
    with pytest.raises(ConfigurationError, match=r"supervisor\.log_format"):
        open_log("info", "journald", {})
