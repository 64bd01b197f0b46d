"""The stream against websockets' own core: however bytes are cut up, both must read the same out of them."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from control_plane.web.message_stream import MessageStream
from wire.codec import MAX_FRAME_TO_SERVER

TEXTS = st.sampled_from([b"", b"{}", b"\x81\x81", b"x" * 125, b"x" * 126, b"y" * 70_000])
FRAMES = st.one_of(
    TEXTS.map(lambda data: Frame(Opcode.TEXT, data)),
    TEXTS.map(lambda data: Frame(Opcode.BINARY, data)),
    TEXTS.map(lambda data: Frame(Opcode.TEXT, data, fin=False)),
    TEXTS.map(lambda data: Frame(Opcode.CONT, data, fin=False)),
    TEXTS.map(lambda data: Frame(Opcode.CONT, data)),
    st.just(Frame(Opcode.PING, b"here")),
    st.just(Frame(Opcode.PONG, b"")),
    st.just(Frame(Opcode.TEXT, b"reserved", rsv1=True)),
    st.just(Frame(Opcode.CLOSE, b"\x03\xe8")),
)


def opened(core):
    """The core behind a handshake, with nothing left to write."""
    client = ClientProtocol(parse_uri("ws://x/"))
    client.send_request(client.connect())
    core.receive_data(b"".join(client.data_to_send()))
    (request,) = core.events_received()
    core.send_response(core.accept(request))
    client.receive_data(b"".join(core.data_to_send()))
    client.events_received()
    return client


def written(frame, masked):
    # Frame.serialize refuses to write what breaks the protocol, so that is written by its parts.
    data = bytes(frame.data)
    first = (0x80 if frame.fin else 0) | (0x40 if frame.rsv1 else 0) | frame.opcode
    flag = 0x80 if masked else 0
    if len(data) < 126:
        head = bytes([first, flag | len(data)])
    elif len(data) < 1 << 16:
        head = bytes([first, flag | 126]) + len(data).to_bytes(2)
    else:
        head = bytes([first, flag | 127]) + len(data).to_bytes(8)
    mask = b"\x81\x00\x81\x7f"
    if not masked:
        return head + data
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))


def read_by_core(chunks):
    core = ServerProtocol(max_size=MAX_FRAME_TO_SERVER)
    opened(core)
    events = []
    output = b""
    for chunk in chunks:
        core.receive_data(chunk)
        for event in core.events_received():
            whole = event.opcode is Opcode.TEXT and event.fin
            events.append(bytes(event.data) if whole else (event.opcode, bytes(event.data), event.fin))
        output += b"".join(core.data_to_send())
    return events, output, core.state, core.close_sent, core.eof_sent


def read_by_stream(chunks):
    stream = MessageStream()
    opened(stream.core)
    events = []
    output = b""
    for chunk in chunks:
        events += [
            event if isinstance(event, bytes) else (event.opcode, bytes(event.data), event.fin)
            for event in stream.receive(chunk)
        ]
        output += b"".join(stream.take_output())
    return events, output, stream.core.state, stream.core.close_sent, stream.ended


@given(st.lists(FRAMES, max_size=6), st.lists(st.integers(0, 300), max_size=8), st.booleans())
@example([Frame(Opcode.TEXT, b"{}"), Frame(Opcode.TEXT, b"{}")], [2, 6], False)
@example([Frame(Opcode.TEXT, b"one", fin=False), Frame(Opcode.TEXT, b"{}")], [], False)
def test_bytes_are_read_as_the_core_reads_them(frames, cuts, last_unmasked):
    data = b"".join(written(frame, not last_unmasked or frame is not frames[-1]) for frame in frames)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    chunks = [data[start:stop] for start, stop in pairwise(places)]
    assert read_by_stream(chunks) == read_by_core(chunks)


def test_a_message_that_is_too_large_is_refused_by_its_head():
    stream = MessageStream()
    opened(stream.core)
    assert stream.receive(bytes([0x81, 0xFF]) + (MAX_FRAME_TO_SERVER + 1).to_bytes(8) + b"mask") == []
    assert stream.core.close_sent.code == 1009
    assert stream.ended
    assert stream.receive(b"x" * 1000) == []


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_what_is_sent_can_be_read(size):
    stream = MessageStream()
    client = opened(stream.core)
    stream.send(b"a" * size)
    stream.send_ping(b"here")
    stream.send(b"b")
    client.receive_data(b"".join(stream.take_output()))
    assert [(event.opcode, bytes(event.data)) for event in client.events_received()] == [
        (Opcode.TEXT, b"a" * size),
        (Opcode.PING, b"here"),
        (Opcode.TEXT, b"b"),
    ]


def test_frames_right_behind_the_handshake_are_read_by_the_core_alone():
    stream = MessageStream()
    client = ClientProtocol(parse_uri("ws://x/"))
    client.send_request(client.connect())
    half = written(Frame(Opcode.TEXT, b"hello"), masked=True)
    (request,) = stream.receive(b"".join(client.data_to_send()) + half[:2])
    assert isinstance(request, Request)
    stream.send_response(stream.accept(request))
    assert stream.receive(half[2:]) == [b"hello"]
