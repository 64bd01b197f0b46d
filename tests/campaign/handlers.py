"""What the campaign's workers run, and how they come to harm: at boot as the desk says, later as a signal says.

To be used with preload = false: it is then imported by each worker, whose own signals it handles.
"""

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from msgspec import Struct

from tests.campaign.schedule import BLOCK_THE_LOOP, EXIT, HOLD_THE_INTERPRETER, LEAVE_A_PROCESS_BEHIND
from worker_child import Context, action

DESK = "CAMPAIGN_DESK"
"""Environment variable: the abstract Unix socket where a worker that boots asks what it is to do."""

LONG = 600.0
_DESK_PATIENCE = 60.0


class Work(Struct):
    """How long a job takes."""

    milliseconds: int


@action("campaign.work")
async def work(params: Work, ctx: Context) -> dict[str, object]:
    """A coroutine that takes its time; it ends early when it is cancelled."""
    await asyncio.sleep(params.milliseconds / 1000)
    return {"worker": ctx.worker_instance_id, "attempt": ctx.attempt}


@action("campaign.work_in_thread")
def work_in_thread(params: Work, ctx: Context) -> dict[str, object]:
    """The same in a thread."""
    ctx.cancelled.wait_in_thread(params.milliseconds / 1000)
    return {"worker": ctx.worker_instance_id, "attempt": ctx.attempt}


def _block_the_loop(_number: int, _frame: FrameType | None) -> None:
    time.sleep(LONG)


def _hold_the_interpreter(_number: int, _frame: FrameType | None) -> None:
    """A call into C that keeps the interpreter's lock and costs no processor time: a read of what nobody writes."""
    reader, _writer = os.pipe()
    ctypes.PyDLL(None).read(reader, ctypes.create_string_buffer(1), 1)


def _exit(_number: int, _frame: FrameType | None) -> None:
    os._exit(3)


def _leave_a_process_behind(_number: int, _frame: FrameType | None) -> None:
    subprocess.Popen(["sleep", f"{LONG:.0f}"], start_new_session=True)
    os._exit(4)


def _ask_the_desk(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as desk:
        desk.settimeout(_DESK_PATIENCE)
        desk.connect(f"\0{address}")
        order = desk.recv(64)
    if order == b"hang":
        time.sleep(LONG)
    elif order == b"die":
        sys.stderr.write(f"process {os.getpid()}: told to die at boot\n")
        sys.stderr.flush()
        os._exit(5)


if DESK in os.environ:
    signal.signal(BLOCK_THE_LOOP, _block_the_loop)
    signal.signal(HOLD_THE_INTERPRETER, _hold_the_interpreter)
    signal.signal(EXIT, _exit)
    signal.signal(LEAVE_A_PROCESS_BEHIND, _leave_a_process_behind)
    _ask_the_desk(os.environ[DESK])
