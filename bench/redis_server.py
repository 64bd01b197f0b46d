"""A Redis of the benchmark's own on a loopback port, as durable as our stores: a command is on the disk before it is
answered (`appendfsync always`)."""

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

START_TIMEOUT = 20.0


def why_not() -> str | None:
    """What is missing to run one; None: nothing."""
    return None if shutil.which("redis-server") else "no redis-server (Debian: apt install redis-server)"


class RedisServer:
    """One server while the `with` lasts."""

    def __init__(self) -> None:
        # Bound and never listening: nobody else is given the port, and the server may share it (SO_REUSEADDR).
        self._reserved_port = socket.socket()
        self._reserved_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved_port.bind(("127.0.0.1", 0))
        self.port: int = self._reserved_port.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._directory = Path(tempfile.mkdtemp(prefix="mobius-redis-"))
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        with (self._directory / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._directory / "log").read_text())
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(START_TIMEOUT)
        self._reserved_port.close()
        shutil.rmtree(self._directory, ignore_errors=True)
