import asyncio
import faulthandler
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _timer() -> Iterator[None]:
    """The one that ends a process which hangs must not outlive a test that fails."""
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def pipes() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    theirs.settimeout(0)
    with ours, theirs:
        yield ours, theirs


async def receive(pipe: socket.socket) -> FromChild:
    async with asyncio.timeout(60):
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


async def test_while_writes_stand_still_it_does_not_beat(
    pipes: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.parent.BEAT_INTERVAL", 0.01)
    ours, theirs = pipes
    asked = asyncio.Event()
    still = [True] * 20

    def stands_still() -> bool:
        asked.set()
        return bool(still) and still.pop()

    parent = Parent(ours, asyncio.get_running_loop(), lambda _: None, stands_still)
    assert isinstance(await receive(theirs), Hello)
    assert isinstance(await receive(theirs), Beat)
    assert asked.is_set()
    assert still == []
    parent.close("stopped")


async def test_the_parents_end_and_its_drain_stop_us(pipes: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pipes
    reasons: asyncio.Queue[str] = asyncio.Queue()
    parent = Parent(ours, asyncio.get_running_loop(), reasons.put_nowait)
    theirs.send(b"no message")
    theirs.send(encode(Drain(grace=1.0)))
    async with asyncio.timeout(60):
        assert await reasons.get() == "the supervisor asked for it"
        theirs.close()
        assert await reasons.get() == "the supervisor is gone"
    assert reasons.empty()
    parent.close("stopped")


@pytest.mark.parametrize("what", ["time.sleep(60)", "beat_on_and_do_not_stop()"])
def test_one_that_can_hear_nobody_or_does_not_stop_ends_itself_with_its_stacks(what: str) -> None:
    """The second one's supervisor is gone, so nobody else would ever end it."""
    program = f"""
import asyncio, socket, time
from control_plane import parent

parent.HANG_LIMIT, parent._REARM_INTERVAL, parent.BEAT_INTERVAL = 1.0, 0.1, 0.1
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.settimeout(0)

def beat_on_and_do_not_stop():
    theirs.close()

async def main():
    it = parent.Parent(ours, asyncio.get_running_loop(), lambda reason: None)
    await asyncio.sleep(0.5)
    {what}
    await asyncio.sleep(60)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert "Timeout (0:00:01" in done.stderr
    assert "in main" in done.stderr or "in run" in done.stderr


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
