"""The pipe to a supervisor that started this process (wire/pipe.py): hello, ready, a beat a second, last words.

The pipe is inherited: PIPE_FD_VARIABLE names its descriptor. Its end is the parent's end, and then we stop too. Beats
re-arm a timer in C that ends a process which can hear neither, because its loop is blocked.
"""

import asyncio
import faulthandler
import os
import socket
from collections.abc import Callable

from control_plane.config import ConfigurationError
from wire.build import build_id
from wire.pipe import (
    MAX_MESSAGE,
    PIPE_FD_VARIABLE,
    Beat,
    Bye,
    Drain,
    Hello,
    Message,
    PipeMessageError,
    Ready,
    SessionState,
    decode_to_child,
    encode,
)

SLOT = "control-plane"
BEAT_INTERVAL = 1.0
"""Seconds."""

HANG_LIMIT = 60.0
"""Seconds without a beat after which this process ends itself, with its stacks; a supervisor that lives is sooner."""

_REARM_INTERVAL = 10.0


class Parent:
    """Our end of the pipe. `stop` is called once when the parent asks us to drain, or is gone. While `stands_still()`
    we do not beat: the parent then keeps our stacks, and starts us anew."""

    def __init__(
        self,
        pipe: socket.socket,
        loop: asyncio.AbstractEventLoop,
        stop: Callable[[str], None],
        stands_still: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pipe = pipe
        self._loop = loop
        self._stop = stop
        self._stands_still = stands_still
        self._ready = False
        self._orphaned = False
        self._rearm_at = 0.0
        self._beat_due = loop.time() + BEAT_INTERVAL
        self._timer = loop.call_at(self._beat_due, self._beat)
        loop.add_reader(pipe.fileno(), self._readable)
        self._send(Hello(slot=SLOT, incarnation=1, pid=os.getpid(), build=build_id()))

    def ready(self) -> None:
        """The server listens."""
        self._ready = True
        self._send(Ready(slot=SLOT, incarnation=1))

    def close(self, reason: str, *, refused: bool = False) -> None:
        """Last words. `refused`: a restart would change nothing until somebody repairs what the reason names."""
        self._timer.cancel()
        faulthandler.cancel_dump_traceback_later()
        self._loop.remove_reader(self._pipe.fileno())
        self._send(Bye(slot=SLOT, incarnation=1, reason=reason, refused=refused))
        self._pipe.close()

    def _beat(self) -> None:
        now = self._loop.time()
        session: SessionState = "registered" if self._ready else "starting"
        lag = max(0.0, now - self._beat_due)
        if not self._stands_still():
            self._send(Beat(slot=SLOT, incarnation=1, source="loop", session=session, loop_lag=lag))
        if now >= self._rearm_at and not self._orphaned:
            self._rearm_at = now + _REARM_INTERVAL
            faulthandler.dump_traceback_later(HANG_LIMIT + _REARM_INTERVAL, exit=True)
        self._beat_due = now + BEAT_INTERVAL
        self._timer = self._loop.call_at(self._beat_due, self._beat)

    def _readable(self) -> None:
        try:
            data = self._pipe.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._pipe.fileno())
            # For the last time: nobody is left to end a stop that does not get on.
            self._orphaned = True
            faulthandler.dump_traceback_later(HANG_LIMIT, exit=True)
            self._stop("the supervisor is gone")
            return
        try:
            message = decode_to_child(data)
        except PipeMessageError:
            return  # a newer supervisor may know words that we do not
        if isinstance(message, Drain):
            self._stop("the supervisor asked for it")

    def _send(self, message: Message) -> None:
        # A parent that does not read loses beats and nothing else; one that is gone is seen by the reader.
        try:
            self._pipe.send(encode(message), socket.MSG_NOSIGNAL)
        except OSError:
            return


def inherited_pipe() -> socket.socket | None:
    """The pipe that the environment names, taken out of the environment; None without one.

    Raises ConfigurationError when the variable names no open socket.
    """
    value = os.environ.pop(PIPE_FD_VARIABLE, None)
    if value is None:
        return None
    try:
        pipe = socket.socket(fileno=int(value))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{PIPE_FD_VARIABLE} is {value!r}, which is no open socket: {error}") from error
    pipe.settimeout(0)
    os.set_inheritable(pipe.fileno(), False)  # noqa: FBT003 - the only way to call it
    return pipe
