"""Handlers that hang, each in a way of its own."""

import os
import signal
import time

from worker_child import action


@action("test.stop_myself")
async def stop_myself() -> None:
    """The whole process stands still, as after SIGSTOP by a person."""
    os.kill(os.getpid(), signal.SIGSTOP)


@action("test.block")
async def block() -> None:
    """The event loop is blocked; the interpreter runs on."""
    time.sleep(600)  # noqa: ASYNC251 - the fault that is tested
