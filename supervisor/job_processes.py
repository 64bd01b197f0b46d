"""Processes of jobs: asked for by a child, forked by its mold, watched and reaped here. Acts; jobs.py decides.

Each child has a pipe of its own for this, so that a request wakes us at once, while its beats wait for the next round.
Job and outcome never come here: they go over the descriptors that are only passed on.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable

from supervisor.control_messages import JobProcessStatus
from supervisor.evidence import evidence_of, why_no_stacks
from supervisor.facts import (
    Fact,
    JobProcessEnded,
    JobProcessKilled,
    JobProcessRefused,
    JobProcessStarted,
    MessageRefused,
)
from supervisor.jobs import (
    Action,
    Announced,
    DeadlinePassed,
    Ended,
    Event,
    JobProcess,
    KeepEvidence,
    Kill,
    NotMade,
    OwnerGone,
    State,
    Stop,
    TellNotMade,
    Terminate,
)
from wire import pipe

SAY_AGAIN = 0.1
"""Seconds until a child that took nothing is told again."""

_GIVEN = 3
"""File descriptors that ride along with a JobFork."""

_MAX_ORDER = 4 * 1024
_TRACED_RETRY = 0.1
_ANCILLARY = socket.CMSG_SPACE(_GIVEN * 4)

OwnerKey = tuple[str, int]
"""Slot and incarnation of a child."""


class Owner:
    """One child: how many processes it may have, its pipe, and the mold that it was forked from (None: gone)."""

    def __init__(self, key: OwnerKey, channel: socket.socket, most: int, mold: socket.socket) -> None:
        self.key = key
        self.channel = channel
        self.most = most
        self.mold = mold
        self.untold: deque[bytes] = deque()
        self.retry: asyncio.TimerHandle | None = None
        self.running: dict[int, Running] = {}


class Running:
    """One process of a job, from the request on. `pidfd` is -1 until it is announced."""

    def __init__(self, owner: Owner, order: pipe.JobFork, mold: socket.socket, now: float) -> None:
        self.owner = owner
        self.number = order.number
        self.job_id = order.job_id
        self.action = order.action
        self.mold = mold
        self.decided = JobProcess(now)
        self.asked_at = now
        self.timer: asyncio.TimerHandle | None = None
        self.pid = -1
        self.pidfd = -1

    @property
    def key(self) -> tuple[str, int, int]:
        """What identifies it; a pid never does."""
        return *self.owner.key, self.number


class JobProcesses:
    """All of them. `unexplained` is called when one died by a SIGKILL that is not ours; `explain` answers it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        publish: Callable[[Fact], None],
        unexplained: Callable[[], None],
        mold_of: Callable[[str], socket.socket | None],
    ) -> None:
        self._loop = loop
        self._publish = publish
        self._unexplained = unexplained
        self._mold_of = mold_of
        self._owners: dict[OwnerKey, Owner] = {}
        self._running: dict[tuple[str, int, int], Running] = {}
        self._unjudged: list[tuple[Running, pipe.JobEnded]] = []

    # --- what others may ask -------------------------------------------------------------------------------------

    @property
    def pids(self) -> set[int]:
        """Every process that is announced and not reaped."""
        return {running.pid for running in self._running.values() if running.pidfd >= 0}

    @property
    def unannounced(self) -> set[tuple[str, int, int]]:
        """What was asked for, and may be a child of ours before we know its number."""
        return {key for key, running in self._running.items() if running.pidfd < 0}

    @property
    def unjudged(self) -> int:
        """Deaths by a SIGKILL that is not ours, of which nobody has said yet whether the kernel wanted memory."""
        return len(self._unjudged)

    def of(self, slot: str, now: float) -> list[JobProcessStatus]:
        """Those of the slot's worker, in the order in which they were asked for."""
        return [
            JobProcessStatus(
                job_id=running.job_id,
                action=running.action,
                pid=running.pid if running.pidfd >= 0 else None,
                state=running.decided.state.value,
                age=now - running.asked_at,
            )
            for running in self._running.values()
            if running.owner.key[0] == slot
        ]

    def explain(self, *, out_of_memory: bool | None) -> None:
        """Whether it did; None: it cannot be told."""
        unjudged, self._unjudged = self._unjudged, []
        for running, ended in unjudged:
            self._tell_end(running, ended, out_of_memory=out_of_memory)

    # --- children ------------------------------------------------------------------------------------------------

    def attach(self, owner: Owner) -> None:
        """A child that may ask. Owns its channel from now on."""
        owner.channel.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._owners[owner.key] = owner
        self._loop.add_reader(owner.channel.fileno(), self._readable, owner)

    def owner_gone(self, key: OwnerKey) -> None:
        """The child has ended, or was never made: whatever it has asked for ends."""
        owner = self._owners.pop(key, None)
        if owner is None:
            return
        self._loop.remove_reader(owner.channel.fileno())
        owner.channel.close()
        for running in list(owner.running.values()):
            self._step(running, OwnerGone())

    def mold_gone(self, channel: socket.socket) -> None:
        """Nobody answers what was asked of this mold."""
        for running in [running for running in self._running.values() if running.mold is channel]:
            self._step(running, NotMade(message="the mold ended before it answered"))

    def close(self) -> None:
        """Forget every process without waiting for it. They end with their children."""
        for key in list(self._owners):
            self.owner_gone(key)
        for running in list(self._running.values()):
            self._forget(running)

    # --- molds ---------------------------------------------------------------------------------------------------

    def announced(self, message: pipe.JobSpawned) -> None:
        """A mold has forked one."""
        running = self._running.get((message.slot, message.incarnation, message.number))
        if running is None or running.pidfd >= 0:
            # Given up meanwhile: it is a child that nobody ordered, and the next sweep ends it.
            return
        try:
            # Only a child of ours can be waited for: a number that is anybody else's is refused here.
            os.waitid(os.P_PID, message.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            running.pidfd = os.pidfd_open(message.pid)
        except OSError as error:
            self._step(running, NotMade(message=f"pid {message.pid} is no child of ours: {error.strerror}"))
            return
        running.pid = message.pid
        self._loop.add_reader(running.pidfd, self._exited, running)
        self._tell(JobProcessStarted, running, pid=running.pid)
        self._step(running, Announced())

    def not_made(self, message: pipe.JobSpawnFailed) -> None:
        """A mold could not fork one."""
        running = self._running.get((message.slot, message.incarnation, message.number))
        if running is not None:
            self._step(running, NotMade(message=message.message))

    # --- hearing children ----------------------------------------------------------------------------------------

    def _readable(self, owner: Owner) -> None:
        try:
            data, ancillary, _, _ = owner.channel.recvmsg(_MAX_ORDER, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        descriptors = _descriptors(ancillary)
        try:
            if not data:
                self._loop.remove_reader(owner.channel.fileno())
                return
            self._ordered(owner, pipe.decode_job_order(data), descriptors)
        except pipe.PipeMessageError as error:
            slot, incarnation = owner.key
            self._publish(MessageRefused(pool=_pool(slot), slot=slot, incarnation=incarnation, problem=str(error)))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _ordered(self, owner: Owner, order: pipe.JobOrder, descriptors: list[int]) -> None:
        if isinstance(order, pipe.JobStop):
            running = owner.running.get(order.number)
            if running is not None:
                self._step(running, Stop(grace=max(0.0, order.grace)))
            return
        mold = owner.mold if owner.mold.fileno() >= 0 else self._mold_of(owner.key[0])
        refusal = ""
        if order.number in owner.running or len(owner.running) >= owner.most:
            refusal = f"the worker has {len(owner.running)} already, as many as its concurrency allows"
        elif mold is None:
            refusal = "the mold is not there at the moment"
        elif len(descriptors) != _GIVEN:
            refusal = f"{len(descriptors)} file descriptors came along, not {_GIVEN}"
        else:
            refusal = self._ask(Running(owner, order, mold, time.monotonic()), descriptors)
        if refusal:
            self._say(owner, pipe.JobForkFailed(number=order.number, message=refusal))
            slot, incarnation = owner.key
            self._publish(
                JobProcessRefused(
                    pool=_pool(slot),
                    slot=slot,
                    incarnation=incarnation,
                    job_id=order.job_id,
                    action=order.action,
                    problem=refusal,
                )
            )

    def _ask(self, running: Running, descriptors: list[int]) -> str:
        """Has the mold fork it; why not, if it cannot be asked."""
        slot, incarnation = running.owner.key
        order = pipe.SpawnJob(slot=slot, incarnation=incarnation, number=running.number, supervisor_pid=os.getpid())
        try:
            socket.send_fds(running.mold, [pipe.encode(order)], descriptors)
        except OSError as error:
            return f"the mold takes no order: {error.strerror}"
        self._running[running.key] = running
        running.owner.running[running.number] = running
        self._watch_deadline(running)
        return ""

    def _say(self, owner: Owner, news: pipe.JobNews) -> None:
        owner.untold.append(pipe.encode(news))
        self._flush(owner)

    def _flush(self, owner: Owner) -> None:
        """Now, or when there is room: what is said here must not be lost as long as there is somebody to hear it.

        Whoever does not listen is not listened to, so that no more can wait than a pipe holds.
        """
        if owner.channel.fileno() < 0 or owner.retry is not None:
            return
        try:
            while owner.untold:
                owner.channel.send(owner.untold[0], socket.MSG_NOSIGNAL)
                owner.untold.popleft()
        except BlockingIOError:
            self._loop.remove_reader(owner.channel.fileno())
            owner.retry = self._loop.call_later(SAY_AGAIN, self._flush_again, owner)
        except OSError:
            owner.untold.clear()

    def _flush_again(self, owner: Owner) -> None:
        owner.retry = None
        self._flush(owner)
        if owner.retry is None and owner.channel.fileno() >= 0:
            self._loop.add_reader(owner.channel.fileno(), self._readable, owner)

    # --- one process ---------------------------------------------------------------------------------------------

    def _step(self, running: Running, event: Event) -> None:
        for action in running.decided.step(event, time.monotonic()):
            self._act(running, action)
        if running.decided.state is State.OVER:
            self._forget(running)
        else:
            self._watch_deadline(running)

    def _act(self, running: Running, action: Action) -> None:
        match action:
            case Terminate():
                self._signal(running, signal.SIGTERM)
                self._signal(running, signal.SIGCONT)
            case KeepEvidence():
                self._tell(JobProcessKilled, running, pid=running.pid, evidence=evidence_of(running.pid))
                if not why_no_stacks(running.pid):
                    self._signal(running, pipe.STACKS_SIGNAL)
            case Kill():
                self._kill(running)
            case TellNotMade():
                self._say(running.owner, pipe.JobForkFailed(number=running.number, message=action.message))
                self._tell(JobProcessRefused, running, problem=action.message)

    def _watch_deadline(self, running: Running) -> None:
        if running.timer is not None:
            running.timer.cancel()
            running.timer = None
        left = running.decided.deadline - time.monotonic()
        if left != float("inf"):
            running.timer = self._loop.call_later(max(0.0, left), self._step, running, DeadlinePassed())

    def _exited(self, running: Running) -> None:
        if running.pidfd < 0:
            return
        # While it is unreaped its number is its own, and so is its group's.
        self._kill(running)
        try:
            result = os.waitid(os.P_PIDFD, running.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            exit_code, number = None, None
        else:
            if result is None:
                # A debugger reaps it first. The pidfd stays readable, and must not wake the loop again and again.
                self._loop.remove_reader(running.pidfd)
                self._loop.call_later(_TRACED_RETRY, self._exited, running)
                return
            exited = result.si_code == os.CLD_EXITED
            exit_code, number = (result.si_status, None) if exited else (None, result.si_status)
        killed = running.decided.was_killed
        self._step(running, Ended())
        ended = pipe.JobEnded(number=running.number, exit_code=exit_code, signal=number, killed=killed)
        if number == signal.SIGKILL and not killed:
            self._unjudged.append((running, ended))
            self._unexplained()
        else:
            self._tell_end(running, ended, out_of_memory=False)

    def _tell_end(self, running: Running, ended: pipe.JobEnded, *, out_of_memory: bool | None) -> None:
        told = pipe.JobEnded(
            number=ended.number,
            exit_code=ended.exit_code,
            signal=ended.signal,
            killed=ended.killed,
            out_of_memory=out_of_memory,
        )
        self._say(running.owner, told)
        cause = "finished" if ended.exit_code == 0 else "exit" if ended.signal is None else "signal"
        if ended.killed or out_of_memory:
            cause = "killed" if ended.killed else "out_of_memory"
        self._tell(JobProcessEnded, running, cause=cause, exit_code=ended.exit_code, signal=ended.signal)

    def _forget(self, running: Running) -> None:
        self._running.pop(running.key, None)
        running.owner.running.pop(running.number, None)
        if running.timer is not None:
            running.timer.cancel()
            running.timer = None
        if running.pidfd >= 0:
            self._loop.remove_reader(running.pidfd)
            os.close(running.pidfd)
            running.pidfd = -1

    def _signal(self, running: Running, number: int) -> None:
        if running.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(running.pidfd, number)

    def _kill(self, running: Running) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(running.pid, signal.SIGKILL)
        self._signal(running, signal.SIGKILL)

    def _tell(self, fact: Callable[..., Fact], running: Running, **fields: object) -> None:
        slot, incarnation = running.owner.key
        self._publish(
            fact(
                pool=_pool(slot),
                slot=slot,
                incarnation=incarnation,
                job_id=running.job_id,
                action=running.action,
                **fields,
            )
        )


def _pool(slot: str) -> str:
    return slot.rpartition("-")[0]


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(data) - len(data) % 4
            found += memoryview(data[:whole]).cast("i").tolist()
    return found
