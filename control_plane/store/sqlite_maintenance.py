"""What an operator does with a SQLite store: migrate, check, back up."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import apsw

from control_plane.domain.store import LeaseTerms
from control_plane.errors import CannotCreate
from control_plane.store.audit import Finding, finding, questions
from control_plane.store.clock import lead
from control_plane.store.sqlite import BUSY_TIMEOUT, SqliteStore, require_file, unreadable
from control_plane.store.statements import load_migrations


async def migrate(path: Path) -> tuple[int, int]:
    """Bring the schema up to date; the versions before and after. Raises StoreRefused, StoreInUse, StoreUnavailable."""
    before = _version(path)
    store = SqliteStore(path, LeaseTerms())
    try:
        await store.open(lambda _: None)
    finally:
        await store.close()
    return before, _version(path)


def check(path: Path) -> list[Finding]:
    """Read everything; also beside a control plane that runs. Raises StoreRefused, StoreUnavailable."""
    with _reading(path) as connection:
        version, newest = int(connection.pragma("user_version")), load_migrations("sqlite")[-1][0]
        if version != newest:
            return [Finding(sentence=f"schema {version}; this version knows {newest}", faults=1)]
        findings = [Finding(sentence=f"schema {version}")]
        damage = [row[0] for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
        findings.append(Finding(sentence="; ".join(["the file is whole", *damage]), faults=len(damage)))
        for sentence, faults, text in questions():
            ((number,),) = connection.execute(text)
            findings.append(finding(sentence, number, faults=faults))
        ((latest,),) = connection.execute("SELECT latest FROM store_clock")
        if (ahead := lead(latest - time.time_ns() // 1000)) is not None:
            findings.append(Finding(sentence=ahead))
        return findings


def backup(path: Path, target: Path) -> int:
    """Write a copy as of one moment, beside a control plane that runs; its size in bytes. Raises StoreRefused,
    StoreUnavailable, CannotCreate when the target exists or cannot be written."""
    partial = target.with_name(target.name + ".partial")
    try:
        with contextlib.ExitStack() as undo:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            undo.callback(partial.unlink, missing_ok=True)
            undo.callback(os.close, descriptor)
            with _reading(path) as connection:
                # One read transaction: writers go on, and the copy has nothing of what they do.
                try:
                    connection.execute("VACUUM INTO ?", (str(partial),))
                except apsw.FullError as error:
                    # Of the two files it writes to the copy alone.
                    raise CannotCreate(f"backup {target}: {os.strerror(errno.ENOSPC)}") from error
            os.fsync(descriptor)
            # A link, unlike a rename, replaces nothing.
            os.link(partial, target)
        return target.stat().st_size
    except OSError as error:
        raise CannotCreate(f"backup {target}: {error.strerror}") from error


def _version(path: Path) -> int:
    if not path.exists():
        return 0
    with _reading(path) as connection:
        return int(connection.pragma("user_version"))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[apsw.Connection]:
    try:
        require_file(path)
        # Not query_only: VACUUM INTO counts as writing, though it does not touch this file.
        with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.set_busy_timeout(BUSY_TIMEOUT)
            connection.wal_autocheckpoint(0)
            yield connection
    except apsw.Error as error:
        raise unreadable(path, error) from error
