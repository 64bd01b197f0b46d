"""What a campaign found, for people and for programs. Decides only."""

import statistics
from collections import Counter

import msgspec
from msgspec import Struct

from tests.campaign.faults import Recovery
from tests.campaign.schedule import KINDS

MIB = 1024 * 1024
MEMORY_TOLERANCE = 0.05
"""Share by which the supervisor's memory may differ between the two samples."""


class Sample(Struct, frozen=True, kw_only=True):
    """What the supervisor holds after so many faults; `uss` and `pss` in bytes."""

    faults: int
    descriptors: dict[str, int]
    uss: int
    pss: int


class Findings(Struct, kw_only=True):
    """Of one campaign. `recoveries` are seconds by kind of fault, `kills` those from a kill of the quickstart's
    supervisor until none of its processes was left. `problems` is empty when everything was proved.
    """

    seed: int
    faults: int
    workers: int
    seconds: float = 0.0
    runs: int = 0
    jobs: int = 0
    failed_attempts: dict[str, int] = {}
    causes: dict[str, int] = {}
    orphans_ended: int = 0
    recoveries: dict[str, list[float]] = {}
    samples: list[Sample] = []
    kills: list[float] = []
    problems: list[str] = []

    def add(self, recovery: Recovery) -> None:
        """One more fault that was made good."""
        self.recoveries.setdefault(recovery.fault.kind, []).append(recovery.seconds)


def growth(first: Sample, last: Sample, *, memory: bool) -> list[str]:
    """What the supervisor holds more or less of than before, in sentences; none if it holds the same."""
    told = []
    more = Counter(last.descriptors)
    more.subtract(first.descriptors)
    changed = {what: number for what, number in more.items() if number}
    if changed:
        told.append(
            f"the supervisor's open file descriptors changed between fault {first.faults} and {last.faults}: {changed}"
        )
    for name, before, after in (("USS", first.uss, last.uss), ("PSS", first.pss, last.pss)):
        if memory and abs(after - before) > MEMORY_TOLERANCE * before:
            told.append(
                f"the supervisor's {name} went from {before / MIB:.2f} to {after / MIB:.2f} MiB between fault "
                f"{first.faults} and {last.faults}"
            )
    return told


def replay(findings: Findings) -> str:
    """The command that commits the same faults again."""
    return f"make campaign SEED={findings.seed} FAULTS={findings.faults} WORKERS={findings.workers}"


def as_json(findings: Findings) -> str:
    """Everything."""
    return msgspec.json.format(msgspec.json.encode(findings), indent=2).decode()


def as_text(findings: Findings) -> str:
    """A table of recoveries, the figures, and the verdict."""
    lines = _faults(findings) if findings.faults else []
    if findings.kills:
        lines.append(
            f"the quickstart's supervisor killed {len(findings.kills)} times: nothing was left after "
            f"{statistics.median(findings.kills):.1f} s (median; worst {max(findings.kills):.1f} s)"
        )
    if findings.problems:
        lines += ["", *(f"NOT SO: {problem}" for problem in findings.problems), "", f"again: {replay(findings)}"]
    else:
        lines += ["", f"proved (seed {findings.seed})"]
    return "\n".join(lines)


def _faults(findings: Findings) -> list[str]:
    lines = [f"{'fault':<24} {'times':>5}  {'median s':>8}  {'worst s':>8}"]
    for kind in KINDS:
        seconds = findings.recoveries.get(kind, [])
        if seconds:
            lines.append(f"{kind:<24} {len(seconds):>5}  {statistics.median(seconds):>8.2f}  {max(seconds):>8.2f}")
    lines.append("")
    lines += [
        f"{sample.faults:>4} faults: {sum(sample.descriptors.values())} descriptors, "
        f"USS {sample.uss / MIB:.2f} MiB, PSS {sample.pss / MIB:.2f} MiB"
        for sample in findings.samples
    ]
    done = f"{findings.runs} runs, {findings.jobs} jobs"
    return [
        *lines,
        f"{findings.faults} faults on {findings.workers} workers in {findings.seconds:.0f} s; {done}",
        f"ends as the supervisor called them: {_counts(findings.causes)}",
        f"left behind and ended: {findings.orphans_ended}; failed attempts: {_counts(findings.failed_attempts)}",
    ]


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counted.items())) or "none"
