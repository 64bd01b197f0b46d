"""Jobs in processes of their own: asked for, talked to, heard to the end. What becomes of one is its job's alone.

The supervisor has the process made by the mold, watches and reaps it, and kills it when it must; job and outcome go
over a socket pair between us. The process's output comes here, so that each line says which job it belongs to.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections import deque
from typing import Any

import msgspec

from wire import pipe
from wire.frames import ClaimedJob
from wire.lines import LineCutter
from wire.verdicts import OVER_CAPACITY
from worker_child import job_messages, log
from worker_child.actions import Context
from worker_child.decisions import Outcome
from worker_child.runner import MAX_RESULT

LAST_WORDS = 5.0
"""Seconds from the end of a process to the end of what it said: something that it left behind may hold its end open."""

MOST_LINES = 100
"""Lines of one piece of output above which its reading pauses: whoever floods us waits, and nobody else."""

PAUSE = 0.05
"""Seconds."""

SAY_AGAIN = 0.1
"""Seconds until a supervisor that took nothing is tried again."""

_READ = 16 * 1024
_LAST_READS = 16
_MAX_FINISHED = MAX_RESULT + 64 * 1024

CRASHED = "HandlerCrashed"
OUT_OF_MEMORY = "HandlerOutOfMemory"

_json_object = msgspec.json.Decoder(dict[str, Any])


class JobProcesses:
    """The processes of one worker's jobs, by the number of their execution. Owns the pipe to the supervisor."""

    def __init__(self, channel: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._processes: dict[int, _JobProcess] = {}
        self._unsaid: deque[bytes] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._is_orphaned = False
        channel.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._loop.add_reader(channel.fileno(), self._readable)

    def close(self) -> None:
        """Nothing is asked for and heard any more."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()

    async def run(self, number: int, job: ClaimedJob, context: Context) -> Outcome:
        """The job's outcome, once its process is gone and reaped."""
        try:
            process = _JobProcess(context)
        except OSError as error:
            return _not_made(error.strerror or str(error))
        try:
            self._ask_for(process, number, job)
            self._processes[number] = process
            if self._is_orphaned:
                process.orphaned()
            start = job_messages.Start(
                job=job,
                worker_instance_id=context.worker_instance_id,
                times_out_at=context.times_out_at,
                log_mark=process.log_mark,
            )
            finished, ended = await process.live(start)
        except OSError as error:
            return _not_made(f"the supervisor does not answer ({error.strerror})")
        finally:
            self._processes.pop(number, None)
            process.close()
        outcome = _outcome(finished, ended)
        if outcome.error_type in (CRASHED, OUT_OF_MEMORY, OVER_CAPACITY):
            context.log.error("job.process_lost", error_type=outcome.error_type, error=outcome.error_message)
        return outcome

    def stop(self, number: int, grace: float) -> None:
        """SIGTERM, and after `grace` seconds SIGKILL to the process's group."""
        process = self._processes.get(number)
        if process is None:
            return
        if self._is_orphaned:
            # Nobody is left who could signal it, or wait: the kernel ends it when we let go.
            process.let_go()
        else:
            self._unsaid.append(pipe.encode(pipe.JobStop(number=number, grace=grace)))
            self._say()

    def lose_lease(self, number: int) -> None:
        """Shows in the context of the handler."""
        process = self._processes.get(number)
        if process is not None:
            process.say(job_messages.LeaseLost())

    def _ask_for(self, process: "_JobProcess", number: int, job: ClaimedJob) -> None:
        """Raises OSError when the supervisor is gone, or takes nothing more at the moment."""
        order = pipe.JobFork(number=number, job_id=job.id, action=job.action_name or "")
        try:
            socket.send_fds(self._channel, [pipe.encode(order)], process.theirs)
        finally:
            process.give_away()

    def _say(self) -> None:
        """Now, or when there is room: what is said here must not be lost."""
        if self._retry is not None:
            return
        try:
            while self._unsaid:
                self._channel.send(self._unsaid[0])
                self._unsaid.popleft()
        except BlockingIOError:
            self._retry = self._loop.call_later(SAY_AGAIN, self._say_again)
        except OSError:
            self._unsaid.clear()

    def _say_again(self) -> None:
        self._retry = None
        self._say()

    def _readable(self) -> None:
        try:
            data = self._channel.recv(pipe.MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._channel.fileno())
            self._orphaned()
            return
        news = pipe.decode_job_news(data)
        process = self._processes.get(news.number)
        if process is not None:
            process.ended_with(news)

    def _orphaned(self) -> None:
        """The supervisor is gone: what ends now ends unseen, but for the end of the conversation."""
        self._is_orphaned = True
        for process in self._processes.values():
            process.orphaned()


class _JobProcess:
    """One process, from before it is asked for. Raises OSError when descriptors have run out."""

    def __init__(self, context: Context) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[pipe.JobNews] = self._loop.create_future()
        self._conversation = _Conversation(self._loop)
        with contextlib.ExitStack() as undo:
            self._channel, theirs = socket.socketpair()
            undo.callback(theirs.close)
            undo.callback(self._channel.close)
            life_line, self._life_line = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, life_line)
            undo.callback(os.close, self._life_line)
            reader, writer = os.pipe2(os.O_CLOEXEC)
            undo.pop_all()
        self.theirs = [theirs.detach(), life_line, writer]
        """What is the process's: its end of the conversation, its life line, its output."""
        self.log_mark = f"\x1f{secrets.token_hex(8)}"
        self._output = _Output(self._loop, reader, self.log_mark, context.log_fields())

    def give_away(self) -> None:
        """Its own ends are on their way, or nobody wants them."""
        for descriptor in self.theirs:
            os.close(descriptor)
        self.theirs = []

    async def live(self, start: job_messages.Start) -> tuple[job_messages.Finished | None, pipe.JobNews]:
        """To its end, and to the end of what it said."""
        await self._loop.create_unix_connection(lambda: self._conversation, sock=self._channel)
        self._conversation.say(start)
        ended = await self._ended
        finished = None
        if isinstance(ended, pipe.JobEnded):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    finished = await self._conversation.over
        self._output.drain()
        return finished, ended

    def say(self, message: job_messages.LeaseLost) -> None:
        self._conversation.say(message)

    def ended_with(self, message: pipe.JobNews) -> None:
        if not self._ended.done():
            self._ended.set_result(message)

    def orphaned(self) -> None:
        unseen = pipe.JobEnded(number=0, exit_code=None, signal=None)
        self._conversation.over.add_done_callback(lambda _: self.ended_with(unseen))

    def let_go(self) -> None:
        """The kernel ends the process and its group."""
        if self._life_line >= 0:
            os.close(self._life_line)
            self._life_line = -1

    def close(self) -> None:
        self.give_away()
        self.let_go()
        self._output.close()
        self._conversation.close()
        self._channel.close()


class _Conversation(asyncio.Protocol):
    """Our end of it. `over` is the process's last words; None when it had none, or they make no sense."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.over: asyncio.Future[job_messages.Finished | None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._heard = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def say(self, message: job_messages.ToProcess) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(job_messages.framed(message))

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if self.over.done() or len(self._heard) < job_messages.HEAD:
            return
        size = job_messages.length(bytes(self._heard[: job_messages.HEAD]))
        if size > _MAX_FINISHED:
            self._conclude(None)
        elif len(self._heard) >= job_messages.HEAD + size:
            words = bytes(self._heard[job_messages.HEAD : job_messages.HEAD + size])
            try:
                self._conclude(job_messages.from_process(words))
            except msgspec.MsgspecError:
                self._conclude(None)

    def connection_lost(self, _error: Exception | None) -> None:
        self._conclude(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _conclude(self, words: job_messages.Finished | None) -> None:
        if not self.over.done():
            self.over.set_result(words)
            self.close()


class _Output:
    """What a process prints, a line at a time, into our own log. Owns the file descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, mark: str, fields: dict[str, Any]) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._mark = mark
        self._fields = fields
        self._cutter = LineCutter()
        self._resume: asyncio.TimerHandle | None = None
        loop.add_reader(fd, self._read)

    def drain(self) -> None:
        """What is left, but no more than a pipe holds."""
        for _ in range(_LAST_READS):
            if self._fd < 0 or not self._read():
                break
        log.forward(self._cutter.rest(), self._mark, self._fields)

    def close(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> bool:
        data = b""
        with contextlib.suppress(OSError):
            data = os.read(self._fd, _READ)
            if not data:
                self._loop.remove_reader(self._fd)
        if not data:
            return False
        lines = self._cutter.cut(data)
        log.forward([line for line in lines if line], self._mark, self._fields)
        if len(lines) > MOST_LINES and self._resume is None:
            self._loop.remove_reader(self._fd)
            self._resume = self._loop.call_later(PAUSE, self._listen)
        return True

    def _listen(self) -> None:
        self._resume = None
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._read)


def _not_made(why: str) -> Outcome:
    """Not started, and no fault of the job: it goes back at no cost (contract, "Words on the wire")."""
    message = f"no process could be made for the handler: {why}"
    return Outcome(status="failed", error_type=OVER_CAPACITY, error_message=message)


def _outcome(finished: job_messages.Finished | None, ended: pipe.JobNews) -> Outcome:
    if isinstance(ended, pipe.JobForkFailed):
        return _not_made(ended.message)
    if finished is None:
        error_type, how = _death(ended)
        return Outcome(status="failed", error_type=error_type, error_message=f"the handler's process {how}")
    if finished.status != "completed":
        return Outcome(status=finished.status, error_type=finished.error_type, error_message=finished.error_message)
    result = finished.result or b""
    try:
        # A process that is out of its mind must not put into a frame what is no JSON.
        _json_object.decode(result)
    except (ValueError, msgspec.MsgspecError) as error:
        message = f"the handler's process gave a result that makes no sense: {error}"
        return Outcome(status="failed", error_type=CRASHED, error_message=message)
    return Outcome(status="completed", result=msgspec.Raw(result))


def _death(ended: pipe.JobEnded) -> tuple[str, str]:
    """What became of a process that gave no outcome: the error's type, and the rest of the sentence."""
    if ended.out_of_memory:
        return OUT_OF_MEMORY, "was killed by the kernel for want of memory"
    if ended.killed:
        return CRASHED, "was killed by the supervisor"
    if ended.signal is not None:
        known = ended.signal in set(signal.Signals)
        name = signal.Signals(ended.signal).name if known else "a signal without a name"
        unknown = ", by whom is unknown" if ended.signal == signal.SIGKILL and ended.out_of_memory is None else ""
        return CRASHED, f"was ended by signal {ended.signal} ({name}){unknown}"
    if ended.exit_code is not None:
        return CRASHED, f"ended with exit code {ended.exit_code} before the handler had returned"
    return CRASHED, "ended unseen, when the supervisor was gone already"
