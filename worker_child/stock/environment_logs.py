"""environment.logs.tail: the last lines of a log file."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from msgspec import Meta, Struct

from worker_child.actions import Registry
from worker_child.errors import ValidationError
from worker_child.stock.workspace import Workspace, open_regular

MAX_LINES = 10_000
MAX_BYTES = 4 * 1024 * 1024
LOG_DIRECTORY = "MOBIUS_WORKER_LOG_DIR"
"""Where whoever runs the worker keeps its logs: {worker,worker.stdout,worker.stderr,bootstrap}.log."""

_FILES = {
    "worker": "worker.log",
    "stdout": "worker.stdout.log",
    "stderr": "worker.stderr.log",
    "bootstrap": "bootstrap.log",
}
LONGEST_KEY = 4096
"""Bytes in front of what is shown that a key may begin in."""
_KEY = re.compile(rb"\bmb([xc])_[A-Za-z0-9._-]{8,}")


class Tail(Struct, frozen=True):
    """`path` is a file of the workspace; without it, `log_name` is one of the worker's own logs."""

    path: str | None = None
    log_name: Literal["worker", "stdout", "stderr", "bootstrap"] = "worker"
    tail: Annotated[int, Meta(ge=1, le=MAX_LINES)] = 200
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_BYTES)] = 64 * 1024


class Logs:
    """The handler. It blocks, so it runs in a thread."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def tail(self, parameters: Tail) -> dict[str, Any]:
        """The last `tail` lines, of which at most the last `max_bytes`."""
        if parameters.path:
            workspace, path, field = self._workspace, parameters.path, "parameters.path"
        else:
            directory = os.environ.get(LOG_DIRECTORY)
            if not directory:
                raise ValidationError(
                    f"parameters.log_name: this worker keeps no logs in files ({LOG_DIRECTORY} is not set); give a path"
                )
            workspace, path, field = Workspace(Path(directory)), _FILES[parameters.log_name], "parameters.log_name"
        with (
            workspace.place(path, field) as place,
            open_regular(place.directory, place.name or ".", os.O_RDONLY, f"{field}: {path!r}") as file,
        ):
            start = max(0, os.fstat(file.fileno()).st_size - parameters.max_bytes)
            data = _without_half_a_key(file, start, parameters.max_bytes)
        lines = data.split(b"\n")
        ends_with_line = lines[-1] == b""
        lines = lines[:-1] if ends_with_line else lines
        if start and len(lines) > 1:
            # The first one has lost its beginning.
            lines = lines[1:]
        kept = lines[-parameters.tail :]
        content = _KEY.sub(rb"mb\1_[redacted]", b"\n".join(kept)) + (b"\n" if ends_with_line and kept else b"")
        return {
            "log_path": path,
            "content": content.decode("utf-8", "replace"),
            "lines": len(kept),
            "truncated": start > 0 or len(kept) < len(lines),
        }

    def register(self, registry: Registry) -> None:
        """Adds the action to the registry."""
        registry.action("environment.logs.tail", idempotent=True)(self.tail)


def _without_half_a_key(file: BinaryIO, start: int, most: int) -> bytes:
    """What the file has from `start` on, or from the end of a key that begins before it: nobody knows its rest."""
    before = min(start, LONGEST_KEY)
    file.seek(start - before)
    data = file.read(before + most)
    halved = (found.end() for found in _KEY.finditer(data) if found.start() < before < found.end())
    return data[next(halved, before) :]
