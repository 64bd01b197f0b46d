import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import pipe

SETTINGS = pipe.ChildSettings(worker_instance_id="rig-1", api_url="http://127.0.0.1:1", project="default")
SPAWN = pipe.Spawn(slot="rig-1", incarnation=3, supervisor_pid=7, settings=SETTINGS)


@pytest.mark.parametrize(
    ("message", "decode"),
    [
        (SPAWN, pipe.decode_to_mold),
        (pipe.MoldReady(build="1", actions=["print"]), pipe.decode_from_mold),
        (pipe.MoldFailed(message="no module named x"), pipe.decode_from_mold),
        (pipe.Hello(slot="rig-1", incarnation=3, pid=9, build="1"), pipe.decode_from_child),
        (pipe.Beat(slot="rig-1", incarnation=3, source="loop", session="registered"), pipe.decode_from_child),
        (pipe.Drain(grace=5.0), pipe.decode_to_child),
    ],
)
def test_a_message_survives_the_trip(message: pipe.Message, decode: object) -> None:
    assert decode(pipe.encode(message)) == message  # type: ignore[operator]


def test_a_message_fits_into_one_datagram_or_is_refused() -> None:
    with pytest.raises(pipe.PipeMessageError, match="does not fit"):
        pipe.encode(pipe.MoldFailed(message="x" * pipe.MAX_MESSAGE))


def test_text_that_is_no_text_is_no_message() -> None:
    hello = pipe.encode(pipe.Hello(slot="a", incarnation=1, pid=1, build="x"))
    with pytest.raises(pipe.PipeMessageError):
        pipe.decode_from_child(hello.replace(b"\xa1x", b"\xa1\xff"))


@given(st.binary())
def test_only_pipe_message_error_comes_out(data: bytes) -> None:
    for decode in (pipe.decode_to_mold, pipe.decode_from_mold, pipe.decode_from_child, pipe.decode_to_child):
        try:
            assert isinstance(decode(data), pipe.Message)
        except pipe.PipeMessageError:
            continue
