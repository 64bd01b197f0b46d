"""Jobs without a run that were handed in here and wait, remembered so that a claim need not read them.

A job's body is written once, so that what is remembered of it stays true whoever moves it. That it waits, and that
nobody has claimed it yet, the claim sees in the row that it locks. Reading the bodies was a third of what a claim cost
this process, and a quarter of what it cost the database.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from control_plane.domain.enqueue import Alike
from control_plane.domain.model import Job

MOST_REMEMBERED = 20_000
"""Jobs; the oldest are forgotten first, and read when they are claimed."""

LONGEST_SPEC = 1_000
"""Characters; reading a longer one costs little beside handing it on."""


class Waiting:
    """By key: what the job has in common with others, and its own id, spec and external id."""

    def __init__(self) -> None:
        self._jobs: dict[int, tuple[Job, str, str, str | None]] = {}

    def add(self, alike: Alike, seqs: Sequence[int]) -> None:
        """Remember them: they are committed, so that their keys are theirs alone."""
        shared = replace(alike.job, spec={})
        for seq, job_id, spec, each in zip(seqs, alike.ids, alike.specs, alike.handed_in, strict=True):
            if len(spec) <= LONGEST_SPEC:
                self._jobs[seq] = (shared, job_id, spec, each.external_id)
            else:
                self._jobs.pop(seq, None)
        while len(self._jobs) > MOST_REMEMBERED:
            del self._jobs[next(iter(self._jobs))]

    def get(self, seq: int) -> tuple[Job, str] | None:
        """The job as it was handed in, without its spec, and that as JSON text."""
        found = self._jobs.get(seq)
        if found is None:
            return None
        shared, job_id, spec, external_id = found
        return replace(shared, id=job_id, external_id=external_id), spec

    def clear(self) -> None:
        """Remember nothing."""
        self._jobs.clear()

    def forget(self, seq: int) -> None:
        """It is claimed."""
        self._jobs.pop(seq, None)
