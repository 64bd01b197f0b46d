"""Connected, beating, and never asking for work again."""

from worker_child import action
from worker_child.session import Session


@action("test.stand_still")
async def stand_still() -> None:
    """From here on the session makes no claim, and nothing makes it make one."""
    Session._claim = lambda *_arguments: []  # type: ignore[method-assign]
