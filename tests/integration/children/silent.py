"""Its event loop runs and works, and its beat has stopped."""

from worker_child import action
from worker_child.parent import Parent


@action("test.go_silent")
async def go_silent() -> None:
    """The next beat is the last that the loop sends."""
    Parent.say = lambda *_arguments: None  # type: ignore[method-assign]
