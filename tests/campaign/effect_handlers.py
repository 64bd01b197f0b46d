"""A handler with an effect that can be counted: one line in its job's file when it begins, one when it is done."""

import asyncio
import os
from pathlib import Path

from msgspec import Struct

from worker_child import Context, action


class Effect(Struct):
    """Where the files are; with a port, it tells the test there that it runs, and goes on when the test says so."""

    directory: str
    port: int = 0


@action("campaign.effect")
async def effect(params: Effect, ctx: Context) -> dict[str, object]:
    """Each line is one write to the end of the file: two executions at once cannot hide each other."""
    _note(params, ctx, "begins")
    if params.port:
        reader, writer = await asyncio.open_connection("127.0.0.1", params.port)
        writer.write(b'{"job_id": "%b"}\n' % ctx.job_id.encode())
        try:
            answer = await reader.readline()
        finally:
            writer.close()
        if not answer:
            raise ConnectionError("the test went away")
    _note(params, ctx, "is done")
    return {}


def _note(params: Effect, ctx: Context, what: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    descriptor = os.open(Path(params.directory) / ctx.job_id, flags, 0o600)
    os.write(descriptor, f"{ctx.attempt} {what}\n".encode())
    os.close(descriptor)
