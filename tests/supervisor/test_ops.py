"""The HTTP endpoints' own bounds. What they say is tested with the whole supervisor."""

import asyncio

import pytest

from supervisor import config, ops
from supervisor.errors import CannotListenError
from supervisor.fleet import Fleet
from supervisor.metrics import Metrics
from supervisor.ops import Ops


def made() -> Ops:
    settings = config.Config(
        control_plane=config.ControlPlane(),
        supervisor=config.Supervisor(),
        pool=[config.Pool()],
        credential=config.Credential(source="test", key_file="/nonexistent"),
    )
    fleet = Fleet(settings, "build")
    return Ops(fleet, Metrics(fleet, build="build", clock=lambda: 0.0, dropped_lines=lambda: 0, round_lag=lambda: 0.0))


async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def test_a_client_that_never_finishes_its_request_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "CONNECTION_LIFE", 0.05)
    served = made()
    reader, writer = await connected(await served.start("127.0.0.1:0"))
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ")
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    served.close()
    served.close()


async def test_more_clients_than_there_is_room_for_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "MAX_CONNECTIONS", 1)
    served = made()
    address = await served.start("127.0.0.1:0")
    first_reader, first = await connected(address)
    first.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(10):
        assert (await first_reader.readline()).startswith(b"HTTP/1.1 200")
        second_reader, second = await connected(address)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await second_reader.readexactly(1)
    first.close()
    second.close()
    served.close()


async def test_an_address_that_is_taken_or_unknown_is_named() -> None:
    served, second = made(), made()
    address = await served.start("127.0.0.1:0")
    with pytest.raises(CannotListenError, match=f"supervisor.listen: cannot listen on {address} "):
        await second.start(address)
    with pytest.raises(CannotListenError, match=r"cannot listen on no\.such\.host\.invalid:1 "):
        await second.start("no.such.host.invalid:1")
    served.close()
