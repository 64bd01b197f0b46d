"""A log that nobody reads holds up nobody, and loses no more than it must."""

import os
import threading

from service_manager import log_writer
from service_manager.log_writer import LogWriter, to_stream


def test_a_reader_that_does_not_read_loses_lines_and_stops_nobody() -> None:
    reader, writer_fd = os.pipe()
    writer = LogWriter(to_stream(writer_fd))
    line = b"x" * 1000
    lines = log_writer.MAX_WAITING // 1000 + 1000
    for _ in range(lines):
        writer.write(line)
    dropped = writer.dropped
    assert dropped > 0
    received = 0

    def read_all() -> None:
        nonlocal received
        while data := os.read(reader, 1 << 20):
            received += len(data)

    thread = threading.Thread(target=read_all)
    thread.start()
    writer.close()
    os.close(writer_fd)
    thread.join()
    os.close(reader)
    assert received == (lines - dropped) * 1001


def test_a_reader_that_is_gone_stops_nobody() -> None:
    reader, writer_fd = os.pipe()
    os.close(reader)
    writer = LogWriter(to_stream(writer_fd))
    writer.write(b"into the void")
    writer.close()
    os.close(writer_fd)


def test_what_could_not_be_written_is_tried_again_in_order() -> None:
    written: list[bytes] = []
    tries = iter([1, 0, 2])
    all_written = threading.Event()

    def put(records: list[bytes]) -> list[bytes]:
        accepted = next(tries, len(records))
        written.extend(records[:accepted])
        if len(written) == 5:
            all_written.set()
        return records[accepted:]

    writer = LogWriter(put)
    for number in range(5):
        writer.write(b"%d" % number)
    assert all_written.wait(30)
    writer.close()
    assert written == [b"0", b"1", b"2", b"3", b"4"]
    assert writer.dropped == 0
