"""Runs one command for a job: in a process group of its own, with little of our environment, for a bounded time.

The leader of the group is reaped here and by nobody else, and only after the group was killed: until then its number
cannot become another's.
"""

import asyncio
import codecs
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from worker_child.errors import NonRetryableError

TERM_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL, for a command that is to end."""
KILL_PATIENCE = 5.0
"""Seconds that a killed command is waited for: one in an uninterruptible sleep ends when the kernel lets it."""
OUTPUT_GRACE = 1.0
"""Seconds in which what is left in the pipes is read: a process that has left the group may hold them open."""
CHUNK = 65536
_CONTINUATION = bytes(range(0x80, 0xC0))
"""Bytes that begin no UTF-8 character."""

_HANDED_ON = frozenset({
    "HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ", "USER",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
})  # fmt: skip
"""All that a command sees of our environment, besides LC_*: which of the rest is secret cannot be known by its name."""


class Finished(Struct, frozen=True, kw_only=True):
    """How a command ended. `exit_code` is negative when a signal ended it; with `timed_out` it was ours."""

    exit_code: int
    stdout: "Output"
    stderr: "Output"
    timed_out: bool
    seconds: float

    def as_result(self) -> dict[str, Any]:
        """What a job's result says of it."""
        omitted = self.stdout.omitted + self.stderr.omitted
        return {
            "exit_code": self.exit_code,
            "stdout": self.stdout.text(),
            "stderr": self.stderr.text(),
            "timed_out": self.timed_out,
            "truncated": omitted > 0,
            "omitted_bytes": omitted,
            "duration_seconds": round(self.seconds, 3),
        }


class Output:
    """The first and the last bytes of what a command writes, of each half of `limit`."""

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail = bytearray()
        self._written = 0

    @property
    def omitted(self) -> int:
        """Bytes between the two."""
        return self._written - len(self._head) - min(len(self._tail), self._half)

    def add(self, data: bytes) -> None:
        """The command has written this."""
        self._written += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        # Not at every write: a shift of all bytes for each of a command's small writes would be what it costs most.
        if len(self._tail) > 2 * self._half + CHUNK:
            del self._tail[: -self._half]

    def text(self) -> str:
        """Both, with the omitted part said between them."""
        omitted = self.omitted
        tail = bytes(self._tail[-self._half :])
        if not omitted:
            return (bytes(self._head) + tail).decode("utf-8", "replace")
        # Where it was cut, a character may be in two: what is left of it is omitted too.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        head = decoder.decode(bytes(self._head))
        begun, _ = decoder.getstate()
        rest = tail.lstrip(_CONTINUATION)
        omitted += len(begun) + len(tail) - len(rest)
        return f"{head}\n[... {omitted} bytes omitted ...]\n{rest.decode('utf-8', 'replace')}"


def environment(own: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command: what is handed on of our `own`, and what the job wants."""
    kept = {name: value for name, value in own.items() if name in _HANDED_ON or name.startswith("LC_")}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "TERM": "dumb"} | kept | dict(wanted)


async def run(
    command: Sequence[str],
    *,
    directory: str,
    variables: Mapping[str, str],
    seconds: float,
    max_output: int,
    pass_fds: Sequence[int] = (),
) -> Finished:
    """Runs a command to its end, `seconds` at most. Cancelled, it ends the whole group before it lets go.

    `pass_fds` are the command's too, by the same numbers. Raises NonRetryableError when the command cannot be started.
    """
    began = time.monotonic()
    running = _Running(command, directory, variables, max_output, pass_fds)
    timed_out = False
    try:
        try:
            async with asyncio.timeout(seconds):
                await running.ended.wait()
        except TimeoutError:
            timed_out = True
    finally:
        # Also on the way out of a cancel, which must not be held up by a second one.
        exit_code = await asyncio.shield(asyncio.ensure_future(running.end()))
    return Finished(
        exit_code=exit_code,
        stdout=running.stdout,
        stderr=running.stderr,
        timed_out=timed_out,
        seconds=time.monotonic() - began,
    )


class _Running:
    """A command, its process group and its pipes. Used on the event loop's thread."""

    def __init__(
        self,
        command: Sequence[str],
        directory: str,
        variables: Mapping[str, str],
        max_output: int,
        pass_fds: Sequence[int],
    ) -> None:
        self.stdout = Output(max_output)
        self.stderr = Output(max_output)
        self.ended = asyncio.Event()
        self._drained = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pipes: dict[int, Output] = {}
        readers = []
        writers = []
        try:
            for _ in range(2):
                reader, writer = os.pipe()
                readers.append(reader)
                writers.append(writer)
            self._process = subprocess.Popen(  # noqa: S603 - a command is what a job asks for
                command,
                cwd=directory,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=writers[0],
                stderr=writers[1],
                start_new_session=True,
                pass_fds=pass_fds,
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except (OSError, ValueError) as error:
            for reader in readers:
                os.close(reader)
            raise NonRetryableError(f"{command[0]}: cannot be started: {error}") from error
        finally:
            for writer in writers:
                os.close(writer)
        for reader, output in zip(readers, (self.stdout, self.stderr), strict=True):
            os.set_blocking(reader, False)
            self._pipes[reader] = output
            self._loop.add_reader(reader, self._read, reader)
        self._loop.add_reader(self._pidfd, self._exited)

    async def end(self) -> int:
        """Ends whatever is left of the group; returns the leader's exit code."""
        if not self.ended.is_set():
            self._signal(signal.SIGTERM)
            await self._within(TERM_GRACE, self.ended)
        self._signal(signal.SIGKILL)
        await self._within(KILL_PATIENCE, self.ended)
        code = self._reap()
        await self._within(OUTPUT_GRACE, self._drained)
        for reader in list(self._pipes):
            self._close(reader)
        return code

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.ended.set()

    def _reap(self) -> int:
        """The leader's exit code. Its number is another's from here on."""
        self._loop.remove_reader(self._pidfd)
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        os.close(self._pidfd)
        if result is None:
            # It outlives even SIGKILL; the supervisor will find it.
            code = -signal.SIGKILL
        else:
            code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        self._process.returncode = code
        return code

    def _read(self, reader: int) -> None:
        try:
            data = os.read(reader, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._pipes[reader].add(data)
        else:
            self._close(reader)

    def _close(self, reader: int) -> None:
        self._loop.remove_reader(reader)
        os.close(reader)
        del self._pipes[reader]
        if not self._pipes:
            self._drained.set()

    @staticmethod
    async def _within(seconds: float, event: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
