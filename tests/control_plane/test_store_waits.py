"""Runs that sleep, wait, take turns, run out of time and clean up, on real stores. Time is fed."""

import asyncio
import json
import re

import apsw
import asyncpg
import pytest

from control_plane.domain import specs
from control_plane.domain.model import TERMINAL_RUN
from control_plane.domain.recording import LONGEST_LINE
from control_plane.domain.runs import CLEANUP_TIMEOUT, Engine
from control_plane.domain.store import CancelRequested, RunFilter, TimerArmed, Turn
from control_plane.errors import Conflict, Invalid, NotFound
from control_plane.store import pages
from tests.support.store_scenario import SqlitePlace, action, at, scenario

HOUR = 3600


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


def sleep(key="nap", **config):
    return {"key": key, "kind": "sleep", "config": config or {"duration": "1h"}}


def wait(key="ok", *, timeout=None, **config):
    return {
        "key": key,
        "kind": "wait_for_event",
        "config": {"event_type": "approved", **config},
        **({"timeout": {"duration": timeout}} if timeout else {}),
    }


def child(key, handle, **config):
    return {"key": key, "kind": "automation", "config": {"automation_handle": handle, **config}}


def inputs_of(lease):
    return json.loads(lease.spec)["inputs"]


async def nothing_is_left(s):
    """No run that has ended has a timer or stands in a line."""
    ended = "SELECT seq FROM runs WHERE status IN ('completed', 'failed', 'cancelled')"
    for table in ("run_timers", "run_turns"):
        assert await s.read(f"SELECT run_seq FROM {table} WHERE run_seq IN ({ended})") == []


async def test_a_run_that_waits_for_workers_alone_has_no_statement_more(s, monkeypatch):
    statements = []
    await s.publish("a", [action("one"), action("two")])
    if isinstance(s.place, SqlitePlace):
        s.store._writer._connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: statements.append(event["sql"]))
    else:
        for name in ("fetch", "fetchrow", "execute"):
            monkeypatch.setattr(asyncpg.Connection, name, told(statements, getattr(asyncpg.Connection, name)))
    run = await s.start("a")
    for _ in range(2):
        await s.report(await s.claim_one(), result={})
    if isinstance(s.place, SqlitePlace):
        s.store._writer._connection.trace_v2(0, None)
    monkeypatch.undo()
    assert await s.statuses(run) == ["completed"]
    assert statements
    assert [text for text in statements if re.search("run_timers|run_signals|run_turns", text)] == []


def told(statements, method):
    async def telling(connection, text, *arguments, **options):
        statements.append(text)
        return await method(connection, text, *arguments, **options)

    return telling


# --- sleep


async def test_a_run_sleeps_and_goes_on_once(s):
    await s.publish("a", [sleep(), action("after", input={"nap": "{{ .context.nap }}"})])
    run = await s.start("a", now=0)
    assert (run.status, (await s.run(run)).wake_at) == ("suspended", at(HOUR))
    (step,) = await s.steps(run)
    assert (step.kind, step.status, step.parameters, step.job_id) == ("sleep", "suspended", {"duration": "1h"}, None)
    assert await s.fire(HOUR - 1) == 0
    assert await s.store.fire_timers(limit=10, now=at(HOUR - 1)) == await s.store.fire_timers(limit=10, now=at(1))
    assert await s.fire(HOUR) == 1
    assert [step.status for step in await s.steps(run)] == ["completed", "suspended"]
    assert inputs_of(await s.claim_one(now=HOUR)) == {"nap": {}}
    assert await s.fire(2 * HOUR) == 0
    types = await s.event_types(run)
    assert types[:5] == ["run.started", "step.started", "step.suspended", "step.completed", "step.started"]
    await nothing_is_left(s)


async def test_a_commit_says_when_a_timer_is_due(s):
    await s.publish("a", [sleep(duration="90s")])
    s.facts.clear()
    await s.start("a", now=5)
    assert s.announced(TimerArmed) == [TimerArmed(due_at=at(95))]
    assert await s.store.next_timer_at() == at(95)


@pytest.mark.parametrize(
    ("config", "inputs", "due"),
    [
        ({"until": "2020-01-01T00:01:40Z"}, {}, 100),
        ({"until": "{{ .inputs.at }}"}, {"at": "2020-01-01T01:00:00+01:00"}, 0),
        ({"duration": "{{ .inputs.n }}s"}, {"n": 7}, 7),
        ({"until": "2019-12-31T00:00:00Z"}, {}, 0),
        ({"duration": "{{ .inputs.n }}"}, {"n": "0s"}, 0),
    ],
)
async def test_until_when_a_step_sleeps(s, config, inputs, due):
    await s.publish("a", [sleep(**config)])
    run = await s.start("a", inputs=inputs)
    if due:
        assert await s.fire(due - 0.001) == 0
        assert await s.fire(due) == 1
    assert await s.statuses(run) == ["completed"]


@pytest.mark.parametrize(
    ("config", "inputs", "error"),
    [
        ({"duration": "{{ .inputs.n }}"}, {"n": 7}, ("InvalidSleep", "duration: expected a text, got 7")),
        ({"duration": "{{ .inputs.n }}"}, {"n": "soon"}, ("InvalidSleep", "expected a duration such as")),
        ({"duration": "{{ .inputs.n }}"}, {"n": "99999h"}, ("InvalidSleep", "a step sleeps at most 8784h")),
        ({"until": "{{ .inputs.n }}"}, {"n": "tomorrow"}, ("InvalidSleep", "expected a time such as")),
        ({"until": "{{ .inputs.x }}"}, {}, ("TemplateError", ".inputs has no 'x'")),
    ],
)
async def test_a_sleep_that_makes_no_sense_fails_its_step(s, config, inputs, error):
    await s.publish("a", [sleep(**config)])
    run = await s.start("a", inputs=inputs)
    assert (run.status, run.error_type) == ("failed", error[0])
    assert error[1] in run.error_message


async def test_a_cancelled_sleep_does_not_wake(s):
    await s.publish("a", [sleep(), action("after")])
    run = await s.start("a")
    assert (await s.cancel(run, reason="enough")).status == "cancelled"
    assert await s.fire(2 * HOUR) == 0
    assert [step.status for step in await s.steps(run)] == ["cancelled"]
    await nothing_is_left(s)


async def test_a_restart_forgets_no_sleep(place):
    async with scenario(place) as s:
        await s.publish("a", [sleep(), sleep("again", duration="1s")])
        run = await s.start("a")
    async with scenario(place, prepared=False) as reopened:
        assert await reopened.fire(HOUR + 5) == 1
        assert await reopened.fire(HOUR + 6) == 1
        assert (await reopened.store.run(run.project_id, run.id)).status == "completed"


async def test_a_timer_that_cannot_be_decided_holds_up_no_other(s, monkeypatch):
    await s.publish("a", [sleep()])
    bad, good = await s.start("a"), await s.start("a")
    due = Engine.due

    def poisoned(engine, kind, opened):
        if opened.run.id == bad.id:
            raise ValueError("a bug")
        due(engine, kind, opened)

    monkeypatch.setattr(Engine, "due", poisoned)
    fired = await s.store.fire_timers(limit=100, now=at(HOUR))
    assert (fired.fired, fired.left) == (1, 1)
    assert await s.statuses(bad, good) == ["suspended", "completed"]
    assert (await s.store.fire_timers(limit=100, now=at(HOUR + 1))).left == 0
    monkeypatch.undo()
    assert await s.fire(HOUR + 61) == 1
    assert await s.statuses(bad) == ["completed"]


async def test_runs_of_a_version_that_this_server_refuses_can_be_ended(place, monkeypatch):
    async with scenario(place) as s:
        await s.publish("nap", [sleep(), action()], concurrency="queue")
        napping, queued = await s.start("nap"), await s.start("nap")
        await s.publish("wait", [wait(), action()], cleanup=[action("tidy")])
        waiting = await s.start("wait")
        project, session = s.project, s.session
    monkeypatch.setattr(specs, "read", lambda spec: (None, ["steps: this server is stricter"]))
    async with scenario(place, prepared=False) as s:
        s.project, s.session = project, session
        assert (await s.cancel(waiting)).status == "cancelled"
        await s.fire(HOUR)
        ended = [await s.run(run) for run in (napping, queued)]
        assert [(run.status, run.error_type) for run in ended] == [("failed", "InvalidVersion")] * 2
        assert await s.claim(now=HOUR) == []
        await nothing_is_left(s)


CELLS = {
    # What a run is doing: what becomes of it when a timer of each kind fires, whether that kind belongs to it or not.
    "queued": {"step": "queued", "run": "queued", "cleanup": "queued", "turn": "queued"},
    "job": {"step": "suspended", "run": "failed", "cleanup": "suspended", "turn": "suspended"},
    "sleep": {"step": "completed", "run": "failed", "cleanup": "suspended", "turn": "suspended"},
    "wait": {"step": "failed", "run": "failed", "cleanup": "suspended", "turn": "suspended"},
    "cleaning": {"step": "suspended", "run": "suspended", "cleanup": "completed", "turn": "suspended"},
    "ended": {"step": "completed", "run": "completed", "cleanup": "completed", "turn": "completed"},
}


async def test_every_timer_in_every_state(s):
    nothing = child("c", "none", condition="false")
    await s.publish("queued", [action()], concurrency="queue")
    await s.start("queued")
    await s.publish("job", [action()])
    await s.publish("sleep", [sleep()])
    await s.publish("wait", [wait()])
    await s.publish("cleaning", [nothing], cleanup=[action("tidy")])
    await s.publish("ended", [nothing])
    found = {state: {} for state in CELLS}
    for state, kinds in CELLS.items():
        for kind in kinds:
            run = await s.start(state)
            (((seq,),), due) = (await s.read(f"SELECT seq FROM runs WHERE id = '{run.id}'"), at(1))
            outcome = json.dumps({"event": "completed", "payload": {}})
            await s.write(f"DELETE FROM run_timers WHERE run_seq = {seq} AND kind = '{kind}'")
            await s.write(f"INSERT INTO run_timers VALUES ({seq}, '{kind}', {due}, '{outcome}')")
            await s.fire(1)
            assert await s.read(f"SELECT kind FROM run_timers WHERE run_seq = {seq} AND due_at = {due}") == []
            ((found[state][kind],),) = await s.read(f"SELECT status FROM runs WHERE seq = {seq}")
            await s.cancel(run)
    assert found == CELLS


# --- signals


async def test_a_signal_ends_the_step_that_waits_for_it(s):
    await s.publish("a", [wait(), action("after", input={"who": "{{ .context.ok.who }}"})])
    run = await s.start("a")
    (step,) = await s.steps(run)
    assert (step.kind, step.status, step.parameters) == ("wait_for_event", "suspended", {"event_type": "approved"})
    assert (await s.signal(run, "ok", {"who": "me"}, now=5)).status == "suspended"
    assert [each.result for each in await s.steps(run)] == [{"who": "me"}, None]
    assert inputs_of(await s.claim_one(now=5)) == {"who": "me"}
    assert await s.fire(10**8) == 0
    suspended = next(event for event in await s.events(run) if event.event_type == "step.suspended")
    assert suspended.payload == {"event_type": "approved", "timeout_at": "2020-01-31T00:00:00Z"}


async def test_a_signal_that_comes_early_is_kept(s):
    await s.publish("a", [action("one"), wait("first"), wait("second")])
    run = await s.start("a")
    await s.signal(run, "second", {"n": 2})
    await s.signal(run, "first", {"n": 1})
    await s.report(await s.claim_one())
    run = await s.run(run)
    assert (run.status, run.result) == ("completed", {"one": {}, "first": {"n": 1}, "second": {"n": 2}})
    assert await s.read("SELECT * FROM run_signals") == []
    assert (await s.event_types(run)).count("signal.kept") == 2


async def test_what_no_step_takes_for_its_signal(s):
    await s.publish("a", [wait("first"), action("one"), wait("last")])
    run = await s.start("a")
    with pytest.raises(NotFound, match="has no step 'nobody'") as unknown:
        await s.signal(run, "nobody")
    assert unknown.value.code == "unknown_step"
    with pytest.raises(NotFound, match="no run run_x"):
        await s.store.signal_run(s.project.id, "run_x", "first", {})
    with pytest.raises(Invalid, match="takes no signal") as unfit:
        await s.signal(run, "one")
    assert unfit.value.code == "not_a_wait_step"
    await s.signal(run, "first")
    await s.signal(run, "last")
    for key in ("first", "last"):
        with pytest.raises(Conflict, match="has had its signal") as twice:
            await s.signal(run, key)
        assert twice.value.code == "already_signalled"
    await s.cancel(run)
    with pytest.raises(Conflict, match="is cancelled: it takes no signals") as ended:
        await s.signal(run, "last")
    assert ended.value.code == "run_ended"


async def test_a_signal_is_matched_judged_and_mapped(s):
    await s.publish(
        "a",
        [
            wait(
                match={"order.id": "{{ .inputs.order }}"},
                condition=".event.amount <= .inputs.most",
                payload_mapping={"paid": "{{ .event.amount }}", "by": "for {{ .event.order.id }}"},
            )
        ],
        inputs={"order": {}, "most": {}},
    )
    run = await s.start("a", inputs={"order": 7, "most": 100})
    for signal, sentence in (
        ({}, "waits for a signal with order.id 7; this one has none"),
        ({"order": {"id": "7"}}, 'waits for a signal with order.id 7, not "7"'),
        ({"order": {"id": 7}, "amount": 101}, "condition does not hold: .event.amount <= .inputs.most"),
        ({"order": {"id": 7}, "amount": "a"}, "condition cannot be decided: <= compares two numbers"),
    ):
        with pytest.raises(Invalid, match=sentence) as refused:
            await s.signal(run, "ok", signal)
        assert refused.value.code == "signal_refused"
    assert await s.statuses(run) == ["suspended"]
    await s.signal(run, "ok", {"order": {"id": 7}, "amount": 100})
    assert (await s.run(run)).result == {"ok": {"paid": 100, "by": "for 7"}}


async def test_an_early_signal_that_does_not_match_is_dropped_and_the_step_waits(s):
    await s.publish("a", [action("one"), wait(match={"n": "{{ .context.one.n }}"})])
    run = await s.start("a")
    await s.signal(run, "ok", {"n": 1})
    await s.report(await s.claim_one(), result={"n": 2})
    assert await s.statuses(run) == ["suspended"]
    assert "signal.refused" in await s.event_types(run)
    await s.signal(run, "ok", {"n": 2})
    assert await s.statuses(run) == ["completed"]


async def test_a_wait_fails_at_its_timeout(s):
    await s.publish("a", [wait(timeout="10m"), action("after")])
    run = await s.start("a")
    assert await s.fire(599) == 0
    assert await s.fire(600) == 1
    run = await s.run(run)
    assert (run.status, run.error_type) == ("failed", "WaitDeadlineExceeded")
    assert run.error_message == "no signal came for step 'ok' within 600 s"
    assert [step.status for step in await s.steps(run)] == ["failed"]
    await nothing_is_left(s)


async def test_of_a_signal_and_a_timeout_exactly_one_counts(s):
    await s.publish("a", [wait(timeout="10m")])
    for _ in range(5):
        run = await s.start("a")
        signalled, _ = await asyncio.gather(
            s.signal(run, "ok", now=600), s.store.fire_timers(limit=9, now=at(600)), return_exceptions=True
        )
        await s.fire(600)
        types = await s.event_types(run)
        assert await s.statuses(run) == (["failed"] if isinstance(signalled, Conflict) else ["completed"])
        assert types.count("step.completed") + types.count("step.failed") == 1


async def test_many_signals_at_once_end_a_step_once(s):
    await s.publish("a", [wait()])
    run = await s.start("a")
    answers = await asyncio.gather(*(s.signal(run, "ok", {"n": n}) for n in range(8)), return_exceptions=True)
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1
    assert (await s.event_types(run)).count("step.completed") == 1


# --- conditions


async def test_a_child_is_started_only_where_its_condition_holds(s):
    await s.publish("child", [action()])
    steps = [child("c", "child", condition=".inputs.n > 1"), action("after", input={"c": "{{ .context.c }}"})]
    await s.publish("a", steps)
    run = await s.start("a", inputs={"n": 1})
    skipped, after = await s.steps(run)
    assert (skipped.status, skipped.attempt, skipped.started_at, after.status) == ("skipped", 0, None, "suspended")
    assert inputs_of(await s.claim_one()) == {"c": None}
    event = next(event for event in await s.events(run) if event.step_key == "c")
    assert (event.event_type, event.payload) == ("step.skipped", {"condition": ".inputs.n > 1"})
    run = await s.start("a", inputs={"n": 2})
    assert [step.status for step in await s.steps(run)] == ["completed", "suspended"]
    run = await s.start("a", inputs={"n": "2"})
    assert (run.status, run.error_type) == ("failed", "ConditionError")
    assert run.error_message == ".inputs.n > 1: > compares two numbers or two texts, not a text with a number"


async def test_the_result_of_a_skipped_step_is_nowhere(s):
    await s.publish("child", [action()])
    await s.publish("a", [child("c", "child", condition="false"), sleep(duration="{{ .context.c.run_id }}")])
    run = await s.start("a")
    assert (run.status, run.error_message) == ("failed", ".context.c.run_id: .context.c has no 'run_id'")
    await s.publish("b", [child("c", "child", condition="false")])
    assert (await s.run(await s.start("b"))).result == {}


# --- the wall clock


async def test_a_run_that_is_not_over_in_time_fails_and_its_worker_is_told(s):
    await s.publish("a", [action()], defaults={"wall_clock_timeout": "10m"})
    run = await s.start("a", now=5)
    assert run.wall_clock_deadline_at == at(605)
    lease = await s.claim_one(now=10)
    s.facts.clear()
    assert await s.fire(604) == 0
    assert await s.fire(605) == 1
    (told,) = s.announced(CancelRequested)
    assert (told.job_id, told.reason) == (lease.job.id, "run_deadline")
    run = await s.run(run)
    assert (run.status, run.error_type) == ("failed", "RunDeadlineExceeded")
    assert run.error_message == "not over within its wall_clock_timeout of 600 s"
    assert [step.status for step in await s.steps(run)] == ["cancelled"]
    assert await s.report(lease, now=606) == "accepted"
    assert (await s.event_types(run))[-1] == "run.failed"
    await nothing_is_left(s)


@pytest.mark.parametrize("step", [action(), sleep(), wait()], ids=["waiting job", "sleep", "wait"])
async def test_the_deadline_ends_whatever_a_run_waits_for(s, step):
    await s.publish("a", [step], defaults={"wall_clock_timeout": "10m"})
    run = await s.start("a")
    await s.fire(600)
    assert await s.statuses(run) == ["failed"]
    assert await s.claim(now=601) == []
    assert await s.fire(10**8) == 0
    await nothing_is_left(s)


async def test_a_run_that_is_over_has_no_deadline(s):
    await s.publish("a", [action()], defaults={"wall_clock_timeout": "10m"})
    run = await s.start("a")
    await s.report(await s.claim_one())
    assert await s.store.next_timer_at() is None
    assert await s.statuses(run) == ["completed"]


# --- one run at a time


async def test_what_a_queued_run_waits_behind(s):
    await s.publish("a", [action()], concurrency="queue")
    first, second, third = [await s.start("a") for _ in range(3)]
    turns = [await s.store.turn(s.project.id, run.id) for run in (first, second, third)]
    assert turns == [None, Turn(holder_id=first.id), Turn(holder_id=first.id, before=1)]
    await s.cancel(first)
    assert await s.store.turn(s.project.id, third.id) == Turn(before=1)
    await s.fire(0)
    assert await s.store.turn(s.project.id, third.id) == Turn(holder_id=second.id)
    with pytest.raises(NotFound):
        await s.store.turn("proj_other", third.id)
    with pytest.raises(NotFound):
        await s.store.turn(s.project.id, "run_nobody")


async def test_queued_runs_start_in_order_when_the_one_before_has_ended(s):
    await s.publish("a", [action()], concurrency="queue")
    first, second, third = [await s.start("a") for _ in range(3)]
    assert await s.statuses(first, second, third) == ["suspended", "queued", "queued"]
    assert (second.started_at, await s.event_types(second)) == (None, ["run.queued"])
    await s.report(await s.claim_one(), "failed", error="Boom", now=1)
    assert await s.fire(1) == 1
    assert await s.statuses(first, second, third) == ["failed", "suspended", "queued"]
    assert (await s.run(second)).started_at == at(1)
    assert len(await s.claim(now=1)) == 1
    await s.cancel(second, now=2)
    await s.fire(2)
    assert await s.statuses(second, third) == ["cancelled", "suspended"]
    await s.cancel(third, now=3)
    await s.fire(3)
    assert (await s.start("a")).status == "suspended"
    await nothing_is_left(s)


async def test_a_queued_run_has_its_whole_time(s):
    await s.publish("a", [sleep(duration="5m")], concurrency="queue", defaults={"wall_clock_timeout": "10m"})
    first, second = await s.start("a"), await s.start("a")
    assert (await s.run(second)).wall_clock_deadline_at is None
    await s.fire(300)
    assert (await s.run(second)).wall_clock_deadline_at == at(900)
    await s.fire(600)
    assert await s.statuses(first, second) == ["completed", "completed"]


async def test_a_queued_run_can_be_cancelled_and_leaves_the_line(s):
    await s.publish("a", [action()], concurrency="queue")
    first, second, third = [await s.start("a") for _ in range(3)]
    await s.cancel(second, reason="not needed")
    assert (await s.event_types(second)) == ["run.queued", "run.cancelled"]
    await s.fire(0)
    assert await s.statuses(first, second, third) == ["suspended", "cancelled", "queued"]
    await s.report(await s.claim_one())
    await s.fire(0)
    assert await s.statuses(third) == ["suspended"]


async def test_a_kept_signal_waits_for_a_queued_run(s):
    await s.publish("a", [wait()], concurrency="queue")
    first, second = await s.start("a"), await s.start("a")
    await s.signal(second, "ok", {"early": True})
    await s.signal(first, "ok")
    await s.fire(0)
    assert (await s.run(second)).result == {"ok": {"early": True}}


async def test_a_run_is_skipped_while_another_goes_on(s):
    await s.publish("a", [action()], concurrency="skip")
    first = await s.start("a", external_id="x")
    with pytest.raises(
        Conflict, match=f"run {first.id} of automation a goes on, and its concurrency is skip"
    ) as caught:
        await s.start("a")
    assert (caught.value.code, caught.value.details) == ("run_skipped", {"run_id": first.id, "status": "suspended"})
    assert (await s.start("a", external_id="x")).id == first.id
    await s.cancel(first)
    assert (await s.start("a")).status == "suspended"


async def test_a_run_replaces_the_one_that_goes_on(s):
    await s.publish("a", [action()], concurrency="replace")
    first = await s.start("a")
    lease = await s.claim_one()
    s.facts.clear()
    second = await s.start("a")
    assert [fact.job_id for fact in s.announced(CancelRequested)] == [lease.job.id]
    assert await s.statuses(first, second) == ["cancelled", "suspended"]
    assert (await s.run(first)).error_message == f"replaced by run {second.id}"
    await s.fire(0)
    assert await s.statuses(first, second) == ["cancelled", "suspended"]


async def a_long_line(s, concurrency="replace", **more):
    """Runs that queued up, more than are looked at together, under a version that queues; the next one does not."""
    await s.publish("a", [action()], concurrency="queue", **more)
    line = [await s.start("a") for _ in range(2 * LONGEST_LINE + 5)]
    await s.store.create_version(s.project.id, "a", {"steps": [action()], "concurrency": concurrency}, None)
    await s.store.publish_version(s.project.id, "a", 2)
    return line


async def began(s, *runs):
    return [run.id for run in runs if (await s.run(run)).started_at is not None]


async def test_a_run_replaces_all_that_wait_however_many(s):
    line = await a_long_line(s)
    newest = await s.start("a")
    assert newest.status == "suspended"
    await s.fire(0)
    assert await s.statuses(*line) == ["cancelled"] * len(line)
    assert {(await s.run(run)).error_message for run in line} == {f"replaced by run {newest.id}"}
    assert await began(s, *line) == [line[0].id]
    assert [lease.job.run_id for lease in await s.claim()] == [newest.id]
    assert await s.statuses(newest) == ["suspended"]
    await nothing_is_left(s)


async def test_a_run_that_ends_before_it_has_replaced_them_all_lets_none_of_them_begin(s):
    line = await a_long_line(s)
    newest = await s.start("a")
    # Its timer has not fired, and somebody else has come since who waits for it.
    await s.store.create_version(s.project.id, "a", {"steps": [action()], "concurrency": "queue"}, None)
    await s.store.publish_version(s.project.id, "a", 3)
    behind = await s.start("a")
    await s.cancel(newest)
    await s.fire(0)
    assert await s.statuses(*line) == ["cancelled"] * len(line)
    assert await began(s, *line) == [line[0].id]
    assert await s.statuses(newest, behind) == ["cancelled", "suspended"]
    await nothing_is_left(s)


async def test_a_run_that_waits_for_a_cleanup_replaces_all_that_wait_too(s):
    line = await a_long_line(s, cleanup=[action("tidy")])
    newest = await s.start("a")
    await s.fire(0)
    assert await s.statuses(*line, newest) == ["suspended", *["cancelled"] * (len(line) - 1), "queued"]
    tidy = await s.claim_one()
    assert tidy.job.step_key == "tidy"
    await s.report(tidy)
    await s.fire(0)
    assert await s.statuses(line[0], newest) == ["cancelled", "suspended"]
    assert await began(s, *line) == [line[0].id]
    await nothing_is_left(s)


@pytest.mark.parametrize(("concurrency", "then"), [("replace", "suspended"), ("skip", "cancelled")])
async def test_a_child_behind_a_long_line_takes_its_turn_as_its_version_says(s, concurrency, then):
    line = await a_long_line(s, concurrency)
    await s.publish("parent", [child("c", "a"), action("after")])
    parent = await s.start("parent")
    (started, _) = await s.steps(parent)
    newest = await s.store.run(s.project.id, started.result["run_id"])
    await s.fire(0)
    old = ["cancelled"] * len(line) if concurrency == "replace" else ["suspended", *["queued"] * (len(line) - 1)]
    assert await s.statuses(*line, newest) == [*old, then]
    assert await began(s, *line) == [line[0].id]
    await nothing_is_left(s)


async def test_starts_at_the_same_time_leave_one_run(s):
    await s.publish("queue", [action()], concurrency="queue")
    await s.publish("replace", [action()], concurrency="replace")
    await s.publish("skip", [action()], concurrency="skip")
    for handle, open_statuses in (
        ("queue", ["queued"] * 5 + ["suspended"]),
        ("replace", ["suspended"]),
        ("skip", ["suspended"]),
    ):
        await asyncio.gather(*(s.start(handle) for _ in range(6)), return_exceptions=True)
        automation = await s.store.automation(s.project.id, handle)
        found = await s.store.runs(s.project.id, status=None, automation_id=automation.id, cursor=None, limit=99)
        assert sorted(run.status for run in found.items if run.status not in TERMINAL_RUN) == open_statuses
        assert len(found.items) == {"queue": 6, "replace": 6, "skip": 1}[handle]


async def test_a_queue_runs_empty_also_when_its_runs_end_at_once(s):
    await s.publish("a", [sleep(duration="1s"), child("c", "none", condition="false")], concurrency="queue")
    runs = [await s.start("a") for _ in range(5)]
    for second in range(1, 6):
        await s.fire(second)
    assert await s.statuses(*runs) == ["completed"] * 5
    await nothing_is_left(s)


@pytest.mark.parametrize(
    ("concurrency", "old", "new"),
    [("queue", "suspended", "queued"), ("skip", "suspended", "cancelled"), ("replace", "cancelled", "suspended")],
)
async def test_a_child_run_takes_turns_too(s, concurrency, old, new):
    await s.publish("one", [action("held")], concurrency=concurrency)
    await s.publish("parent", [child("c", "one"), action("after")])
    running = await s.start("one")
    parent = await s.start("parent")
    (started, _) = await s.steps(parent)
    asked = await s.store.run(s.project.id, started.result["run_id"])
    assert asked.status == "queued"
    await s.fire(0)
    assert await s.statuses(running, asked, parent) == [old, new, "suspended"]
    if concurrency == "skip":
        assert (await s.run(asked)).error_message.startswith(f"skipped: run {running.id} of the automation goes on")


async def test_a_child_that_nothing_is_in_the_way_of_starts(s):
    await s.publish("one", [action("held")], concurrency="skip")
    await s.publish("parent", [child("c", "one"), child("d", "one")])
    parent = await s.start("parent")
    runs = [await s.store.run(s.project.id, step.result["run_id"]) for step in await s.steps(parent)]
    await s.fire(0)
    assert await s.statuses(*runs) == ["suspended", "cancelled"]


async def test_a_run_that_starts_its_own_automation_waits_behind_itself(s):
    await s.publish("a", [child("again", "a"), action()], concurrency="queue")
    run = await s.start("a")
    await s.fire(0)
    (step, _) = await s.steps(run)
    following = await s.store.run(s.project.id, step.result["run_id"])
    assert following.status == "queued"
    await s.report(await s.claim_one())
    await s.fire(0)
    assert await s.statuses(run, following) == ["completed", "suspended"]


async def test_a_version_with_another_concurrency_leaves_nobody_waiting_for_ever(s):
    await s.publish("a", [action()], concurrency="queue")
    first, second = await s.start("a"), await s.start("a")
    await s.store.create_version(s.project.id, "a", {"steps": [action()]}, None)
    await s.store.publish_version(s.project.id, "a", 2)
    third = await s.start("a")
    assert await s.statuses(first, second, third) == ["suspended", "queued", "suspended"]
    await s.cancel(third)
    await s.fire(0)
    assert await s.statuses(second) == ["queued"]
    await s.cancel(first)
    await s.fire(0)
    assert await s.statuses(second) == ["suspended"]


# --- cleanup


CLEANUP = [action("tidy", input={"one": "{{ .context.one }}"}), action("sweep", retry={"max_attempts": 2})]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "deadline"])
async def test_a_run_cleans_up_however_it_ends(s, end):
    await s.publish("a", [action("one"), action("two")], cleanup=CLEANUP, defaults={"wall_clock_timeout": "10m"})
    run = await s.start("a")
    await s.report(await s.claim_one(), result={"n": 1})
    lease = await s.claim_one()
    if end == "cancelled":
        await s.cancel(run, reason="enough")
    elif end == "deadline":
        await s.fire(600)
    else:
        await s.report(lease, end, result={"n": 2}, error="Boom", message="it broke")
    assert await s.statuses(run) == ["suspended"]
    tidy = await s.claim_one(now=601)
    assert (tidy.job.step_key, inputs_of(tidy)) == ("tidy", {"one": {"n": 1}})
    await s.report(tidy, "failed", error="Untidy", now=602)
    await s.report(await s.claim_one(now=603), result={"n": 3}, now=603)
    run = await s.run(run)
    status, error = {
        "completed": ("completed", None),
        "failed": ("failed", "Boom"),
        "cancelled": ("cancelled", None),
        "deadline": ("failed", "RunDeadlineExceeded"),
    }[end]
    assert (run.status, run.error_type) == (status, error)
    assert run.result == ({"one": {"n": 1}, "two": {"n": 2}} if end == "completed" else None)
    kinds = [(step.step_key, step.kind, step.status) for step in await s.steps(run)][2:]
    assert kinds == [("tidy", "cleanup", "failed"), ("sweep", "cleanup", "completed")]
    types = await s.event_types(run)
    assert types[-1] == f"run.{status}"
    assert types.count("run.cleanup_started") == 1
    assert not any(event.payload.get("status") for event in await s.events(run) if "cleanup" in event.event_type)
    assert await s.store.next_timer_at() is None
    await nothing_is_left(s)


async def test_a_cleanup_that_does_not_end_is_ended(s):
    await s.publish("a", [action("one")], cleanup=CLEANUP)
    run = await s.start("a")
    await s.report(await s.claim_one(), result={})
    lease = await s.claim_one()
    s.facts.clear()
    assert await s.fire(CLEANUP_TIMEOUT) == 1
    assert [fact.reason for fact in s.announced(CancelRequested)] == ["cleanup_deadline"]
    assert [(step.step_key, step.status) for step in await s.steps(run)] == [
        ("one", "completed"),
        ("tidy", "cancelled"),
    ]
    assert await s.statuses(run) == ["completed"]
    await s.report(lease, now=CLEANUP_TIMEOUT + 1)
    assert (await s.event_types(run))[-1] == "run.completed"


async def test_how_a_run_ends_is_decided_once(s):
    await s.publish("a", [action("one"), wait()], cleanup=CLEANUP)
    run = await s.start("a")
    await s.report(await s.claim_one(), "failed", error="Boom")
    assert (await s.cancel(run)).status == "suspended"
    with pytest.raises(Conflict, match="is being cleaned up after"):
        await s.signal(run, "ok")
    for _ in CLEANUP:
        await s.report(await s.claim_one())
    assert (await s.run(run)).error_type == "Boom"


async def test_a_cleanup_step_that_cannot_begin_is_passed_over(s):
    await s.publish("a", [action("one"), action("two")], cleanup=[action("x", input={"a": "{{ .context.two.b }}"})])
    run = await s.start("a")
    await s.report(await s.claim_one(), "failed", error="Boom")
    run = await s.run(run)
    assert (run.status, run.error_type) == ("failed", "Boom")
    assert [(step.step_key, step.status, step.error_type) for step in await s.steps(run)] == [
        ("one", "failed", "Boom"),
        ("x", "failed", "TemplateError"),
    ]


async def test_a_run_that_fails_at_its_first_step_cleans_up(s):
    await s.publish("a", [sleep(duration="{{ .inputs.x }}")], cleanup=[action("tidy")])
    run = await s.start("a")
    assert run.status == "suspended"
    await s.report(await s.claim_one())
    assert (await s.run(run)).error_type == "TemplateError"


async def test_a_replaced_run_cleans_up_before_its_successor_starts(s):
    await s.publish("a", [action("one")], cleanup=[action("tidy")], concurrency="replace")
    first = await s.start("a")
    second = await s.start("a")
    third = await s.start("a")
    assert await s.statuses(first, second, third) == ["suspended", "cancelled", "queued"]
    tidy = await s.claim_one()
    assert (tidy.job.run_id, tidy.job.step_key) == (first.id, "tidy")
    await s.report(tidy)
    await s.fire(0)
    assert await s.statuses(first, third) == ["cancelled", "suspended"]


async def test_a_queued_run_that_is_cancelled_has_nothing_to_clean_up(s):
    await s.publish("a", [action("one")], cleanup=[action("tidy")], concurrency="queue")
    await s.start("a")
    queued = await s.start("a")
    assert (await s.cancel(queued)).status == "cancelled"


# --- listings


async def test_runs_are_found_by_external_id_parent_and_time(s):
    automation = await s.publish("a", [action()])
    await s.publish("parent", [child("c", "a"), child("d", "a")])
    runs = [await s.start("a", external_id=f"x{index}", now=10 * index) for index in range(5)]
    parent = await s.start("parent", now=100)
    children = [step.result["run_id"] for step in await s.steps(parent)]

    async def found(status=None, automation_id=None, **more):
        listed = await s.store.runs(
            s.project.id, status=status, automation_id=automation_id, cursor=None, limit=9, more=RunFilter(**more)
        )
        return [run.id for run in listed.items]

    assert await found(external_id="x3") == [runs[3].id]
    assert await found(external_id="x3", status="completed") == []
    assert await found(parent_run_id=parent.id) == children[::-1]
    assert await found(parent_run_id=parent.id, automation_id=automation.id, status="suspended") == children[::-1]
    assert await found(created_after=at(20), created_before=at(40)) == [runs[3].id, runs[2].id]
    assert await found(created_before=at(10)) == [runs[0].id]
    assert await found(created_after=at(100), status="completed") == [parent.id]
    assert await found(created_after=at(101)) == []
    assert await found(created_before=at(0)) == []
    assert await found(automation_id=automation.id, created_after=at(40)) == [*children[::-1], runs[4].id]
    other = await s.store.create_project("other", "Other")
    for more in (RunFilter(external_id="x3"), RunFilter(parent_run_id=parent.id), RunFilter(created_after=at(0))):
        page = await s.store.runs(other.id, status=None, automation_id=None, cursor=None, limit=9, more=more)
        assert page.items == []


async def test_a_time_is_found_among_many_runs(s):
    await s.publish("a", [child("c", "none", condition="false")])
    ids = [(await s.start("a", now=10 * index)).id for index in range(40)]
    for first, behind in ((0, 40), (13, 14), (7, 31), (39, 40)):
        more = RunFilter(created_after=at(10 * first), created_before=at(10 * behind))
        page = await s.store.runs(s.project.id, status=None, automation_id=None, cursor=None, limit=99, more=more)
        assert [run.id for run in page.items] == ids[first:behind][::-1]


async def test_a_page_of_runs_is_bounded_in_bytes_but_never_empty(s, monkeypatch):
    await s.publish("a", [action()])
    runs = [(await s.start("a", inputs={"x": "y" * 100})).id for _ in range(4)]
    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 250)
    seen, cursor, sizes = [], None, []
    while True:
        page = await s.store.runs(s.project.id, status=None, automation_id=None, cursor=cursor, limit=3)
        seen += [run.id for run in page.items]
        sizes.append(len(page.items))
        cursor = page.next_cursor
        if cursor is None:
            break
    assert (seen, sizes) == (runs[::-1], [2, 2])
    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 10)
    page = await s.store.runs(s.project.id, status=None, automation_id=None, cursor=None, limit=3)
    assert [run.id for run in page.items] == [runs[3]]
