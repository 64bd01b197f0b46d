"""Stands still, as after `kill -STOP` by a person."""

import os
import signal

from worker_child import action


@action("test.stop_myself")
async def stop_myself() -> None:
    """The whole process, every thread."""
    os.kill(os.getpid(), signal.SIGSTOP)
