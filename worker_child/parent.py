"""The child's end of the pipe to its supervisor: first words, two beats a second apart, last words, and its orders.

The loop's beat says that the event loop runs; the thread's beat says that the interpreter does. Together they tell a
blocked loop from a stuck interpreter. Loop beats re-arm faulthandler's timer, which ends a process whose
interpreter is stuck, with its stacks, even when no supervisor is left to do it; when none is left, it is set once more
and then bounds the rest of the child's life.
"""

import asyncio
import contextlib
import faulthandler
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from wire import pipe

BEAT_INTERVAL = 1.0
REARM_SHARE = 0.1
"""Share of the last timer's time after which it is set anew: that starts a thread, which is dear at every beat."""
_MAX_WAITING = 64


class Orders(Protocol):
    """What the supervisor, or its death, asks of the child."""

    def drain(self, grace: float, reason: str) -> None:
        """Claim no more, finish within `grace` seconds."""


class Parent:
    """One child's conversation with its supervisor. `beat` gives the facts of a beat; slot and source are filled in."""

    def __init__(self, spawn: pipe.Spawn, channel: socket.socket, beat: Callable[[float], pipe.Beat]) -> None:
        self._spawn = spawn
        self._channel = channel
        self._channel.settimeout(0)
        self._beat = beat
        self._last = pipe.Beat(slot=spawn.slot, incarnation=spawn.incarnation, source="thread")
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING)
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._expected = 0.0
        self._orphaned = False
        self._hang_after = spawn.settings.hang_limit + spawn.settings.drain_grace
        self._rearm_at = 0.0
        self._thread = threading.Thread(target=self._beat_from_thread, name="supervisor-beat", daemon=True)

    def hello(self, build_id: str) -> None:
        """First words, with the build that the mold was started from; starts the thread's beat."""
        self.say(
            pipe.Hello(slot=self._spawn.slot, incarnation=self._spawn.incarnation, pid=os.getpid(), build=build_id)
        )
        self._thread.start()

    def attach(self, loop: asyncio.AbstractEventLoop, orders: Orders) -> None:
        """Starts the loop's beat and listens for orders."""
        loop.add_reader(self._channel.fileno(), self._readable, loop, orders)
        self._expected = time.monotonic()
        self._beat_from_loop(loop)

    def registered(self) -> None:
        """The control plane has accepted the session."""
        self.say(pipe.Registered(slot=self._spawn.slot, incarnation=self._spawn.incarnation))

    def ready(self) -> None:
        """The child claims work."""
        self.say(pipe.Ready(slot=self._spawn.slot, incarnation=self._spawn.incarnation))

    def bye(
        self, reason: str, *, refused: bool = False, finished: int = 0, handed_back: int = 0, cut_off: int = 0
    ) -> None:
        """Last words. Nothing is said after them."""
        self._stopped.set()
        self.say(
            pipe.Bye(
                slot=self._spawn.slot,
                incarnation=self._spawn.incarnation,
                reason=reason,
                refused=refused,
                finished=finished,
                handed_back=handed_back,
                cut_off=cut_off,
            )
        )

    def detach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stops both beats and the reader."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()
        if self._timer is not None:
            self._timer.cancel()
        loop.remove_reader(self._channel.fileno())

    def say(self, message: pipe.FromChild) -> None:
        """Sends now, or with the next beat when the supervisor does not read. Never blocks, never raises."""
        if not isinstance(message, pipe.Beat):
            self._waiting.append(pipe.encode(message))
        try:
            while self._waiting:
                self._channel.send(self._waiting[0])
                self._waiting.popleft()
            if isinstance(message, pipe.Beat):
                self._channel.send(pipe.encode(message))
        except OSError:
            return

    def _beat_from_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        lag = max(0.0, now - self._expected)
        self._expected = now + BEAT_INTERVAL
        self._last = msgspec.structs.replace(
            self._beat(now), slot=self._spawn.slot, incarnation=self._spawn.incarnation, source="loop", loop_lag=lag
        )
        self.say(self._last)
        if not self._orphaned and now >= self._rearm_at:
            pause = self._hang_after * REARM_SHARE
            self._rearm_at = now + pause
            # Never sooner than `hang_after` after the last beat: the supervisor comes first.
            faulthandler.dump_traceback_later(self._hang_after + pause, exit=True)
        self._timer = loop.call_later(BEAT_INTERVAL, self._beat_from_loop, loop)

    def _beat_from_thread(self) -> None:
        while not self._stopped.wait(BEAT_INTERVAL):
            with contextlib.suppress(OSError):
                self._channel.send(pipe.encode(self._as_the_thread_sees_it()))

    def _as_the_thread_sees_it(self) -> pipe.Beat:
        """What a blocked loop has in hand is known to nobody else; a loop that runs may change it under our eyes."""
        now = time.monotonic()
        beat = self._last
        with contextlib.suppress(RuntimeError):
            beat = self._beat(now)
        lag = max(0.0, now - self._expected) if self._expected else 0.0
        return msgspec.structs.replace(
            beat, slot=self._spawn.slot, incarnation=self._spawn.incarnation, source="thread", loop_lag=lag
        )

    def _readable(self, loop: asyncio.AbstractEventLoop, orders: Orders) -> None:
        try:
            data = self._channel.recv(pipe.MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            loop.remove_reader(self._channel.fileno())
            _silence_output()
            # Set for the last time: nobody is left to end a child that beats on and does not get done with its drain.
            self._orphaned = True
            faulthandler.dump_traceback_later(self._hang_after, exit=True)
            # As an order: it shortens a longer grace that was given while there was somebody to see it kept.
            orders.drain(self._spawn.settings.drain_grace, "the supervisor is gone")
            return
        try:
            order = pipe.decode_to_child(data)
        except pipe.PipeMessageError as error:
            structlog.get_logger().error("parent.pipe", error=str(error))
            return
        orders.drain(order.grace, "the supervisor asked for it")


def _silence_output() -> None:
    """Nobody reads our output any more: a handler that prints must not fail for that."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.close(nothing)
