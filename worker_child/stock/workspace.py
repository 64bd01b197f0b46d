"""A directory that paths cannot lead out of: neither by `..`, nor by a symlink, nor by one that appears meanwhile.

A path is walked one name at a time, with a file descriptor for each directory on the way and without following
symlinks; a symlink's own text is walked in its place. Nothing is decided by comparing texts of paths, and nothing is
looked up twice: what was inside when it was opened stays what is worked on.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from msgspec import Struct

from worker_child.errors import NonRetryableError, RetryableError, ValidationError

MOST_LINKS = 40
LONGEST_PATH = 4096
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBUSY})
"""What another attempt may not meet again."""
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Place(Struct, frozen=True):
    """Where a path leads: a name in an open directory. Without a name: that directory itself."""

    directory: int
    name: str | None

    def status(self) -> os.stat_result | None:
        """What is there, not followed if it is a symlink; None for nothing."""
        if self.name is None:
            return os.fstat(self.directory)
        try:
            return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None


class Workspace:
    """`root` is the directory; it is made when it is first needed, for its user alone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def place(self, path: str, field: str, *, make_parents: bool = False, follow: bool = True) -> Iterator[Place]:
        """Where `path` leads, for the length of the block; `field` is the parameter that it came in.

        `follow`: a symlink at the very end is followed too. Raises ValidationError, NonRetryableError, RetryableError:
        what OSError says within the block is said of the parameter.
        """
        parts = self._parts(path, field)
        with faults(path, field), ExitStack() as opened:
            yield self._walk(parts, field, opened, make_parents=make_parents, follow=follow)

    @contextmanager
    def directory(self, path: str, field: str) -> Iterator[int]:
        """A descriptor of the directory that `path` leads to. Raises as `place` does."""
        with self.place(path, field) as place:
            opened = os.open(place.name if place.name is not None else ".", _DIRECTORY, dir_fd=place.directory)
            try:
                yield opened
            finally:
                os.close(opened)

    def _parts(self, path: str, field: str) -> list[str]:
        if "\0" in path or len(path.encode("utf-8", "surrogatepass")) > LONGEST_PATH:
            raise ValidationError(f"{field}: expected a path of at most {LONGEST_PATH} bytes, without a null character")
        pure = PurePosixPath(path)
        if pure.is_absolute():
            # A path as commands print it. Only its text: it is walked like any other.
            for root in (self.root, self.root.resolve()):
                if pure.is_relative_to(root):
                    return list(pure.relative_to(root).parts)
            raise ValidationError(f"{field}: {path!r} is outside of the workspace; give a path relative to it")
        return path.split("/")

    def _walk(self, parts: list[str], field: str, opened: ExitStack, *, make_parents: bool, follow: bool) -> Place:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack = [self._keep(os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), opened)]
        todo = deque(part for part in parts if part not in ("", "."))
        links = 0
        while todo:
            part = todo.popleft()
            if part == "..":
                if len(stack) == 1:
                    raise ValidationError(f"{field}: leads out of the workspace")
                stack.pop()
                continue
            if not todo and not follow:
                return Place(stack[-1], part)
            try:
                found = os.open(part, _LOOK, dir_fd=stack[-1])
            except FileNotFoundError:
                if not todo:
                    return Place(stack[-1], part)
                if not make_parents:
                    raise
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=stack[-1])
                found = os.open(part, _LOOK, dir_fd=stack[-1])
            self._keep(found, opened)
            mode = os.fstat(found).st_mode
            if stat.S_ISLNK(mode):
                links += 1
                target = os.readlink("", dir_fd=found)
                if target.startswith("/") or links > MOST_LINKS:
                    raise ValidationError(f"{field}: {part!r} is a symlink that leads out of the workspace, or nowhere")
                todo.extendleft(reversed([step for step in target.split("/") if step not in ("", ".")]))
            elif not todo:
                return Place(stack[-1], part)
            elif stat.S_ISDIR(mode):
                stack.append(found)
            else:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return Place(stack[-1], None)

    @staticmethod
    def _keep(descriptor: int, opened: ExitStack) -> int:
        opened.callback(os.close, descriptor)
        return descriptor


def open_regular(directory: int, name: str, access: int, what: str, mode: int = 0o666) -> BinaryIO:
    """Opens a regular file of a directory, unbuffered: a pipe or a device could hold its reader up for ever.

    `access` is O_RDONLY or O_WRONLY, with O_CREAT and O_APPEND as wanted. Raises OSError, and NonRetryableError that
    begins with `what`.
    """
    opened = os.open(name, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise NonRetryableError(f"{what} is no regular file")
    return os.fdopen(opened, "rb" if access == os.O_RDONLY else "wb", buffering=0)


@contextmanager
def faults(path: str, field: str) -> Iterator[None]:
    """What the system says of a path, as an error that names the parameter."""
    try:
        yield
    except OSError as error:
        sentence = f"{field}: {path!r}: {_said(error)}"
        raise (RetryableError if error.errno in _PASSING else NonRetryableError)(sentence) from error
    except UnicodeEncodeError as error:
        raise ValidationError(f"{field}: expected a path in UTF-8") from error


def _said(error: OSError) -> str:
    text = os.strerror(error.errno) if error.errno is not None else str(error)
    return text[:1].lower() + text[1:]


def readable(name: str) -> str:
    """A name of the file system as text that JSON takes; bytes that are no UTF-8 are written as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
