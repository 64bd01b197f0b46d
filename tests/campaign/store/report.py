"""What a campaign against a store found, for people and for programs. Decides only."""

import statistics
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from tests.campaign.store import throughput
from tests.campaign.store.throughput import Cost, Moment

LIMIT = 10.0
"""Seconds within which the usual throughput is to be back."""

MOST_STOLEN = 0.25
"""Share of the processors' time beyond which the seconds tell of the hardware's other users."""

NEVER = float("inf")


class Findings(Struct, kw_only=True):
    """Of one campaign. `usual` is jobs a second when nothing is wrong, `repeated` how many requests had to be sent
    again, `lost_claims` how many attempts no worker ever heard of. `problems` is empty when everything was proved."""

    store: str
    seed: int
    kills: int
    restarts: int = 0
    cuts: int = 0
    seconds: float = 0.0
    runs: int = 0
    batches: int = 0
    jobs: int = 0
    repeated: int = 0
    lost_claims: int = 0
    usual: float = 0.0
    costs: list[Cost] = []
    problems: list[str] = []

    def measure(self, done_at: Sequence[float], moments: Sequence[Moment]) -> None:
        """Each fault is looked at until the next one."""
        times = [moment.at for moment in moments]
        self.usual = throughput.usual(done_at, times)
        self.costs = []
        for number, moment in enumerate(moments, 1):
            at = moment.at
            until = times[number] if number < len(times) else done_at[-1]
            usual = throughput.usual_lately(done_at, times[:number])
            cost = Cost(
                kind=moment.kind,
                stolen=moment.stolen,
                usual=usual,
                back_after=throughput.back_after(done_at, at, until, usual),
                longest_silence=throughput.longest_silence(done_at, at, until),
            )
            self.costs.append(cost)


def late(findings: Findings) -> list[str]:
    """The faults after which the throughput was not back in time, in sentences."""
    return [sentence for sentence, cost in _slow(findings) if cost.stolen <= MOST_STOLEN]


def not_judged(findings: Findings) -> list[str]:
    """The same, of those in which there was no machine to be back on."""
    return [
        f"{sentence}, while others had {cost.stolen:.0%} of the processors"
        for sentence, cost in _slow(findings)
        if cost.stolen > MOST_STOLEN
    ]


def _slow(findings: Findings) -> list[tuple[str, Cost]]:
    return [
        (f"fault {number} ({cost.kind}): {_seconds(cost.back_after)} until the throughput was back", cost)
        for number, cost in enumerate(findings.costs, 1)
        if cost.back_after is None or cost.back_after > LIMIT
    ]


def replay(findings: Findings) -> str:
    """The command that commits the same faults again."""
    return (
        f"make campaign-store STORE={findings.store} SEED={findings.seed} KILLS={findings.kills} "
        f"RESTARTS={findings.restarts} CUTS={findings.cuts}"
    )


def as_json(findings: Findings) -> str:
    """Everything."""
    return msgspec.json.format(msgspec.json.encode(findings), indent=2).decode()


def as_text(findings: Findings) -> str:
    """A table of what faults cost, the figures, and the verdict."""
    lines = [f"{'seconds until 90 % of the throughput was back':<48} {'times':>5}  {'median':>6}  {'worst':>6}"]
    for kind in dict.fromkeys(cost.kind for cost in findings.costs):
        costs = [cost for cost in findings.costs if cost.kind == kind]
        back = [NEVER if cost.back_after is None else cost.back_after for cost in costs]
        lines.append(f"{kind:<48} {len(costs):>5}  {statistics.median(back):>6.2f}  {max(back):>6.2f}")
    done = f"{findings.runs} runs, {findings.batches} batches, {findings.jobs} jobs"
    lines += [
        "",
        f"{findings.store}: {len(findings.costs)} faults in {findings.seconds:.0f} s; {done}",
        f"when nothing is wrong: {findings.usual:.0f} jobs/s",
        f"requests sent again: {findings.repeated}; claims that no worker heard of: {findings.lost_claims}",
        "",
    ]
    lines += [f"NOT JUDGED: {sentence}" for sentence in not_judged(findings)]
    lines += [f"LATE: {sentence}" for sentence in late(findings)]
    if findings.problems:
        return "\n".join([*lines, *(f"NOT SO: {problem}" for problem in findings.problems), "", replay(findings)])
    return "\n".join(
        [*lines, f"nothing acknowledged was lost, nothing was done twice (seed {findings.seed}: {replay(findings)})"]
    )


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"
