"""Who is to blame for a crash: by the deaths that accuse, and by who was alone."""

import pytest

from wire import pipe
from worker_child.suspicion import (
    CONVICTIONS,
    FORGET_AFTER,
    Suspect,
    accuse,
    crash_reports,
    is_forgotten,
    poison,
    stays,
)

CRASH = pipe.PreviousEnd(incarnation=4, cause="signal", detail="signal 11", self_made=True)
NOW = 1_700_000_000.0


def crashes(*cases: list[str], known: dict[str, Suspect] | None = None) -> dict[str, Suspect]:
    """Crash after crash, each with these jobs in hand."""
    suspects = dict(known or {})
    for number, jobs in enumerate(cases):
        pairs = [(job_id, f"lease of {job_id}, {number}") for job_id in jobs]
        suspects |= accuse(suspects, pairs, CRASH, "rig-1", NOW + number)
    return suspects


@pytest.mark.parametrize("cause", ["signal", "drained", "killed", "hung", "unseen"])
def test_a_death_that_is_not_the_childs_own_doing_accuses_nobody(cause: str) -> None:
    end = pipe.PreviousEnd(incarnation=1, cause=cause, detail="signal 9", self_made=False)
    assert accuse({}, [("job-1", "lease-1")], end, "rig-1", NOW) == {}
    [report] = crash_reports([("job-1", "lease-1")], end, {})
    assert report.error_type == "WorkerCrashed"
    assert report.error_message == f"the worker process ended while the job was in hand ({cause}: signal 9)"


def test_what_nobody_saw_accuses_nobody() -> None:
    [report] = crash_reports([("job-1", "lease-1")], None, {})
    assert report.error_message == "the worker process ended while the job was in hand (nobody saw how)"


def test_one_of_several_is_a_suspect_and_not_convicted() -> None:
    suspects = crashes(["a", "b", "c"])
    assert {job_id: len(suspect.convictions) for job_id, suspect in suspects.items()} == {"a": 0, "b": 0, "c": 0}
    messages = [report.error_message for report in crash_reports([("a", "1"), ("b", "2")], CRASH, suspects)]
    assert all(str(message).endswith("so were 1 more, and each of them runs alone from now on") for message in messages)


def test_one_that_was_alone_is_convicted_with_the_evidence() -> None:
    suspects = crashes(["a"])
    assert [conviction.evidence for conviction in suspects["a"].convictions] == [
        "signal: signal 11, incarnation 4 of rig-1"
    ]
    assert poison(suspects["a"]) is None
    [report] = crash_reports([("a", "1")], CRASH, suspects)
    assert report.error_type == "WorkerCrashed"
    assert str(report.error_message).endswith("nothing else was, which counts against it: 1 of 3")


def test_convictions_add_up_to_poison() -> None:
    suspects = crashes(["a", "b"], *[["a"]] * CONVICTIONS)
    why = poison(suspects["a"])
    assert why is not None
    assert why.count("signal 11, incarnation 4 of rig-1") == CONVICTIONS
    [report] = crash_reports([("a", "1")], CRASH, suspects)
    assert (report.status, report.error_type, report.error_message) == ("failed", "PoisonJob", why)
    assert poison(suspects["b"]) is None


def test_one_crash_counts_once_however_often_it_is_told() -> None:
    once = accuse({}, [("a", "lease")], CRASH, "rig-1", NOW)
    again = accuse(once, [("a", "lease")], CRASH, "rig-1", NOW)
    assert len(again["a"].convictions) == 1


def test_a_lease_token_is_not_kept() -> None:
    [conviction] = accuse({}, [("a", "the secret")], CRASH, "rig-1", NOW)["a"].convictions
    assert "the secret" not in conviction.lease + conviction.evidence


def test_suspicion_goes_and_convictions_stay() -> None:
    suspects = crashes(["a", "b"], ["a"])
    assert stays(suspects["a"])
    assert not stays(suspects["b"])


def test_what_is_long_ago_is_forgotten() -> None:
    suspect = crashes(["a"])["a"]
    assert not is_forgotten(suspect, NOW + FORGET_AFTER - 1)
    assert is_forgotten(suspect, NOW + FORGET_AFTER)
