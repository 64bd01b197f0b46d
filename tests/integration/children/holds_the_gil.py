"""C code that keeps the interpreter to itself."""

import re

from worker_child import action


@action("test.hold_the_gil")
async def hold_the_gil() -> None:
    """A match that takes years, in which no other thread runs."""
    re.match(r"(a+)+$", "a" * 64 + "b")
