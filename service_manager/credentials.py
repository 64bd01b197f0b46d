"""Secrets in files: those that a service manager hands to this process alone, and who else can read the others."""

import os
from pathlib import Path


def credential(name: str) -> Path | None:
    """The file of a systemd credential of this name; None where there is none."""
    directory = _directory()
    path = directory / name if directory is not None else None
    return path if path is not None and path.exists() else None


def others_can_read(path: Path) -> bool:
    """Whether the file's mode lets others in. Raises OSError.

    A group may read what belongs to root: that is how an administrator gives one file to several services. systemd
    gives credentials a mode with more bits (0440), in a directory that only this process can enter.
    """
    directory = _directory()
    if directory is not None and path.resolve().is_relative_to(directory.resolve()):
        return False
    found = path.stat()
    return bool(found.st_mode & (0o037 if found.st_uid == 0 != os.geteuid() else 0o077))


def _directory() -> Path | None:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(directory) if directory else None
