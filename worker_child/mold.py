"""The fork server's own program: `python -m worker_child.mold`, its pipe on file descriptor 3.

It imports a pool's modules once, freezes the heap, and forks a child for every `Spawn`. It has one thread and no event
loop, because a fork of anything else deadlocks or disturbs its parent. A module that leaves threads behind cannot be
un-imported: the mold then starts itself anew without that module, and each child imports it instead.

The first message is only peeked at until the imports are done, so that a mold which starts itself anew finds it again.
"""

import wire.structlog_alone  # noqa: F401 - before anything else imports structlog

# isort: split
import contextlib
import ctypes
import faulthandler
import gc
import hashlib
import os
import random
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

# Imported for the children's sake: what the mold has in memory, all of its forks share.
import structlog
import uvloop
import websockets.asyncio.client

from wire import build, pipe, stacks
from worker_child import __main__ as child
from worker_child import isolated, log
from worker_child.actions import registry
from worker_child.errors import ConfigurationError, sayable
from worker_child.modules import expanded, import_source

SHARED_MODULES = (structlog, uvloop, websockets.asyncio.client)
LATE = "--late"
MAX_NAMES = pipe.MAX_MESSAGE // 2
"""Bytes of the names of all actions, which are one message to the supervisor."""
THREADS_SETTLE = 0.2
"""Seconds that a thread which is just ending is given, before its module is called one that leaves threads behind."""

_PR_SET_PDEATHSIG = 1
_GIVEN = {pipe.Spawn: 4, pipe.SpawnJob: 3}
"""File descriptors that ride along with an order."""
_libc = ctypes.CDLL(None, use_errno=True)


class Mold:
    """One mold. `late` are modules that an earlier life of this process found to leave threads behind.

    `has_stacks`: the supervisor's pipe for its stacks is open on STACKS_FD.
    """

    def __init__(self, channel: socket.socket, late: list[str], *, has_stacks: bool) -> None:
        self._channel = channel
        self._has_stacks = has_stacks
        self._late = late
        self._build = build.build_id()

    def run(self) -> int:
        """Serves until the supervisor's end of the pipe closes. Returns the exit code."""
        data = self._channel.recv(pipe.MAX_MESSAGE, socket.MSG_PEEK)
        if not data:
            return 0
        settings = pipe.decode_to_mold(data)
        if not isinstance(settings, pipe.MoldSettings):
            raise pipe.PipeMessageError(f"the first message of a mold is MoldSettings, not {type(settings).__name__}")
        log.configure(level=settings.log_level, log_format=settings.log_format, pool=settings.pool)
        try:
            self._import(settings)
            if not self._late:
                # What the children would find out, each for itself.
                registry.restricted(settings.actions)
        except ConfigurationError as error:
            detail = getattr(error, "detail", "")
            # Closing a socket that holds unread data resets it, and the last words would be lost with it.
            self._channel.recv(pipe.MAX_MESSAGE)
            # The end of a traceback says most. A character may have four bytes.
            trace = sayable(detail[-pipe.MAX_MESSAGE // 8 :], pipe.MAX_MESSAGE // 2)
            self._say(pipe.MoldFailed(message=sayable(str(error)), traceback=trace))
            return 78
        self._channel.recv(pipe.MAX_MESSAGE)
        _prepare()
        _reset_signals()
        gc.collect()
        gc.freeze()
        self._say(pipe.MoldReady(build=self._build, actions=registry.names(), late_modules=self._late))
        return self._serve()

    def _import(self, settings: pipe.MoldSettings) -> None:
        sys.path[:0] = [str(Path(entry).resolve()) for entry in settings.module_path]
        if settings.stock_actions:
            import_source("worker_child.stock.basic")
        if settings.environment_actions:
            # Only now: most pools have no use for them.
            from worker_child.stock.environment import register  # noqa: PLC0415

            register(registry, Path(settings.workspace))
        if settings.model_servers:
            import_source("worker_child.providers.server")
        sources = expanded(settings.modules)
        if not settings.preload:
            self._late = list(sources)
            return
        found = []
        for name in sources:
            if name in self._late:
                continue
            before = _threads()
            import_source(name)
            if _threads(at_most=before) > before:
                found.append(name)
        if found:
            self._start_anew([*self._late, *found])
        length = len("".join(registry.names()).encode())
        if length > MAX_NAMES:
            raise ConfigurationError(
                f"modules: the names of their actions have {length} bytes together, more than the limit of {MAX_NAMES}"
            )

    def _start_anew(self, late: list[str]) -> NoReturn:
        """Replaces this process by a mold that leaves the modules in `late` to the children."""
        arguments = sys.orig_argv[1:]
        if LATE in arguments:
            arguments = arguments[: arguments.index(LATE)]
        self._channel.set_inheritable(True)
        if self._has_stacks:
            os.set_inheritable(pipe.STACKS_FD, True)  # noqa: FBT003 - the only way to call it
        os.execv(sys.executable, [sys.executable, *arguments, LATE, *late])  # noqa: S606 - our own program again

    def _serve(self) -> int:
        while True:
            data, descriptors, _, _ = socket.recv_fds(
                self._channel, pipe.MAX_MESSAGE, max(_GIVEN.values()), socket.MSG_CMSG_CLOEXEC
            )
            if not data:
                return 0
            try:
                message = pipe.decode_to_mold(data)
                if isinstance(message, pipe.MoldSettings) or len(descriptors) != _GIVEN[type(message)]:
                    raise pipe.PipeMessageError("a mold that is ready forks, with the file descriptors of the order")
                self._spawn(message, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _spawn(self, spawn: pipe.Spawn | pipe.SpawnJob, given: list[int]) -> None:
        """Forks twice, so that the process becomes the supervisor's own before it runs a line of the pool's code."""
        pid_reader, pid_writer = os.pipe()
        go_reader, go_writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            intermediate = os.fork()
            if intermediate == 0:
                self._fork_again(spawn, given, (pid_reader, pid_writer, go_reader, go_writer))
            os.close(pid_writer)
            pid_writer = -1
            os.waitpid(intermediate, 0)
            answer = os.read(pid_reader, 16)
            if not answer:
                raise BlockingIOError("the second fork failed: too many processes, or no memory")
            self._say(_spawned(spawn, int(answer)))
            os.write(go_writer, b"g")
        except OSError as error:
            self._say(_spawn_failed(spawn, str(error)))
        finally:
            for descriptor in (pid_reader, pid_writer, go_reader, go_writer):
                if descriptor >= 0:
                    os.close(descriptor)

    def _fork_again(
        self, spawn: pipe.Spawn | pipe.SpawnJob, given: list[int], handshake: tuple[int, int, int, int]
    ) -> NoReturn:
        """The intermediate process: forks, says the pid, and is gone, which re-parents what it forked."""
        pid_reader, pid_writer, go_reader, go_writer = handshake
        try:
            child_pid = os.fork()
        except OSError:
            os._exit(1)
        if child_pid:
            os.write(pid_writer, str(child_pid).encode())
            os._exit(0)
        code = 70
        try:
            for descriptor in (pid_reader, pid_writer, go_writer):
                os.close(descriptor)
            if os.read(go_reader, 1) == b"g":
                os.close(go_reader)
                self._channel.close()
                if self._has_stacks:
                    os.close(pipe.STACKS_FD)
                if isinstance(spawn, pipe.Spawn):
                    code = _become_child(spawn, given, self._build, self._late)
                else:
                    code = _become_job(spawn, given, self._late)
        except BaseException:  # noqa: BLE001 - the last resort of a process: say why, then end with its code
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            if os.getppid() != spawn.supervisor_pid:
                # Nobody is left who would end what a handler left behind.
                _end_descendants(os.getpid())
            # Not sys.exit: the frames below belong to the mold, and a handler's stuck thread would be waited for.
            os._exit(code)

    def _say(self, message: pipe.FromMold) -> None:
        self._channel.send(pipe.encode(message))


def _prepare() -> None:
    """What every child would do alone otherwise, each in memory of its own: it was a sixth of an idle child's."""
    build.package_version()
    # The handshake's digest: the first one initializes OpenSSL.
    hashlib.sha1(b"", usedforsecurity=False)


def _become_child(spawn: pipe.Spawn, given: list[int], build_id: str, late: list[str]) -> int:
    """Runs in the child, once it is the supervisor's. Returns the child's exit code."""
    channel, output, own_stacks, jobs = given
    os.setsid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != spawn.supervisor_pid:
        # The supervisor died before the signal was set: nobody would ever tell us.
        return 0
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    # Written by the signal's own handler in C: it answers while the loop is blocked or the interpreter is stuck.
    faulthandler.register(pipe.STACKS_SIGNAL, file=own_stacks, all_threads=True)
    random.seed()
    pipes = socket.socket(fileno=channel), socket.socket(fileno=jobs)
    return child.run(spawn, *pipes, build_id=build_id, late_modules=late)


def _become_job(spawn: pipe.SpawnJob, given: list[int], late: list[str]) -> int:
    """Runs in a job's process, once it is the supervisor's. Returns its exit code.

    It does not watch the supervisor but its worker, which finishes what it has in hand when the supervisor is gone.
    """
    channel, life_line, output = given
    os.setsid()
    if not isolated.tie_to(life_line) or os.getppid() != spawn.supervisor_pid:
        return 0
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    # Into its own output, which its worker puts into the log under the job.
    faulthandler.register(pipe.STACKS_SIGNAL, file=2, all_threads=True)
    random.seed()
    return isolated.run(socket.socket(fileno=channel), late)


def _spawned(spawn: pipe.Spawn | pipe.SpawnJob, pid: int) -> pipe.Spawned | pipe.JobSpawned:
    if isinstance(spawn, pipe.Spawn):
        return pipe.Spawned(slot=spawn.slot, incarnation=spawn.incarnation, pid=pid)
    return pipe.JobSpawned(slot=spawn.slot, incarnation=spawn.incarnation, number=spawn.number, pid=pid)


def _spawn_failed(spawn: pipe.Spawn | pipe.SpawnJob, message: str) -> pipe.SpawnFailed | pipe.JobSpawnFailed:
    if isinstance(spawn, pipe.Spawn):
        return pipe.SpawnFailed(slot=spawn.slot, incarnation=spawn.incarnation, message=message)
    return pipe.JobSpawnFailed(slot=spawn.slot, incarnation=spawn.incarnation, number=spawn.number, message=message)


def _reset_signals() -> None:
    """Undoes what imported modules did to signals, for all forks at once: their own loops set what they need."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _end_descendants(pid: int) -> None:
    """Every process below this one, whatever session it is in; what has cut its ties to us cannot be known."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                _end_descendants(int(child))
                os.kill(int(child), signal.SIGKILL)


def _threads(at_most: int | None = None) -> int:
    """Threads of this process, Python's and native ones; with `at_most`, after those that are ending have ended."""
    deadline = time.monotonic() + THREADS_SETTLE
    while True:
        count = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - a count of names, nothing of a path
        if at_most is None or count <= at_most or time.monotonic() >= deadline:
            return count
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(0.01)
        time.sleep(0.01)  # a native thread can be waited for in no other way; bounded by the deadline


def _is_closed(channel: socket.socket) -> bool:
    """Whether the other end is gone, whatever it may have left to be read."""
    poll = select.poll()
    poll.register(channel, 0)
    return bool(poll.poll(0))


def main() -> int:
    """The process's whole life. Returns the exit code."""
    channel = socket.socket(fileno=pipe.MOLD_FD)
    channel.set_inheritable(False)
    faulthandler.enable()
    has_stacks = stacks.answer()
    # It has nothing to finish, and an import that hangs would never see the end of its pipe.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if _is_closed(channel):
        return 0
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    late = sys.argv[sys.argv.index(LATE) + 1 :] if LATE in sys.argv else []
    try:
        return Mold(channel, late, has_stacks=has_stacks).run()
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except pipe.PipeMessageError as error:
        structlog.get_logger().error("mold.pipe", error=str(error))
        return 70


if __name__ == "__main__":
    sys.exit(main())
