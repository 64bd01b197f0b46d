"""The program of a process that runs one job: read what to do, run the handler, say the outcome, end.

Forked from the mold, so that the handler's module is there already. It has an event loop of its own: a coroutine runs
on it, a plain function in a thread beside it, and SIGTERM cancels either. When its worker is gone the kernel ends it,
with everything in its group, whatever it does at that moment.
"""

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import socket
from pathlib import Path

import msgspec
import uvloop

from worker_child import job_messages, log
from worker_child.actions import registry
from worker_child.decisions import Outcome
from worker_child.errors import WorkerError
from worker_child.modules import import_source
from worker_child.runner import Runner

ENDED = 0
NOTHING_TO_DO = 70

_EXECUTION = 1
_OOM_SCORE = 500
"""The kernel's out-of-memory killer takes this process before the worker and the supervisor."""


def tie_to(life_line: int) -> bool:
    """Has the kernel kill this process's group when the other end of `life_line` closes. Whether it is still open.

    A signal of our own choice instead of SIGIO, which is Linux's F_SETSIG: no line of Python has to run for it, so it
    reaches code that keeps the interpreter, and everything that a handler has started in its group.
    """
    fcntl.fcntl(life_line, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life_line, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life_line, fcntl.F_SETFL, fcntl.fcntl(life_line, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(life_line, select.POLLIN)
    return not poll.poll(0)


def run(channel: socket.socket, late_modules: list[str]) -> int:
    """Runs the one job of this process. Returns its exit code; the outcome was said by then.

    `late_modules` are those that the mold could not import.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    start = _read(channel)
    if not isinstance(start, job_messages.Start):
        return NOTHING_TO_DO
    log.mark_lines(start.log_mark)
    try:
        for name in late_modules:
            import_source(name)
    except WorkerError as error:
        outcome = Outcome(status="failed", error_type=type(error).__name__, error_message=str(error))
    else:
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        outcome = loop.run_until_complete(_live(start, channel))
    result = bytes(outcome.result) if outcome.result is not None else None
    finished = job_messages.Finished(
        status=outcome.status, result=result, error_type=outcome.error_type, error_message=outcome.error_message
    )
    channel.setblocking(True)  # noqa: FBT003 - the standard library's signature
    with contextlib.suppress(OSError):
        channel.sendall(job_messages.framed(finished))
    return ENDED


async def _live(start: job_messages.Start, channel: socket.socket) -> Outcome:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[Outcome] = loop.create_future()

    def finished(_execution: int, outcome: Outcome, _returned: bool) -> None:  # noqa: FBT001 - the runner's word
        over.set_result(outcome)

    only = registry.in_process(start.job.action_name or "")
    runner = Runner(only, start.worker_instance_id, threads=1, finished=finished, came_back=lambda _: None)
    # Its worker bounds how long it may take to stop, and has it killed then.
    runner.gives_up = False
    loop.add_signal_handler(signal.SIGTERM, runner.cancel, _EXECUTION, "the worker asked for it")
    channel.setblocking(False)  # noqa: FBT003 - the standard library's signature
    loop.add_reader(channel.fileno(), _told, loop, channel, runner)
    runner.start(_EXECUTION, start.job, times_out_at=start.times_out_at)
    runner.begin()
    return await over


def _told(loop: asyncio.AbstractEventLoop, channel: socket.socket, runner: Runner) -> None:
    """The worker says one thing only while the job runs; its end is the life line's matter."""
    loop.remove_reader(channel.fileno())
    channel.setblocking(True)  # noqa: FBT003 - it is there already: a message of a few bytes comes as a whole
    if isinstance(_read(channel), job_messages.LeaseLost):
        runner.lose_lease(_EXECUTION)


def _read(channel: socket.socket) -> job_messages.ToProcess | None:
    """One message; None at the end of the conversation, and for what is no message."""
    try:
        head = _exactly(channel, job_messages.HEAD)
        message: job_messages.ToProcess = job_messages.to_process(_exactly(channel, job_messages.length(head)))
    except (OSError, EOFError, msgspec.MsgspecError):
        return None
    return message


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
