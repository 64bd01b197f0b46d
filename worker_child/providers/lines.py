"""Bytes of a streamed answer -> lines -> server-sent events. Decides only; nothing of a line is decoded."""

import re

MAX_LINE = 1024 * 1024
"""Bytes of one line, and of one event."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineTooLongError(ValueError):
    """A line, or an event, has more than MAX_LINE bytes."""


class LineSplitter:
    """Lines of a byte stream, whatever pieces it comes in. A line ends with LF, CR LF or CR."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that these bytes complete, without their ends. Raises LineTooLongError."""
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
            self._after_cr = False
        if not data:
            return []
        self._after_cr = data.endswith(b"\r")
        self._buffer += data
        lines = []
        start = 0
        for end in _LINE_END.finditer(self._buffer, self._searched):
            lines.append(self._checked(bytes(self._buffer[start : end.start()])))
            start = end.end()
        del self._buffer[:start]
        self._searched = len(self._buffer)
        if self._searched > MAX_LINE:
            raise LineTooLongError(f"a line has more than {MAX_LINE} bytes")
        return lines

    def end(self) -> list[bytes]:
        """The last line, if the stream ended without the end of one."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return [self._checked(rest)] if rest else []

    def _checked(self, line: bytes) -> bytes:
        if len(line) > MAX_LINE:
            raise LineTooLongError(f"a line has more than {MAX_LINE} bytes")
        if self._at_start:
            self._at_start = False
            return line.removeprefix(_BYTE_ORDER_MARK)
        return line


class EventReader:
    """Lines -> the data of server-sent events. Their names, ids and comments say nothing that we need."""

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, line: bytes) -> bytes | None:
        """The data of the event that this line completes. Raises LineTooLongError."""
        if not line:
            return self.end()
        field, _, value = line.partition(b":")
        if field == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._size += len(value) + 1
            if self._size > MAX_LINE:
                raise LineTooLongError(f"an event has more than {MAX_LINE} bytes")
        return None

    def end(self) -> bytes | None:
        """The data of an event that the stream's end completes."""
        if not self._data:
            return None
        data, self._data, self._size = b"\n".join(self._data), [], 0
        return data
