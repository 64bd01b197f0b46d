"""Hears no order any more, neither over the pipe nor by signal; lives, beats and works on."""

from worker_child import action
from worker_child.worker import Worker


@action("test.go_deaf")
async def go_deaf() -> None:
    """From here on nobody can ask this process to stop."""
    Worker.drain = lambda *_arguments, **_named: None  # type: ignore[method-assign]
