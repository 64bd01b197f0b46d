"""Jobs on real stores: claims, fences, retries, deadlines. Time is fed."""

import asyncio
import json

import pytest

from control_plane.domain.enqueue import NewJob
from control_plane.domain.model import Selector
from control_plane.domain.runs import Engine
from control_plane.domain.store import CancelRequested, JobClaimable
from tests.support.store_scenario import LEASE, PENDING_DEADLINE, action, at, scenario
from wire.frames import Report


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


async def one_job(s, **step):
    await s.publish("a", [action(**step)])
    return await s.start("a")


# --- claims


async def test_a_claim_leases_the_oldest_available_jobs(s):
    await s.publish("a", [action()])
    runs = [await s.start("a", now=now) for now in (3, 1, 2)]
    leases = await s.claim(now=5, limit=2)
    assert [lease.job.run_id for lease in leases] == [runs[1].id, runs[2].id]
    job = leases[0].job
    assert (job.status, job.claim_attempt, json.loads(leases[0].spec)) == ("claimed", 1, {"parameters": {}})
    assert job.lease_expires_at == at(5 + LEASE)
    assert [lease.job.run_id for lease in await s.claim(now=5)] == [runs[0].id]
    assert await s.claim(now=5) == []


async def test_a_lane_that_was_found_empty_is_looked_at_again(s):
    await s.publish("a", [action(retry={"max_attempts": 9})])
    assert await s.claim(now=1) == []
    await s.start("a", now=1)
    lease = await s.claim_one(now=1)
    assert await s.claim(now=1) == []
    await s.report(lease, "failed", error="Boom", now=1)
    lease = await s.claim_one(now=1)
    assert await s.claim(now=1) == []
    await s.reap(LEASE + 1)
    lease = await s.claim_one(now=LEASE + 1)
    await s.report(lease, "failed", error="WorkerOverCapacity", now=LEASE + 1)
    assert await s.claim_one(now=LEASE + 1)


async def test_a_job_is_not_there_before_its_time(s):
    run = await one_job(s, retry={"max_attempts": 2, "delay": "10s"})
    await s.report(await s.claim_one(now=1), "failed", error="Boom", now=2)
    assert await s.claim(now=11.9) == []
    assert await s.store.next_available_at(now=at(2)) == at(12)
    assert (await s.claim_one(now=12)).job.run_id == run.id
    assert await s.store.next_available_at(now=at(12)) is None


async def test_queues_actions_and_environments_select(s):
    await s.publish("gpu", [action(action_name="image.resize")], settings={"queue": "gpu"})
    await s.publish("plain", [action(action_name="print")])
    pinned = {"key": "p", "kind": "action", "config": {"action_name": "print", "environment_id": "env-1"}}
    await s.publish("pinned", [pinned])
    for handle in ("gpu", "plain", "pinned"):
        await s.start(handle)

    async def offered(**selector):
        leases = await s.claim(selector=Selector(**selector))
        for lease in leases:
            assert await s.report(lease, "failed", error="WorkerOverCapacity") == "handed_back"
        return sorted((lease.job.queue, lease.job.action_name, lease.job.environment_id) for lease in leases)

    gpu, plain = ("gpu", "image.resize", None), ("default", "print", None)
    assert await offered() == [plain, gpu]
    assert await offered(queues=("gpu",)) == [gpu]
    assert await offered(queues=("nothing",)) == []
    assert await offered(action_names=("print",)) == [plain]
    assert await offered(models=(("ollama", "llama3"),)) == []
    assert await offered(models=(("ollama", "llama3"),), action_names=("print",)) == [plain]
    assert await offered(environment_id="env-1") == [("default", "print", "env-1")]


async def test_a_claim_stops_at_its_byte_limit_but_takes_one_job_always(s):
    await s.publish(
        "a", [{"key": "k", "kind": "action", "config": {"action_name": "p", "parameters": {"x": "{{ .inputs.x }}"}}}]
    )
    for _ in range(5):
        await s.start("a", inputs={"x": "y" * 100_000})
    assert len(await s.claim(byte_limit=250_000)) == 2
    assert len(await s.claim(byte_limit=1)) == 1


async def test_excluded_jobs_are_passed_over(s):
    await s.publish("a", [action()])
    await s.start("a")
    await s.start("a")
    first, second = await s.claim(now=1)
    for lease in (first, second):
        await s.report(lease, "failed", error="WorkerOverCapacity", now=1)
    (again,) = await s.claim(now=1, limit=1, excluded=(first.job.id,))
    assert again.job.id == second.job.id


async def test_concurrent_claims_never_share_a_job(s):
    await s.publish("a", [action()])
    await asyncio.gather(*(s.start("a") for _ in range(50)))
    claims = await asyncio.gather(*(s.claim(limit=7) for _ in range(10)))
    jobs = [lease.job.id for leases in claims for lease in leases]
    assert len(jobs) == len(set(jobs)) == 50


# --- reports and fences


async def test_a_completed_job_completes_step_and_run(s):
    run = await one_job(s)
    lease = await s.claim_one()
    assert await s.report(lease, result={"answer": 42}) == "accepted"
    run = await s.run(run)
    assert (run.status, run.result) == ("completed", {"one": {"answer": 42}})
    assert await s.event_types(run) == [
        "run.started",
        "step.started",
        "step.suspended",
        "action.called",
        "action.result",
        "step.completed",
        "run.completed",
    ]


async def test_a_report_that_comes_again_is_a_duplicate_and_changes_nothing(s):
    run = await one_job(s)
    lease = await s.claim_one()
    assert await s.report(lease, result={"n": 1}) == "accepted"
    assert await s.report(lease, "failed", error="Boom") == "duplicate"
    assert await s.report(lease, result={"n": 2}) == "duplicate"
    assert (await s.run(run)).result == {"one": {"n": 1}}


async def test_the_report_of_a_failed_attempt_is_a_duplicate_too_whatever_came_after(s):
    await one_job(s, retry={"max_attempts": 3})
    first = await s.claim_one()
    assert await s.report(first, "failed", error="Boom") == "accepted"
    assert await s.report(first, "failed", error="Boom") == "duplicate"
    second = await s.claim_one()
    assert await s.report(first, "failed", error="Boom") == "duplicate"
    assert await s.report(second) == "accepted"
    assert await s.report(first) == "superseded"


async def test_what_a_lapsed_lease_says_late_counts_unless_the_lapse_ended_the_job(s):
    """As docs/jobs.md says it."""
    await s.publish("again", [action(retry={"max_attempts": 2})])
    await s.publish("once", [action()])
    waits, over = await s.start("again"), await s.start("once")
    late = {lease.job.run_id: lease for lease in await s.claim()}
    await s.reap(LEASE + 1)
    assert await s.report(late[waits.id], result={"late": True}, now=LEASE + 2) == "accepted"
    assert await s.report(late[over.id], result={"late": True}, now=LEASE + 2) == "superseded"
    assert await s.statuses(waits, over) == ["completed", "failed"]
    job = await s.job(late[over.id])
    assert (job.status, job.error_type, job.result) == ("failed", "LeaseLapsed", None)


async def test_a_zombie_changes_nothing(s):
    run = await one_job(s, retry={"max_attempts": 2})
    zombie = await s.claim_one(now=0)
    await s.reap(LEASE + 1)
    fresh = await s.claim_one(now=LEASE + 2)
    assert fresh.job.claim_attempt == 2
    assert await s.report(zombie, result={"by": "zombie"}, now=LEASE + 3) == "superseded"
    assert (await s.heartbeat(zombie, now=LEASE + 3)).lost
    assert await s.report(fresh, result={"by": "fresh"}, now=LEASE + 4) == "accepted"
    assert await s.report(zombie, result={"by": "zombie"}, now=LEASE + 5) == "superseded"
    assert (await s.run(run)).result == {"one": {"by": "fresh"}}
    assert (await s.event_types(run)).count("action.result") == 1


async def test_a_wrong_token_and_an_unknown_job(s):
    await one_job(s)
    lease = await s.claim_one()
    assert await s.report(lease, token="guess") == "superseded"
    (outcome,) = await s.store.reports(s.project.id, [Report(job_id="job_nobody", lease_token="x")])
    assert outcome.verdict == "unknown"
    assert (await s.job(lease)).status == "claimed"


async def test_another_project_cannot_touch_the_job(s):
    await one_job(s)
    lease = await s.claim_one()
    other = await s.store.create_project("other", "Other")
    report = Report(job_id=lease.job.id, lease_token=lease.lease_token, result={})
    (outcome,) = await s.store.reports(other.id, [report])
    assert outcome.verdict == "unknown"
    assert (await s.store.heartbeat(other.id, lease.job.id, lease.lease_token)).lost


async def test_a_lapsed_lease_that_nobody_superseded_may_still_complete_the_job(s):
    run = await one_job(s, retry={"max_attempts": 2})
    lease = await s.claim_one(now=0)
    assert (await s.reap(LEASE + 1)).leases_lapsed == 1
    assert await s.report(lease, result={"late": True}, now=LEASE + 2) == "accepted"
    assert await s.report(lease, result={"late": True}, now=LEASE + 3) == "duplicate"
    assert (await s.run(run)).status == "completed"
    assert await s.claim(now=LEASE + 4) == []


async def test_a_late_failure_costs_no_second_attempt(s):
    await one_job(s, retry={"max_attempts": 2})
    lease = await s.claim_one(now=0)
    await s.reap(LEASE + 1)
    assert await s.report(lease, "failed", error="Boom", now=LEASE + 2) == "accepted"
    assert await s.report(lease, "failed", error="Boom", now=LEASE + 2) == "duplicate"
    again = await s.claim_one(now=LEASE + 3)
    assert (again.job.claim_attempt, again.job.attempts_charged) == (2, 1)


async def test_a_late_failure_that_is_not_retryable_ends_the_job(s):
    run = await one_job(s, retry={"max_attempts": 5})
    lease = await s.claim_one(now=0)
    await s.reap(LEASE + 1)
    assert await s.report(lease, "failed", error="ValidationError", now=LEASE + 2) == "accepted"
    assert (await s.run(run)).error_type == "ValidationError"


async def test_the_reapers_verdict_stands(s):
    run = await one_job(s)
    lease = await s.claim_one(now=0)
    await s.reap(LEASE + 1)
    assert (await s.run(run)).error_type == "LeaseLapsed"
    assert await s.report(lease, now=LEASE + 2) == "superseded"
    assert (await s.run(run)).status == "failed"


# --- retries


async def test_attempts_are_bounded(s):
    run = await one_job(s, retry={"max_attempts": 3})
    for attempt in (1, 2, 3):
        lease = await s.claim_one(now=attempt)
        assert lease.job.claim_attempt == attempt
        await s.report(lease, "failed", error="Boom", message=f"try {attempt}", now=attempt)
    assert await s.claim(now=9) == []
    run = await s.run(run)
    assert (run.status, run.error_type, run.error_message) == ("failed", "Boom", "try 3")
    (step,) = await s.steps(run)
    assert (step.status, step.attempt) == ("failed", 3)
    types = await s.event_types(run)
    assert [types.count(name) for name in ("action.called", "action.failed", "action.retried", "action.result")] == [
        3,
        3,
        2,
        1,
    ]


@pytest.mark.parametrize(
    "error", ["NonRetryableError", "ValidationError", "UnknownAction", "PoisonJob", "ResultTooLarge", "Listed"]
)
async def test_what_is_not_retryable_fails_at_once(s, error):
    run = await one_job(s, retry={"max_attempts": 5, "non_retryable": ["Listed"]})
    await s.report(await s.claim_one(), "failed", error=error)
    assert (await s.run(run)).status == "failed"


async def test_over_capacity_costs_nothing(s):
    run = await one_job(s)
    for _ in range(3):
        lease = await s.claim_one()
        assert lease.job.claim_attempt == 1
        assert await s.report(lease, "failed", error="WorkerOverCapacity") == "handed_back"
        assert await s.report(lease, "failed", error="WorkerOverCapacity") == "duplicate"
    lease = await s.claim_one()
    assert (lease.job.hand_backs, lease.job.attempts_charged) == (3, 0)
    await s.report(lease)
    assert (await s.run(run)).status == "completed"


@pytest.mark.parametrize("error", ["WorkerCrashed", "WorkerShutdown"])
async def test_a_lost_worker_is_like_a_lapsed_lease_only_sooner(s, error):
    run = await one_job(s, retry={"max_attempts": 2, "delay": "1h"})
    await s.report(await s.claim_one(now=1), "failed", error=error, now=1)
    again = await s.claim_one(now=1)
    assert again.job.attempts_charged == 1
    await s.report(again, "failed", error=error, now=1)
    assert (await s.run(run)).error_type == error


async def test_cancelled_unasked_puts_the_job_back_at_no_cost(s):
    await one_job(s)
    assert await s.report(await s.claim_one(), "cancelled") == "handed_back"
    again = await s.claim_one()
    assert (again.job.claim_attempt, again.job.attempts_charged) == (2, 0)


async def test_a_job_that_goes_back_is_announced(s):
    await one_job(s, retry={"max_attempts": 2, "delay": "5s"})
    lease = await s.claim_one(now=1)
    s.facts.clear()
    await s.report(lease, "failed", error="Boom", now=2)
    (fact,) = s.announced(JobClaimable)
    assert (fact.job_id, fact.available_at, fact.queue, fact.action_name) == (lease.job.id, at(7), "default", "print")
    assert [due.job_id for due in await s.store.claimable(limit=5, since=at(2), now=at(7))] == [lease.job.id]
    assert await s.store.claimable(limit=5, since=at(7), now=at(8)) == []


async def test_many_that_become_claimable_are_told_by_their_number(s):
    told = await s.enqueue([NewJob(action_name="print", spec={}, delay=5.0)] * 7 + [NewJob(spec={}, delay=6.0)])
    due = await s.store.claimable(limit=20, since=at(2), now=at(7))
    assert sum(fact.count for fact in due) == 8
    assert {fact.job_id for fact in due} <= set(told.ids)
    assert [fact.available_at for fact in due] == sorted(fact.available_at for fact in due)
    assert (due[-1].job_id, due[-1].count, due[-1].action_name) == (told.ids[-1], 1, None)
    some = await s.store.claimable(limit=5, since=at(2), now=at(7))
    assert (sum(fact.count for fact in some), some[-1].available_at) == (5, at(5))


# --- deadlines


async def test_heartbeats_keep_a_lease(s):
    await one_job(s)
    lease = await s.claim_one(now=0)
    for now in range(20, 200, 20):
        assert not (await s.heartbeat(lease, now=now)).lost
        assert (await s.reap(now + 19)).leases_lapsed == 0
    assert (await s.reap(180 + LEASE)).leases_lapsed == 1


async def test_a_late_heartbeat_saves_the_lease_as_long_as_nobody_took_it_back(s):
    await one_job(s)
    lease = await s.claim_one(now=0)
    assert not (await s.heartbeat(lease, now=LEASE + 5)).lost
    assert (await s.reap(LEASE + 6)).leases_lapsed == 0


async def test_nothing_lapses_in_the_first_lease_duration_after_the_start(place):
    async with scenario(place) as s:
        await one_job(s)
        lease = await s.claim_one(now=(s.store.now() - at(0)) / 1e6 - LEASE - 10)
    async with scenario(place, prepared=False, grace=True) as s:
        opened = s.store.now()
        assert lease.job.lease_expires_at < opened
        assert (await s.store.reap(limit=9, now=opened)).leases_lapsed == 0
        assert (await s.store.reap(limit=9, now=opened + round((LEASE - 1) * 1e6))).leases_lapsed == 0
        assert (await s.store.reap(limit=9, now=opened + round((LEASE + 1) * 1e6))).leases_lapsed == 1


async def test_a_runaway_job_fails_however_it_heartbeats(s):
    run = await one_job(s, timeout={"duration": "90s"}, retry={"max_attempts": 5})
    lease = await s.claim_one(now=0)
    await s.heartbeat(lease, now=50)
    await s.heartbeat(lease, now=89)
    assert (await s.reap(89)).executions_timed_out == 0
    s.facts.clear()
    assert (await s.reap(90)).executions_timed_out == 1
    (cancel,) = s.announced(CancelRequested)
    assert (cancel.job_id, cancel.session_id) == (lease.job.id, s.session.id)
    assert (await s.run(run)).error_type == "ExecutionDeadlineExceeded"
    assert (await s.heartbeat(lease, now=91)).lost
    assert await s.report(lease, now=92) == "superseded"


async def test_the_execution_deadline_counts_from_the_first_claim_also_between_attempts(s):
    run = await one_job(s, timeout={"duration": "90s"}, retry={"max_attempts": 5, "delay": "1h"})
    await s.report(await s.claim_one(now=0), "failed", error="Boom", now=10)
    assert (await s.reap(90)).executions_timed_out == 1
    assert (await s.run(run)).error_type == "ExecutionDeadlineExceeded"
    assert await s.claim(now=4000) == []


async def test_waiting_never_fails_a_job_and_it_is_hinted_again(s):
    await one_job(s)
    assert (await s.reap(PENDING_DEADLINE - 1)).pending_renewed == 0
    s.facts.clear()
    assert (await s.reap(PENDING_DEADLINE)).pending_renewed == 1
    assert len(s.announced(JobClaimable)) == 1
    assert (await s.reap(PENDING_DEADLINE + 1)).pending_renewed == 0
    assert (await s.reap(2 * PENDING_DEADLINE)).pending_renewed == 1
    assert (await s.claim_one(now=2000)).job.claim_attempt == 1


async def test_a_sweep_keeps_to_its_limit(s):
    await s.publish("a", [action(retry={"max_attempts": 2})])
    for _ in range(5):
        await s.start("a")
    await s.claim(now=0)
    assert (await s.store.reap(limit=2, now=at(LEASE + 1))).leases_lapsed == 2
    assert (await s.store.reap(limit=9, now=at(LEASE + 1))).leases_lapsed == 3


async def test_a_job_that_cannot_be_swept_holds_up_no_other(s):
    run = await one_job(s)
    lease = await s.claim_one(now=0)
    other = await s.start("a", now=0)
    await s.claim_one(now=0)
    # What no decision expects: the run's row is gone.
    await s.write(f"UPDATE runs SET seq = -1 WHERE id = '{run.id}'")
    assert (await s.reap(LEASE + 1)).leases_lapsed == 1
    assert (await s.run(other)).error_type == "LeaseLapsed"
    assert (await s.job(lease)).status == "claimed"


# --- cancellation


async def test_cancelling_ends_a_pending_job(s):
    run = await one_job(s)
    cancelled = await s.store.cancel_run(s.project.id, run.id, "changed my mind", now=at(1))
    assert cancelled.status == "cancelled"
    assert await s.claim(now=2) == []
    events = await s.events(run)
    assert [event.event_type for event in events[-2:]] == ["step.cancelled", "run.cancelled"]
    assert events[-1].payload == {"status": "cancelled", "reason": "changed my mind"}
    assert await s.store.cancel_run(s.project.id, run.id, "again", now=at(2)) == await s.store.cancel_run(
        s.project.id, run.id, None, now=at(3)
    )


async def test_cancelling_reaches_the_holder_and_its_cancelled_is_terminal(s):
    run = await one_job(s, retry={"max_attempts": 5})
    lease = await s.claim_one()
    s.facts.clear()
    await s.store.cancel_run(s.project.id, run.id, "stop", now=at(1))
    (fact,) = s.announced(CancelRequested)
    assert (fact.job_id, fact.session_id, fact.reason, fact.requested_at) == (lease.job.id, s.session.id, "stop", at(1))
    beat = await s.heartbeat(lease, now=2)
    assert (beat.lost, beat.cancel_requested, beat.cancel_reason) == (False, True, "stop")
    last = (await s.event_types(run))[-1]
    assert await s.report(lease, "cancelled", now=3) == "accepted"
    assert (await s.job(lease)).status == "cancelled"
    assert (await s.event_types(run))[-1] == last == "run.cancelled"


@pytest.mark.parametrize(
    ("status", "error", "ends"),
    [
        ("completed", None, "completed"),
        ("failed", "Boom", "failed"),
        ("failed", "WorkerOverCapacity", "cancelled"),
        ("failed", "WorkerCrashed", "failed"),
    ],
)
async def test_whatever_a_cancelled_jobs_holder_reports_it_is_not_run_again(s, status, error, ends):
    run = await one_job(s, retry={"max_attempts": 5})
    lease = await s.claim_one()
    await s.store.cancel_run(s.project.id, run.id, None, now=at(1))
    assert await s.report(lease, status, error=error, now=2) in ("accepted", "handed_back")
    assert (await s.job(lease)).status == ends
    assert await s.claim(now=3) == []
    assert (await s.run(run)).status == "cancelled"


async def test_a_cancelled_job_whose_lease_lapses_is_cancelled(s):
    run = await one_job(s, retry={"max_attempts": 5})
    lease = await s.claim_one(now=0)
    await s.store.cancel_run(s.project.id, run.id, None, now=at(1))
    await s.reap(LEASE + 1)
    assert (await s.job(lease)).status == "cancelled"


async def test_names_count_in_the_size_of_a_claim(s):
    name = '"' * 256
    await s.publish("a", [action()], settings={"queue": name})
    for _ in range(4):
        await s.start("a")
    leases = await s.claim(byte_limit=6000)
    assert [lease.job.queue for lease in leases] == [name, name]


async def test_a_report_that_our_own_code_cannot_take_ends_its_job_and_is_acknowledged(s, monkeypatch):
    await one_job(s)
    lease = await s.claim_one()
    job_moved = Engine.job_moved

    def broken(self, job, outcome, running):
        if outcome.after.status == "completed":
            raise RecursionError
        job_moved(self, job, outcome, running)

    monkeypatch.setattr(Engine, "job_moved", broken)
    assert await s.report(lease) == "accepted"
    run = await s.store.run(s.project.id, lease.job.run_id)
    assert (run.status, run.error_type) == ("failed", "NonRetryableError")


async def test_endless_names_are_not_remembered(s):
    await one_job(s)
    for number in range(3):
        names = tuple(f"{number}-{index}" for index in range(5000))
        assert await s.claim(selector=Selector(queues=names)) == []
    assert s.store._known.lanes._selections == {}
    assert len(await s.claim()) == 1
