"""Entries over a real datagram socket; that the journal itself takes them is tested under a real systemd."""

import os
import socket
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_manager.journal import Journal, entry, is_behind
from tests.support.journal import fields_of


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


@pytest.fixture
def listener(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(10)
        yield listening


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True), st.text()))
def test_a_field_holds_what_it_was_given_and_no_text_makes_another(fields: dict[str, str]) -> None:
    expected = {name: text.encode("utf-8", "replace").decode() for name, text in fields.items()}
    assert fields_of(entry(fields)) == expected


@pytest.mark.parametrize("name", ["", "_PID", "message", "A=B", "A\nB", "1A", "A" * 65, "Ä"])
def test_a_name_that_no_field_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name of a field"):
        entry({name: "x"})


def test_entries_arrive_in_order(listener: socket.socket, address: str) -> None:
    journal = Journal(address)
    assert journal.put([b"A=1\n", b"A=2\n"]) == []
    assert [listener.recv(100), listener.recv(100)] == [b"A=1\n", b"A=2\n"]
    journal.close()
    journal.close()


def test_a_large_entry_travels_as_a_sealed_file(listener: socket.socket, address: str) -> None:
    large = entry({"MESSAGE": "x" * 4_000_000})
    journal = Journal(address)
    assert journal.put([large, b"A=2\n"]) == []
    data, ancillary, _, _ = listener.recvmsg(100, 100)
    assert data == b""
    ((_, _, descriptors),) = ancillary
    (fd,) = array("i", descriptors)
    with os.fdopen(fd, "r+b") as file:
        file.seek(0)
        assert file.read() == large
        with pytest.raises(PermissionError):
            os.write(fd, b"no more")
    assert listener.recv(100) == b"A=2\n"
    journal.close()


def test_what_nobody_takes_is_given_back_until_somebody_listens_again(address: str) -> None:
    with pytest.raises(FileNotFoundError):
        Journal(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(address)
        journal = Journal(address)
        assert journal.put([b"A=1\n"]) == []
    assert journal.put([b"A=2\n", b"A=3\n"]) == [b"A=2\n", b"A=3\n"]
    Path(address).unlink()
    assert journal.put([b"A=2\n", b"A=3\n"]) == [b"A=2\n", b"A=3\n"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
        second.bind(address)
        assert journal.put([b"A=2\n", b"A=3\n"]) == []
        assert [second.recv(100), second.recv(100)] == [b"A=2\n", b"A=3\n"]
    journal.close()


def test_whether_a_file_is_the_journals(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as one, (tmp_path / "b").open("w") as other:
        status = os.fstat(one.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_behind(one.fileno(), environ)
        assert not is_behind(other.fileno(), environ)
        assert not is_behind(one.fileno(), {})
        closed = one.fileno()
    assert not is_behind(closed, environ)
