"""The control socket's own bounds. What the commands do is tested with whole supervisors."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from supervisor import control
from supervisor.control import Control
from supervisor.control_messages import MAX_REQUEST, Answer, AnyRequest, Scale, Stacks, Status, decode_answer, encode
from supervisor.errors import CannotListenError

NOBODY = 65534
FAULTY = Stacks(slot="rig-1")


class Served:
    """A control socket, what it was asked, and what was noticed."""

    def __init__(self, directory: Path) -> None:
        self.asked: list[AnyRequest] = []
        self.noticed: list[tuple[str, int, int]] = []
        self.directory = directory
        self.control = Control(directory, self._handle, lambda *notice: self.noticed.append(notice))

    async def _handle(self, request: AnyRequest) -> Answer:
        self.asked.append(request)
        if request == FAULTY:
            raise LookupError("a bug")
        return Answer(lines=["done"])

    async def ask(self, data: bytes) -> Answer:
        reader, writer = await asyncio.open_unix_connection(str(self.directory / control.SOCKET))
        writer.write(data)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return decode_answer(answer)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    made = Served(tmp_path / "run")
    await made.control.start()
    yield made
    made.control.close()
    made.control.close()


async def test_a_request_is_answered_and_noticed(served: Served) -> None:
    assert await served.ask(encode(Scale(pool="rig", workers=3))) == Answer(lines=["done"])
    assert served.asked == [Scale(pool="rig", workers=3)]
    assert served.noticed == [("scale", os.geteuid(), 0)]


async def test_the_directory_and_the_socket_are_private(served: Served) -> None:
    assert stat.S_IMODE(served.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((served.directory / control.SOCKET).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\n",
        b"{}\n",
        b'{"command": "shutdown"}\n',
        b'{"command": "scale", "pool": "rig", "workers": 0}\n',
        b'{"command": "status", "more": 1}\n',
        b"x" * (MAX_REQUEST * 4) + b"\n",
    ],
)
async def test_what_is_no_request_is_refused(served: Served, data: bytes) -> None:
    answer = await served.ask(data)
    assert answer.exit_code == 64
    assert answer.errors[0].startswith("the request is not understood: ")
    assert served.asked == []


async def test_a_fault_in_a_command_is_that_commands_alone(served: Served) -> None:
    answer = await served.ask(encode(FAULTY))
    assert (answer.exit_code, answer.errors) == (70, ["internal error: LookupError: a bug"])
    assert (await served.ask(encode(Status()))).exit_code == 0


async def test_a_client_that_says_nothing_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_PATIENCE", 0.05)
    reader, writer = await asyncio.open_unix_connection(str(served.directory / control.SOCKET))
    writer.write(b'{"command"')
    async with asyncio.timeout(10):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    writer.close()


async def test_more_clients_than_there_is_room_for_are_turned_away(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_CONNECTIONS", 0)
    with pytest.raises((msgspec.DecodeError, ConnectionResetError)):
        await served.ask(encode(Status()))
    assert served.asked == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
async def test_another_user_is_refused_even_where_the_modes_would_let_him() -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)  # noqa: PTH101 - pathlib would say the same in two lines
        served = Served(Path(open_to_all))
        path = await served.control.start()
        os.chmod(path, 0o666)  # noqa: PTH101
        code = (
            "import os, socket, sys; os.setuid(int(sys.argv[3]));"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "s.sendall(sys.argv[2].encode()); print(s.recv(4096).decode())"
        )
        # The interpreter may be in a home that nobody else may enter: it becomes another user once it runs.
        arguments = ["-I", "-S", "-c", code, path, encode(Status()).decode(), str(NOBODY)]
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=subprocess.PIPE, cwd="/")
        async with asyncio.timeout(10):
            output, _ = await process.communicate()
        served.control.close()
    assert decode_answer(output).exit_code == 77
    assert served.asked == []
    assert served.noticed == [("refused", NOBODY, 77)]


async def test_a_socket_that_a_dead_supervisor_left_is_replaced(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / control.SOCKET))
    left.close()
    made = Served(tmp_path)
    await made.control.start()
    assert (await made.ask(encode(Status()))).exit_code == 0
    made.control.close()


async def test_a_directory_in_use_or_not_usable_is_named(tmp_path: Path, served: Served) -> None:
    with pytest.raises(CannotListenError, match="is in use by another supervisor"):
        await Served(served.directory).control.start()
    assert (await served.ask(encode(Status()))).exit_code == 0
    (tmp_path / "file").touch()
    with pytest.raises(CannotListenError, match=r"supervisor\.runtime_dir: cannot listen on "):
        await Served(tmp_path / "file").control.start()


async def test_a_path_longer_than_a_sockets_address(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30) / ("path" * 30)
    made = Served(directory)
    assert await made.control.start() == str(directory / control.SOCKET)
    made.control.close()
