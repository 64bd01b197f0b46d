"""A process's output over a real pipe."""

import asyncio
import os

import pytest

from supervisor.output import KEPT_LINES, MAX_KEPT, Line, OutputReader
from wire.lines import MAX_LINE


class Printed:
    """A pipe, its reader, and the lines that came out."""

    def __init__(self, mark: bytes = b"") -> None:
        fd, self.writer = os.pipe()
        self.lines: list[bytes] = []
        self.own: list[bytes] = []
        self.arrived = asyncio.Event()
        self.reader = OutputReader(asyncio.get_running_loop(), fd, self._forward, mark)

    def _forward(self, lines: list[Line]) -> None:
        self.lines += [line.text for line in lines]
        self.own += [line.text for line in lines if line.is_own]
        self.arrived.set()

    async def next(self) -> None:
        async with asyncio.timeout(10):
            await self.arrived.wait()
        self.arrived.clear()


@pytest.fixture
async def printed() -> Printed:
    return Printed()


async def test_lines_come_whole_whatever_the_writes_were(printed: Printed) -> None:
    os.write(printed.writer, b"one\ntw")
    await printed.next()
    os.write(printed.writer, b"o\n\nthree")
    await printed.next()
    assert printed.lines == [b"one", b"two", b""]
    printed.reader.drain()
    assert printed.reader.last_lines() == ["one", "two", "", "three"]
    printed.reader.close()
    os.close(printed.writer)


async def test_a_long_line_is_cut_and_the_last_lines_are_kept(printed: Printed) -> None:
    os.write(printed.writer, b"x" * (MAX_LINE + 1) + b"\n")
    await printed.next()
    assert [len(line) for line in printed.lines] == [MAX_LINE, 1]
    assert [len(line) for line in printed.reader.last_lines()] == [MAX_KEPT, 1]
    os.write(printed.writer, b"".join(b"%d\n" % number for number in range(500)))
    await printed.next()
    assert printed.reader.last_lines() == [str(number) for number in range(500 - KEPT_LINES, 500)]
    printed.reader.close()
    os.close(printed.writer)


async def test_only_a_line_with_the_mark_is_the_logs_own() -> None:
    printed = Printed(b"\x1fmark")
    os.write(printed.writer, b'{"a":1}\x1fmark\n{"b":2}\n{"c":3}\x1fmarks\nno end\x1fmark\n')
    await printed.next()
    assert printed.own == [b'{"a":1}', b"no end"]
    assert printed.reader.last_lines() == ['{"a":1}', '{"b":2}', '{"c":3}\x1fmarks', "no end"]
    printed.reader.close()
    os.close(printed.writer)


async def test_the_end_of_the_writers_does_not_wake_the_loop_again(printed: Printed) -> None:
    os.write(printed.writer, b"last")
    os.close(printed.writer)
    printed.reader.drain()
    assert printed.lines == [b"last"]
    assert not asyncio.get_running_loop().remove_reader(printed.reader._fd)
    printed.reader.close()
    printed.reader.close()


async def test_a_writer_that_lives_on_is_not_waited_for(printed: Printed) -> None:
    os.write(printed.writer, b"so far")
    printed.reader.drain()
    assert printed.lines == [b"so far"]
    printed.reader.close()
    with pytest.raises(BrokenPipeError):
        os.write(printed.writer, b"too late")
    os.close(printed.writer)
