"""Which build of the code a process runs, so that a parent sees when a package was replaced under it."""

import functools
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTION = "mobius-supervisor"
_SHARED_BY_PARENT_AND_CHILD = ("wire", "worker_child", "supervisor")


@functools.cache
def package_version() -> str:
    """Version of the installed distribution, or `0` when run from a bare tree. Read once."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0"


def build_id() -> str:
    """Version plus a fingerprint of the source files that parent and children share, read from disk now.

    Two processes with the same value speak the same pipe protocol and run the same code.
    """
    root = Path(__file__).resolve().parent.parent
    fingerprint = hashlib.sha256()
    for package in _SHARED_BY_PARENT_AND_CHILD:
        for path in sorted((root / package).rglob("*.py")):
            stat = path.stat()
            fingerprint.update(f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"{package_version()}+{fingerprint.hexdigest()[:12]}"
