"""A `mobius-supervisor` as a process of ours: started, watched until it is ready, drained."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import msgspec
from msgspec import Struct

from mobius_cli.errors import CommandError, UnavailableError

READY_SECONDS = 60.0
PROBE_INTERVAL = 0.1
PROBE_SECONDS = 2.0
GIVE_UP_FAILURES = 5
"""A supervisor tries again for ever; somebody who waits for the first start wants to know after a few seconds."""
STOP_MARGIN_SECONDS = 20.0
"""Beyond the supervisor's own drain time, for the control plane that stops last."""
_TAIL_BYTES = 8192
_TAIL_LINES = 12
_TAIL_COLUMNS = 400


class SupervisorEndedError(CommandError):
    """The supervisor ended by itself. `exit_code` is its own, so that its meaning is passed on."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code if code > 0 else CommandError.exit_code  # type: ignore[misc]


class _Slot(Struct, frozen=True):
    slot: str
    state: str
    failures: int


class _Pool(Struct, frozen=True):
    workers: int
    working: int
    mold: _Slot
    slots: list[_Slot]


class _Status(Struct, frozen=True):
    """What we read of the supervisor's /status."""

    pools: list[_Pool]
    control_plane: _Slot | None = None

    def not_ready(self) -> str:
        """Why not; nothing when every child claims work."""
        failing = [slot for slot in self._slots() if slot.failures >= GIVE_UP_FAILURES]
        if failing:
            raise UnavailableError(f"{failing[0].slot} failed {failing[0].failures} times in a row")
        if self.control_plane is not None and self.control_plane.state != "ready":
            return f"the control plane is {self.control_plane.state}"
        wanted, working = sum(pool.workers for pool in self.pools), sum(pool.working for pool in self.pools)
        return "" if working >= wanted else f"{working} of {wanted} workers claim work"

    def _slots(self) -> Iterator[_Slot]:
        if self.control_plane is not None:
            yield self.control_plane
        for pool in self.pools:
            yield from (pool.mold, *pool.slots)


class SupervisorProcess:
    """One running supervisor. Its output goes to `log`, so that the terminal is free for what the user asked for."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, log_start: int) -> None:
        self._process = process
        self._log = log
        self._log_start = log_start
        self._ended = asyncio.ensure_future(process.wait())

    @classmethod
    async def start(cls, config: Path, log: Path) -> Self:
        """Start it in a session of its own: Ctrl-C reaches us, and we tell it once what it means."""
        # A child gets SIGTERM when the thread that started it ends: that is the main thread, where the loop runs.
        program = [sys.executable, "-P", "-m", "supervisor", "-c", str(config)]
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            log_start = os.fstat(fd).st_size
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "mobius_cli.tied_process", str(os.getpid())),
                *program,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                start_new_session=True,
            )
        finally:
            os.close(fd)
        return cls(process, log, log_start)

    @property
    def pid(self) -> int:
        """For people; nothing is sent to it by number once it has ended."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it ended, by itself or because it was asked."""
        return self._ended.done()

    async def ready(self, operations_url: str) -> float:
        """Wait until every child claims work; how many seconds that took.

        Raises SupervisorEndedError, UnavailableError.
        """
        started = time.monotonic()
        async with httpx.AsyncClient(base_url=operations_url, timeout=PROBE_SECONDS, trust_env=False) as client:
            while True:
                if self._ended.done():
                    raise self.ended_error()
                try:
                    why = msgspec.json.decode((await client.get("/status")).content, type=_Status).not_ready()
                except (httpx.HTTPError, msgspec.MsgspecError) as error:
                    why = str(error) or type(error).__name__
                except UnavailableError as error:
                    raise self._not_ready(str(error)) from error
                waited = time.monotonic() - started
                if not why:
                    return waited
                if waited >= READY_SECONDS:
                    raise self._not_ready(f"not ready within {READY_SECONDS:g} s: {why}")
                await asyncio.wait([self._ended], timeout=PROBE_INTERVAL)

    def _not_ready(self, why: str) -> UnavailableError:
        return UnavailableError(f"{why}; the supervisor's log {self._log} ends with:\n{self.tail()}")

    async def ended(self) -> None:
        """Wait for its end and raise SupervisorEndedError."""
        await asyncio.shield(self._ended)
        raise self.ended_error()

    def ended_error(self) -> SupervisorEndedError:
        """What to say of a supervisor that ended by itself."""
        code = self._ended.result()
        return SupervisorEndedError(
            f"the supervisor ended with exit code {code}; its log {self._log} ends with:\n{self.tail()}", code
        )

    async def drain(self, grace: float, hurry: asyncio.Event) -> int:
        """Ask it once to stop, and once more when `hurry` is set; its exit code.

        `grace` is its own drain time in seconds. Past it and a margin it is killed; its children then end themselves.
        """
        if not self._ended.done():
            self._process.terminate()
        pressed = asyncio.ensure_future(hurry.wait())
        try:
            deadline = time.monotonic() + grace + STOP_MARGIN_SECONDS
            await asyncio.wait(
                [self._ended, pressed], timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
            )
            if not self._ended.done() and pressed.done():
                # Another signal than the first: two of the same, one right after the other, arrive as one.
                self._process.send_signal(signal.SIGINT)
            await asyncio.wait([self._ended], timeout=max(0.0, deadline - time.monotonic()))
        finally:
            pressed.cancel()
        if not self._ended.done():
            self._process.kill()
        code = await self._ended
        # It had not come as far as listening to signals, and had started nothing.
        return 0 if code == -signal.SIGTERM else code

    def tail(self) -> str:
        """The last lines that this supervisor wrote."""
        with self._log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).decode("utf-8", "replace").splitlines()
        return "\n".join(f"  {line[:_TAIL_COLUMNS]}" for line in lines[-_TAIL_LINES:]) or "  (nothing)"
