"""Takes SIGTERM away from its own process."""

import asyncio
import signal

from worker_child import action


@action("test.ignore_term")
async def ignore_term() -> None:
    """Neither the loop's handler nor the default ends this process any more."""
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
