"""A slot's journal: which jobs are in hand and which reports are not acknowledged yet, on disk, across processes.

One append-only file, mode 0600: a header, then groups of `<length><crc32><MessagePack array of records>`, one for each
flush. It holds lease tokens and reports, never a job's spec, and is emptied as soon as nothing is outstanding. One
process holds it at a time, by flock.

A disk that fails never stops the work: the journal says so once, loudly, and writes again when it can.
"""

import contextlib
import datetime as dt
import errno
import fcntl
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
import structlog
from msgspec import Struct

from wire import frames
from worker_child.errors import JournalError, JournalLocked

Mode = Literal["fsync", "write", "off"]

HEADER = b"mobius-journal 2\n"
COMPACT_ABOVE = 4 * 1024 * 1024
"""Bytes. A longer file is written anew with only what is outstanding."""
DEAD_LETTERS_LIMIT = 16 * 1024 * 1024
"""Bytes. A longer dead-letter file is moved aside, over the one before it."""

_DISK_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG})
"""What a disk does, as opposed to what a configuration does: it must not stop the work."""

_GROUP = struct.Struct("<II")
_MOST_RECORDS = 128
"""Records of one group: its length fits into four bytes even if every result is as large as a frame may be."""


class Claimed(Struct, frozen=True, array_like=True, gc=False, tag="c"):
    """A job is in hand."""

    job_id: str
    lease_token: str
    action: str


class Reported(Struct, frozen=True, array_like=True, gc=False, tag="r"):
    """A job has its outcome; `result` is a JSON object as bytes."""

    job_id: str
    lease_token: str
    status: frames.ReportStatus
    result: bytes | None
    error_type: str | None
    error_message: str | None


class Settled(Struct, frozen=True, array_like=True, gc=False, tag="s"):
    """Nothing is owed for this lease any more."""

    lease_token: str


class Recovered(Struct, frozen=True, kw_only=True):
    """What an earlier process left: jobs in hand, reports that were not settled, and how many bytes make no record."""

    claimed: list[Claimed]
    reported: list[frames.Report]
    damaged_bytes: int = 0


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


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Claimed | Reported | Settled])
_json = msgspec.json.Encoder()


class Journal:
    """One slot's journal. `recover` first; then append, `flush` before the frames that depend on it are sent.

    In mode "fsync" what was flushed is safe only after `sync`, which blocks and belongs into a thread.
    """

    def __init__(self, path: Path, mode: Mode) -> None:
        self._compacted_to = len(HEADER)
        self.degraded = False
        """True while the disk refuses to be written: reports live in memory alone."""
        self.size = 0
        self._path = path
        self._mode = mode
        self._descriptor = -1
        self._buffer: list[Claimed | Reported | Settled] = []
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
            self._fail("open", error)
            return Recovered(claimed=[], reported=[])
        recovered = _read(data)
        self.size = len(data)
        if recovered.damaged_bytes:
            self._log.warning("journal.damaged", bytes=recovered.damaged_bytes, whole=len(data))
        with self._survive("open"):
            if data and not _is_journal(data):
                self._keep_aside(data)
            if recovered.damaged_bytes or len(data) < len(HEADER):
                self._replace(HEADER + _grouped([*recovered.claimed, *map(_record, recovered.reported)]))
        return recovered

    def claimed(self, job_id: str, lease_token: str, action: str) -> None:
        """A job was taken: before its code starts."""
        self._append(Claimed(job_id, lease_token, action))

    def reported(self, report: frames.Report) -> None:
        """A job has its outcome: before its report is sent."""
        self._append(_record(report))

    def settled(self, lease_token: str) -> None:
        """Nothing is owed for this lease any more. A loss of this record costs one report sent twice."""
        self._append(Settled(lease_token))

    def flush(self) -> None:
        """Hands everything appended to the operating system: from then on it survives the death of this process."""
        if not self._buffer:
            return
        data = _grouped(self._buffer)
        self._buffer.clear()
        try:
            self._write(data)
        except OSError as error:
            # What got there of it must not stand before what comes next.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            self._fail("write", error)

    def sync(self) -> None:
        """Waits until what was flushed survives a loss of power. Blocks."""
        with self._survive("sync"):
            os.fdatasync(self._descriptor)

    def compaction_due(self, *, outstanding: bool) -> bool:
        """Whether to `rewrite` now: tokens and reports do not stay on disk once nothing is owed."""
        if self.degraded:
            return True
        if self._descriptor < 0:
            return False
        if not outstanding:
            return self.size > len(HEADER)
        return self.size > max(COMPACT_ABOVE, 2 * self._compacted_to)

    def rewrite(self, claimed: Iterable[Claimed], reported: Iterable[frames.Report]) -> None:
        """Replaces the content by what is outstanding: keeps the file small, and heals it after a failure."""
        if self._descriptor < 0 and not self.degraded:
            return
        self._buffer.clear()
        records: list[Claimed | Reported | Settled] = [*claimed, *map(_record, reported)]
        try:
            if self._descriptor < 0:
                self._take_file_late()
            if not records and not self.degraded:
                os.ftruncate(self._descriptor, len(HEADER))
                self.size = len(HEADER)
            else:
                self._replace(HEADER + _grouped(records))
        except (OSError, JournalLocked) as error:
            self._fail("rewrite", error)
            return
        self._compacted_to = self.size
        if self.degraded:
            self.degraded = False
            self._log.warning("journal.healed", outstanding=len(records))

    def dead_letter(self, report: frames.Report, code: str, message: str) -> None:
        """Keeps a report that the control plane refused for good, then settles it."""
        letter = DeadLetter(
            at=dt.datetime.now(dt.UTC).isoformat(),
            code=code,
            message=message,
            job_id=report.job_id,
            status=report.status,
            result=msgspec.Raw(_result(report) or b"null"),
            error_type=report.error_type,
            error_message=report.error_message,
        )
        path = self._path.with_name(self._path.name + ".dead-letters")
        if self._mode != "off":
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
        self.settled(report.lease_token)

    def close(self) -> None:
        """Writes what is left and gives the lock up."""
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
            left = _read(self._take_file(0.0))
        except OSError:
            self._let_go()
            raise
        if left.claimed or left.reported:
            self._path.rename(self._path.with_name(f"{self._path.stem}.left-{os.getpid()}{self._path.suffix}"))

    def _keep_aside(self, data: bytes) -> None:
        aside = self._path.with_name(self._path.name + ".unreadable")
        self._log.error("journal.unreadable", moved_to=str(aside), size=len(data))
        descriptor = self._open(aside, os.O_TRUNC)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)

    def _locked(self, deadline: float) -> int:
        while True:
            descriptor = self._open(self._path)
            try:
                _lock(descriptor, deadline - time.monotonic(), self._path)
                if _same_file(descriptor, self._path):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # A predecessor wrote the journal anew while we waited: what we have locked is the old file.
            os.close(descriptor)

    def _open(self, path: Path, flags: int = 0) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)

    def _append(self, record: Claimed | Reported | Settled) -> None:
        if self._descriptor >= 0 and not self.degraded:
            self._buffer.append(record)

    def _write(self, data: bytes) -> None:
        _write_all(self._descriptor, data)
        self.size += len(data)

    def _replace(self, data: bytes) -> None:
        new = self._path.with_name(self._path.name + ".new")
        old, descriptor = self._descriptor, self._open(new, os.O_TRUNC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_all(descriptor, data)
            if self._mode == "fsync":
                os.fsync(descriptor)
            new.rename(self._path)
            if self._mode == "fsync":
                _sync_directory(self._path.parent)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                new.unlink()
            raise
        self._descriptor, self.size = descriptor, len(data)
        os.close(old)

    @contextlib.contextmanager
    def _survive(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._fail(doing, error)

    def _fail(self, doing: str, error: Exception) -> None:
        if not self.degraded:
            self.degraded = True
            self._log.error(
                "journal.degraded",
                doing=doing,
                error=str(error),
                consequence="reports are kept in memory only: they are lost if this process dies before they are sent",
            )


def _grouped(records: list[Claimed | Reported | Settled]) -> bytes:
    """The records as the file has them. One checksum for all records of a flush costs a seventh of one for each."""
    parts: list[bytes] = []
    for start in range(0, len(records), _MOST_RECORDS):
        payload = _encoder.encode(records[start : start + _MOST_RECORDS])
        parts += (_GROUP.pack(len(payload), zlib.crc32(payload)), payload)
    return b"".join(parts)


def _record(report: frames.Report) -> Reported:
    return Reported(
        report.job_id,
        report.lease_token,
        report.status,
        _result(report),
        report.error_type,
        report.error_message,
    )


def _result(report: frames.Report) -> bytes | None:
    """A report's result as JSON bytes; a Raw has them already."""
    return None if report.result is None else _json.encode(report.result)


def _is_journal(data: bytes) -> bool:
    return data.startswith(HEADER) or HEADER.startswith(data)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(path: Path) -> None:
    """The name of a file is safe only with its directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(data: bytes) -> Recovered:
    """What a journal's bytes say. A group that is damaged, or torn at the end, is passed over."""
    if not data.startswith(HEADER):
        return Recovered(claimed=[], reported=[], damaged_bytes=len(data))
    claimed: dict[str, Claimed] = {}
    reported: dict[str, frames.Report] = {}
    position, damaged = len(HEADER), 0
    while position < len(data):
        end, records = _group_at(data, position)
        if records is None:
            damaged += end - position
        for record in records or ():
            claimed.pop(record.lease_token, None)
            if isinstance(record, Claimed):
                claimed[record.lease_token] = record
            elif isinstance(record, Reported):
                reported[record.lease_token] = _report(record)
            else:
                reported.pop(record.lease_token, None)
        position = end
    return Recovered(claimed=list(claimed.values()), reported=list(reported.values()), damaged_bytes=damaged)


def _group_at(data: bytes, position: int) -> tuple[int, list[Claimed | Reported | Settled] | None]:
    """Where the group ends, and its records; None if they are damaged."""
    start = position + _GROUP.size
    if start > len(data):
        return len(data), None
    length, checksum = _GROUP.unpack_from(data, position)
    end = start + length
    payload = data[start:end]
    if len(payload) != length:
        return len(data), None
    if zlib.crc32(payload) != checksum:
        return end, None
    try:
        return end, _decoder.decode(payload)
    except ValueError:
        return end, None


def _report(record: Reported) -> frames.Report:
    return frames.Report(
        job_id=record.job_id,
        lease_token=record.lease_token,
        status=record.status,
        result=None if record.result is None else msgspec.json.decode(record.result),
        error_type=record.error_type,
        error_message=record.error_message,
    )


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
