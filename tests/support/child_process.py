"""A real mold and the children that it forks, seen from where a supervisor stands.

A small stand-in process is their supervisor: it is a child subreaper, so that the children are re-parented to it and
not to the test's own parents. Messages and exits are passed on to the test.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wire import pipe

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE = 30.0

_STAND_IN = """
    import ctypes, os, socket, sys
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    os.set_inheritable(int(sys.argv[1]), False)
    mold = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "worker_child.mold"], os.environ, setsid=True,
        file_actions=[(os.POSIX_SPAWN_DUP2, int(sys.argv[1]), 3), (os.POSIX_SPAWN_DUP2, 2, 1)],
    )
    os.close(int(sys.argv[1]))
    print("mold", mold, flush=True)
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break
        print("exit", pid, os.waitstatus_to_exitcode(status), flush=True)
"""


class Child:
    """One forked child: what it says, and how to talk to it."""

    def __init__(self, pid: int, channel: socket.socket, output: int, stacks: int, jobs: socket.socket) -> None:
        self.pid = pid
        self.jobs = jobs
        self.stacks = stacks
        self.channel = channel
        self._output = output

    def heard(self) -> pipe.FromChild | None:
        """Its next message, beats included; None at the end of the pipe."""
        try:
            data = self.channel.recv(pipe.MAX_MESSAGE)
        except ConnectionResetError:
            return None
        return pipe.decode_from_child(data) if data else None

    def heard_until(self, kind: type[Any], **fields: Any) -> Any:
        """Skips messages until one is of this kind and has these fields."""
        while True:
            message = self.heard()
            assert message is not None, f"the child ended without {kind.__name__} {fields}: {self.output()}"
            if isinstance(message, kind) and all(getattr(message, key) == value for key, value in fields.items()):
                return message

    def drain(self, grace: float) -> None:
        self.channel.send(pipe.encode(pipe.Drain(grace=grace)))

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def output(self) -> str:
        """What it has written to its output pipe so far, or all of it once it has ended."""
        text = b""
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(self._output, False)
            while piece := os.read(self._output, 65536):
                text += piece
        return text.decode("utf-8", "replace")


class MoldProcess:
    """A mold under a stand-in supervisor. `home` is where its modules are looked for."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.channel, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(DEADLINE)
        environment = {key: value for key, value in os.environ.items() if key != "MOBIUS_API_KEY"}
        environment["PYTHONPATH"] = str(ROOT)
        self.log = (home / "mold.log").open("w+")
        self.supervisor = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_STAND_IN), str(end.fileno())],
            pass_fds=[end.fileno()],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        end.close()
        self.children: list[Child] = []
        self.exits: dict[int, int] = {}
        self.pid = int(self._line()[1])

    def settle(self, **settings: Any) -> pipe.FromMold:
        """Sends MoldSettings and waits for the answer."""
        given: dict[str, Any] = {
            "pool": "default",
            "modules": [],
            "module_path": [str(self.home)],
            "preload": True,
            "stock_actions": True,
            "environment_actions": False,
            "log_format": "json",
        } | settings
        self.channel.send(pipe.encode(pipe.MoldSettings(**given)))
        return self.heard()

    def heard(self) -> pipe.FromMold:
        return pipe.decode_from_mold(self.channel.recv(pipe.MAX_MESSAGE))

    def spawn(self, *, supervisor_pid: int | None = None, incarnation: int = 1, **settings: Any) -> Child:
        """Asks for a child and waits until the mold says that it exists."""
        told: dict[str, Any] = {
            "worker_instance_id": "rig-1",
            "api_url": "http://127.0.0.1:1",
            "project": "default",
            "api_key": "mbx_test",
            "journal_path": str(self.home / "rig-1.journal"),
            "log_format": "json",
        } | settings
        spawn = pipe.Spawn(
            slot="default-1",
            incarnation=incarnation,
            supervisor_pid=supervisor_pid or self.supervisor.pid,
            settings=pipe.ChildSettings(**told),
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(DEADLINE)
        reader, writer = os.pipe()
        stacks, stacks_writer = os.pipe()
        jobs, their_jobs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        jobs.settimeout(DEADLINE)
        given = [theirs.fileno(), writer, stacks_writer, their_jobs.fileno()]
        socket.send_fds(self.channel, [pipe.encode(spawn)], given)
        theirs.close()
        their_jobs.close()
        os.close(writer)
        os.close(stacks_writer)
        answer = self.heard()
        assert isinstance(answer, pipe.Spawned), answer
        child = Child(answer.pid, ours, reader, stacks, jobs)
        self.children.append(child)
        return child

    def exit_code(self, pid: int) -> int:
        """Waits until the stand-in has reaped this process. Negative: it died by that signal."""
        while pid not in self.exits:
            _, ended, code = self._line()
            self.exits[int(ended)] = int(code)
        return self.exits[pid]

    def close(self) -> None:
        """Ends every process of this stand-in, and closes every descriptor."""
        self.channel.close()
        for child in self.children:
            if child.pid not in self.exits:
                with contextlib.suppress(ProcessLookupError):
                    child.signal(signal.SIGKILL)
            child.channel.close()
            child.jobs.close()
            os.close(child._output)
            os.close(child.stacks)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.supervisor.kill()
        self.supervisor.wait()
        assert self.supervisor.stdout is not None
        self.supervisor.stdout.close()
        self.log.close()

    def _line(self) -> list[str]:
        assert self.supervisor.stdout is not None
        words = self.supervisor.stdout.readline().split()
        assert words, f"the stand-in ended: {(self.home / 'mold.log').read_text()}"
        return words


@contextlib.contextmanager
def mold_process(home: Path) -> Iterator[MoldProcess]:
    """A mold that has not been told its settings yet."""
    mold = MoldProcess(home)
    try:
        yield mold
    finally:
        mold.close()
