"""Writes far more than a pipe holds, and one line that is longer than any should be."""

import os

from worker_child import action


@action("test.print_a_lot")
async def print_a_lot() -> dict[str, int]:
    """Sixteen mebibytes; how many bytes were written."""
    line = b"x" * 1023 + b"\n"
    block = memoryview(line * 1024)
    written = 0
    for _ in range(16):
        rest = block
        while rest:
            count = os.write(1, rest)
            written += count
            rest = rest[count:]
    os.write(1, b"y" * 100_000 + b"\n")
    return {"written": written}
