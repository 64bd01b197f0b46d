"""Where a worker that boots asks what it is to do: to live, to hang or to die. Acts."""

import asyncio
import os
import socket
import struct

from tests.campaign.changes import Changes
from tests.campaign.watch import Watch

LIVE = "live"
_PATIENCE = 30.0


class Desk:
    """Listens on an abstract Unix socket, whose peers the kernel names. `orders` are for the slots' next processes."""

    def __init__(self, address: str, watch: Watch, changes: Changes) -> None:
        self.address = address
        self.orders: dict[str, str] = {}
        self._watch = watch
        self._changes = changes
        self._server: asyncio.Server

    async def open(self) -> None:
        """Answer from now on."""
        self._server = await asyncio.start_unix_server(self._answer, f"\0{self.address}")

    def close(self) -> None:
        """Answer no more."""
        self._server.close()

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            # The supervisor may say later than the process itself that there is one.
            await self._changes.until(lambda: pid in self._watch.by_pid, _PATIENCE, f"process {pid} is in the log")
            writer.write(self.orders.pop(self._watch.by_pid[pid], LIVE).encode())
        finally:
            writer.close()


def new_address() -> str:
    """Unique on this machine, so that it also marks every process of one campaign."""
    return f"mobius-campaign-{os.getpid()}-{os.urandom(4).hex()}"
