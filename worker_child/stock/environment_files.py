"""environment.files.*: reads, writes, lists and deletes files of the workspace."""

import base64
import codecs
import datetime as dt
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Literal

from msgspec import Meta, Struct

from worker_child.actions import Registry
from worker_child.errors import NonRetryableError, ValidationError
from worker_child.stock.workspace import Place, Workspace, faults, open_regular, readable

MAX_READ = 8 * 1024 * 1024
MAX_ENTRIES = 10_000
MAX_DEPTH = 64
"""Directories within directories that a list goes into."""
MOST_NAMES = 100_000
"""Names of one directory that are looked at."""
_PATH = "parameters.path"
_LATEST = 253_402_300_799
"""The last second that has a date; a file may be dated later."""

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


class Read(Struct, frozen=True):
    """Bytes from `offset` on, at most `max_bytes`."""

    path: str
    encoding: Literal["utf-8", "text", "base64"] = "utf-8"
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_READ)] = 256 * 1024
    offset: Annotated[int, Meta(ge=0, le=2**62)] = 0


class Write(Struct, frozen=True):
    """`mode` is octal, such as "0644" or "755"."""

    path: str
    content: str
    append: bool = False
    mode: str | None = None


class List(Struct, frozen=True):
    """`path` is a directory."""

    path: str = ""
    recursive: bool = False
    max_entries: Annotated[int, Meta(ge=1, le=MAX_ENTRIES)] = 1000


class Delete(Struct, frozen=True):
    """A directory that is not empty only with `recursive`."""

    path: str
    recursive: bool = False


class Files:
    """The handlers. They block, so they run in threads."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def read(self, parameters: Read) -> dict[str, Any]:
        """A file's content, or a part of it."""
        path = parameters.path
        with self._workspace.place(path, _PATH) as place, _opened(place, os.O_RDONLY, path) as file:
            size = os.fstat(file.fileno()).st_size
            # Not every file system knows a place that far behind the end.
            file.seek(min(parameters.offset, size))
            data = file.read(parameters.max_bytes)
        if parameters.encoding == "base64":
            content = base64.b64encode(data).decode()
        else:
            content, data = _text(data, parameters)
        following = min(parameters.offset, size) + len(data)
        answer = {"path": path, "encoding": parameters.encoding, "content": content, "size": size}
        return answer | {"truncated": following < size} | ({"next_offset": following} if following < size else {})

    def write(self, parameters: Write) -> dict[str, Any]:
        """Replaces a file as a whole, or appends to it. Directories on the way are made."""
        data = _encoded(parameters.content)
        mode = _mode(parameters.mode)
        with self._workspace.place(parameters.path, _PATH, make_parents=True) as place:
            if place.name is None:
                raise ValidationError(f"{_PATH}: {parameters.path!r} is a directory")
            status = place.status()
            if status is not None and not stat.S_ISREG(status.st_mode):
                raise NonRetryableError(f"{_PATH}: {parameters.path!r} is no regular file")
            if parameters.append:
                with _opened(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, parameters.path) as file:
                    if mode is not None:
                        os.fchmod(file.fileno(), mode)
                    _write_all(file.fileno(), data)
            else:
                _replace(place, data, mode if mode is not None or status is None else stat.S_IMODE(status.st_mode))
        return {"path": parameters.path, "bytes_written": len(data)}

    def list(self, parameters: List) -> dict[str, Any]:
        """What is in a directory, by name; what is in its directories too, if asked."""
        with self._workspace.directory(parameters.path, _PATH) as directory:
            base = parameters.path.strip("/")
            found = _entries(
                directory, f"{base}/" if base not in ("", ".") else "", MAX_DEPTH if parameters.recursive else 0
            )
            entries = [entry for entry, _ in zip(found, range(parameters.max_entries), strict=False)]
            truncated = next(found, None) is not None
        return {"path": parameters.path, "entries": entries, "truncated": truncated}

    def delete(self, parameters: Delete) -> dict[str, Any]:
        """Removes a file, a symlink (not what it leads to) or a directory. What is not there is no fault."""
        with self._workspace.place(parameters.path, _PATH, follow=False) as place:
            if place.name is None:
                raise ValidationError(f"{_PATH}: the workspace itself stays")
            status = place.status()
            if status is None:
                return {"path": parameters.path, "deleted": False}
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(place.name, dir_fd=place.directory)
            elif parameters.recursive:
                _remove_tree(place, parameters.path)
            else:
                with faults(f"{parameters.path} (set parameters.recursive for a directory with content)", _PATH):
                    os.rmdir(place.name, dir_fd=place.directory)
        return {"path": parameters.path, "deleted": True}

    def register(self, registry: Registry) -> None:
        """Adds the actions to the registry."""
        registry.action("environment.files.read", idempotent=True)(self.read)
        registry.action("environment.files.write")(self.write)
        registry.action("environment.files.list", idempotent=True)(self.list)
        registry.action("environment.files.delete")(self.delete)


def _opened(place: Place, access: int, path: str) -> BinaryIO:
    if place.name is None:
        raise NonRetryableError(f"{_PATH}: {path!r} is no regular file")
    return open_regular(place.directory, place.name, access, f"{_PATH}: {path!r}")


def _text(data: bytes, parameters: Read) -> tuple[str, bytes]:
    """UTF-8 without the beginning of a character at its end, which belongs to the next part."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError as error:
        where = parameters.offset + error.start
        raise NonRetryableError(
            f'{_PATH}: {parameters.path!r} is not UTF-8 at byte {where}; set parameters.encoding to "base64"'
        ) from error
    rest, _ = decoder.getstate()
    return text, data[: len(data) - len(rest)]


def _encoded(content: str) -> bytes:
    try:
        return content.encode()
    except UnicodeEncodeError as error:
        raise ValidationError("parameters.content: half of a character, which has no UTF-8") from error


def _mode(text: str | None) -> int | None:
    if text is None or text == "":
        return None
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise ValidationError(f'parameters.mode: expected an octal mode such as "0644", of at most 0777, got {text!r}')
    return mode


def _replace(place: Place, data: bytes, mode: int | None) -> None:
    """Whoever reads sees the old or the new content, also after a crash in between."""
    temporary = f".{secrets.token_hex(8)}.tmp"
    opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=place.directory)
    try:
        try:
            if mode is not None:
                os.fchmod(opened, mode)
            _write_all(opened, data)
        finally:
            os.close(opened)
        os.rename(temporary, place.name or "", src_dir_fd=place.directory, dst_dir_fd=place.directory)
    except BaseException:
        os.unlink(temporary, dir_fd=place.directory)
        raise


def _write_all(opened: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(opened, view) :]


def _remove_tree(place: Place, path: str) -> None:
    try:
        shutil.rmtree(place.name or "", dir_fd=place.directory)
    except RecursionError as error:
        raise NonRetryableError(f"{_PATH}: {path!r} is nested too deeply to be deleted") from error


def _entries(directory: int, prefix: str, depth: int) -> Iterator[dict[str, Any]]:
    with os.scandir(directory) as scanned:
        names = sorted(entry.name for entry, _ in zip(scanned, range(MOST_NAMES), strict=False))
    for name in names:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue
        yield _entry(directory, name, prefix, status)
        if stat.S_ISDIR(status.st_mode) and depth > 0:
            try:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            except OSError:
                # Gone, exchanged, or not ours to read: the entry itself was told.
                continue
            try:
                yield from _entries(inner, f"{prefix}{name}/", depth - 1)
            finally:
                os.close(inner)


def _entry(directory: int, name: str, prefix: str, status: os.stat_result) -> dict[str, Any]:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
    modified = (
        dt.datetime.fromtimestamp(min(max(status.st_mtime, 0), _LATEST), dt.UTC).isoformat().replace("+00:00", "Z")
    )
    entry = {
        "path": readable(prefix + name),
        "type": kind,
        "size": status.st_size,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "modified_at": modified,
    }
    if kind == "symlink":
        try:
            entry["target"] = readable(os.readlink(name, dir_fd=directory))
        except OSError:
            entry["target"] = ""
    return entry
