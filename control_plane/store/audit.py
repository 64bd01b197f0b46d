"""What must be true of any store; sql/audit has the questions, which both databases understand."""

from msgspec import Struct

from control_plane.store.statements import load_statements

RULES = {
    "jobs_not_in_one_state": "every job is in exactly one state",
    "states_without_job": "every state is a job's",
    "streams_with_gaps": "the events of every run are without gaps",
    "attempts_without_job": "every attempt that failed is a job's",
    "parts_without_run": "every step, event, job, timer and signal belongs to a run",
    "open_runs_without_job": "every run that goes on waits for a job, a time, a signal or its turn",
    "turns_held_twice": "of an automation that takes turns one run goes on",
}
"""Sentences by the statement that counts what breaks the rule."""

NUMBERS = {
    "projects": "projects",
    "automations": "automations",
    "runs": "runs",
    "open_runs": "runs that go on",
    "pending_jobs": "pending jobs",
    "claimed_jobs": "claimed jobs",
    "finished_jobs": "finished jobs",
    "events": "events",
}


class Finding(Struct, frozen=True, kw_only=True):
    """One line of a check. `faults` is how many rows break a rule; None: it is only said, not judged."""

    sentence: str
    faults: int | None = None


def questions() -> list[tuple[str, bool, str]]:
    """Sentence, whether the number asked for is one of faults, and statement."""
    statements = load_statements("audit")
    numbers = [(words, False, statements[name]) for name, words in NUMBERS.items()]
    return numbers + [(sentence, True, statements[name]) for name, sentence in RULES.items()]


def finding(sentence: str, number: int, *, faults: bool) -> Finding:
    """What an answer says."""
    return Finding(sentence=sentence, faults=number) if faults else Finding(sentence=f"{number} {sentence}")
