"""Processes, as the kernel gives them: made, watched through pidfds, signalled, reaped. Acts; decides nothing.

A mold and the control plane are made by posix_spawn, a child is forked by its mold and handed to us, because we are
the child subreaper. An exit is seen through the process's pidfd, and its last messages and lines are read before it is
told: nothing of a dead process arrives after its death.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Callable, Hashable, Mapping

import msgspec
from msgspec import Struct

from supervisor.evidence import SuspectT, children_of, complete, name_of, why_no_stacks
from supervisor.facts import Fact, HandlerImportFailed, MessageRefused, OrphanEnded
from supervisor.job_processes import JobProcesses, Owner
from supervisor.output import Line, OutputReader
from supervisor.slots import (
    Action,
    BecameReady,
    Booted,
    Died,
    Event,
    EvidenceKept,
    Examine,
    Examined,
    KeepEvidence,
    Kind,
    LoopBeat,
    Registered,
    SaidBye,
    Spawned,
    SpawnFailed,
    ThreadBeat,
)
from supervisor.stacks import StacksReader
from wire import pipe

_PR_SET_CHILD_SUBREAPER = 36
_TRACED_RETRY = 0.1
_MOLD_ENDED = "the mold ended before it answered"

_MOST_MESSAGES = 500
"""Messages of one process that are read in one go: more than its pipe holds, unless somebody keeps filling it."""

_URGENT_BEATS = 10
"""Beats after which a process that is still not ready is heard once a round only, like one that is."""
_random = random.SystemRandom()


class Program(Struct, frozen=True, kw_only=True):
    """What posix_spawn starts: the arguments after the interpreter, and the environment."""

    arguments: list[str]
    environ: dict[str, str]


class Process:
    """One incarnation of one slot. `pidfd` is -1 until the process is announced.

    `is_urgent` while what it says is awaited, and wakes the loop; afterwards it is heard once a round.
    """

    def __init__(self, slot: str, incarnation: int, kind: Kind, channel: socket.socket, output: OutputReader) -> None:
        self.slot = slot
        self.incarnation = incarnation
        self.kind = kind
        self.channel = channel
        self.output = output
        self.mold: Process | None = None
        self.stacks: StacksReader | None = None
        self.beats = 0
        self.is_urgent = True
        self.pid = -1
        self.pidfd = -1

    @property
    def key(self) -> tuple[str, int]:
        """What identifies it; a pid never does."""
        return self.slot, self.incarnation


def become_subreaper() -> None:
    """Orphans of our descendants become our children, and a mold's grandchildren with them. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


class Children:
    """Every process that the supervisor ordered. Tells events by `deliver`, facts by `publish`, lines by `forward`.

    `mold_of` names the mold that a slot is filled from now; `unexplained` is called when the process of a job died and
    `jobs.explain` should say whether for want of memory.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        deliver: Callable[[Event], None],
        publish: Callable[[Fact], None],
        forward: Callable[[str, int, list[Line]], None],
        mold_of: Callable[[str], str],
        unexplained: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._publish = publish
        self._forward = forward
        self._processes: dict[tuple[str, int], Process] = {}
        self._mold_of = mold_of
        self.jobs = JobProcesses(loop, publish=publish, unexplained=unexplained, mold_of=self._mold_for_jobs)
        self._suspects: dict[int, set[Hashable]] = {}
        """Children of ours that nobody ordered, each with the spawns that were not announced yet when it was seen."""
        # One for all: a new one for each message would cost more than the message.
        self._buffer = bytearray(pipe.MAX_MESSAGE)
        # Whoever started us may have left children of its own to us (exec keeps them); they are not ours to end.
        self._inherited = frozenset(children_of(os.getpid()))
        # Told once, however long they take to die; a number cannot be given away before we have reaped it.
        self._orphans: set[int] = set()

    # --- making --------------------------------------------------------------------------------------------------

    def start(self, slot: str, incarnation: int, kind: Kind, program: Program) -> None:
        """posix_spawn a mold or a control plane, its pipes on MOLD_FD and STACKS_FD. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        stacks_reader, stacks_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        their_end, their_stacks = _aside(theirs.detach()), _aside(stacks_writer)
        process = self._adopt(slot, incarnation, kind, ours, reader)
        process.stacks = StacksReader(self._loop, stacks_reader)
        try:
            process.pid = os.posix_spawn(
                program.arguments[0],
                program.arguments,
                program.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, writer, 1),
                    (os.POSIX_SPAWN_DUP2, writer, 2),
                    (os.POSIX_SPAWN_DUP2, their_end, pipe.MOLD_FD),
                    (os.POSIX_SPAWN_DUP2, their_stacks, pipe.STACKS_FD),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP],
            )
            self._watch(process)
        except OSError:
            self._forget(process)
            raise
        finally:
            for descriptor in (their_end, their_stacks, writer):
                os.close(descriptor)
        self._deliver(Spawned(slot=slot, incarnation=incarnation, pid=process.pid))

    def fork(self, slot: str, incarnation: int, mold_slot: str, settings: pipe.ChildSettings) -> None:
        """Ask a mold for a child. Answered by Spawned or SpawnFailed. Raises OSError, PipeMessageError, LookupError."""
        mold = self._live(mold_slot)
        settings = msgspec.structs.replace(settings, log_mark=f"\x1f{secrets.token_hex(8)}")
        spawn = pipe.Spawn(slot=slot, incarnation=incarnation, supervisor_pid=os.getpid(), settings=settings)
        data = pipe.encode(spawn)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        stacks_reader, stacks_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        jobs, their_jobs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = self._adopt(slot, incarnation, "child", ours, reader, settings.log_mark.encode())
        process.stacks = StacksReader(self._loop, stacks_reader)
        process.mold = mold
        self.jobs.attach(Owner(process.key, jobs, settings.concurrency, mold.channel))
        try:
            socket.send_fds(mold.channel, [data], [theirs.fileno(), writer, stacks_writer, their_jobs.fileno()])
        except (BrokenPipeError, ConnectionResetError):
            # It has just ended, which is about to be told: nothing went wrong here.
            self._fail_spawn(process, _MOLD_ENDED)
        except OSError:
            self._forget(process)
            raise
        finally:
            theirs.close()
            their_jobs.close()
            os.close(writer)
            os.close(stacks_writer)

    def instruct(self, slot: str, incarnation: int, settings: pipe.MoldSettings) -> None:
        """First message to a mold. Raises OSError, PipeMessageError, LookupError."""
        self._processes[slot, incarnation].channel.send(pipe.encode(settings))

    # --- ordering ------------------------------------------------------------------------------------------------

    def drain(self, slot: str, incarnation: int, grace: float) -> None:
        """Drain over the pipe, then TERM and CONT (a stopped process ignores TERM until it is continued)."""
        process = self._processes.get((slot, incarnation))
        if process is None:
            return
        if process.kind != "mold":
            # A full pipe or a process that is gone: the signal, or its end, says the same.
            with contextlib.suppress(OSError):
                process.channel.send(pipe.encode(pipe.Drain(grace=grace)), socket.MSG_NOSIGNAL)
        self._signal(process, signal.SIGTERM)
        self._signal(process, signal.SIGCONT)

    def kill(self, slot: str, incarnation: int) -> None:
        """KILL to the whole group of a process that is not reaped yet, so that the number cannot be another's."""
        process = self._processes.get((slot, incarnation))
        if process is not None and process.pidfd >= 0:
            self._kill_group(process)

    def abandon(self, slot: str, incarnation: int) -> None:
        """A spawn that nobody announced: close it, and tell it as failed."""
        process = self._processes.get((slot, incarnation))
        if process is not None and process.pidfd < 0:
            self._fail_spawn(process, "the mold did not answer in time")

    def examine(self, order: Examine) -> None:
        """Learn what can be learned of a process that is silent. Answered by Examined."""
        slot, incarnation = order.slot, order.incarnation
        self._learn(order, order.silent, lambda silent: Examined(slot=slot, incarnation=incarnation, silent=silent))

    def keep_evidence(self, order: KeepEvidence) -> None:
        """The same of one that is to be killed. Answered by EvidenceKept."""
        slot, incarnation = order.slot, order.incarnation
        self._learn(order, order.hung, lambda hung: EvidenceKept(slot=slot, incarnation=incarnation, hung=hung))

    def _learn(self, order: Action, suspect: SuspectT, answer: Callable[[SuspectT], Event]) -> None:
        process = self._processes.get((order.slot, order.incarnation))
        if process is None or process.pidfd < 0:
            self._deliver(answer(suspect))
            return
        seen = complete(suspect, process.pid)

        def kept(stacks: str, no_stacks: str) -> None:
            evidence = msgspec.structs.replace(seen.evidence, stacks=stacks, no_stacks=no_stacks)
            self._deliver(answer(msgspec.structs.replace(seen, evidence=evidence)))

        self._ask_stacks(process, kept)

    def ask_stacks(self, slot: str, done: Callable[[str, str], None]) -> None:
        """`done` gets the Python stacks of all threads of a slot's process, and why there are none, one of both empty.

        Within stacks.PATIENCE seconds. Raises LookupError when the slot has no process.
        """
        self._ask_stacks(self._live(slot), done)

    def last_lines(self, slot: str) -> list[str]:
        """The last lines that a slot's process wrote, oldest first; none without a process."""
        return next((one.output.last_lines() for one in self._processes.values() if one.slot == slot), [])

    def _ask_stacks(self, process: Process, done: Callable[[str, str], None]) -> None:
        if process.stacks is None or process.pidfd < 0:
            done("", "the process is not there yet")
            return
        why_not = why_no_stacks(process.pid)
        if why_not:
            done("", why_not)
            return
        silent = "the process did not answer in time: it waits in the kernel, or has no processor"
        if process.stacks.expect(lambda text: done(text, "" if text else silent)):
            self._signal(process, pipe.STACKS_SIGNAL)

    def sweep(self, *, thorough: bool) -> bool:
        """End and reap whatever became our child without our order. Whether nothing was left undecided.

        While a spawn is unannounced its process is ours before we know its number: what is seen meanwhile is decided
        when the spawn is. `thorough` also looks for orphans that live, which costs a walk over all processes where the
        kernel does not list a process's children.
        """
        pending: set[Hashable] = {process.key for process in self._processes.values() if process.pidfd < 0}
        pending |= self.jobs.unannounced
        ordered = {process.pid for process in self._processes.values()} | self.jobs.pids | self._inherited
        if thorough:
            unknown = children_of(os.getpid()) - ordered
            self._suspects = {pid: waits for pid, waits in self._suspects.items() if pid in unknown}
            for pid in unknown:
                if self._is_orphan(pid, pending):
                    self._end_orphan(pid)
        while (zombie := _a_zombie()) is not None and zombie not in ordered and self._is_orphan(zombie, pending):
            self._reap(zombie)
        return not self._suspects

    def _is_orphan(self, pid: int, pending: set[Hashable]) -> bool:
        """Whether an unknown child of ours can be none of the spawns that are, or were, not announced yet."""
        if pid in self._orphans:
            return True
        waits = self._suspects.setdefault(pid, pending)
        self._suspects[pid] = waits & pending
        return not self._suspects[pid]

    def _mold_for_jobs(self, slot: str) -> socket.socket | None:
        with contextlib.suppress(LookupError):
            return self._live(self._mold_of(slot)).channel
        return None

    def close(self) -> None:
        """Forget every process without waiting for it (a stuck one is the kernel's)."""
        self.jobs.close()
        for process in list(self._processes.values()):
            self._forget(process)

    # --- watching ------------------------------------------------------------------------------------------------

    def _adopt(
        self, slot: str, incarnation: int, kind: Kind, channel: socket.socket, output: int, mark: bytes = b""
    ) -> Process:
        channel.setblocking(False)  # noqa: FBT003 - the standard library's signature
        reader = OutputReader(self._loop, output, lambda lines: self._forward(slot, incarnation, lines), mark)
        process = Process(slot, incarnation, kind, channel, reader)
        self._processes[process.key] = process
        return process

    def _watch(self, process: Process) -> None:
        """From here on it is heard: its first words must not come before the mold's word that it is there."""
        process.pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(process.pidfd, self._exited, process)
        self._loop.add_reader(process.channel.fileno(), self._channel_readable, process)

    def _exited(self, process: Process) -> None:
        if process.pidfd < 0:
            return
        noticed_at = time.monotonic()
        self._kill_group(process)
        self._read_messages(process)
        process.output.drain()
        try:
            result = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            # Reaped by somebody else (a debugger): that it is gone is all there is to know.
            exit_code, number = None, None
        else:
            if result is None:
                # A debugger reaps it first. The pidfd stays readable, and must not wake the loop again and again.
                self._loop.remove_reader(process.pidfd)
                self._loop.call_later(_TRACED_RETRY, self._exited, process)
                return
            exited = result.si_code == os.CLD_EXITED
            exit_code, number = (result.si_status, None) if exited else (None, result.si_status)
        self._forget(process)
        self._deliver(
            Died(
                slot=process.slot,
                incarnation=process.incarnation,
                exit_code=exit_code,
                signal=number,
                jitter=_random.random(),
                output=process.output.last_lines(),
                noticed_at=noticed_at,
            )
        )
        if process.kind == "mold":
            for spawn in [spawn for spawn in self._processes.values() if spawn.mold is process and spawn.pidfd < 0]:
                self._fail_spawn(spawn, _MOLD_ENDED)

    def _forget(self, process: Process) -> None:
        self._processes.pop(process.key, None)
        if process.kind == "child":
            self.jobs.owner_gone(process.key)
        elif process.kind == "mold":
            self.jobs.mold_gone(process.channel)
        if process.channel.fileno() >= 0:
            self._loop.remove_reader(process.channel.fileno())
            process.channel.close()
        process.output.close()
        if process.stacks is not None:
            process.stacks.close()
        if process.pidfd >= 0:
            self._loop.remove_reader(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1

    def _fail_spawn(self, process: Process, message: str) -> None:
        self._forget(process)
        self._deliver(
            SpawnFailed(slot=process.slot, incarnation=process.incarnation, message=message, jitter=_random.random())
        )

    # --- hearing -------------------------------------------------------------------------------------------------

    def hear(self) -> None:
        """What processes that have come up have said since this was last called. To be called once a round.

        Nothing that they say is urgent: their end, which is, shows in their pidfd. To wake for each beat took most of
        the supervisor's time: with fifty idle children 1.4 % of a core, and 0.5 % this way.
        """
        for process in list(self._processes.values()):
            if not process.is_urgent:
                self._read_messages(process)

    def _channel_readable(self, process: Process) -> None:
        # One: another that waits wakes the loop again, after the other children had their turn.
        self._read_message(process)

    def _read_messages(self, process: Process) -> None:
        """Everything that waits in the pipe."""
        for _ in range(_MOST_MESSAGES):
            if not self._read_message(process):
                return

    def _read_message(self, process: Process) -> bool:
        """One message, if one waits; whether there may be more."""
        if process.channel.fileno() < 0:
            return False
        try:
            size = process.channel.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError:
            size = 0
        data = bytes(memoryview(self._buffer)[:size])
        if not data:
            self._calm(process)
            return False
        self._read(process, data)
        return True

    def _read(self, process: Process, data: bytes) -> None:
        try:
            if process.kind == "mold":
                self._hear_mold(process, pipe.decode_from_mold(data))
            else:
                self._hear(process, pipe.decode_from_child(data))
        except pipe.PipeMessageError as error:
            self._tell(MessageRefused, process, problem=str(error))

    def _hear(self, process: Process, message: pipe.FromChild) -> None:
        """The pipe says who speaks; what a message says of its sender is not needed."""
        slot, incarnation = process.key
        match message:
            case pipe.Hello():
                self._deliver(Booted(slot=slot, incarnation=incarnation, build=message.build))
            case pipe.Registered():
                self._deliver(Registered(slot=slot, incarnation=incarnation))
            case pipe.Ready():
                self._deliver(BecameReady(slot=slot, incarnation=incarnation))
                self._calm(process)
            case pipe.Beat():
                event = LoopBeat if message.source == "loop" else ThreadBeat
                self._deliver(event(slot=slot, incarnation=incarnation, beat=message))
                process.beats += 1
                if process.beats >= _URGENT_BEATS:
                    # It waits for a control plane that is away, perhaps with all of its siblings.
                    self._calm(process)
            case pipe.Bye():
                self._deliver(SaidBye(slot=slot, incarnation=incarnation, bye=message))

    def _calm(self, process: Process) -> None:
        """What it says wakes the loop no more."""
        if process.is_urgent:
            process.is_urgent = False
            self._loop.remove_reader(process.channel.fileno())

    def _hear_mold(self, mold: Process, message: pipe.FromMold) -> None:
        slot, incarnation = mold.key
        match message:
            case pipe.MoldReady():
                self._deliver(Booted(slot=slot, incarnation=incarnation, build=message.build))
                self._deliver(BecameReady(slot=slot, incarnation=incarnation))
            case pipe.MoldFailed():
                self._tell(HandlerImportFailed, mold, message=message.message, traceback=message.traceback)
                bye = pipe.Bye(slot=slot, incarnation=incarnation, reason=message.message, refused=True)
                self._deliver(SaidBye(slot=slot, incarnation=incarnation, bye=bye))
            case pipe.Spawned():
                self._announced(message)
            case pipe.JobSpawned():
                self.jobs.announced(message)
            case pipe.JobSpawnFailed():
                self.jobs.not_made(message)
            case pipe.SpawnFailed():
                process = self._processes.get((message.slot, message.incarnation))
                if process is not None and process.pidfd < 0:
                    self._fail_spawn(process, message.message)

    def _announced(self, message: pipe.Spawned) -> None:
        process = self._processes.get((message.slot, message.incarnation))
        if process is None or process.pidfd >= 0:
            # Given up meanwhile: it is a child that nobody ordered, and the next sweep ends it.
            return
        process.pid = message.pid
        try:
            # Only a child of ours can be waited for: a number that is anybody else's is refused here.
            os.waitid(os.P_PID, message.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            self._watch(process)
        except OSError as error:
            self._fail_spawn(process, f"pid {message.pid} is no child of ours: {error.strerror}")
            return
        self._deliver(Spawned(slot=process.slot, incarnation=process.incarnation, pid=message.pid))

    # --- signals -------------------------------------------------------------------------------------------------

    def _signal(self, process: Process, number: int) -> None:
        if process.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, number)

    def _kill_group(self, process: Process) -> None:
        """Each process leads a group of its own; one that died before it could has none yet."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self._signal(process, signal.SIGKILL)

    def _end_orphan(self, pid: int) -> None:
        name = name_of(pid)
        with contextlib.suppress(ProcessLookupError):
            # Unreaped, so the number is still its own.
            os.kill(pid, signal.SIGKILL)
        if pid not in self._orphans:
            self._orphans.add(pid)
            self._publish(OrphanEnded(pid=pid, name=name))
        self._reap(pid)

    def _reap(self, pid: int) -> None:
        self._suspects.pop(pid, None)
        with contextlib.suppress(ChildProcessError):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None:
                return
        self._orphans.discard(pid)

    def _live(self, slot: str) -> Process:
        for process in self._processes.values():
            if process.slot == slot:
                return process
        raise LookupError(f"{slot} has no process")

    def _tell(self, fact: Callable[..., Fact], process: Process, **fields: str) -> None:
        slot, incarnation = process.key
        self._publish(fact(pool="", slot=slot, incarnation=incarnation, **fields))


def _aside(descriptor: int) -> int:
    """The same open file under a number that no file action of a spawn replaces; the given one is closed."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, pipe.STACKS_FD + 1)
    os.close(descriptor)
    return moved


def _a_zombie() -> int | None:
    """Some child that has ended and is not reaped; None if there is none."""
    try:
        result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return result.si_pid if result is not None else None


def without(environ: Mapping[str, str], *names: str) -> dict[str, str]:
    """An environment without some variables."""
    return {name: value for name, value in environ.items() if name not in names}
