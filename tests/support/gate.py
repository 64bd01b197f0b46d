"""Where `test.gate` handlers knock: the test learns that a job runs, and decides when it goes on."""

import json
import select
import socket
from types import TracebackType
from typing import Any, Self

KNOCK_TIMEOUT = 30.0


class Visit:
    """One running `test.gate` job: `pid`, `attempt`, `job_id` and `worker` in `says`."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(KNOCK_TIMEOUT)
        self._connection = connection
        self.says: dict[str, Any] = json.loads(connection.makefile("rb").readline())

    def release(self, answer: object = True) -> None:
        """Let the handler return."""
        self._connection.sendall(json.dumps(answer).encode() + b"\n")
        self._connection.close()

    def wait_for_end(self) -> None:
        """Until the handler's end of the connection closes: it was cancelled, or its process died."""
        assert self._connection.recv(1) == b""
        self._connection.close()


class Gate:
    """Listens on loopback; `port` goes into the job's parameters."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def knock(self, timeout: float = KNOCK_TIMEOUT) -> Visit:
        """The next job that starts to run."""
        self._listener.settimeout(timeout)
        connection, _ = self._listener.accept()
        return Visit(connection)

    def is_quiet(self, seconds: float) -> bool:
        """Whether nobody knocks for so long."""
        return not select.select([self._listener], [], [], seconds)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
