"""A slot's journal: which jobs are in hand and which reports are not acknowledged yet, on disk, across processes.

One append-only file, mode 0600 (`journal_records` has its format). It holds lease tokens and reports, never a job's
spec, and is emptied as soon as nothing is outstanding. One process holds it at a time, by flock.

A disk that fails never stops the work: the journal says so once, loudly, and writes again when it can.
"""

import contextlib
import datetime as dt
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
import structlog
from msgspec import Struct

from wire import frames
from worker_child import journal_records
from worker_child.decisions import JournalClaimed, JournalSettled, Reported
from worker_child.errors import JournalError, JournalLocked
from worker_child.journal_records import HEADER, Record, Recovered

Mode = Literal["fsync", "write", "off"]

COMPACT_ABOVE = 4 * 1024 * 1024
"""Bytes. A longer file is written anew with only what is outstanding."""
DEAD_LETTERS_LIMIT = 16 * 1024 * 1024
"""Bytes. A longer dead-letter file is moved aside, over the one before it."""

_DISK_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG})
"""What a disk does, as opposed to what a configuration does: it must not stop the work."""


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One line of the dead-letter file: a report that the control plane refused for good, and why."""

    at: str
    code: str
    message: str
    job_id: str
    status: str
    result: msgspec.Raw | None
    error_type: str | None
    error_message: str | None


_json = msgspec.json.Encoder()


class Rewrite:
    """A file that is to replace a journal's: what was outstanding when it was begun, then what was flushed since.

    The journal goes on in its old file until `Journal.adopt`; nothing is lost if that never comes.
    """

    def __init__(self, path: Path, records: list[Record], *, sync: bool) -> None:
        self.path = path
        self.tail: list[bytes] = []
        """What was flushed to the old file since this was begun."""
        self.descriptor = -1
        self.size = 0
        self.error: Exception | None = None
        self._records = records
        self._sync = sync

    def write(self) -> None:
        """Writes the file, all but its tail. Blocks, raises OSError."""
        self.descriptor = _open(self.path, os.O_TRUNC)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._append(HEADER + journal_records.encode(self._records))
        if self._sync:
            os.fsync(self.descriptor)

    def put_in_place(self, path: Path) -> None:
        """Writes the tail and gives the file its name. Raises why that, or writing the rest, failed."""
        if self.error is not None:
            raise self.error
        self._append(b"".join(self.tail))
        self.path.rename(path)

    def discard(self) -> None:
        """Removes what was written."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _append(self, data: bytes) -> None:
        _write_all(self.descriptor, data)
        self.size += len(data)


class Journal:
    """One slot's journal. `recover` first; then append, `flush` before the frames that depend on it are sent.

    In mode "fsync" what was flushed is safe only after `sync`, which blocks and belongs into a thread. A long file is
    exchanged in three steps, of which only `Rewrite.write` takes time: `begin_rewrite`, `sync(rewrite)`, `adopt`.
    """

    def __init__(self, path: Path, mode: Mode) -> None:
        self._compacted_to = len(HEADER)
        self.degraded = False
        """True while the disk refuses to be written: reports live in memory alone."""
        self.size = 0
        self._path = path
        self._mode = mode
        self._descriptor = -1
        self._buffer: list[Record] = []
        self._owes = False
        """Whether something in the buffer must be on disk before work goes on."""
        self._rewrite: Rewrite | None = None
        self._directory_synced = True
        self._log = structlog.get_logger().bind(journal=str(path))

    @property
    def must_sync(self) -> bool:
        """Whether `sync` has to follow a flush before anything is promised."""
        return self._mode == "fsync" and not self.degraded

    def recover(self, lock_deadline: float) -> Recovered:
        """Takes the lock, waiting for a predecessor for at most `lock_deadline` seconds, and reads what it left.

        Raises JournalLocked when the deadline passes, JournalError when the file cannot be opened. Blocks.
        """
        if self._mode == "off":
            return Recovered(claimed=[], reported=[])
        try:
            data = self._take_file(lock_deadline)
        except OSError as error:
            self._let_go()
            if error.errno not in _DISK_FAULTS:
                raise JournalError(f"journal {self._path}: {error.strerror or error}") from error
            self.degrade("open", error)
            return Recovered(claimed=[], reported=[])
        recovered = journal_records.decode(data)
        self.size = len(data)
        if recovered.damaged_bytes:
            self._log.warning("journal.damaged", bytes=recovered.damaged_bytes, whole=len(data))
        try:
            if data and not journal_records.is_journal(data):
                self._keep_aside(data)
            damaged = recovered.damaged_bytes or len(data) < len(HEADER)
            failed = self.rewrite(recovered.claimed, recovered.reported) if damaged else None
        except OSError as error:
            failed = error
        if failed is not None:
            self.degrade("open", failed)
        return recovered

    def claimed(self, record: JournalClaimed) -> None:
        """A job was taken: before its code starts."""
        self._buffer.append(record)
        self._owes = True

    def reported(self, report: frames.Report, encoded: bytes | None = None) -> None:
        """A job has its outcome: before its report is sent, as `encoded` where that is known."""
        self._buffer.append(Reported(report.lease_token, encoded or journal_records.frame_of(report)))
        self._owes = True

    def settled(self, record: JournalSettled) -> None:
        """Nothing is owed for this lease any more. It is written with the next record that is; its loss costs one
        report sent twice."""
        self._buffer.append(record)

    def flush(self) -> None:
        """Hands what is owed to the operating system: from then on it survives the death of this process."""
        if not self._owes:
            return
        self._owes = False
        records, self._buffer = self._buffer, []
        rewrite = self._rewrite
        if self._mode == "off" or (self.degraded and rewrite is None):
            return
        data = journal_records.encode(records)
        if rewrite is not None:
            rewrite.tail.append(data)
        if self.degraded:
            return
        try:
            _write_all(self._descriptor, data)
            self.size += len(data)
        except OSError as error:
            # What got there of it must not stand before what comes next.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            self.degrade("write", error)

    def sync(self, rewrite: Rewrite | None = None) -> None:
        """Waits until what was flushed survives a loss of power, then writes `rewrite`. Blocks, raises OSError.

        In mode "write" only the latter. What is flushed meanwhile is promised by the next sync, not by this.
        """
        if self.must_sync:
            if not self._directory_synced:
                _sync_directory(self._path.parent)
                self._directory_synced = True
            os.fdatasync(self._descriptor)
        if rewrite is not None:
            try:
                if self._descriptor < 0:
                    self._take_file_late()
                rewrite.write()
            except (OSError, JournalLocked) as error:
                rewrite.error = error

    def compaction_due(self, *, outstanding: bool) -> bool:
        """Whether to `empty` or rewrite it now: tokens and reports do not stay on disk once nothing is owed."""
        if self._rewrite is not None or (self._descriptor < 0 and not self.degraded):
            return False
        if self.degraded or not outstanding:
            return self.degraded or self.size > len(HEADER)
        return self.size > max(COMPACT_ABOVE, 2 * self._compacted_to)

    def empty(self) -> None:
        """Nothing is owed."""
        self._buffer.clear()
        try:
            os.ftruncate(self._descriptor, len(HEADER))
        except OSError as error:
            self.degrade("empty", error)
        else:
            self.size = self._compacted_to = len(HEADER)

    def begin_rewrite(self, claimed: Iterable[JournalClaimed], reported: Iterable[frames.Report]) -> Rewrite:
        """What is outstanding, for a new file: keeps the journal small, and heals it after a failure."""
        self._owes = True
        self.flush()
        owed = [Reported(report.lease_token, journal_records.frame_of(report)) for report in reported]
        records: list[Record] = [*claimed, *owed]
        new = self._path.with_name(self._path.name + ".new")
        self._rewrite = Rewrite(new, records, sync=self._mode == "fsync")
        return self._rewrite

    def adopt(self, rewrite: Rewrite) -> Exception | None:
        """Goes on in the new file; returns what was in the way of that, and changes nothing then."""
        self._rewrite = None
        try:
            rewrite.put_in_place(self._path)
        except (OSError, JournalLocked) as error:
            rewrite.discard()
            self._log.warning("journal.rewrite_failed", error=str(error))
            return error
        os.close(self._descriptor)
        self._descriptor, self.size = rewrite.descriptor, rewrite.size
        self._compacted_to = self.size
        # Until the directory is on disk, a loss of power brings the old file back: it has all that was promised so far.
        self._directory_synced = self._mode != "fsync"
        if self.degraded:
            self.degraded = False
            self._log.warning("journal.healed", size=self.size)
        return None

    def rewrite(self, claimed: Iterable[JournalClaimed], reported: Iterable[frames.Report]) -> Exception | None:
        """The three steps of an exchange and a sync at once, where nothing else waits; see `adopt`. Blocks."""
        if self._mode == "off":
            return None
        rewrite = self.begin_rewrite(claimed, reported)
        try:
            self.sync(rewrite)
            failed = self.adopt(rewrite)
            self.sync()
        except OSError as error:
            return error
        return failed

    def dead_letter(self, report: frames.Report, code: str, message: str) -> None:
        """Keeps a report that the control plane refused for good, then settles it."""
        letter = DeadLetter(
            at=dt.datetime.now(dt.UTC).isoformat(),
            code=code,
            message=message,
            job_id=report.job_id,
            status=report.status,
            result=msgspec.Raw(_json.encode(report.any_result)),
            error_type=report.error_type,
            error_message=report.error_message,
        )
        if self._mode != "off":
            path = self._path.with_name(self._path.name + ".dead-letters")
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                try:
                    if os.fstat(descriptor).st_size > DEAD_LETTERS_LIMIT:
                        path.rename(path.with_name(path.name + ".old"))
                    os.write(descriptor, _json.encode(letter) + b"\n")
                finally:
                    os.close(descriptor)
            except OSError as error:
                self._log.error("journal.dead_letter_lost", job_id=report.job_id, error=str(error))
        self._log.error("report.refused", job_id=report.job_id, code=code, message=message)
        self.settled(JournalSettled(report.lease_token))

    def degrade(self, doing: str, error: Exception) -> None:
        """The disk refused: what is owed lives in memory until a rewrite succeeds."""
        if not self.degraded:
            self.degraded = True
            self._log.error(
                "journal.degraded",
                doing=doing,
                error=str(error),
                consequence="reports are kept in memory only: they are lost if this process dies before they are sent",
            )

    def close(self) -> None:
        """Writes what is left and gives the lock up."""
        self._owes = True
        self.flush()
        self._let_go()

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take_file(self, lock_deadline: float) -> bytes:
        """Opens and locks the file, and reads it. Raises OSError, JournalLocked."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = self._locked(time.monotonic() + lock_deadline)
        os.fchmod(self._descriptor, 0o600)
        return self._path.read_bytes()

    def _take_file_late(self) -> None:
        """The disk works again that did not at the start. What an earlier process left there is not ours to lose: it
        gets a name of its own, under which the supervisor gives it to the next worker that starts."""
        try:
            left = journal_records.decode(self._take_file(0.0))
        except OSError:
            self._let_go()
            raise
        if left.claimed or left.reported:
            self._path.rename(self._path.with_name(f"{self._path.stem}.left-{os.getpid()}{self._path.suffix}"))

    def _keep_aside(self, data: bytes) -> None:
        aside = self._path.with_name(self._path.name + ".unreadable")
        self._log.error("journal.unreadable", moved_to=str(aside), size=len(data))
        descriptor = _open(aside, os.O_TRUNC)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)

    def _locked(self, deadline: float) -> int:
        while True:
            descriptor = _open(self._path)
            try:
                _lock(descriptor, deadline - time.monotonic(), self._path)
                if _same_file(descriptor, self._path):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # A predecessor wrote the journal anew while we waited: what we have locked is the old file.
            os.close(descriptor)


def _open(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def _sync_directory(path: Path) -> None:
    """The name of a file is safe only with its directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, timeout: float, path: Path) -> None:
    """An exclusive lock within `timeout` seconds. The kernel wakes us when the holder is gone; nothing is polled."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        structlog.get_logger().info("journal.waits", journal=str(path), timeout=round(timeout, 1))
    # flock has no deadline of its own. The thread is a daemon: should the deadline pass, it ends with the process.
    waiter = threading.Thread(target=_lock_and_close, args=(os.dup(descriptor),), daemon=True)
    waiter.start()
    waiter.join(max(0.0, timeout))
    if waiter.is_alive():
        raise JournalLocked(f"journal {path}: another process still holds it after {timeout:.0f} s")


def _lock_and_close(duplicate: int) -> None:
    """The lock belongs to what both descriptors share: it stays when this one is closed."""
    try:
        fcntl.flock(duplicate, fcntl.LOCK_EX)
    finally:
        os.close(duplicate)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)
