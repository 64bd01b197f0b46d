"""The journal's own protocol: one datagram an entry, so that an entry has fields and its text cannot pretend to any.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

import errno
import fcntl
import os
import re
import socket
import struct
from array import array
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_SEALS = fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_NOBODY_LISTENS = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE)


def is_behind(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether what is written to `fd` goes to the journal: JOURNAL_STREAM names the very file (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def entry(fields: Mapping[str, str]) -> bytes:
    """One entry. Raises ValueError for a name that no field can have."""
    parts: list[bytes] = []
    for name, text in fields.items():
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a field: upper-case letters, digits and _, at most 64")
        value = text.encode("utf-8", "replace")
        if b"\n" in value:
            # With its length in front, a text of several lines stays one field, whatever it says.
            parts.append(b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(value)), value))
        else:
            parts.append(b"%b=%b\n" % (name.encode(), value))
    return b"".join(parts)


class Journal:
    """Sends entries. Waits for a journal that is busy, so it belongs on a thread of its own."""

    def __init__(self, address: str = SOCKET) -> None:
        """Raises OSError when no journal listens at `address`."""
        self._address = address
        self._socket: socket.socket | None = None
        self._connect()

    def put(self, entries: list[bytes]) -> list[bytes]:
        """Send them in order. Returns those that are left because nobody listens now, to be tried again."""
        for index, one in enumerate(entries):
            try:
                self._send(one)
            except OSError as error:
                if error.errno not in _NOBODY_LISTENS:
                    continue  # this one cannot be sent, and the next may be
                self.close()
                return entries[index:]
        return []

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        if self._socket is None:
            new = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                new.connect(self._address)
            except OSError:
                new.close()
                raise
            self._socket = new
        return self._socket

    def _send(self, one: bytes) -> None:
        connection = self._connect()
        try:
            connection.send(one)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            _send_file(connection, one)


def _send_file(connection: socket.socket, one: bytes) -> None:
    """An entry that is larger than a datagram travels as a sealed file in memory."""
    fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(one)
        fcntl.fcntl(fd, *_SEALS)
        connection.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))])
    finally:
        os.close(fd)
