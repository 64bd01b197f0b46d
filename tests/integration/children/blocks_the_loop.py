"""A coroutine that waits without awaiting."""

import time

from worker_child import action


@action("test.block")
async def block() -> None:
    """Ten minutes in which nothing else runs on the loop."""
    time.sleep(600)  # noqa: ASYNC251 - the fault that is tested
