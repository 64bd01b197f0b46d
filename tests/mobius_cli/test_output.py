import os
import pty
import re
import subprocess
import sys

import pytest

from mobius_cli.output import Output

COLUMNS = [("ID", lambda record: str(record["id"])), ("STATUS", lambda record: str(record.get("status", "")))]
RECORDS = [{"id": "a", "status": "completed", "more": {"x": 1}}, {"id": "long-" * 40}]

ON_A_TERMINAL = f"""
from mobius_cli.output import Output
Output("table").table(["ID", "STATUS"], [["{"long-" * 40}", "completed"], ["[bold]b[/bold]", "failed"]])
"""


def test_a_pipe_gets_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table").records(COLUMNS, RECORDS, nothing="none")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].index("STATUS") == lines[1].index("completed") == 202
    assert lines[2] == "long-" * 40


def test_a_program_gets_what_the_server_said(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").records(COLUMNS, RECORDS[:1], nothing="none")
    Output("json").records(COLUMNS, [], nothing="none")
    Output("json").record(COLUMNS, RECORDS[0])
    captured = capsys.readouterr()
    one = '{"id":"a","status":"completed","more":{"x":1}}'
    assert captured.out == f"[{one}]\n[]\n{one}\n"
    assert captured.err == ""


def test_nothing_is_said_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table").records(COLUMNS, [], nothing="no runs")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no runs\n")


def test_one_record_leaves_out_what_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table").record(COLUMNS, {"id": "a"})
    assert capsys.readouterr().out == "id  a\n"


def test_a_terminal_gets_a_table_that_cuts_no_id_and_obeys_no_markup() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "60"}
        subprocess.run([sys.executable, "-c", ON_A_TERMINAL], stdout=theirs, env=environment, check=True, timeout=30)
        os.close(theirs)
        shown = b""
        try:
            while chunk := terminal.read(65536):
                shown += chunk
        except OSError:
            pass  # what a terminal says when its last writer has gone
    text = shown.decode()
    assert re.sub(r"completed|\s|\x1b\[\d*m", "", text).count("long-" * 40) == 1
    assert "[bold]b[/bold]" in text
    assert "\x1b[32mcompleted" in text
