"""The control socket: operators' commands, from this machine and this user (or root) alone. Acts.

`<runtime_dir>/control.sock`, mode 0600. Whoever connects is asked of the kernel, one connection carries one request,
and every wait has a deadline: a client that is slow or silent holds nothing for long.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from supervisor.control_messages import MAX_REQUEST, Answer, AnyRequest, decode_request, encode
from supervisor.errors import CannotListenError

SOCKET = "control.sock"
LOCK = "control.lock"
REQUEST_PATIENCE = 5.0
"""Seconds from connecting to the end of the request."""

ANSWER_PATIENCE = 10.0
"""Seconds that a client has to read its answer."""

MAX_CONNECTIONS = 32
USAGE, INTERNAL, DENIED = 64, 70, 77
_CREDENTIALS = struct.Struct("3i")

Handler = Callable[[AnyRequest], Awaitable[Answer]]
Notice = Callable[[str, int, int], None]
"""Takes the command's name, the peer's uid, the exit code."""


class Control:
    """`start` and `close` are called once each."""

    def __init__(self, directory: Path, handle: Handler, notice: Notice) -> None:
        self._directory = directory
        self._handle = handle
        self._notice = notice
        self._server: asyncio.Server | None = None
        self._lock = -1
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listen; the socket's path. Raises CannotListenError."""
        path = self._directory / SOCKET
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            listening = _listening(self._directory)
            self._server = await asyncio.start_unix_server(self._connected, sock=listening, limit=MAX_REQUEST)
        except CannotListenError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise CannotListenError(
                f"supervisor.runtime_dir: cannot listen on {path} ({error.strerror or error}); "
                "name a directory that this user may write"
            ) from error
        return str(path)

    def close(self) -> None:
        """Stop listening, and end the connections that are open. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(OSError):
                (self._directory / SOCKET).unlink()
        for connection in self._connections:
            connection.cancel()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        """Two supervisors under one path would take each other's commands."""
        self._lock = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise CannotListenError(
                f"supervisor.runtime_dir: {self._directory} is in use by another supervisor; "
                "stop that one, or give this one a directory of its own"
            ) from error

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            # The client is gone or too slow, or we are about to end: there is nobody to tell.
            writer.transport.abort()
        finally:
            self._connections.discard(task)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = _peer_uid(writer)
        # Also of somebody who is refused: an answer to a request that is still being written would be lost.
        line = await _line(reader)
        if uid not in (0, os.geteuid()):
            answer = Answer(exit_code=DENIED, errors=["this supervisor takes commands of its own user and of root"])
            self._notice("refused", uid, answer.exit_code)
        else:
            answer = await self._answered(line, uid)
        writer.write(encode(answer))
        async with asyncio.timeout(ANSWER_PATIENCE):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _answered(self, line: bytes, uid: int) -> Answer:
        try:
            request = decode_request(line)
        except (ValueError, RecursionError) as error:
            return Answer(exit_code=USAGE, errors=[f"the request is not understood: {error}"])
        name = type(request).__name__.lower()
        try:
            answer = await self._handle(request)
        except Exception as error:  # noqa: BLE001 - a fault in one command must not reach the supervisor
            answer = Answer(exit_code=INTERNAL, errors=[f"internal error: {type(error).__name__}: {error}"])
        self._notice(name, uid, answer.exit_code)
        return answer


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The request; what has no end within the limits is cut there, and refused by whoever decodes it."""
    async with asyncio.timeout(REQUEST_PATIENCE):
        try:
            return await reader.readline()
        except ValueError:
            return b""


def _listening(directory: Path) -> socket.socket:
    """Bound through the directory's descriptor, because a socket's address is limited to 107 bytes."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    inside = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # Never open to others, not even for a moment. Nothing else of this process makes files meanwhile but its threads,
    # whose files are as private.
    mask = os.umask(0o177)
    try:
        with contextlib.suppress(FileNotFoundError):
            # Of a supervisor that is gone: the lock is ours.
            os.unlink(SOCKET, dir_fd=inside)
        listening.bind(f"/proc/self/fd/{inside}/{SOCKET}")
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(mask)
        os.close(inside)
    return listening


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer = writer.get_extra_info("socket")
    uid: int = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
    return uid
