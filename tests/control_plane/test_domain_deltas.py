import pytest

from control_plane.domain import deltas
from control_plane.domain.deltas import START, Generation, read_items


def text(number):
    return {"text": f"word {number} "}


def generation(*, confirmed=True, floor=-1):
    made = Generation("proj", "job", b"hash")
    if confirmed:
        made.confirm(2, floor)
    return made


def sequences(found):
    return [delta.sequence for delta in found]


def test_what_arrives_is_live_at_once_and_waits_to_be_written():
    one = generation()
    assert [one.take(number, text(number)) for number in (0, 1, 1, 0, 3)] == [True, True, False, False, True]
    assert sequences(one.after(START)) == [0, 1, 3]
    assert sequences(one.after((2, 1))) == [3]
    chunk = one.chunk()
    assert chunk.last_sequence == 3
    assert [(each.sequence, each.text) for each in read_items(chunk.items)] == [
        (0, b'{"text":"word 0 "}'),
        (1, b'{"text":"word 1 "}'),
        (3, b'{"text":"word 3 "}'),
    ]
    one.take(4, text(4))
    one.written(chunk)
    assert sequences(read_items(one.chunk().items)) == [4]
    assert sequences(one.after(START)) == [0, 1, 3, 4]


def test_nothing_is_shown_or_written_of_a_lease_that_is_not_confirmed():
    one = generation(confirmed=False)
    one.take(0, text(0))
    assert (one.after(START), one.chunk()) == (None, None)
    one.confirm(1, -1)
    assert sequences(one.after(START)) == [0]


def test_a_refused_lease_says_nothing_more():
    one = generation()
    one.take(0, text(0))
    one.refuse()
    assert not one.take(1, text(1))
    assert (one.after(START), one.chunk(), one.waits) == (None, None, False)


def test_what_the_store_has_already_is_not_written_again():
    one = generation(confirmed=False)
    for number in range(4):
        one.take(number, text(number))
    one.confirm(2, 1)
    assert sequences(read_items(one.chunk().items)) == [2, 3]
    assert one.after(START) is None  # the store has the beginning
    assert sequences(one.after((2, 1))) == [2, 3]


def test_readers_of_other_attempts():
    one = generation()
    one.take(0, text(0))
    assert sequences(one.after((1, 99))) == [0]
    assert one.after((3, 0)) is None


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(deltas, "MOST_RECENT_BYTES", 100)
    monkeypatch.setattr(deltas, "MOST_UNWRITTEN_BYTES", 200)
    monkeypatch.setattr(deltas, "MOST_STREAM_BYTES", 1000)
    one = generation()
    taken = [one.take(number, text(number)) for number in range(100)]
    assert 40 < taken.count(True) < 60
    assert len(one.after((2, one.last_sequence))) == 0
    assert one.after(START) is None
    kept = read_items(one.chunk().items)
    assert sum(len(each.text) for each in kept) <= 200
    assert one.left_out == taken.count(False) + taken.count(True) - len(kept)


def test_one_delta_larger_than_memory_is_written_nevertheless(monkeypatch):
    monkeypatch.setattr(deltas, "MOST_UNWRITTEN_BYTES", 10)
    one = generation()
    one.take(0, text("x" * 100))
    assert len(read_items(one.chunk().items)) == 1


@pytest.mark.parametrize("odd", [{"text": "\u0000 \n \u2028 \U0001f600"}, {"type": "thinking", "thinking": ""}, {}])
def test_any_delta_comes_back_as_it_was(odd):
    one = generation()
    one.take(0, odd)
    (delta,) = read_items(one.chunk().items)
    assert deltas.msgspec.json.decode(delta.text) == odd
    assert b"\n" not in delta.text
