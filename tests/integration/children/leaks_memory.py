"""Keeps what it should let go."""

from msgspec import Struct

from worker_child import action

_kept: list[bytes] = []


class Leak(Struct):
    """How much."""

    mebibytes: int


@action("test.leak")
async def leak(params: Leak) -> None:
    """So much more memory, for good."""
    _kept.append(b"\x01" * params.mebibytes * 1024 * 1024)
