"""Suspects of having ended a process run alone: which are in hand and wait, and which one runs. Decides only.

A suspect is kept under its lease until nothing else runs in the process, and nothing is claimed meanwhile. That costs
the worker its other slots, so it is done for PATIENCE; after that, suspects that cannot run at once are handed back
for NO_PATIENCE, and another worker may have room for them.
"""

import math
from collections.abc import Mapping

from wire import frames

PATIENCE = 60.0
NO_PATIENCE = 600.0
"""Seconds, both."""


class Solitude:
    """The suspects of one session, by their executions."""

    def __init__(self) -> None:
        self.suspects: Mapping[str, str | None] = {}
        """Job id -> None for one that must run alone, or why it must not be run at all."""
        self.alone: int | None = None
        """The one that runs."""
        self.patience_ends_at = math.inf
        self.waiting: dict[int, frames.ClaimedJob] = {}
        self._patient_from = -math.inf

    def is_patient(self, now: float) -> bool:
        """Whether a suspect is kept until it can run."""
        return now >= self._patient_from

    def wait(self, execution: int, job: frames.ClaimedJob, now: float) -> None:
        """A suspect is in hand, or was leased anew."""
        self.waiting[execution] = job
        self.patience_ends_at = min(self.patience_ends_at, now + PATIENCE)

    def begin(self, now: float) -> tuple[int, frames.ClaimedJob] | None:
        """The next suspect, to be run now; the caller knows that nothing else runs, this one knows of suspects."""
        if self.alone is not None or not self.waiting:
            return None
        self.alone = next(iter(self.waiting))
        job = self.waiting.pop(self.alone)
        self.patience_ends_at = now + PATIENCE if self.waiting else math.inf
        return self.alone, job

    def forget(self, execution: int) -> bool:
        """An execution is over, or will not be. Whether it had never begun."""
        if self.alone == execution:
            self.alone = None
        if self.waiting.pop(execution, None) is None:
            return False
        if not self.waiting:
            self.patience_ends_at = math.inf
        return True

    def give_up(self, now: float) -> None:
        """PATIENCE is over."""
        self._patient_from = now + NO_PATIENCE
