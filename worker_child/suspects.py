"""The suspects of a box, beside its journals: every worker of the box knows them, also after a reboot.

One small file for each, written whole and renamed into place. A job is in hand in one process at a time, so nobody has
to wait for a lock. A disk that fails costs the suspicion, never the work.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from wire import frames, pipe
from worker_child.decisions import JournalClaimed
from worker_child.suspicion import Suspect, accuse, crash_reports, is_forgotten, poison, stays

FOLDER = "suspects"
SETTLED = 1.0
"""Seconds after which a folder's time of change tells whether it has changed again: clocks of files tick slowly."""

_decoder = msgspec.json.Decoder(Suspect)
_NOTHING: Mapping[str, str | None] = {}


class Suspects:
    """What one worker knows and tells of them. `journal`: its journal; None when it has none, and suspects nobody."""

    def __init__(self, journal: Path | None, slot: str) -> None:
        self._folder = journal.parent / FOLDER if journal is not None else None
        self._folder_name = str(self._folder)
        self._slot = slot
        self._seen = -1
        self._current = _NOTHING
        self._log = structlog.get_logger()

    def current(self) -> Mapping[str, str | None]:
        """Job id -> None for a suspect, or why the job is not run again. Cheap while nothing changes."""
        # Asked for every answer that has jobs, and nearly always there is none: an error of `stat` takes as long as a
        # report to encode.
        if self._folder is None or not os.access(self._folder_name, os.F_OK):
            return _NOTHING
        try:
            changed = os.stat(self._folder_name).st_mtime_ns  # noqa: PTH116 - see above
        except OSError:
            return _NOTHING
        if changed != self._seen:
            self._current = {job_id: poison(suspect) for job_id, suspect in self._read().items()}
            self._seen = changed if time.time() - changed / 1e9 > SETTLED else -1
        return self._current

    def accuse(self, in_hand: list[JournalClaimed], end: pipe.PreviousEnd | None) -> list[frames.Report]:
        """Reports of the jobs that were in hand when this slot's last process ended, after what that says of them is
        written down."""
        pairs = [(claimed.job_id, claimed.lease_token) for claimed in in_hand]
        accused: dict[str, Suspect] = {}
        if pairs and end is not None and self._folder is not None:
            now = time.time()
            known = self._read()
            accused = accuse(known, pairs, end, self._slot, now)
            _forget_old(self._folder, known, now)
            for suspect in accused.values():
                self._write(self._folder, suspect)
                self._log.warning(
                    "job.suspected",
                    job_id=suspect.job_id,
                    convictions=len(suspect.convictions),
                    cause=end.cause,
                    detail=end.detail,
                )
        return crash_reports(pairs, end, accused)

    def clear(self, job_id: str) -> None:
        """The job has ended, having run alone, and this process lives."""
        suspect = self._read().get(job_id)
        if suspect is not None and self._folder is not None and not stays(suspect):
            with contextlib.suppress(OSError):
                _file(self._folder, job_id).unlink()
        self._log.info("job.cleared", job_id=job_id)

    def _write(self, folder: Path, suspect: Suspect) -> None:
        file = _file(folder, suspect.job_id)
        new = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as out:  # noqa: PTH123 - a descriptor, opened private
                out.write(msgspec.json.encode(suspect))
            new.rename(file)
        except OSError as error:
            self._log.error("job.suspicion_lost", job_id=suspect.job_id, error=str(error))
            with contextlib.suppress(OSError):
                new.unlink()

    def _read(self) -> dict[str, Suspect]:
        known: dict[str, Suspect] = {}
        if self._folder is None:
            return known
        for file in self._folder.glob("*.json"):
            try:
                suspect = _decoder.decode(file.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                self._log.error("job.suspicion_lost", file=str(file), error=str(error))
                with contextlib.suppress(OSError):
                    file.unlink()
            else:
                known[suspect.job_id] = suspect
        return known


NOBODY = Suspects(None, "")
"""For a worker without a journal: nobody knows what was in hand when it ended."""


def _forget_old(folder: Path, known: Mapping[str, Suspect], now: float) -> None:
    for job_id, suspect in known.items():
        if is_forgotten(suspect, now):
            with contextlib.suppress(OSError):
                _file(folder, job_id).unlink()


def _file(folder: Path, job_id: str) -> Path:
    """Job ids are the control plane's words: none is trusted as the name of a file."""
    return folder / f"{hashlib.sha256(job_id.encode()).hexdigest()[:32]}.json"
