"""What a process prints, cut into lines."""

MAX_LINE = 32 * 1024
"""Bytes. A longer line is cut into several."""


class LineCutter:
    """Pieces of output in, whole lines without their ends out."""

    def __init__(self) -> None:
        self._partial = b""

    def cut(self, data: bytes) -> list[bytes]:
        """The lines that end in this piece; an empty line is an empty one."""
        *lines, partial = (self._partial + data).split(b"\n")
        while len(partial) > MAX_LINE:
            lines.append(partial[:MAX_LINE])
            partial = partial[MAX_LINE:]
        self._partial = partial
        return [line[start : start + MAX_LINE] for line in lines for start in range(0, max(len(line), 1), MAX_LINE)]

    def rest(self) -> list[bytes]:
        """What came behind the last end of a line; nothing, or one."""
        partial, self._partial = self._partial, b""
        return [partial] if partial else []
