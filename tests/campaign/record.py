"""What the control plane's record must say of a run of the load. Decides only."""

from collections import Counter
from typing import Any

STEPS = ("one", "two", "three", "four")

Record = dict[str, Any]


def problems_of(run: Record, events: list[Record]) -> list[str]:
    """Why this run was not done exactly once, in sentences; none if it was."""
    told = [f"it is {run['status']}: {run.get('error_type')}"] if run["status"] != "completed" else []
    if sorted(run.get("result") or {}) != sorted(STEPS):
        told.append(f"its result has the steps {sorted(run.get('result') or {})}")
    types = [event["event_type"] for event in events]
    by_step = Counter((event["event_type"], event.get("step_key")) for event in events)
    told += [
        f"step {key} has {by_step[once, key]} events {once}"
        for key in STEPS
        for once in ("action.result", "step.completed")
        if by_step[once, key] != 1
    ]
    if types.count("run.completed") != 1 or types[-1:] != ["run.completed"]:
        told.append(f"it ends with {types[-1:]}, and has {types.count('run.completed')} events run.completed")
    sequences = [event["sequence"] for event in events]
    if sequences != list(range(1, len(sequences) + 1)):
        told.append(f"its events have the sequences {sequences}")
    if "PoisonJob" in failures(events):
        told.append("a job of it was parked as poison")
    return told


def failures(events: list[Record]) -> Counter[str]:
    """Failed attempts by the type of their error."""
    return Counter(
        str(event["payload"].get("error", {}).get("type"))
        for event in events
        if event["event_type"] == "action.failed" or event["payload"].get("outcome") == "failed"
    )
