"""What replicas tell each other fits into NOTIFY and says each thing once."""

from control_plane.domain.store import (
    CancelRequested,
    JobClaimable,
    KeyChanged,
    RunChanged,
    SessionContested,
    SessionDrainRequested,
    SessionTaken,
)
from control_plane.store.postgres_hints import Beat, Gathered, Jobs, decode, encode, facts_of

NOW = 1_000


def job(number, **fields):
    return JobClaimable(
        **{"project_id": "p", "job_id": f"job_{number}", "queue": "default", "available_at": NOW, **fields}
    )


def gathered(*facts):
    made = Gathered()
    made.add(facts, NOW)
    return made.hints()


def told(*facts):
    payloads = encode("rep_1", gathered(*facts))
    return [fact for payload in payloads for hint in decode(payload).hints for fact in facts_of(hint)]


def test_every_fact_that_another_replica_waits_for_arrives():
    facts = [
        CancelRequested(project_id="p", job_id="j", session_id="s", reason=None, requested_at=5),
        SessionDrainRequested(session_id="s"),
        SessionTaken(session_id="s", before=7),
        KeyChanged(key_id="k", ends_at=9),
        job(1, action_name="print", environment_id="e"),
        job(2, provider="ollama", model="llama3"),
        RunChanged(project_id="p", run_id="run_1", last_sequence=3),
    ]
    assert told(*facts) == facts


def test_what_replicas_ask_each_other_is_no_fact_of_theirs():
    assert gathered(SessionContested(session_id="s", contest_id="c")) == []
    assert facts_of(Beat(1)) == []


def test_a_run_is_told_once_with_its_newest_event():
    assert told(*(RunChanged(project_id="p", run_id="run_1", last_sequence=number) for number in (1, 2, 3))) == [
        RunChanged(project_id="p", run_id="run_1", last_sequence=3)
    ]


def test_jobs_of_one_kind_are_counted_so_that_as_many_workers_wake():
    (hint,) = gathered(*(job(number, action_name="print") for number in range(5)))
    assert isinstance(hint, Jobs)
    assert hint.count == 5
    assert len(facts_of(hint)) == 5
    assert gathered(job(1, count=3), job(2), job(3, count=2))[0].count == 6
    (many,) = gathered(*(job(number) for number in range(5_000)))
    assert len(facts_of(many)) == 64


def test_a_delayed_job_is_told_beside_those_that_are_due():
    due, delayed = gathered(job(1), job(2, available_at=NOW + 9), job(3, available_at=NOW + 5))
    assert (due.count, due.available_at) == (1, NOW)
    assert (delayed.count, delayed.available_at) == (2, NOW + 5)


def test_no_payload_is_larger_than_postgresql_takes():
    facts = [
        *(RunChanged(project_id="p" * 31, run_id=f"run_{number:026}", last_sequence=1) for number in range(2_000)),
        *(job(number, queue="\x01" * 256, action_name=f"{number}" * 60) for number in range(50)),
        CancelRequested(project_id="p", job_id="j", session_id="s", reason="\x01" * 100_000, requested_at=5),
    ]
    payloads = encode("rep_" + "0" * 26, gathered(*facts))
    assert len(payloads) > 5
    assert max(len(payload.encode()) for payload in payloads) < 8_000
    assert len(told(*facts)) == 2_051


def test_what_is_no_hint_of_ours_is_passed_over():
    for text in ("", "hello", "[]", '["rep_1",[["z",1]]]', '{"a":1}'):
        assert decode(text) is None
