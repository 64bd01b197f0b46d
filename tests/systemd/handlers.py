"""Handlers that the machine's workers run: their test follows them through the journal and a FIFO in their home."""

import contextlib
import logging
import os
import subprocess
import sys
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


HOSTILE = "x\nPRIORITY=0\nMOBIUS_SLOT=default-9\x1b[2J"


@action("test.speak")
def speak(ctx: Context) -> None:
    """Say things that would like to be something else, by every way that there is."""
    ctx.log.info(HOSTILE, MOBIUS_SLOT="default-9", text=HOSTILE, size="y" * 10_000)
    logging.getLogger("library").warning("of a library")
    sys.stdout.write(f'{HOSTILE}\n{{"event": "forged", "level": "critical", "job_id": "job_forged"}}\n')
    sys.stdout.flush()
    os.write(1, b"\xff\xfe\x00binary\n")
    subprocess.run(["echo", "of a program"], check=True)


@action("test.exhaust_memory")
def exhaust_memory() -> None:
    """Take memory until there is none."""
    taken = []
    while True:
        taken.append(bytearray(b"x") * (8 << 20))
