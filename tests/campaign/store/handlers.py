"""What the workers of a campaign against a store run: a job that writes into the ledger when it begins and is done."""

import asyncio
import os
import socket

from msgspec import Struct

from worker_child import Context, action, backoff

LEDGER = "CAMPAIGN_LEDGER"
"""Environment variable: the port where the ledger listens."""

# A worker whose connection breaks again within half a minute waits longer each time (contract). The campaign's faults
# stand for faults that are hours apart, and come every few seconds: each is to find a worker at rest.
backoff.HEALTHY_AFTER = 0.2


class Entry(Struct):
    """`name` is the run's; the job takes so many `milliseconds`."""

    name: str
    milliseconds: int


_ledger: list[socket.socket] = []


def _note(params: Entry, ctx: Context, what: str) -> None:
    if not _ledger:
        _ledger.append(socket.create_connection(("127.0.0.1", int(os.environ[LEDGER]))))
    _ledger[0].sendall(f"{params.name} {ctx.job_id} {ctx.attempt} {what}\n".encode())


@action("campaign.entry")
async def entry(params: Entry, ctx: Context) -> dict[str, object]:
    """Not idempotent, as far as anybody knows."""
    _note(params, ctx, "begins")
    await asyncio.sleep(params.milliseconds / 1000)
    _note(params, ctx, "is done")
    return {"name": params.name, "attempt": ctx.attempt}
