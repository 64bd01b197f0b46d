from typing import Any

import pytest

from mobius_cli import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (3, "3"),
        ({"a": [1]}, '{"a":[1]}'),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\u202edrow", "\\u202edrow"),
        ("Grüße", "Grüße"),
    ],
)
def test_plain(value: Any, shown: str) -> None:
    assert text.plain(value) == shown


def test_plain_cuts_what_no_terminal_can_hold() -> None:
    assert len(text.plain("x" * 100_000)) < 30_000


@pytest.mark.parametrize("value", [None, 3, "", "yesterday", "2026-11-22", "2026-11-22T02:31:07"])
def test_what_is_no_time_is_nothing(value: Any) -> None:
    assert text.moment(value) is None
    assert text.date_and_time(value) == ""
    assert text.time_of_day(value) == ""


@pytest.mark.parametrize(
    ("end", "shown"),
    [
        ("2026-11-22T00:00:00.340Z", "340 ms"),
        ("2026-11-22T00:00:02.44Z", "2.4 s"),
        ("2026-11-22T00:03:20Z", "3 min 20 s"),
        ("2026-11-22T05:03:20Z", "5 h 3 min"),
        ("2026-11-21T23:59:59Z", "0 ms"),
        (None, ""),
    ],
)
def test_took(end: str | None, shown: str) -> None:
    assert text.took("2026-11-22T00:00:00Z", end) == shown


def test_times_are_those_of_this_machine() -> None:
    local = text.moment("2026-11-22T02:31:07.1239Z")
    assert local is not None
    assert text.time_of_day("2026-11-22T02:31:07.1239Z") == f"{local:%H:%M:%S}.123"
    assert text.date_and_time("2026-11-22T02:31:07.1239Z") == f"{local:%Y-%m-%d %H:%M:%S}"


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        ({}, ""),
        ({"error_type": "T"}, "T"),
        ({"error_message": "m"}, "m"),
        ({"error_type": "T", "error_message": "m"}, "T: m"),
    ],
)
def test_fault(record: dict[str, Any], shown: str) -> None:
    assert text.fault(record) == shown
