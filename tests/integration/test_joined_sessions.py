"""Both ends of the worker socket, joined in memory, under everything that a network, a store and a box can do to them.

No job is lost, none is accepted twice, and when the faults are over everything comes to rest within a bound, with both
workers able to work.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from control_plane.domain.model import TERMINAL_JOB
from control_plane.session import _key
from tests.support.joined_sessions import CANCELLED, DONE, FAILED, LEASE, Box, Harm, Link, Process, Room
from wire import frames
from worker_child.backoff import CAP
from worker_child.decisions import Outcome
from worker_child.session import READ_DEADLINE, REGISTER_DEADLINE, ActionTerms, State

RECOVERY = READ_DEADLINE + CAP + REGISTER_DEADLINE + 3 * LEASE + CAP
"""Seconds. A connection that nothing comes through is noticed, the longest pause passes, a registration that was lost
is noticed, leases lapse (one duration later after a restart of the control plane), and there is one more pause."""

HARMS: st.SearchStrategy[Harm] = st.sampled_from(["lose", "repeat", "delay", "pass"])
BREAKS = (
    "connection_is_cut",
    "network_goes_or_comes",
    "worker_is_killed",
    "box_was_suspended",
    "supervisor_drains",
    "operator_drains",
    "control_plane_restarts",
)

LONG = bool(os.environ.get("MOBIUS_TEST_LONG"))


class JoinedSessions(RuleBasedStateMachine):
    """Two workers and a control plane."""

    def __init__(self) -> None:
        super().__init__()
        actions = {"work": ActionTerms(), "rare": ActionTerms(concurrency=1), "safe": ActionTerms(idempotent=True)}
        self.room = Room({"rig-1": 3, "rig-2": 1}, actions)

    # --- work

    @rule(action=st.sampled_from(["work", "rare", "safe", "only-rig-1", "only-rig-2"]), number=st.integers(1, 4))
    def jobs_come(self, action: str, number: int) -> None:
        for _ in range(number):
            self.room.store.enqueue(action)
        self.room.settle()

    @precondition(lambda self: any(job.status not in TERMINAL_JOB for job in self.room.store.jobs.values()))
    @rule(data=st.data())
    def somebody_cancels(self, data: st.DataObject) -> None:
        jobs = [job.id for job in self.room.store.jobs.values() if job.status not in TERMINAL_JOB]
        self.room.store.cancel(data.draw(st.sampled_from(jobs)))
        self.room.settle()

    @precondition(lambda self: self.running())
    @rule(data=st.data(), outcome=st.sampled_from([DONE, DONE, FAILED, CANCELLED]))
    def a_handler_returns(self, data: st.DataObject, outcome: Outcome) -> None:
        process, execution = data.draw(st.sampled_from(self.running()))
        process.finish(execution, outcome)
        self.room.settle()

    @rule()
    def all_handlers_return(self) -> None:
        self.room.work()

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 10.0, 21.0, 45.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.room.wait(seconds)

    # --- the network

    @precondition(lambda self: self.room.links)
    @rule(data=st.data(), up=st.booleans(), flows=st.booleans())
    def one_direction_stops_or_goes_on(self, data: st.DataObject, up: bool, flows: bool) -> None:
        link = data.draw(st.sampled_from(self.room.links))
        (link.up if up else link.down).flows = flows
        self.room.settle()

    @precondition(lambda self: self.room.links)
    @rule(data=st.data(), up=st.booleans(), plan=st.lists(HARMS, min_size=1, max_size=5))
    def the_next_frames_will_be_harmed(self, data: st.DataObject, up: bool, plan: list[Harm]) -> None:
        link = data.draw(st.sampled_from(self.room.links))
        (link.up if up else link.down).plan.extend(plan)

    # --- what breaks: one rule for all of it, or no connection would live long enough to be harmed in other ways

    @rule(data=st.data(), what=st.sampled_from(BREAKS))
    def something_breaks(self, data: st.DataObject, what: str) -> None:
        number = data.draw(st.integers(0, 1))
        getattr(self, f"_{what}")(data, self.room.boxes[number])
        self.room.settle()

    def _connection_is_cut(self, data: st.DataObject, box: Box) -> None:
        link = box.process.link
        if link is None:
            return
        how = data.draw(st.sampled_from(["both see it", "worker sees it", "server sees it", "nobody sees it"]))
        if how == "both see it":
            link.up.clear()
            link.down.clear()
            for way in (link.up, link.down):
                way.put(("gone", None))
                way.flows = True
            return
        if how == "server sees it":
            link.abort()
            link.down.clear()
        elif how == "worker sees it":
            link.down.clear()
            link.down.put(("gone", None))
            link.down.flows = True
            self.room.settle()
        link.dead = True

    def _network_goes_or_comes(self, _data: st.DataObject, box: Box) -> None:
        box.reachable = not box.reachable

    def _worker_is_killed(self, data: st.DataObject, box: Box) -> None:
        box.restart(cut=data.draw(st.booleans()), self_made=data.draw(st.booleans()))

    def _box_was_suspended(self, _data: st.DataObject, box: Box) -> None:
        box.process.step(box.process.session.suspended)

    def _supervisor_drains(self, data: st.DataObject, box: Box) -> None:
        grace = data.draw(st.sampled_from([1.0, 30.0]))
        box.process.follow(box.process.session.drain(grace, "asked to", self.room.now))

    def _operator_drains(self, _data: st.DataObject, box: Box) -> None:
        link = box.process.link
        if link is not None and link.connection.session is not None:
            self.room.store.request_drain(link.connection.session.id)

    def _control_plane_restarts(self, data: st.DataObject, _box: Box) -> None:
        self.room.serving = data.draw(st.booleans())
        self.room.restart_control_plane(tidily=data.draw(st.booleans()), heard=data.draw(st.booleans()))

    @precondition(lambda self: self.ended())
    @rule()
    def ended_workers_are_replaced(self) -> None:
        for box in self.room.boxes:
            if box.process.ended:
                box.restart(cut=False)
        self.room.settle()

    @precondition(lambda self: not self.room.serving)
    @rule()
    def the_control_plane_is_back(self) -> None:
        self.room.serving = True

    # --- the store

    @rule(answers=st.booleans(), away=st.booleans())
    def the_store_changes(self, answers: bool, away: bool) -> None:
        self.room.store_answers, self.room.store_is_away = answers, away
        self.room.settle()

    @precondition(lambda self: self.room.questions)
    @rule()
    def the_store_answers_one(self) -> None:
        self.room.answer_one()
        self.room.settle()

    # --- what holds

    @invariant()
    def nothing_is_refused(self) -> None:
        assert self.room.dead_letters == []

    @invariant()
    def a_journal_holds_what_its_session_owes(self) -> None:
        for box in self.room.boxes:
            claimed, reported = box.process.session.outstanding()
            owed = {job.lease_token: "job in hand" for job in claimed}
            owed |= {report.lease_token: "report" for report in reported}
            kept = {token: entry if entry == "job in hand" else "report" for token, entry in box.journal.items()}
            assert owed == kept

    def teardown(self) -> None:
        """The faults are over: everything comes to rest, and everybody works."""
        room = self.room
        room.heal()
        end = room.now + RECOVERY
        while room.now < end:
            room.wait(1.0)
            room.work()
            self.replace_the_drained()
        self.check_that_all_rests()
        tokens = [room.store.enqueue(f"only-{box.name}") for box in room.boxes]
        room.settle()
        room.work()
        room.settle()
        assert [room.store.jobs[job_id].status for job_id in tokens] == ["completed", "completed"], "at once"

    def replace_the_drained(self) -> None:
        """What an operator drained stays so until it is stopped, and its successor works."""
        for box in self.room.boxes:
            process = box.process
            if process.session._drain_asked and not process.session._drain_is_ours:
                process.follow(process.session.drain(30.0, "the operator is done", self.room.now))
                self.room.settle()
            if process.ended:
                box.restart(cut=False)
                self.room.settle()

    def check_that_all_rests(self) -> None:
        room = self.room
        for job in room.store.jobs.values():
            cancelled = job.cancel_requested_at is not None or job.error_message == "somebody asked"
            poisonous = job.error_type == "PoisonJob" and any(job.id in box.suspects for box in room.boxes)
            assert job.status == "completed" or (job.status in TERMINAL_JOB and (cancelled or poisonous)), job
            assert room.store.completions[job.id] == (1 if job.status == "completed" else 0)
        for box in room.boxes:
            assert box.process.session.state is State.REGISTERED
            assert box.process.session.outstanding() == ([], [])
            assert box.journal == {}
            assert box.process.session.free_slots == box.concurrency
        assert not room.questions
        for link in room.links:
            assert not link.connection._unanswered - {_claim_key(link)}

    # --- what there is

    def running(self) -> list[tuple[Process, int]]:
        return [(box.process, execution) for box in self.room.boxes for execution in box.process.running]

    def ended(self) -> bool:
        return any(box.process.ended for box in self.room.boxes)


def _claim_key(link: Link) -> object:
    claim = link.connection._claim
    return _key(frames.Claim(message_id=claim.message_id)) if claim is not None else None


JoinedSessions.TestCase.settings = settings(
    max_examples=2000 if LONG else 100,
    stateful_step_count=100 if LONG else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestJoinedSessions = JoinedSessions.TestCase
