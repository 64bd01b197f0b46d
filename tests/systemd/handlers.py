"""Handlers that the machine's workers run: their test follows them through the journal and a FIFO in their home."""

import contextlib
import os
import subprocess
from pathlib import Path

from worker_child import Context, action


@action("test.hold")
def hold(ctx: Context) -> str:
    """Say so, then wait until the test writes."""
    return _gate(ctx).read_text()


@action("test.hold_a_program")
def hold_a_program(ctx: Context) -> str:
    """The same with another program, which any signal that systemd sends to all of the unit reaches too."""
    return subprocess.run(["cat", _gate(ctx)], check=True, capture_output=True, text=True).stdout


def _gate(ctx: Context) -> Path:
    gate = Path.home() / "gate"
    with contextlib.suppress(FileExistsError):
        os.mkfifo(gate)
    ctx.log.info("holding")
    return gate


@action("test.exhaust_memory")
def exhaust_memory() -> None:
    """Take memory until there is none."""
    taken = []
    while True:
        taken.append(bytearray(b"x") * (8 << 20))
