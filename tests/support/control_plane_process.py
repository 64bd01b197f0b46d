"""A real control plane in a process of its own, on a free loopback port with a store in a directory of the test's.

    with ControlPlaneProcess(tmp_path) as plane:
        with plane.http() as http:
            http.get("/v1/projects/default/runs")
        plane.kill()       # -9
        plane.start()      # same port, same store, same key

`start` returns when the server listens: it says so on the supervisor's pipe, so nothing sleeps and nothing polls.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from wire.pipe import MAX_MESSAGE, PIPE_FD_VARIABLE, Bye, FromChild, Hello, Ready, decode_from_child

START_TIMEOUT = 30.0
STOP_TIMEOUT = 20.0


class ControlPlaneProcess:
    """`arguments` are further options of `serve`. `key` is the bootstrap key of project `default`; replicas of one
    store share its file."""

    def __init__(
        self, directory: Path, *arguments: str, store_url: str | None = None, key_file: Path | None = None
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.arguments = arguments
        self.store_url = store_url or f"sqlite://{directory.resolve()}/control-plane.db"
        self.key_file = key_file or directory / "api-key"
        self.log_file = directory / "control-plane.log"
        # Bound and never listening: nobody else is given the port, and the server may share it (SO_REUSEADDR).
        self._reserved_port = socket.socket()
        self._reserved_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved_port.bind(("127.0.0.1", 0))
        self.port: int = self._reserved_port.getsockname()[1]
        scheme = "https" if "--tls-certificate-file" in arguments else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe: socket.socket | None = None
        self.said: list[FromChild] = []

    @property
    def key(self) -> str:
        """The API key of project `default`."""
        return self.key_file.read_text().strip()

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self.process is not None
        return self.process.pid

    def http(self, key: str | None = None) -> httpx.Client:
        """A client that sends the key; close it."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20.0)

    def start(self) -> None:
        """Start and wait until it listens. Raises RuntimeError with its log when it does not."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "control_plane", "serve", "--listen", f"127.0.0.1:{self.port}"]
        command += ["--store", self.store_url, "--bootstrap-key-file", str(self.key_file), *self.arguments]
        with theirs, self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=os.environ | {PIPE_FD_VARIABLE: str(theirs.fileno())},
                start_new_session=True,
            )
        self.pipe = ours
        self.said = []
        self.wait_for(Ready)

    def wait_for(self, kind: type[Hello | Ready | Bye]) -> None:
        """Read the pipe until the process has said a message of this kind."""
        assert self.pipe is not None
        deadline = time.monotonic() + START_TIMEOUT
        while not any(isinstance(message, kind) for message in self.said):
            readable, _, _ = select.select([self.pipe], [], [], max(0.0, deadline - time.monotonic()))
            data = self.pipe.recv(MAX_MESSAGE) if readable else b""
            if not data:
                self.kill()
                raise RuntimeError(f"the control plane never said {kind.__name__}:\n{self.log()}")
            self.said.append(decode_from_child(data))

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM, wait, and return the exit code."""
        return self._end(signal.SIGTERM)

    def restart(self) -> None:
        """A graceful end and a new start."""
        self.terminate()
        self.start()

    def log(self) -> str:
        """Everything that it has logged."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def command(self, *arguments: str) -> str:
        """Standard output of another command on the same store, while the server is stopped:
        `command("keys", "create", "--project", "p")`."""
        line = [sys.executable, "-m", "control_plane", *arguments, "--store", self.store_url]
        return subprocess.run(line, check=True, capture_output=True, text=True, timeout=START_TIMEOUT).stdout.strip()

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        code = self.process.wait(STOP_TIMEOUT)
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None
        return code

    def close(self) -> None:
        """End the process if it runs, and give the port back."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._reserved_port.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
