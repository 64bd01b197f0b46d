"""The operator's end of the control socket: one request, one answer. Blocking, for a command line."""

import os
import socket
from pathlib import Path

from supervisor.control import SOCKET
from supervisor.control_messages import MAX_ANSWER, Answer, Request, Stacks, Status, decode_answer, encode
from supervisor.errors import ControlDeniedError, NoSupervisorError

CONNECT_PATIENCE = 5.0
"""Seconds."""

QUICK_PATIENCE = 20.0
"""Seconds for what is answered at once."""

LONG_PATIENCE = 3700.0
"""Seconds for what waits for children; the supervisor's own deadlines are shorter."""


def ask(directory: Path, request: Request) -> Answer:
    """Raises NoSupervisorError, ControlDeniedError."""
    patience = QUICK_PATIENCE if isinstance(request, Status | Stacks) else LONG_PATIENCE
    with _connected(directory) as connection:
        try:
            connection.sendall(encode(request))
            connection.settimeout(patience)
            return decode_answer(_everything(connection))
        except TimeoutError as error:
            raise NoSupervisorError(f"the supervisor did not answer within {patience:g}s; look at its log") from error
        except OSError as error:
            raise NoSupervisorError(
                f"the supervisor ended the connection ({error.strerror}); look at its log"
            ) from error
        except (ValueError, RecursionError) as error:
            raise NoSupervisorError("the supervisor ended before it answered; look at its log") from error


def _connected(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(CONNECT_PATIENCE)
    inside = -1
    try:
        # Through a descriptor, because a socket's address is limited to 107 bytes.
        inside = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection.connect(f"/proc/self/fd/{inside}/{SOCKET}")
    except PermissionError as error:
        connection.close()
        raise ControlDeniedError(
            f"{directory / SOCKET}: not permitted; run the command as the supervisor's user or as root"
        ) from error
    except OSError as error:
        connection.close()
        raise NoSupervisorError(
            f"{directory / SOCKET}: no supervisor takes commands there ({error.strerror or error}); start it, or name "
            "its pool file with -c"
        ) from error
    finally:
        if inside >= 0:
            os.close(inside)
    return connection


def _everything(connection: socket.socket) -> bytes:
    data = bytearray()
    while len(data) < MAX_ANSWER:
        piece = connection.recv(64 * 1024)
        if not piece:
            break
        data += piece
    return bytes(data)
