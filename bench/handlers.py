"""The handler that benchmarks run: it does nothing."""

from typing import Any

from worker_child import action


@action("bench.noop")
async def noop(params: dict[str, Any]) -> dict[str, Any]:
    """Answers with an empty object."""
    return {}
