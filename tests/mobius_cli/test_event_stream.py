import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobius_cli import event_stream
from mobius_cli.event_stream import EventStreamError, EventStreamReader


def event(sequence: int, **more: Any) -> dict[str, Any]:
    return {"sequence": sequence, "event_type": "step.started", **more}


def wire(*events: dict[str, Any]) -> bytes:
    return b"".join(b"id: 1\nevent: x\ndata: " + msgspec.json.encode(one) + b"\n\n" for one in events)


def test_one_event() -> None:
    assert EventStreamReader().feed(wire(event(1))) == [event(1)]


def test_comments_and_unknown_fields_say_nothing() -> None:
    assert EventStreamReader().feed(b": keep-alive\n\nretry: 5\n\nnonsense\n\n" + wire(event(1))) == [event(1)]


def test_data_over_several_lines_is_joined() -> None:
    assert EventStreamReader().feed(b'data: {"sequence": 3,\ndata:"event_type": "a"}\n\n') == [
        {"sequence": 3, "event_type": "a"}
    ]


def test_carriage_returns_are_forgiven() -> None:
    assert EventStreamReader().feed(wire(event(1)).replace(b"\n", b"\r\n")) == [event(1)]


@given(st.lists(st.tuples(st.integers(0, 9), st.text()), max_size=5), st.data())
def test_any_cut_of_the_bytes_gives_the_same_events(said: list[tuple[int, str]], data: st.DataObject) -> None:
    events = [event(sequence, payload={"text": text}) for sequence, text in said]
    content, reader, received = wire(*events), EventStreamReader(), []
    while content:
        size = data.draw(st.integers(1, len(content)))
        received += reader.feed(content[:size])
        content = content[size:]
    assert received == events


@given(st.binary())
def test_arbitrary_bytes_raise_nothing_but_the_one_error(content: bytes) -> None:
    with contextlib.suppress(EventStreamError):
        EventStreamReader().feed(content + b"\n\n")


@pytest.mark.parametrize(
    "data", [b"nonsense", b"[]", b'{"sequence": "1", "event_type": "a"}', b'{"sequence": 1}', b"[" * 10_000]
)
def test_what_is_no_event_is_refused(data: bytes) -> None:
    with pytest.raises(EventStreamError):
        EventStreamReader().feed(b"data: " + data + b"\n\n")


@pytest.mark.parametrize("endless", [b"a" * 100, b"data: " + b"a" * 100 + b"\n"])
def test_an_event_without_end_is_refused(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MAX_EVENT_BYTES", 1000)
    reader = EventStreamReader()
    assert [reader.feed(endless) for _ in range(8)] == [[]] * 8
    with pytest.raises(EventStreamError, match="larger than 1000"):
        reader.feed(endless * 3)
