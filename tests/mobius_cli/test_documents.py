import io
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mobius_cli import documents
from mobius_cli.documents import parse_inputs, parse_moment, read_automation
from mobius_cli.errors import InputError, NotFoundError, UsageError

TOML = b'handle = "h"\n[[spec.steps]]\nkey = "a"\n'
JSON = b'{"handle": "h", "spec": {"steps": [{"key": "a"}]}}'
MEANT = {"handle": "h", "spec": {"steps": [{"key": "a"}]}}


@pytest.mark.parametrize(("name", "content"), [("a.toml", TOML), ("a.json", JSON), ("a", TOML), ("a", b"\n " + JSON)])
def test_both_languages(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_automation(str(tmp_path / name)) == MEANT


@pytest.mark.parametrize("content", [TOML, JSON])
def test_standard_input(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_automation("-") == MEANT


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b"{", "a.json is no JSON"),
        ("a.toml", b"=", "a.toml is no TOML"),
        ("a.toml", b"\xff", "a.toml is no TOML"),
        ("a.json", b"[]", "expected an object with the keys handle"),
        ("a.json", b'{"handel": "h"}', "unknown key 'handel'; expected handle"),
        ("a.json", b'{"handle": 3}', "'handle' is 3; expected text"),
        ("a.toml", b"spec = 3", "'spec' is 3; expected a table"),
        ("a.toml", b"[spec]\nx = nan", None),
        ("a.json", b"[" * 100_000, "is no JSON"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: bytes, says: str | None) -> None:
    (tmp_path / name).write_bytes(content)
    if says is None:
        assert read_automation(str(tmp_path / name))
        return
    with pytest.raises(InputError, match=says):
        read_automation(str(tmp_path / name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no file '.*absent\.toml'"):
        read_automation(str(tmp_path / "absent.toml"))
    with pytest.raises(InputError, match="cannot read"):
        read_automation(str(tmp_path))


def test_a_file_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 1000)
    with pytest.raises(InputError, match="larger than 1000"):
        read_automation("/dev/zero")


@pytest.mark.parametrize(
    ("pairs", "text", "meant"),
    [
        ([], None, {}),
        (["a=b", "c=d=e"], None, {"a": "b", "c": "d=e"}),
        (["n=3", "b=true", "l=[1]", 't="3"', "z=007", "e="], None, None),
        (["a=2"], '{"a": 1, "b": 1}', {"a": 2, "b": 1}),
    ],
)
def test_inputs(pairs: list[str], text: str | None, meant: dict[str, Any] | None) -> None:
    meant = meant if meant is not None else {"n": 3, "b": True, "l": [1], "t": "3", "z": "007", "e": ""}
    assert parse_inputs(pairs, text) == meant


@pytest.mark.parametrize(
    ("pairs", "text", "says"),
    [(["a"], None, "--input"), (["=a"], None, "--input"), ([], "[]", "--inputs"), ([], "{", "--inputs")],
)
def test_inputs_that_cannot_be_meant(pairs: list[str], text: str | None, says: str) -> None:
    with pytest.raises(UsageError, match=f"^{says}: "):
        parse_inputs(pairs, text)


def test_times_without_an_offset_are_this_machines() -> None:
    for text in ("2026-01-31", "2026-01-31T12:00"):
        assert parse_moment(text, "--created-after") == datetime.fromisoformat(text).astimezone().isoformat()
    moment = parse_moment("2026-01-31T12:00:00Z", "--created-after")
    assert moment is not None
    assert datetime.fromisoformat(moment) == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert parse_moment(None, "--created-after") is None
    for wrong in ("yesterday", "", "0001-01-01T00:00+23:59"):
        with pytest.raises(UsageError, match=r"^--created-after: expected a time such as"):
            parse_moment(wrong, "--created-after")
