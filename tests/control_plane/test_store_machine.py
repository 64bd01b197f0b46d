"""Any sequence of what workers, users, time and restarts do to a store keeps what the store promises."""

import asyncio
import tempfile
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from control_plane.domain.enqueue import NewJob
from control_plane.domain.model import TERMINAL_JOB, TERMINAL_RUN
from control_plane.errors import Conflict, Invalid, NotFound
from control_plane.keys import hash_secret
from tests.support.postgres_cluster import shared_cluster
from tests.support.store_scenario import LEASE, PostgresPlace, Scenario, SqlitePlace, action, at, scenario

HANDLES = ("once", "thrice", "parent", "waiting", "queue", "replace", "skip")
ERRORS = ("Boom", "NonRetryableError", "WorkerOverCapacity", "WorkerCrashed")


class StoreMachine(RuleBasedStateMachine):
    """`leases` are all that were ever given out, `accepted` the job ids whose completion was acknowledged."""

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.place = self.new_place()
        self.numbers = count(1)
        self.now = 0.0
        self.leases = []
        self.newest = {}
        self.completed = {}
        self.acknowledged_runs = []
        self.direct = []
        self.external = {}
        self.signalled = {}
        self.said = {}
        self.interrupted = False

    def wait_for(self, awaitable):
        return self.runner.run(awaitable)

    async def enter(self, *, prepared):
        self.context = scenario(self.place, prepared=prepared)
        return await self.context.__aenter__()

    @initialize()
    def begin(self):
        self.s: Scenario = self.wait_for(self.enter(prepared=True))
        self.wait_for(self.publish())

    async def publish(self):
        await self.s.publish("once", [action("one")])
        retried = {"max_attempts": 3, "delay": "5s"}
        await self.s.publish("thrice", [action("one", retry=retried, timeout={"duration": "3m"}), action("two")])
        child = {"key": "child", "kind": "automation", "config": {"automation_handle": "once"}}
        await self.s.publish("parent", [child, action("last", retry={"max_attempts": 2})])
        nap = {"key": "nap", "kind": "sleep", "config": {"duration": "30s"}}
        ok = {"key": "ok", "kind": "wait_for_event", "config": {"event_type": "x"}, "timeout": {"duration": "100s"}}
        deadline = {"wall_clock_timeout": "150s"}
        await self.s.publish("waiting", [nap, ok, action("one")], cleanup=[action("tidy")], defaults=deadline)
        await self.s.publish("queue", [ok], cleanup=[action("tidy")], defaults=deadline, concurrency="queue")
        await self.s.publish("replace", [nap, action("one")], concurrency="replace")
        again = {"key": "again", "kind": "automation", "config": {"automation_handle": "queue"}}
        await self.s.publish("skip", [again, ok], concurrency="skip")

    def teardown(self):
        self.wait_for(self.context.__aexit__(None, None, None))
        self.runner.close()
        self.place.remove()

    # --- what happens

    @rule(handle=st.sampled_from(HANDLES))
    def start(self, handle):
        code = "started"
        try:
            self.acknowledged_runs.append(self.wait_for(self.s.start(handle, now=self.now)).id)
        except Conflict as refused:
            code = refused.code
        assert code == "started" or (handle, code) == ("skip", "run_skipped")

    @rule(number=st.integers(1, 3), data=st.data())
    def enqueue(self, number, data):
        priorities = st.sampled_from([0, 0, 7])
        delays = st.sampled_from([0.0, 0.0, 5.0])
        names = st.sampled_from([None, "a", "b"])
        jobs = [
            NewJob(
                action_name="direct",
                spec={"parameters": {}},
                priority=data.draw(priorities),
                delay=data.draw(delays),
                external_id=data.draw(names),
                queue=data.draw(st.sampled_from(["default", "other"])),
                max_attempts=2,
                retry_delay=3.0,
                retry_backoff=2.0,
            )
            for _ in range(number)
        ]
        enqueued = self.wait_for(self.s.enqueue(jobs, now=self.now))
        for job, job_id in zip(jobs, enqueued.ids, strict=True):
            if job.external_id is not None:
                assert self.external.setdefault(job.external_id, job_id) == job_id
            if job_id not in self.direct:
                self.direct.append(job_id)

    @precondition(lambda self: self.direct or self.leases)
    @rule(data=st.data())
    def cancel_job(self, data):
        job_id = data.draw(st.sampled_from([*self.direct[-4:], *(lease.job.id for lease in self.leases[-4:])]))
        job = self.wait_for(self.s.store.cancel_job(self.s.project.id, job_id, "stop", now=at(self.now)))
        assert job.status in TERMINAL_JOB or job.cancel_requested_at is not None

    @precondition(lambda self: self.direct)
    @rule(data=st.data())
    def put_back(self, data):
        job_id = data.draw(st.sampled_from(self.direct[-6:]))
        before = self.wait_for(self.s.store.job(self.s.project.id, job_id))
        try:
            job = self.wait_for(self.s.store.retry_job(self.s.project.id, job_id, now=at(self.now)))
        except Conflict:
            assert before.status != "failed"
        else:
            assert (before.status, job.status) == ("failed", "pending")

    @rule(
        queue=st.sampled_from(["default", "other"]),
        changes=st.sampled_from([{"paused": True}, {"paused": False}, {"max_running": 2}, {"max_running": None}]),
    )
    def say_of_a_queue(self, queue, changes):
        self.wait_for(self.s.store.update_queue(self.s.project.id, queue, changes, now=at(self.now)))
        paused, limits = self.said.setdefault(queue, (False, None))
        self.said[queue] = (changes.get("paused", paused), changes.get("max_running", limits))

    @rule(limit=st.sampled_from([1, 2, 1000]))
    def claim(self, limit):
        leases = self.wait_for(self.s.claim(now=self.now, limit=limit))
        jobs = [lease.job.id for lease in leases]
        assert len(jobs) == len(set(jobs)) <= limit
        claimed = dict(
            self.read("SELECT j.queue, count(*) FROM jobs_claimed c JOIN jobs j ON j.seq = c.seq GROUP BY j.queue")
        )
        for lease in leases:
            paused, most = self.said.get(lease.job.queue, (False, None))
            assert not paused
            assert most is None or claimed[lease.job.queue] <= most
            assert lease.job.id not in self.completed
            self.leases.append(lease)
            self.newest[lease.job.id] = lease
        if limit == 1000:
            # Nothing that could be claimed is left: no job is lost to the lanes or to what is remembered of them.
            now = at(self.now)
            waiting = self.read(
                "SELECT p.execution_deadline_at, j.queue FROM jobs_pending p JOIN jobs j ON j.seq = p.seq"
                f" WHERE p.available_at <= {now}"
            )
            due = {queue for deadline, queue in waiting if deadline is None or deadline > now}
            running = dict(
                self.read("SELECT j.queue, count(*) FROM jobs_claimed c JOIN jobs j ON j.seq = c.seq GROUP BY j.queue")
            )
            for queue in due:
                paused, most = self.said.get(queue, (False, None))
                assert paused or (most is not None and running.get(queue, 0) >= most)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), status=st.sampled_from(["completed", "failed", "cancelled"]), error=st.sampled_from(ERRORS))
    def report(self, data, status, error):
        lease = data.draw(st.sampled_from(self.leases[-6:]))
        number = next(self.numbers)
        outcome = self.wait_for(
            self.s.report(lease, status, now=self.now, result={"number": number}, error=error, message="so")
        )
        newest = self.newest[lease.job.id] is lease
        if outcome == "accepted":
            assert newest
            if status == "completed":
                assert lease.job.id not in self.completed
                self.completed[lease.job.id] = number
        assert outcome in ("accepted", "duplicate", "superseded", "handed_back")

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def heartbeat(self, data):
        lease = data.draw(st.sampled_from(self.leases[-6:]))
        beat = self.wait_for(self.s.heartbeat(lease, now=self.now))
        assert beat.lost or self.newest[lease.job.id] is lease

    @precondition(lambda self: self.acknowledged_runs)
    @rule(data=st.data())
    def cancel(self, data):
        run_id = data.draw(st.sampled_from(self.acknowledged_runs))
        run = self.wait_for(self.s.store.cancel_run(self.s.project.id, run_id, "stop", now=at(self.now)))
        # What has to be cleaned up is done first.
        cleaned = self.read(f"SELECT s.kind FROM steps s WHERE s.run_id = '{run_id}' AND s.status = 'suspended'")
        assert run.status in TERMINAL_RUN or cleaned == [("cleanup",)]

    @precondition(lambda self: self.acknowledged_runs)
    @rule(data=st.data())
    def signal(self, data):
        run_id = data.draw(st.sampled_from(self.acknowledged_runs[-6:]))
        number = next(self.numbers)
        code = "taken"
        try:
            self.wait_for(
                self.s.store.signal_run(self.s.project.id, run_id, "ok", {"number": number}, now=at(self.now))
            )
        except (Conflict, Invalid, NotFound) as refused:
            code = refused.code
        assert code in ("taken", "run_ended", "already_signalled", "unknown_step")
        if code == "taken":
            assert (run_id, "ok") not in self.signalled
            self.signalled[run_id, "ok"] = number

    @rule()
    def fire(self):
        self.wait_for(self.s.fire(self.now))
        assert self.read(f"SELECT run_seq FROM run_timers WHERE due_at <= {at(self.now)}") == []
        # Nobody waits for a turn that nobody has.
        held = {row[0] for row in self.read("SELECT automation_id FROM run_turns WHERE holds")}
        assert {row[0] for row in self.read("SELECT automation_id FROM run_turns WHERE NOT holds")} <= held

    @rule(seconds=st.sampled_from([1, 5, LEASE / 2, LEASE + 1, 100, 200]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def reap(self):
        self.wait_for(self.s.reap(self.now))
        now = at(self.now)
        # The jobs of a replica that has gone have one lease duration more.
        lapsed = now - (at(LEASE) - at(0) if self.interrupted and self.s.store.replicated else 0)
        assert self.read(f"SELECT seq FROM jobs_claimed WHERE lease_expires_at <= {lapsed}") == []
        assert self.read(f"SELECT seq FROM jobs_pending WHERE deadline_at <= {now}") == []

    @rule()
    def restart(self):
        self.interrupted = True
        project, session = self.s.project, self.s.session
        self.wait_for(self.context.__aexit__(None, None, None))
        self.s = self.wait_for(self.enter(prepared=False))
        self.s.project, self.s.session = project, session
        self.s.numbers = count(len(self.leases) + 1_000_000 * next(self.numbers))

    # --- what always holds

    def read(self, sql):
        return self.wait_for(self.s.read(sql))

    @invariant()
    def every_job_is_in_one_state(self):
        states = self.read(
            "SELECT j.id, (SELECT count(*) FROM jobs_pending p WHERE p.seq = j.seq AND p.lane_id = j.lane_id)"
            " + (SELECT count(*) FROM jobs_claimed c WHERE c.seq = j.seq)"
            " + (SELECT count(*) FROM jobs_finished f WHERE f.seq = j.seq) FROM jobs j"
        )
        assert all(number == 1 for _, number in states)

    @invariant()
    def the_holder_of_a_job_is_who_claimed_it_last(self):
        for job_id, token_hash in self.read(
            "SELECT j.id, c.lease_token_hash FROM jobs_claimed c JOIN jobs j USING (seq)"
        ):
            assert token_hash == hash_secret(self.newest[job_id].lease_token)

    @invariant()
    def what_was_acknowledged_is_there(self):
        runs = {row[0] for row in self.read("SELECT id FROM runs")}
        assert runs >= set(self.acknowledged_runs)
        finished = dict(
            self.read("SELECT j.id, f.result FROM jobs_finished f JOIN jobs j USING (seq) WHERE f.status = 'completed'")
        )
        assert finished == {job_id: f'{{"number":{number}}}' for job_id, number in self.completed.items()}

    @invariant()
    def what_was_handed_in_is_there(self):
        assert {row[0] for row in self.read("SELECT id FROM jobs WHERE run_id IS NULL")} == set(self.direct)

    @invariant()
    def attempts_that_failed_are_kept_once_and_only_those(self):
        kept = self.read(
            "SELECT j.id, a.attempt, coalesce(p.claim_attempt, c.claim_attempt, f.claim_attempt) FROM job_attempts a"
            " JOIN jobs j ON j.seq = a.job_seq LEFT JOIN jobs_pending p ON p.seq = j.seq"
            " LEFT JOIN jobs_claimed c ON c.seq = j.seq LEFT JOIN jobs_finished f ON f.seq = j.seq"
        )
        assert all(1 <= attempt <= started for _, attempt, started in kept)

    @invariant()
    def streams_are_gapless_and_end_with_their_run(self):
        for run_seq, status in self.read("SELECT seq, status FROM runs"):
            events = self.read(f"SELECT sequence, event_type FROM events WHERE run_seq = {run_seq} ORDER BY sequence")
            assert [sequence for sequence, _ in events] == list(range(1, len(events) + 1))
            ends = [kind for _, kind in events if kind in ("run.completed", "run.failed", "run.cancelled")]
            assert ends == ([f"run.{status}"] if status in TERMINAL_RUN else [])
            assert not ends or events[-1][1] == ends[0]

    @invariant()
    def every_executed_step_has_one_result(self):
        rows = self.read(
            "SELECT s.status, (SELECT count(*) FROM events e WHERE e.step_id = s.id AND e.event_type = 'action.result')"
            " FROM steps s WHERE s.job_id IS NOT NULL"
        )
        for status, results in rows:
            assert results == (1 if status in ("completed", "failed") else 0)

    @invariant()
    def a_suspended_run_waits_for_exactly_one_thing(self):
        rows = self.read(
            "SELECT r.status, (SELECT count(*) FROM steps s JOIN jobs j ON j.id = s.job_id"
            " WHERE s.run_seq = r.seq AND s.status = 'suspended' AND ("
            "EXISTS (SELECT 1 FROM jobs_pending p WHERE p.seq = j.seq) OR"
            " EXISTS (SELECT 1 FROM jobs_claimed c WHERE c.seq = j.seq)))"
            " + (SELECT count(*) FROM run_timers t WHERE t.run_seq = r.seq AND t.kind = 'step')"
            " + (SELECT count(*) FROM run_turns w WHERE w.run_seq = r.seq AND NOT w.holds),"
            " (SELECT count(*) FROM steps s WHERE s.run_seq = r.seq AND s.status IN ('running', 'suspended')),"
            " (SELECT count(*) FROM run_timers t WHERE t.run_seq = r.seq AND t.kind <> 'turn') FROM runs r"
        )
        for status, waiting, open_steps, timers in rows:
            assert status in TERMINAL_RUN | {"suspended", "queued"}
            assert waiting == (0 if status in TERMINAL_RUN else 1)
            assert open_steps == (1 if status == "suspended" else 0)
            assert timers == 0 or status == "suspended"

    @invariant()
    def of_an_automation_that_takes_turns_one_run_goes_on(self):
        rows = self.read(
            "SELECT a.handle, count(*), count(w.run_seq) FROM runs r JOIN automations a ON a.id = r.automation_id"
            " LEFT JOIN run_turns w ON w.run_seq = r.seq AND w.holds WHERE r.status = 'suspended' GROUP BY a.handle"
        )
        for handle, going_on, holding in rows:
            assert (holding == going_on == 1) if handle in ("queue", "replace", "skip") else holding == 0

    @invariant()
    def a_signal_comes_to_its_step_once(self):
        for run_id, number in self.read(
            "SELECT s.run_id, s.result FROM steps s WHERE s.step_key = 'ok' AND s.status = 'completed'"
        ):
            assert number == f'{{"number":{self.signalled[run_id, "ok"]}}}'


class SqliteMachine(StoreMachine):
    def new_place(self):
        self.folder = tempfile.TemporaryDirectory(prefix="store-machine-")
        return SqlitePlace(Path(self.folder.name) / "store.db")

    def teardown(self):
        super().teardown()
        self.folder.cleanup()


class PostgresMachine(StoreMachine):
    def new_place(self):
        return PostgresPlace(shared_cluster())


SETTINGS = settings(
    max_examples=20,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TIMEOUT = 400

TestSqliteStore = pytest.mark.timeout(TIMEOUT)(SqliteMachine.TestCase)
TestSqliteStore.settings = SETTINGS
TestPostgresStore = pytest.mark.timeout(TIMEOUT)(pytest.mark.usefixtures("cluster")(PostgresMachine.TestCase))
# Each example has a database made for it, and each look at it is a round trip.
TestPostgresStore.settings = settings(SETTINGS, max_examples=12)
