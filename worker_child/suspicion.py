"""Which job ended its worker process? Decides what a crash says of the jobs that were in hand.

Only a death of the process's own making accuses anybody. A job that was alone in hand is convicted of it; of several,
each is a suspect, and runs alone from then on, until it has ended without a crash. CONVICTIONS convictions make a job
poison: it is not run again.
"""

import hashlib
from collections.abc import Mapping, Sequence

from msgspec import Struct

from wire import frames, pipe

InHand = Sequence[tuple[str, str]]
"""Job id and lease token of each job that was in hand."""

CONVICTIONS = 3
FORGET_AFTER = 24 * 3600.0
"""Seconds after which a suspect that never came back is forgotten: its run has ended long ago."""
POISON_JOB = "PoisonJob"
"""`error_type` of one (contract, "Words on the wire"): no attempt follows."""


class Conviction(Struct, frozen=True, kw_only=True):
    """One crash with the job alone in hand. `lease` is a digest of the lease's token: each crash counts once."""

    lease: str
    evidence: str


class Suspect(Struct, frozen=True, kw_only=True):
    """What is held against one job; `since` is in seconds since the epoch."""

    job_id: str
    since: float
    convictions: list[Conviction] = []


def accuse(
    known: Mapping[str, Suspect], in_hand: InHand, end: pipe.PreviousEnd, slot: str, now: float
) -> dict[str, Suspect]:
    """What is held against these jobs after `slot` ended like this with them in hand. `now`: since the epoch."""
    if not end.self_made:
        return {}
    accused: dict[str, Suspect] = {}
    for job_id, lease_token in in_hand:
        before = known.get(job_id)
        convictions = before.convictions if before is not None else []
        lease = hashlib.sha256(lease_token.encode()).hexdigest()[:16]
        if len(in_hand) == 1 and all(conviction.lease != lease for conviction in convictions):
            evidence = f"{_words(end)}, incarnation {end.incarnation} of {slot}"
            convictions = [*convictions, Conviction(lease=lease, evidence=evidence)]
        accused[job_id] = Suspect(job_id=job_id, since=now, convictions=convictions)
    return accused


def is_forgotten(suspect: Suspect, now: float) -> bool:
    """Whether it is too long ago to matter."""
    return now - suspect.since >= FORGET_AFTER


def stays(suspect: Suspect) -> bool:
    """Whether anything is left of it once the job has run alone and the process lives: convictions are."""
    return bool(suspect.convictions)


def poison(suspect: Suspect) -> str | None:
    """Why the job must not be run again, as a sentence; None while it may be."""
    if len(suspect.convictions) < CONVICTIONS:
        return None
    evidence = "; ".join(conviction.evidence for conviction in suspect.convictions)
    return (
        f"the job ended its worker process {len(suspect.convictions)} times while nothing else was in hand "
        f"({evidence}): it is not run again"
    )


def crash_reports(
    in_hand: InHand, end: pipe.PreviousEnd | None, suspects: Mapping[str, Suspect]
) -> list[frames.Report]:
    """What the control plane is told of the jobs that were in hand; `suspects` as `accuse` left them."""
    reports = []
    for job_id, lease_token in in_hand:
        suspect = suspects.get(job_id)
        sentence = poison(suspect) if suspect is not None else None
        reports.append(
            frames.Report(
                job_id=job_id,
                lease_token=lease_token,
                status="failed",
                error_type="WorkerCrashed" if sentence is None else POISON_JOB,
                error_message=sentence or _crashed(end, suspect, others=len(in_hand) - 1),
            )
        )
    return reports


def _crashed(end: pipe.PreviousEnd | None, suspect: Suspect | None, *, others: int) -> str:
    sentence = f"the worker process ended while the job was in hand ({_words(end)})"
    if suspect is None or end is None or not end.self_made:
        return sentence
    if others:
        return f"{sentence}; so were {others} more, and each of them runs alone from now on"
    return f"{sentence}; nothing else was, which counts against it: {len(suspect.convictions)} of {CONVICTIONS}"


def _words(end: pipe.PreviousEnd | None) -> str:
    return f"{end.cause}: {end.detail}" if end is not None else "nobody saw how"
