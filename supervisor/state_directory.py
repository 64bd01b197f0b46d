"""The state directory: made, and locked, so that two supervisors never share journals or a control plane's store."""

import errno
import fcntl
import os
from pathlib import Path

from supervisor.errors import StateDirectoryError

LOCK_FILE = "supervisor.lock"
JOURNALS = "journals"
_MOST_NUMBERED = 1000


class StateDirectory:
    """A locked state directory; the lock ends with the process, however that ends."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        """Give it back. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def take(path: Path) -> StateDirectory:
    """Make (0700) and lock a directory. Raises StateDirectoryError."""
    found = _try(path)
    if found is None:
        raise StateDirectoryError(
            f"supervisor.state_dir: {path} is in use by another supervisor; "
            "stop that one, or give this one a directory of its own"
        )
    return found


def take_first_free(prefix: Path) -> StateDirectory:
    """Make and lock the first free of `<prefix>-1`, `<prefix>-2` ... Raises StateDirectoryError."""
    for number in range(1, _MOST_NUMBERED + 1):
        found = _try(prefix.with_name(f"{prefix.name}-{number}"))
        if found is not None:
            return found
    raise StateDirectoryError(f"{prefix}-1 to -{_MOST_NUMBERED} are all in use by other supervisors; stop some of them")


def _try(path: Path) -> StateDirectory | None:
    """None when somebody else holds it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / JOURNALS).mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateDirectoryError(
            f"supervisor.state_dir: {path} cannot be used ({error.strerror}); name a directory that this user may write"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise StateDirectoryError(
            f"supervisor.state_dir: {path} cannot be locked ({error.strerror}); name a directory on a local file system"
        ) from error
    return StateDirectory(path, lock)
