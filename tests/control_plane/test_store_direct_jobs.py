"""Jobs that belong to no run, on real stores. Time is fed."""

import asyncio
import json

import pytest

from control_plane.domain.enqueue import MAX_SPEC_BYTES, NewJob
from control_plane.domain.model import Selector
from control_plane.domain.store import CancelRequested, JobClaimable, JobFilter
from control_plane.errors import Conflict, Invalid, NotFound
from control_plane.store import pages, rows
from tests.support.store_scenario import LEASE, action, at, scenario
from wire.frames import Report


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


def new(action_name="print", **fields):
    return NewJob(action_name=action_name, spec=fields.pop("spec", {"parameters": {}}), **fields)


async def listed(s, **which):
    ids, cursor = [], None
    while True:
        page = await s.store.jobs(s.project.id, JobFilter(**which), cursor=cursor, limit=2)
        ids += [job.id for job in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return ids


async def test_a_batch_is_claimed_reported_and_kept(s):
    specs = [{"parameters": {"number": number}} for number in range(5)]
    enqueued = await s.enqueue([new(spec=spec) for spec in specs], now=1)
    assert enqueued.existing == []
    assert sum(fact.count for fact in s.announced(JobClaimable)) == 5
    leases = await s.claim(now=2)
    assert [lease.job.id for lease in leases] == enqueued.ids
    assert [json.loads(lease.spec) for lease in leases] == specs
    job = leases[0].job
    assert (job.run_id, job.step_id, job.origin, job.claim_attempt) == (None, None, "direct_action_invoke", 1)
    assert await s.report(leases[0], result={"n": 1}, now=3) == "accepted"
    assert await s.report(leases[0], result={"n": 2}, now=3) == "duplicate"
    view = await s.store.job_view(s.project.id, job.id)
    assert (view.job.status, view.job.result, view.job.spec, view.attempts) == ("completed", {"n": 1}, specs[0], [])
    assert (view.job.created_at, view.job.claimed_at, view.job.completed_at) == (at(1), at(2), at(3))
    with pytest.raises(NotFound):
        await s.store.job_view("proj_other", job.id)


async def test_a_claim_that_comes_with_new_jobs_gets_them(s):
    await s.enqueue([new()])  # there are jobs like these
    old = await s.claim_one()
    commits = []
    s.store.observe_commits(lambda calls, _seconds: commits.append(calls))
    specs = [{"parameters": {"number": number}} for number in range(5)]
    enqueued, first, second, third = await asyncio.gather(
        s.enqueue([new(spec=spec) for spec in specs], now=1),
        s.claim(now=1, limit=2),
        s.claim(now=1, limit=2, selector=Selector(action_names=("other",))),
        s.claim(now=1, limit=2),
    )
    assert sum(commits) >= 4
    assert [lease.job.id for lease in (*first, *third)] == enqueued.ids[:4]
    assert [json.loads(lease.spec) for lease in (*first, *third)] == specs[:4]
    assert second == []
    view = await s.store.job_view(s.project.id, enqueued.ids[0])
    assert (view.job.status, view.job.claim_attempt, view.job.claimed_at) == ("claimed", 1, at(1))
    assert view.job.lease_expires_at == at(1 + LEASE)
    assert [lease.job.id for lease in await s.claim(now=2)] == enqueued.ids[4:]
    for lease in (old, *first):
        assert await s.report(lease, now=2) == "accepted"
    assert await s.report(third[0], "failed", error="WorkerOverCapacity", now=2) == "handed_back"
    assert not (await s.heartbeat(third[1], now=2)).lost
    assert [lease.job.id for lease in await s.claim(now=3)] == [enqueued.ids[2]]


async def test_a_claim_that_comes_with_new_jobs_looks_for_others_where_it_gets_none_of_them(s):
    older = await s.enqueue([new()])
    assert [lease.job.id for lease in await s.claim(with_new=True)] == older.ids
    older = await s.enqueue([new()], now=1)
    _, leases = await asyncio.gather(s.enqueue([new(delay=60.0)], now=1), s.claim(now=1, with_new=True))
    assert [lease.job.id for lease in leases] == older.ids
    other, leases = await asyncio.gather(s.enqueue([new()], now=2), s.claim(now=2, with_new=True))
    assert [lease.job.id for lease in leases] == other.ids


async def test_a_claim_that_comes_with_new_jobs_takes_none_before_its_time_nor_of_another_project(s):
    other = await s.store.create_project("other", "Other")
    await s.enqueue([new()])
    await s.claim_one()
    _, _, leases = await asyncio.gather(
        s.enqueue([new(delay=5.0)], now=1), s.store.enqueue(other.id, [new()], now=at(1)), s.claim(now=1)
    )
    assert leases == []
    assert len(await s.claim(now=6)) == 1


async def test_a_claim_that_comes_with_new_jobs_takes_the_most_urgent_and_bytes_count(s):
    await s.enqueue([new(), new(priority=5)])
    await s.claim(limit=2)
    large = {"parameters": {"x": "y" * 1000}}
    enqueued, one = await asyncio.gather(
        s.enqueue([new(), new(priority=5, spec=large), new(priority=5, spec=large)], now=1),
        s.claim(now=1, byte_limit=1500),
    )
    assert [lease.job.id for lease in one] == [enqueued.ids[1]]
    assert [lease.job.id for lease in await s.claim(now=2)] == [enqueued.ids[2], enqueued.ids[0]]


async def test_batches_at_the_same_time_keep_their_own_order(s):
    batches = await asyncio.gather(
        *(s.enqueue([new(spec={"parameters": {"b": b, "n": n}}) for n in range(20)]) for b in range(10))
    )
    assert len({job_id for batch in batches for job_id in batch.ids}) == 200
    specs = {lease.job.id: json.loads(lease.spec)["parameters"] for lease in await s.claim(limit=300)}
    for b, batch in enumerate(batches):
        assert [specs[job_id] for job_id in batch.ids] == [{"b": b, "n": n} for n in range(20)]


async def test_one_that_cannot_be_taken_takes_none_of_the_others_along(s):
    large = {"parameters": {"x": "y" * MAX_SPEC_BYTES}}
    with pytest.raises(Invalid, match=r"jobs\[1\]"):
        await s.enqueue([new(), new(spec=large)])
    assert await s.claim() == []
    assert s.announced(JobClaimable) == []


async def test_an_external_id_gives_the_same_job(s):
    first = await s.enqueue([new(external_id="a"), new(), new(external_id="b"), new(external_id="a")])
    assert first.ids[3] == first.ids[0]
    assert first.existing == [first.ids[0]]
    again = await s.enqueue([new(external_id="c"), new(external_id="b")])
    assert again.ids[1] == first.ids[2]
    assert again.existing == [first.ids[2]]
    for lease in await s.claim():
        await s.report(lease)
    last = await s.enqueue([new(external_id="a")])
    assert last.ids == last.existing == [first.ids[0]]
    assert await s.claim() == []
    job = await s.store.job(s.project.id, first.ids[0])
    assert (job.external_id, job.status) == ("a", "completed")


async def test_the_same_external_id_at_the_same_time_is_one_job(s):
    answers = await asyncio.gather(*(s.enqueue([new(external_id="x"), new()]) for _ in range(20)))
    assert len({answer.ids[0] for answer in answers}) == 1
    assert sum(answer.existing == [] for answer in answers) == 1
    assert len(await s.claim(limit=100)) == 21


async def test_the_highest_priority_goes_first_then_the_oldest(s):
    ids = []
    for now, priority in ((1, 0), (2, 5), (3, -5), (4, 5), (5, 0)):
        ids += (await s.enqueue([new(priority=priority, action_name=f"a{now}")], now=now)).ids
    one, two, three, four, five = ids
    assert [lease.job.id for lease in await s.claim(now=9, limit=3)] == [two, four, one]
    leases = await s.claim(now=9)
    assert [lease.job.id for lease in leases] == [five, three]
    assert leases[1].job.priority == -5
    # A job that comes back keeps its priority.
    (high,) = (await s.enqueue([new(priority=100, max_attempts=2)], now=10)).ids
    await s.enqueue([new()], now=10)
    await s.report(await s.claim_one(now=10, limit=1), "failed", error="Boom", now=10)
    assert (await s.claim_one(now=11, limit=1)).job.id == high


async def test_a_delayed_job_is_not_there_before_its_time(s):
    early = new(delay=5.0)
    late = new(run_at=at(20), delay=1.0)
    past = new(run_at=at(0))
    ids = (await s.enqueue([early, late, past], now=10)).ids
    assert [fact.available_at for fact in s.announced(JobClaimable)] == [at(15), at(20), at(10)]
    assert [lease.job.id for lease in await s.claim(now=10)] == [ids[2]]
    assert await s.store.next_available_at(now=at(10)) == at(15)
    assert await s.claim(now=14.9) == []
    assert [lease.job.id for lease in await s.claim(now=15)] == [ids[0]]
    assert [fact.job_id for fact in await s.store.claimable(limit=9, since=at(15), now=at(20))] == [ids[1]]
    assert [lease.job.id for lease in await s.claim(now=20)] == [ids[1]]


async def test_delays_grow_by_the_backoff_up_to_the_longest(s):
    await s.enqueue([new(max_attempts=5, retry_delay=2.0, retry_backoff=3.0, retry_max_delay=10.0)])
    now = 0.0
    for delay in (2, 6, 10, 10):
        await s.report(await s.claim_one(now=now), "failed", error="Boom", message=f"after {now:g}", now=now)
        assert await s.claim(now=now + delay - 0.001) == []
        now += delay
    lease = await s.claim_one(now=now)
    await s.report(lease, "failed", error="Boom", message="last", now=now + 1)
    view = await s.store.job_view(s.project.id, lease.job.id)
    assert (view.job.status, view.job.error_message, view.job.attempts_charged) == ("failed", "last", 5)
    assert [attempt.attempt for attempt in view.attempts] == [1, 2, 3, 4, 5]
    assert [attempt.error_message for attempt in view.attempts] == ["after 0", "after 2", "after 8", "after 18", "last"]
    assert (view.attempts[4].started_at, view.attempts[4].ended_at) == (at(now), at(now + 1))
    assert view.attempts[4].worker_instance_id == "w-1"


async def test_what_attempts_of_a_steps_job_died_of_is_kept_too(s):
    await s.publish("a", [action(retry={"max_attempts": 3})])
    await s.start("a")
    lease = await s.claim_one(now=1)
    await s.reap(LEASE + 2)
    await s.report(await s.claim_one(now=LEASE + 3), "failed", error="WorkerCrashed", message="SIGSEGV", now=LEASE + 4)
    last = await s.claim_one(now=LEASE + 5)
    await s.report(last, "failed", error="WorkerOverCapacity", now=LEASE + 6)
    await s.report(await s.claim_one(now=LEASE + 7), "failed", error="ValidationError", now=LEASE + 8)
    view = await s.store.job_view(s.project.id, lease.job.id)
    assert [(attempt.attempt, attempt.error_type) for attempt in view.attempts] == [
        (1, "LeaseLapsed"),
        (2, "WorkerCrashed"),
        (3, "ValidationError"),
    ]


async def test_an_execution_deadline_ends_an_attempt_and_what_comes_after_it_none(s):
    await s.enqueue([new(max_attempts=3, retry_delay=100.0, execution_timeout=30.0)])
    lease = await s.claim_one(now=0)
    await s.report(lease, "failed", error="Boom", now=1)
    await s.reap(31)
    view = await s.store.job_view(s.project.id, lease.job.id)
    assert (view.job.status, view.job.error_type) == ("failed", "ExecutionDeadlineExceeded")
    assert [attempt.error_type for attempt in view.attempts] == ["Boom"]


async def test_generations_go_to_whoever_offers_the_model(s):
    spec = {"request": {"messages": []}}
    job = NewJob(kind="llm_generation", provider="ollama", model="llama3", spec=spec)
    await s.enqueue([job])
    assert await s.claim() == []
    lease = await s.claim_one(selector=Selector(models=(("ollama", "llama3"),)))
    assert (lease.job.kind, lease.job.action_name, json.loads(lease.spec)) == ("llm_generation", None, spec)


async def test_listings_filter_and_page(s):
    ids = []
    for number in range(6):
        ids += (await s.enqueue([new(f"a{number % 2}", queue=f"q{number % 3}")], now=number)).ids
    other = await s.store.create_project("other", "Other")
    await s.store.enqueue(other.id, [new()])
    first, second, third = await s.claim(limit=3, now=9)
    await s.report(first, result={"large": "x"}, now=9)
    await s.report(second, "failed", error="Boom", message="so", now=9)
    assert await listed(s) == ids[::-1]
    assert await listed(s, queue="q1") == [ids[4], ids[1]]
    assert await listed(s, action_name="a1", queue="q2") == [ids[5]]
    assert await listed(s, action_name="nothing") == []
    assert await listed(s, status="pending") == ids[:2:-1]
    assert await listed(s, status="claimed") == [third.job.id]
    assert await listed(s, status="completed") == [first.job.id]
    assert await listed(s, status="failed") == [second.job.id]
    assert await listed(s, status="failed", queue="q0") == []
    assert await listed(s, status="cancelled") == []
    (failed,) = (await s.store.jobs(s.project.id, JobFilter(status="failed"), cursor=None, limit=5)).items
    assert (failed.error_type, failed.error_message, failed.spec) == ("Boom", "so", {})
    (done,) = (await s.store.jobs(s.project.id, JobFilter(status="completed"), cursor=None, limit=5)).items
    assert done.result is None
    with pytest.raises(Invalid):
        await s.store.jobs(s.project.id, JobFilter(), cursor="nonsense", limit=5)


async def test_a_page_looks_at_a_bounded_number_of_jobs_and_the_next_goes_on_behind_them(s, monkeypatch):
    monkeypatch.setattr(pages, "MOST_LOOKED_AT", 4)
    rare = (await s.enqueue([new("rare")])).ids
    await s.enqueue([new() for _ in range(10)])
    page = await s.store.jobs(s.project.id, JobFilter(action_name="rare"), cursor=None, limit=5)
    assert (page.items, page.next_cursor is None) == ([], False)
    assert await listed(s, action_name="rare") == rare
    assert len(await listed(s)) == 11


# --- what operators do


async def test_a_failed_job_is_put_back_with_all_its_attempts(s):
    (job_id,) = (await s.enqueue([new(max_attempts=2, execution_timeout=50.0)])).ids
    for now in (1, 2):
        lease = await s.claim_one(now=now)
        await s.report(lease, "failed", error="Boom", now=now)
    s.facts.clear()
    job = await s.store.retry_job(s.project.id, job_id, now=at(100))
    assert (job.status, job.attempts_charged, job.claim_attempt, job.error_type) == ("pending", 0, 2, None)
    assert [fact.job_id for fact in s.announced(JobClaimable)] == [job_id]
    assert await s.report(lease, "failed", error="Boom", now=101) == "duplicate"
    again = await s.claim_one(now=101)
    assert (again.job.claim_attempt, again.job.execution_deadline_at) == (3, at(151))
    await s.report(again, "failed", error="Boom", now=102)
    await s.report(await s.claim_one(now=103), result={"n": 4}, now=103)
    view = await s.store.job_view(s.project.id, job_id)
    assert (view.job.status, view.job.result, view.job.error_type) == ("completed", {"n": 4}, None)
    assert [attempt.attempt for attempt in view.attempts] == [1, 2, 3]
    with pytest.raises(Conflict, match="completed"):
        await s.store.retry_job(s.project.id, job_id)


async def test_what_is_put_back_twice_at_once_is_there_once(s):
    (job_id,) = (await s.enqueue([new()])).ids
    await s.report(await s.claim_one(), "failed", error="Boom")
    outcomes = await asyncio.gather(
        *(s.store.retry_job(s.project.id, job_id, now=at(1)) for _ in range(5)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict"] * 4 + ["Job"]
    assert len(await s.claim(now=1)) == 1


async def test_a_job_of_a_run_is_not_put_back(s):
    await s.publish("a", [action()])
    run = await s.start("a")
    lease = await s.claim_one()
    await s.report(lease, "failed", error="Boom")
    with pytest.raises(Conflict, match=run.id) as raised:
        await s.store.retry_job(s.project.id, lease.job.id)
    assert raised.value.code == "job_of_a_run"
    with pytest.raises(NotFound):
        await s.store.retry_job(s.project.id, "job_unknown")


async def test_a_waiting_job_is_cancelled_at_once(s):
    (job_id,) = (await s.enqueue([new()])).ids
    job = await s.store.cancel_job(s.project.id, job_id, "not needed", now=at(5))
    assert (job.status, job.completed_at, job.error_message) == ("cancelled", at(5), "not needed")
    assert await s.claim(now=6) == []
    assert (await s.store.cancel_job(s.project.id, job_id, "again", now=at(6))).completed_at == at(5)
    assert await listed(s, status="cancelled") == [job_id]
    with pytest.raises(NotFound):
        await s.store.cancel_job(s.project.id, "job_unknown", None)


async def test_the_holder_of_a_job_is_asked_to_stop(s):
    await s.enqueue([new(max_attempts=3)])
    lease = await s.claim_one()
    s.facts.clear()
    job = await s.store.cancel_job(s.project.id, lease.job.id, "stop", now=at(1))
    assert (job.status, job.cancel_requested_at, job.cancel_reason) == ("claimed", at(1), "stop")
    (asked,) = s.announced(CancelRequested)
    assert (asked.job_id, asked.session_id, asked.reason) == (lease.job.id, s.session.id, "stop")
    await s.store.cancel_job(s.project.id, lease.job.id, "stop!", now=at(2))
    assert s.announced(CancelRequested) == []
    assert (await s.heartbeat(lease, now=2)).cancel_reason == "stop"
    assert await s.report(lease, "cancelled", now=3) == "accepted"
    assert (await s.job(lease)).status == "cancelled"


@pytest.mark.parametrize("held", [False, True])
async def test_a_step_whose_job_is_cancelled_cancels_its_run(s, held):
    await s.publish("a", [action(), action("two")])
    run = await s.start("a")
    job_id = (await s.steps(run))[0].job_id
    lease = await s.claim_one() if held else None
    await s.store.cancel_job(s.project.id, job_id, "by hand", now=at(1))
    if held:
        assert (await s.run(run)).status == "suspended"
        await s.report(lease, "cancelled", message="by hand", now=2)
    run = await s.run(run)
    assert (run.status, run.error_message) == ("cancelled", "by hand")
    assert (await s.event_types(run))[-2:] == ["step.cancelled", "run.cancelled"]


# --- what came together


def said(lease, **fields):
    return Report(job_id=lease.job.id, lease_token=lease.lease_token, **fields)


async def test_reports_that_came_together_are_judged_one_by_one(s):
    await s.enqueue([new(max_attempts=2) for _ in range(6)], now=1)
    await s.publish("a", [action()])
    run = await s.start("a", now=1)
    done, failed, beaten, lapsed, guessed, cancelled, step = await s.claim(now=2)
    await s.heartbeat(beaten, now=3)
    outcomes = await s.store.reports(
        s.project.id,
        [
            said(done, result={"n": 1}),
            said(failed, status="failed", error_type="Boom"),
            said(done, result={"n": 2}),
            said(beaten, result={"n": 3}),
            Report(job_id="job_nobody", lease_token="x"),
            Report(job_id=guessed.job.id, lease_token=done.lease_token),
            said(cancelled, status="cancelled"),
            said(step, result={"n": 4}),
        ],
        now=at(4),
    )
    assert [outcome.verdict for outcome in outcomes] == [
        "accepted", "accepted", "duplicate", "accepted", "unknown", "superseded", "handed_back", "accepted",
    ]  # fmt: skip
    jobs = [(await s.job(lease)) for lease in (done, failed, beaten, guessed, cancelled)]
    assert [job.status for job in jobs] == ["completed", "pending", "completed", "claimed", "pending"]
    assert [job.result for job in jobs] == [{"n": 1}, None, {"n": 3}, None, None]
    assert jobs[2].heartbeat_at == at(3)
    assert (await s.run(run)).result == {"one": {"n": 4}}
    assert await s.reap(LEASE + 3) is not None
    assert (await s.job(lapsed)).status == "pending"
    assert await s.report(lapsed, now=LEASE + 4) == "accepted"


async def test_a_report_that_cannot_be_taken_harms_none_that_came_with_it(s, monkeypatch):
    await s.enqueue([new() for _ in range(3)])
    one, broken, two = await s.claim()
    to_json = rows.to_json

    def failing(value):
        if value == {"broken": True}:
            raise RuntimeError("no")
        return to_json(value)

    for module in ("sqlite_unit", "postgres_changes"):
        monkeypatch.setattr(f"control_plane.store.{module}.rows.to_json", failing)
    outcomes = await s.store.reports(
        s.project.id, [said(one, result={}), said(broken, result={"broken": True}), said(two, result={})]
    )
    assert [outcome.verdict for outcome in outcomes] == ["accepted"] * 3
    jobs = [await s.job(lease) for lease in (one, broken, two)]
    assert [job.status for job in jobs] == ["completed", "failed", "completed"]
    assert jobs[1].error_type == "NonRetryableError"


async def test_what_was_leased_before_a_restart_is_reported_after_it(place):
    async with scenario(place) as s:
        await s.enqueue([new()])
        lease = await s.claim_one()
    async with scenario(place, prepared=False) as again:
        again.project = s.project
        assert await again.report(lease, result={"late": True}) == "accepted"
        assert (await again.job(lease)).result == {"late": True}


async def test_jobs_that_are_alike_and_others_keep_their_order_and_their_own(s):
    handed_in = [
        new(spec={"parameters": {"text": 'é "1"'}}),
        new(spec={"parameters": {"n": 2}}),
        new("other", spec={}, priority=0),
        new(spec={"parameters": {"n": 4}}, external_id="four"),
        new(spec={"parameters": {"n": 5}}, external_id="five", max_attempts=3),
        new(spec={"parameters": {"n": 6}}, max_attempts=3),
    ]
    enqueued = await s.enqueue(handed_in, now=1)
    assert sum(fact.count for fact in s.announced(JobClaimable)) == 6
    leases = await s.claim(now=2)
    assert [lease.job.id for lease in leases] == enqueued.ids
    assert [json.loads(lease.spec) for lease in leases] == [each.spec for each in handed_in]
    assert [lease.job.max_attempts for lease in leases] == [1, 1, 1, 1, 3, 3]
    views = [await s.store.job_view(s.project.id, job_id) for job_id in enqueued.ids]
    assert [view.job.external_id for view in views] == [None, None, None, "four", "five", None]


async def test_delays_of_a_step_grow_too(s):
    retry = {"max_attempts": 4, "delay": "2s", "backoff": 5, "max_delay": "7s"}
    await s.publish("a", [action(retry=retry)])
    run = await s.start("a")
    now = 0.0
    for delay in (2, 7, 7):
        await s.report(await s.claim_one(now=now), "failed", error="Boom", now=now)
        assert await s.claim(now=now + delay - 0.001) == []
        now += delay
    await s.report(await s.claim_one(now=now), now=now)
    retried = [event.payload["delay_seconds"] for event in await s.events(run) if event.event_type == "action.retried"]
    assert retried == [2.0, 7.0, 7.0]
