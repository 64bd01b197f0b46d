"""Handlers for tests: `test.gate` tells the test that it runs, and goes on when the test says so."""

import asyncio
import ctypes
import json
import os

from msgspec import Struct

from worker_child import Context, action


class Gate(Struct):
    """Where the test listens."""

    port: int


@action("test.gate")
async def gate(params: Gate, ctx: Context) -> dict[str, object]:
    """Connect, say who runs, and return what the test answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", params.port)
    visit = {"pid": os.getpid(), "attempt": ctx.attempt, "job_id": ctx.job_id, "worker": ctx.worker_instance_id}
    writer.write(json.dumps(visit).encode() + b"\n")
    try:
        answer = await reader.readline()
    finally:
        writer.close()
    if not answer:
        raise ConnectionError("the test went away")
    return {**visit, "answer": json.loads(answer)}


@action("test.noop", idempotent=True)
async def noop() -> dict[str, object]:
    """Nothing, quickly."""
    return {}


@action("test.bomb", idempotent=True)
async def bomb(params: Gate, ctx: Context) -> None:
    """As `test.gate`, but what it does when the test lets it go on ends the process."""
    await gate(params, ctx)
    ctypes.string_at(0)


@action("test.environment", idempotent=True)
async def environment() -> dict[str, object]:
    """The names of the variables that a handler finds."""
    return {"names": sorted(os.environ)}
