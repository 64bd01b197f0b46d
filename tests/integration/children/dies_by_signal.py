"""Ends itself by the signal that it is told."""

import signal
import threading

from msgspec import Struct

from worker_child import action


class Death(Struct):
    """By its number."""

    signal: int


@action("test.die")
async def die(params: Death) -> None:
    """Whatever was set for the signal is undone first."""
    if params.signal != signal.SIGKILL:
        signal.signal(params.signal, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [params.signal])
    signal.pthread_kill(threading.get_ident(), params.signal)
