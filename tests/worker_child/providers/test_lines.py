import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.model_server import in_pieces
from worker_child.providers import lines as module
from worker_child.providers.lines import EventReader, LineSplitter, LineTooLongError


def split(pieces):
    splitter = LineSplitter()
    return [line for piece in pieces for line in splitter.feed(piece)] + splitter.end()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_end_in_three_ways_wherever_they_are_cut(end, size):
    data = end.join([b"a", b"", "müß".encode(), b"b:c", b""])
    assert split(in_pieces(data, size)) == [b"a", b"", "müß".encode(), b"b:c"]


@given(st.lists(st.binary(max_size=5)))
def test_what_it_is_cut_into_makes_no_difference(pieces):
    assert split(pieces) == split([b"".join(pieces)])


def test_a_byte_order_mark_is_no_part_of_the_first_line():
    assert split([b"\xef\xbb", b"\xbfdata: x\n\xef\xbb\xbfy"]) == [b"data: x", b"\xef\xbb\xbfy"]


def test_a_line_is_bounded_whether_it_ends_or_not():
    with pytest.raises(LineTooLongError):
        split([b"x" * 65536] * 100)
    with pytest.raises(LineTooLongError):
        LineSplitter().feed(b"x" * (module.MAX_LINE + 1) + b"\n")
    assert len(LineSplitter().feed(b"x" * module.MAX_LINE + b"\n")) == 1


def test_a_line_that_comes_byte_by_byte_costs_no_more_than_its_bytes():
    splitter = LineSplitter()
    for _ in range(module.MAX_LINE):
        splitter.feed(b"x")
    assert len(splitter.feed(b"\n")[0]) == module.MAX_LINE


def events(lines):
    reader = EventReader()
    found = [reader.feed(line) for line in lines] + [reader.end()]
    return [data for data in found if data is not None]


def test_events_are_their_data():
    lines = [b": hello", b"event: a", b"id: 7", b"retry: 10", b"data: one", b"", b"data:two", b"data:  three", b"", b""]
    assert events(lines) == [b"one", b"two\n three"]


def test_an_event_without_data_is_none_and_one_without_its_end_counts():
    assert events([b"event: ping", b"", b"data", b"", b"data: last"]) == [b"", b"last"]


def test_an_event_is_bounded_too():
    with pytest.raises(LineTooLongError):
        events([b"data: " + b"x" * 65536] * 100)
