"""The handler that benchmarks run: it does nothing."""

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
