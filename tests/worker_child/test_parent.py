import asyncio
import socket
from collections.abc import Iterator

import pytest

from wire import pipe
from worker_child import parent as parent_module
from worker_child.parent import Parent

SETTINGS = pipe.ChildSettings(worker_instance_id="rig-1", api_url="http://127.0.0.1:1", project="default")
SPAWN = pipe.Spawn(slot="default-1", incarnation=3, supervisor_pid=1, settings=SETTINGS)


class Orders:
    """Records what the supervisor asks for."""

    def __init__(self) -> None:
        self.given: asyncio.Queue[tuple[str, float]] = asyncio.Queue()

    def drain(self, grace: float, reason: str) -> None:
        self.given.put_nowait((reason, grace))


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, Parent]]:
    # The real one would send this process's output to /dev/null for good.
    monkeypatch.setattr(parent_module, "_silence_output", lambda: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    with ours, theirs:
        yield ours, Parent(SPAWN, theirs, lambda _: pipe.Beat(slot="", incarnation=0, source="loop", completed=7))


def heard(supervisor: socket.socket) -> pipe.FromChild:
    return pipe.decode_from_child(supervisor.recv(pipe.MAX_MESSAGE))


async def test_both_beats_carry_the_slot_the_incarnation_and_the_facts(
    supervisor: tuple[socket.socket, Parent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent_module, "BEAT_INTERVAL", 0.02)
    end, parent = supervisor
    loop = asyncio.get_running_loop()
    parent.hello("build-1")
    parent.attach(loop, Orders())
    first = await asyncio.to_thread(heard, end)
    assert isinstance(first, pipe.Hello)
    assert (first.slot, first.incarnation, first.build) == ("default-1", 3, "build-1")
    sources = set()
    while sources != {"loop", "thread"}:
        beat = await asyncio.to_thread(heard, end)
        assert isinstance(beat, pipe.Beat)
        assert (beat.slot, beat.incarnation) == ("default-1", 3)
        assert beat.completed == 7
        sources.add(beat.source)
    parent.detach(loop)


async def test_orders_and_the_end_of_the_pipe_are_heard(supervisor: tuple[socket.socket, Parent]) -> None:
    end, parent = supervisor
    loop, orders = asyncio.get_running_loop(), Orders()
    parent.attach(loop, orders)
    end.send(pipe.encode(pipe.Drain(grace=12.0)))
    assert await asyncio.wait_for(orders.given.get(), 20) == ("the supervisor asked for it", 12.0)
    end.send(b"\xc1 nonsense")
    end.close()
    assert await asyncio.wait_for(orders.given.get(), 20) == ("the supervisor is gone", SETTINGS.drain_grace)
    parent.registered()
    parent.detach(loop)


async def test_a_supervisor_that_does_not_read_blocks_nobody_and_misses_no_fact(
    supervisor: tuple[socket.socket, Parent],
) -> None:
    end, parent = supervisor
    beat = pipe.Beat(slot="default-1", incarnation=3, source="loop")
    for _ in range(5000):
        parent.say(beat)
    parent.registered()
    parent.ready()
    heard_kinds = [type(await asyncio.to_thread(heard, end))]
    end.settimeout(0)
    while True:
        try:
            heard_kinds.append(type(heard(end)))
        except BlockingIOError:
            break
    assert len(heard_kinds) < 5000, "beats that find no room are dropped"
    parent.say(beat)
    assert [type(heard(end)) for _ in range(3)] == [pipe.Registered, pipe.Ready, pipe.Beat]


def test_last_words_stop_the_beats(supervisor: tuple[socket.socket, Parent]) -> None:
    end, parent = supervisor
    parent.bye("drained", finished=5, cut_off=1)
    assert heard(end) == pipe.Bye(slot="default-1", incarnation=3, reason="drained", finished=5, cut_off=1)
    assert parent._stopped.is_set()
