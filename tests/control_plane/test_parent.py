import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from control_plane.config import ConfigurationError
from control_plane.parent import Parent, inherited_pipe
from wire.pipe import (
    MAX_MESSAGE,
    PIPE_FD_VARIABLE,
    Beat,
    Bye,
    Drain,
    FromChild,
    Hello,
    Ready,
    decode_from_child,
    encode,
)


@pytest.fixture
def pipes() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    theirs.settimeout(0)
    with ours, theirs:
        yield ours, theirs


async def receive(pipe: socket.socket) -> FromChild:
    async with asyncio.timeout(5):
        return decode_from_child(await asyncio.get_running_loop().sock_recv(pipe, MAX_MESSAGE))


async def test_hello_ready_beats_and_last_words(pipes: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pipes
    parent = Parent(ours, asyncio.get_running_loop(), lambda _: None)
    hello = await receive(theirs)
    assert isinstance(hello, Hello)
    assert (hello.slot, hello.pid) == ("control-plane", os.getpid())
    parent.ready()
    assert isinstance(await receive(theirs), Ready)
    beat = await receive(theirs)
    assert isinstance(beat, Beat)
    assert (beat.source, beat.session) == ("loop", "registered")
    parent.close("stopped")
    bye = await receive(theirs)
    assert isinstance(bye, Bye)
    assert (bye.reason, bye.refused) == ("stopped", False)


async def test_the_parents_end_and_its_drain_stop_us(pipes: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pipes
    reasons: asyncio.Queue[str] = asyncio.Queue()
    parent = Parent(ours, asyncio.get_running_loop(), reasons.put_nowait)
    theirs.send(b"no message")
    theirs.send(encode(Drain(grace=1.0)))
    async with asyncio.timeout(5):
        assert await reasons.get() == "the supervisor asked for it"
        theirs.close()
        assert await reasons.get() == "the supervisor is gone"
    assert reasons.empty()
    parent.close("stopped")


def test_the_pipe_is_named_by_the_environment_and_leaves_it(
    monkeypatch: pytest.MonkeyPatch, pipes: tuple[socket.socket, socket.socket]
) -> None:
    monkeypatch.delenv(PIPE_FD_VARIABLE, raising=False)
    assert inherited_pipe() is None
    _, theirs = pipes
    monkeypatch.setenv(PIPE_FD_VARIABLE, str(os.dup(theirs.fileno())))
    pipe = inherited_pipe()
    assert pipe is not None
    with pipe:
        assert not os.get_inheritable(pipe.fileno())
    assert PIPE_FD_VARIABLE not in os.environ
    monkeypatch.setenv(PIPE_FD_VARIABLE, "77777")
    with pytest.raises(ConfigurationError, match="77777"):
        inherited_pipe()
