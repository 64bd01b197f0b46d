"""A process's output over a real pipe."""

import asyncio
import os

import pytest

from supervisor.output import KEPT_LINES, MAX_LINE, OutputReader


class Printed:
    """A pipe, its reader, and the lines that came out."""

    def __init__(self) -> None:
        fd, self.writer = os.pipe()
        self.lines: list[bytes] = []
        self.arrived = asyncio.Event()
        self.reader = OutputReader(asyncio.get_running_loop(), fd, self._forward)

    def _forward(self, lines: list[bytes]) -> None:
        self.lines += lines
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
    os.write(printed.writer, b"".join(b"%d\n" % number for number in range(500)))
    await printed.next()
    assert printed.reader.last_lines() == [str(number) for number in range(500 - KEPT_LINES, 500)]
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
