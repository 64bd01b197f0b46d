import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_child import deltas
from worker_child.deltas import DeltaStream, DeltaTraffic, Sent


def stream_of(*texts):
    stream = DeltaStream()
    for text in texts:
        stream.add({"text": text})
    return stream


def test_what_waits_becomes_one_delta():
    stream = stream_of("a", "b", "c")
    assert stream.send(0.0) == [Sent(0, {"text": "abc"})]
    stream.add({"text": "d"})
    assert stream.send(0.0) == [Sent(1, {"text": "d"})]
    assert not stream.waits


def test_only_texts_of_one_kind_are_joined_and_the_order_stays():
    stream = DeltaStream()
    thinking = [{"type": "thinking", "thinking": word} for word in ("hm", "m")]
    shapes = [{"text": "a"}, *thinking, {"text": "b"}, {"text": "c"}, {"text": "d", "index": 1}, {"text": 7}, {}]
    for delta in shapes:
        stream.add(delta)
    joined = [{"text": "a"}, {"type": "thinking", "thinking": "hmm"}, {"text": "bc"}, *shapes[5:]]
    assert stream.send(0.0) == [Sent(sequence, delta) for sequence, delta in enumerate(joined)]


def test_a_long_text_becomes_several_deltas():
    text = "x" * (deltas.MAX_PIECE * 2 + 1)
    sent = stream_of(text, "y").send(0.0)
    assert [len(each.delta["text"]) for each in sent] == [deltas.MAX_PIECE, deltas.MAX_PIECE, 2]
    assert "".join(each.delta["text"] for each in sent) == text + "y"


def test_what_was_sent_is_kept_as_it_was_until_it_is_acknowledged():
    stream = stream_of("a")
    first = stream.send(0.0)
    stream.add({"text": "b"})
    second = stream.send(0.0)
    assert stream.unacknowledged() == first + second
    stream.acknowledged(0)
    assert stream.unacknowledged() == second
    stream.acknowledged(10**6)
    assert stream.unacknowledged() == []


def test_of_what_nobody_acknowledges_the_last_is_kept():
    stream = DeltaStream()
    for _ in range(40):
        stream.add({"text": "x" * deltas.MAX_PIECE})
        stream.send(0.0)
    kept = stream.unacknowledged()
    assert sum(len(each.delta["text"]) for each in kept) <= deltas.MAX_KEPT
    assert kept[-1].sequence == 39
    assert not stream.skipped


def test_what_nobody_takes_is_bounded_too():
    stream = DeltaStream()
    for _ in range(40):
        stream.add({"text": "x" * deltas.MAX_PIECE})
    assert stream.skipped
    sent = stream.send(0.0)
    assert sum(len(each.delta["text"]) for each in sent) <= deltas.MAX_KEPT + deltas.MAX_PIECE
    assert [each.sequence for each in sent] == list(range(len(sent)))


def test_a_large_delta_of_another_shape_counts_with_its_size():
    stream = DeltaStream()
    stream.add({"image": "x" * (2 * deltas.MAX_KEPT)})
    stream.add({"text": "late"})
    assert stream.skipped


def test_without_acknowledgements_nothing_waits_but_for_the_bytes_to_leave():
    traffic, stream = DeltaTraffic(), stream_of("a")
    assert traffic.release(stream, 5.0) == [Sent(0, {"text": "a"})]
    assert traffic.awaits_written
    stream.add({"text": "b"})
    assert traffic.release(stream, 5.0) == []
    assert traffic.next_at == math.inf
    traffic.written()
    assert traffic.release(stream, 5.0) == [Sent(1, {"text": "b"})]


def test_an_acknowledgement_that_is_outstanding_holds_back_for_a_second_at_most():
    traffic, stream = DeltaTraffic(), stream_of("a")
    traffic.release(stream, 5.0)
    traffic.written()
    traffic.acknowledged(stream, 0)
    stream.add({"text": "b"})
    assert len(traffic.release(stream, 6.0)) == 1
    traffic.written()
    stream.add({"text": "c"})
    assert traffic.release(stream, 6.5) == []
    assert traffic.next_at == 6.0 + deltas.ACKNOWLEDGEMENT_PATIENCE
    assert traffic.release(stream, traffic.next_at) == [Sent(2, {"text": "c"})]


def test_one_stream_does_not_wait_for_the_acknowledgements_of_another():
    traffic, one, other = DeltaTraffic(), stream_of("a"), stream_of("b")
    traffic.release(one, 5.0)
    traffic.acknowledged(None, 3)
    traffic.written()
    assert len(traffic.release(other, 5.0)) == 1


def test_a_new_connection_hears_what_was_not_acknowledged_and_knows_of_no_acknowledgements():
    traffic, stream = DeltaTraffic(), stream_of("a")
    traffic.release(stream, 5.0)
    traffic.acknowledged(stream, 0)
    traffic.written()
    stream.add({"text": "b"})
    traffic.release(stream, 5.0)
    traffic.disconnected()
    stream.add({"text": "c"})
    assert traffic.repeat(stream, 9.0) == [Sent(1, {"text": "b"}), Sent(2, {"text": "c"})]
    traffic.written()
    stream.add({"text": "d"})
    assert traffic.release(stream, 9.0) == [Sent(3, {"text": "d"})]


EVENTS = st.lists(
    st.one_of(
        st.text("abcdefgh", min_size=1, max_size=3),
        st.sampled_from(["written", "acknowledged", "reconnected", "later"]),
    ),
    max_size=200,
)


@pytest.mark.parametrize("acknowledges", [True, False])
@given(events=EVENTS)
def test_whatever_happens_a_server_that_passes_over_repetitions_has_the_whole_text_in_order(acknowledges, events):
    traffic, stream = DeltaTraffic(), DeltaStream()
    now, produced, arrived, in_flight = 0.0, "", {}, []

    def hear(sent):
        in_flight.extend(sent)

    for event in events:
        match event:
            case "written":
                traffic.written()
                hear(traffic.release(stream, now))
            case "acknowledged":
                for each in in_flight:
                    assert arrived.setdefault(each.sequence, each.delta) == each.delta
                if in_flight and acknowledges:
                    traffic.acknowledged(stream, in_flight[-1].sequence)
                in_flight.clear()
                hear(traffic.release(stream, now))
            case "reconnected":
                in_flight.clear()
                traffic.disconnected()
                hear(traffic.repeat(stream, now))
            case "later":
                now += 0.6
                if now >= traffic.next_at:
                    traffic.next_at = math.inf
                    hear(traffic.release(stream, now))
            case text:
                produced += text
                stream.add({"text": text})
                hear(traffic.release(stream, now))
    hear(traffic.flush(stream, now))
    for each in in_flight:
        assert arrived.setdefault(each.sequence, each.delta) == each.delta
    assert sorted(arrived) == list(range(len(arrived)))
    assert "".join(delta["text"] for _, delta in sorted(arrived.items())) == produced
