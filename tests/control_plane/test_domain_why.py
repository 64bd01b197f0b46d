"""Why a job waits: every reason, their order, and the nearest miss."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from control_plane.domain import why
from control_plane.domain.model import Attempt, Job, Run, Selector, Session, Step
from control_plane.domain.selection import admits
from control_plane.domain.store import Turn

NOW = 1_700_000_000_000_000
SECOND = 1_000_000


def a_job(**fields: Any) -> Job:
    defaults = {
        "id": "job_1",
        "project_id": "proj_1",
        "kind": "action_execution",
        "origin": "direct",
        "queue": "gpu",
        "status": "pending",
        "spec": {},
        "created_at": NOW,
        "updated_at": NOW,
        "available_at": NOW,
        "action_name": "train",
    }
    return Job(**(defaults | fields))


def a_worker(name: str = "rig-1", *, busy: int = 0, stale: bool = False, slots: int = 2, **fields: Any) -> why.Presence:
    session = Session(
        id=f"wsess_{name}",
        project_id="proj_1",
        worker_instance_id=name,
        token_hash=b"",
        concurrency_limit=slots,
        selector=fields.pop("selector", Selector()),
        created_at=NOW,
        last_seen_at=fields.pop("last_seen_at", NOW),
        **fields,
    )
    return why.Presence(session=session, busy=busy, is_stale=stale)


def explained(
    job: Job,
    *presences: why.Presence,
    is_paused: bool = False,
    limits: Any = (),
    last_attempt: Attempt | None = None,
) -> why.Explanation:
    return why.explain(job, presences, is_paused=is_paused, limits=limits, last_attempt=last_attempt, now=NOW)


def codes(explanation: why.Explanation) -> list[str]:
    return [reason.code for reason in explanation.reasons]


def test_a_job_that_nothing_keeps_is_claimable() -> None:
    explanation = explained(a_job(), a_worker())
    assert (explanation.state, explanation.reasons, explanation.nearest_miss) == ("claimable", [], None)


@pytest.mark.parametrize(
    ("presences", "code", "says"),
    [
        ([], "no_worker", "no worker of this project is connected"),
        ([a_worker(stale=True)], "no_worker", "no worker of this project is connected; 1 worker stale"),
        (
            [a_worker(selector=Selector(queues=("default",)))],
            "no_eligible_worker",
            "the only connected worker does not take action train from queue gpu",
        ),
        (
            [a_worker(busy=2), a_worker("rig-2", busy=2), a_worker("rig-3", draining=True)],
            "workers_full",
            "all 4 slots of the workers that can run it are taken (rig-1, rig-2)",
        ),
    ],
)
def test_reasons_that_are_the_workers(presences: list[why.Presence], code: str, says: str) -> None:
    explanation = explained(a_job(), *presences)
    assert (explanation.state, codes(explanation), explanation.summary) == ("waiting", [code], says)


def test_one_free_slot_among_full_workers_is_enough() -> None:
    assert explained(a_job(), a_worker(busy=2), a_worker("rig-2", busy=1)).state == "claimable"


def test_all_reasons_at_once_in_the_order_in_which_they_would_have_to_go() -> None:
    job = a_job(available_at=NOW + 30 * SECOND, attempts_charged=1, claim_attempt=1, max_attempts=3)
    limits = [why.Limit(what="queue gpu", most=4, running=4), why.Limit(what="action train", most=4, running=3)]
    failed = Attempt(attempt=1, error_type="Oops", error_message="no disk", started_at=NOW, ended_at=NOW)
    explanation = explained(job, is_paused=True, limits=limits, last_attempt=failed)
    assert codes(explanation) == ["queue_paused", "no_worker", "limit_reached", "retry_at"]
    paused, _, limit, retry = explanation.reasons
    assert explanation.summary == paused.message == "queue gpu is paused"
    assert paused.remedy == "mobius queues resume gpu"
    assert limit.message == "queue gpu runs 4 jobs, and 4 is its limit"
    assert retry.until == NOW + 30 * SECOND
    assert "attempt 1 failed (Oops: no disk); the next of at most 2 more" in retry.message


def test_a_limit_of_one_is_told_of_one_job() -> None:
    explanation = explained(a_job(), a_worker(), limits=[why.Limit(what="queue gpu", most=1, running=1)])
    assert explanation.summary == "queue gpu runs 1 job, and 1 is its limit"


@pytest.mark.parametrize(
    ("asked", "asks_back"),
    [
        ("resize_imgae", "; no worker knows this action: did you mean resize_image?"),
        ("train", ""),
        ("resize_image", ""),
    ],
)
def test_a_misspelt_action_is_told_of_the_one_that_was_meant(asked: str, asks_back: str) -> None:
    worker = a_worker(selector=Selector(queues=("default",), action_names=("print", "resize_image")))
    explanation = explained(a_job(action_name=asked), worker)
    says = f"the only connected worker does not take action {asked} from queue gpu"
    assert explanation.summary == says + asks_back
    takes_any = a_worker("rig-2", selector=Selector(queues=("default",)))
    assert "did you mean" not in explained(a_job(action_name=asked), worker, takes_any).summary


def test_a_worker_that_drains_is_not_said_to_take_something_else() -> None:
    explanation = explained(
        a_job(), a_worker(drain_requested=True), a_worker("rig-2", selector=Selector(queues=("x",)))
    )
    assert codes(explanation) == ["no_eligible_worker"]
    assert explanation.summary == "every worker that takes action train from queue gpu drains (rig-1)"


def test_a_delay_is_no_retry() -> None:
    explanation = explained(a_job(available_at=NOW + 90 * SECOND), a_worker())
    assert codes(explanation) == ["delayed_until"]
    assert explanation.reasons[0].remedy == "wait 90 s"


def test_the_nearest_miss_is_the_worker_with_the_fewest_differences() -> None:
    explanation = explained(
        a_job(),
        a_worker("far", draining=True, selector=Selector(queues=("default",), action_names=("print",))),
        a_worker("near", selector=Selector(queues=("gpu",), action_names=("print", "fail"))),
        a_worker("gone", stale=True, selector=Selector(action_names=("print",))),
    )
    assert explanation.nearest_miss is not None
    assert explanation.nearest_miss.worker_instance_id == "near"
    assert explanation.nearest_miss.differences == ["offers print, fail and not action train"]


ELSEWHERE = Selector(queues=("default",))
FAR = Selector(queues=("default",), action_names=("print",))


@pytest.mark.parametrize(
    ("nearer", "farther"),
    [
        (a_worker("z", stale=True), a_worker("a", selector=ELSEWHERE)),
        (a_worker("z", stale=True), a_worker("a", draining=True)),
        (a_worker("z", stale=True, draining=True), a_worker("a", selector=ELSEWHERE)),
        (a_worker("z", draining=True), a_worker("a", selector=ELSEWHERE)),
        (a_worker("z", draining=True), a_worker("a", draining=True, stale=True)),
        (a_worker("z", stale=True), a_worker("a", stale=True, last_seen_at=NOW - SECOND)),
        (a_worker("z", selector=ELSEWHERE), a_worker("a", selector=ELSEWHERE, stale=True)),
        (a_worker("z", selector=ELSEWHERE), a_worker("a", selector=ELSEWHERE, busy=2)),
        (a_worker("z", selector=ELSEWHERE, busy=2), a_worker("a", selector=ELSEWHERE, draining=True)),
        (a_worker("z", selector=ELSEWHERE, stale=True), a_worker("a", selector=FAR)),
        (a_worker("a", selector=ELSEWHERE), a_worker("z", selector=ELSEWHERE)),
    ],
)
def test_of_two_workers_that_cannot_run_it_the_nearer_is_named(nearer: why.Presence, farther: why.Presence) -> None:
    for presences in ((nearer, farther), (farther, nearer)):
        miss = explained(a_job(), *presences).nearest_miss
        assert miss is not None
        assert miss.session_id == nearer.session.id


def test_a_worker_that_died_is_named_with_the_time_when_it_was_last_heard_of() -> None:
    dead = a_worker("dead", stale=True, last_seen_at=NOW - 90 * SECOND)
    explanation = explained(a_job(), a_worker("alive", selector=ELSEWHERE), dead)
    assert explanation.nearest_miss is not None
    assert explanation.nearest_miss.worker_instance_id == "dead"
    assert explanation.nearest_miss.differences == ["not heard of since 2023-11-14T22:11:50Z"]


def test_a_generation_names_its_model() -> None:
    job = a_job(kind="llm_generation", action_name=None, provider="ollama", model="qwen")
    explanation = explained(job, a_worker(selector=Selector(models=(("ollama", "llama"),))))
    assert explanation.summary == "the only connected worker does not take model ollama/qwen from queue gpu"
    assert explanation.nearest_miss is not None
    assert explanation.nearest_miss.differences == ["offers ollama/llama and not ollama/qwen"]


@pytest.mark.parametrize(
    ("fields", "state", "says"),
    [
        ({"status": "claimed", "worker_instance_id": "rig-1", "claim_attempt": 2}, "running", "worker rig-1 has it"),
        ({"status": "claimed", "cancel_requested_at": NOW}, "running", "it is asked to cancel it"),
        ({"status": "completed", "claim_attempt": 1}, "ended", "it has ended: completed after 1 attempt"),
        (
            {"status": "failed", "claim_attempt": 3, "error_type": "Oops", "error_message": "no disk"},
            "ended",
            "it has ended: failed after 3 attempts: Oops: no disk",
        ),
    ],
)
def test_what_does_not_wait_says_what_it_does(fields: dict[str, Any], state: str, says: str) -> None:
    explanation = explained(a_job(**fields), is_paused=True)
    assert (explanation.state, explanation.reasons) == (state, [])
    assert says in explanation.summary


names = st.sampled_from(["a", "b"])
selectors = st.builds(
    Selector,
    queues=st.lists(names, unique=True).map(tuple),
    action_names=st.lists(names, unique=True).map(tuple),
    models=st.lists(st.tuples(names, names), unique=True).map(tuple),
    environment_id=st.none() | names,
)
work = st.tuples(names, st.none(), st.none()) | st.tuples(st.none(), names, names)


@given(selectors, work, names, st.none() | names)
def test_a_worker_misses_a_job_exactly_where_it_is_not_offered_it(
    selector: Selector, work: tuple[str | None, str | None, str | None], queue: str, environment: str | None
) -> None:
    action, provider, model = work
    job = replace(a_job(), queue=queue, environment_id=environment, action_name=action, provider=provider, model=model)
    explanation = explained(job, a_worker(selector=selector))
    assert (explanation.nearest_miss is None) == admits(selector, job)
    if explanation.nearest_miss is not None:
        assert explanation.nearest_miss.differences


# --- runs


def a_run(**fields: Any) -> Run:
    defaults = {
        "id": "run_1",
        "project_id": "proj_1",
        "automation_id": "auto_1",
        "automation_name": "A",
        "version_id": "ver_1",
        "version": 1,
        "status": "suspended",
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Run(**(defaults | fields))


def a_step(**fields: Any) -> Step:
    defaults = {
        "id": "step_1",
        "project_id": "proj_1",
        "run_id": "run_1",
        "step_key": "one",
        "save_as": "one",
        "kind": "action",
        "status": "suspended",
        "seq": 1,
        "attempt": 1,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Step(**(defaults | fields))


@pytest.mark.parametrize(
    ("turn", "says", "remedy"),
    [
        (None, "it is about to be decided whether it is its turn", "wait a moment"),
        (Turn(), "it is about to be decided whether it is its turn", "wait a moment"),
        (Turn(before=2), "it waits for its turn, 2 runs before it", "wait"),
        (
            Turn(holder_id="run_0"),
            "its automation runs one at a time: run run_0 goes on",
            "wait, or mobius runs cancel run_0",
        ),
        (
            Turn(holder_id="run_0", before=1),
            "its automation runs one at a time: run run_0 goes on, and 1 run before it",
            "wait, or mobius runs cancel run_0",
        ),
    ],
)
def test_a_queued_run_waits_for_its_turn(turn: Turn | None, says: str, remedy: str) -> None:
    explanation = why.explain_run(a_run(status="queued"), None, turn=turn, now=NOW)
    (reason,) = explanation.reasons
    assert (explanation.state, explanation.summary, reason.code) == ("waiting", says, "awaiting_turn")
    assert (reason.message, reason.remedy) == (says, remedy)


def test_a_run_says_of_its_step_and_job_what_they_wait_for() -> None:
    asleep = why.explain_run(a_run(wake_at=NOW + 90 * SECOND), a_step(kind="sleep"), now=NOW)
    assert codes(asleep) == ["sleeping_until"]
    assert (asleep.reasons[0].remedy, asleep.reasons[0].until) == ("wait 90 s", NOW + 90 * SECOND)
    job = explained(a_job())
    waits = why.explain_run(a_run(), a_step(kind="cleanup", job_id="job_1"), job=job, now=NOW)
    assert (waits.state, waits.reasons) == ("waiting", job.reasons)
    assert waits.summary == "cleanup step one waits for job job_1: no worker of this project is connected"
    assert why.explain_run(a_run(status="running"), None, now=NOW).state == "running"
    failed = why.explain_run(a_run(status="failed", error_type="Oops", error_message="no disk"), None, now=NOW)
    assert (failed.state, failed.summary, failed.reasons) == ("ended", "it has ended: failed: Oops: no disk", [])
