"""`make run` as a process: the quickstart on a copy of its files, with free ports and a state directory of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.mobius_command import MOBIUS

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
TIMEOUT = 100.0


class Copy:
    """A copy of configs/ and what runs from it. The ports are bound here, never listening, so nobody else gets them.

    `environment` is laid over the one of every start.
    """

    def __init__(self, directory: Path, reserved: list[socket.socket]) -> None:
        self.configs = directory / "configs"
        self.state = directory / ".quickstart"
        self.ports = [one.getsockname()[1] for one in reserved]
        self.environment: dict[str, str] = {}
        shutil.copytree(CONFIGS, self.configs, ignore=shutil.ignore_patterns("__pycache__"))
        for usual, port in zip((8780, 9464), self.ports, strict=True):
            self.change(f":{usual}", f":{port}")

    def change(self, old: str, new: str) -> None:
        """Of the pool file, where `old` stands once."""
        path = self.configs / "quickstart.toml"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    @contextlib.contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """In a session of its own, with a shell's environment that points elsewhere: it must not matter."""
        elsewhere = {"MOBIUS_API_URL": "http://127.0.0.1:9", "MOBIUS_PROJECT": "elsewhere", "MOBIUS_API_KEY": ""}
        with subprocess.Popen(
            [MOBIUS, "quickstart", "--config", str(self.configs / "quickstart.toml"), *arguments],
            env=os.environ | elsewhere | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """To the end."""
        with self.start(*arguments) as process:
            output, errors = process.communicate(timeout=TIMEOUT)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def log(self) -> str:
        """The supervisor's."""
        path = self.state / "supervisor.log"
        return path.read_text() if path.exists() else "(no log)"


@contextlib.contextmanager
def quickstart_copy(directory: Path) -> Iterator[Copy]:
    """A copy whose ports are its own as long as this lasts."""
    with contextlib.ExitStack() as reserved:
        sockets = []
        for _ in range(2):
            sockets.append(reserved.enter_context(socket.socket()))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sockets[-1].bind(("127.0.0.1", 0))
        yield Copy(directory, sockets)


def read_until(process: subprocess.Popen[str], words: str) -> list[str]:
    """Lines of the output up to the one that contains `words`."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or words not in lines[-1]:
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    return lines
