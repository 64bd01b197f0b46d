"""The handler that benchmarks run: it does nothing."""

import socket
import time
from typing import Any

from worker_child import action


@action("bench.noop")
async def noop(params: dict[str, Any]) -> dict[str, Any]:
    """Answers with an empty object."""
    return {}


@action("bench.thread")
def thread() -> None:
    """The same in a thread."""


@action("bench.process", isolation="process")
async def process() -> None:
    """The same in a process of its own."""


@action("bench.started")
async def started(params: dict[str, Any]) -> None:
    """Tells who waits for it how long it took to come here, and what time it is (see bench/peers/measured.py)."""
    waited, now = time.monotonic_ns() - params["at"], time.time_ns()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(f"{waited} {now}".encode(), params["to"])
