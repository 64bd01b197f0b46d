"""What the worker sockets of one key have sent that is kept and not dealt with yet: messages that are not whole, and
frames whose answer the store still owes. Together they have a limit, beyond which those that hold much are listened to
one at a time: a fleet that reports large results at the same moment gets through, and no key fills the memory.
"""

from typing import Protocol

MOST_HELD = 64 * 1024 * 1024
"""Bytes that the sockets of one key hold before they take turns."""

UNCOUNTED = 64 * 1024
"""A socket that holds less is always listened to."""


class Waiting(Protocol):
    """A socket that is not listened to."""

    def look_again(self) -> None:
        """It may be listened to now."""


class InboundBytes:
    """Of one key in this process."""

    def __init__(self) -> None:
        self._held: dict[Waiting, int] = {}
        """The one that began first is the first."""
        self._total = 0
        self._waiting: set[Waiting] = set()

    def hold(self, socket: Waiting, size: int) -> None:
        """The socket holds so many bytes now; 0 when it is gone."""
        before = self._held.get(socket, 0)
        if not before and size < UNCOUNTED:
            return
        if size < UNCOUNTED:
            size = 0
            self._held.pop(socket, None)
        else:
            self._held[socket] = size
        self._total += size - before
        if self._waiting and size < before:
            self._wake()

    def may_send(self, socket: Waiting) -> bool:
        """Whether more of what the socket sends is read; else it is told when to look again."""
        if self._total <= MOST_HELD or socket not in self._held or socket is next(iter(self._held)):
            return True
        self._waiting.add(socket)
        return False

    def _wake(self) -> None:
        # One that no longer holds anything has been let go of by itself, or is gone.
        waiting = [socket for socket in self._waiting if socket in self._held]
        able = waiting if self._total <= MOST_HELD else [socket for socket in waiting if self.may_send(socket)]
        self._waiting = set(waiting).difference(able)
        for socket in able:
            socket.look_again()
