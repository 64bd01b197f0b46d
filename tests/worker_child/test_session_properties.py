"""The session under random events: what must hold after every one of them."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.session_driver import SessionDriver, claimed_job
from wire import frames
from worker_child.decisions import (
    CancelJob,
    Connect,
    DeadLetter,
    Decision,
    DropConnection,
    End,
    JournalClaimed,
    JournalReported,
    JournalSettled,
    Outcome,
    Send,
    StartJob,
)
from worker_child.session import ActionTerms, State

CONCURRENCY = 3
LIVE = (State.REGISTERING, State.REGISTERED, State.DRAINING)
OUTCOMES = [
    Outcome(status="completed", result={}),
    Outcome(status="failed", error_type="ValueError"),
    Outcome(status="cancelled"),
]


class SessionUnderRandomEvents(RuleBasedStateMachine):
    """A server that may lose, repeat and reorder everything, a shell that loses connections, and a clock that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = SessionDriver(
            concurrency=CONCURRENCY,
            actions={"work": ActionTerms(), "rare": ActionTerms(concurrency=1), "safe": ActionTerms(idempotent=True)},
            jitter=0.5,
        )
        self.session = self.driver.session
        self.jobs = 0
        self.open_claims: list[str] = []
        self.connected = False
        self.ended = False
        self.running: dict[int, frames.ClaimedJob] = {}
        self.stuck: set[int] = set()
        self.owed: dict[str, str] = {}
        """Lease token -> "claimed" or "reported": what a journal that follows the decisions holds."""
        self.reports: dict[str, frames.Report] = {}
        self.sent_frames: list[frames.FromServer] = []

    # --- following the decisions as a shell would -------------------------------------------------------------------

    def follow(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            assert not self.ended, f"{decision} after the end"
            if isinstance(decision, Send):
                self.follow_send(decision.frame)
            elif isinstance(decision, Connect):
                assert self.session.state is State.CONNECTING
            elif isinstance(decision, DropConnection):
                self.connected, self.open_claims = False, []
            elif isinstance(decision, StartJob):
                assert self.owed[decision.job.lease_token] == "claimed", "started before it was journalled"
                assert decision.execution not in self.running
                self.running[decision.execution] = decision.job
            elif isinstance(decision, CancelJob):
                assert decision.execution in self.running or decision.reason == "shutdown"
            elif isinstance(decision, JournalClaimed):
                assert decision.lease_token not in self.owed
                self.owed[decision.lease_token] = "claimed"
            elif isinstance(decision, JournalReported):
                token = decision.report.lease_token
                assert self.owed.get(token) != "reported", "two outcomes for one lease"
                self.owed[token] = "reported"
                self.reports[str(decision.report.message_id)] = decision.report
            elif isinstance(decision, JournalSettled):
                del self.owed[decision.lease_token]
            elif isinstance(decision, DeadLetter):
                del self.owed[decision.report.lease_token]
            elif isinstance(decision, End):
                self.ended = True

    def follow_send(self, frame: frames.FromWorker) -> None:
        assert self.connected, "sent without a connection"
        if isinstance(frame, frames.Claim):
            assert not self.open_claims, "two claims outstanding"
            assert frame.available_slots is not None
            assert 1 <= frame.available_slots <= CONCURRENCY - len(self.running) - len(self.stuck)
            assert frame.action_names, "an empty list means everything"
            assert self.session.state is State.REGISTERED
            self.open_claims.append(str(frame.message_id))
        elif isinstance(frame, frames.Report):
            assert self.owed[frame.lease_token] == "reported", "sent before it was journalled"
        elif isinstance(frame, frames.Register):
            assert frame.available_slots is not None
            assert frame.available_slots <= CONCURRENCY - len(self.running)

    def deliver(self, frame: frames.FromServer) -> None:
        if self.session.state in LIVE:
            self.sent_frames.append(frame)
            self.follow(self.driver.receive(frame).decided)

    # --- events -----------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 9.0, 21.0, 45.0]))
    def time_passes(self, seconds: float) -> None:
        self.driver.now += seconds
        if self.session.next_deadline() <= self.driver.now:
            self.follow(self.session.tick(self.driver.now))

    @precondition(lambda self: self.session.state is State.WAITING)
    @rule()
    def the_back_off_passes(self) -> None:
        self.driver.now = max(self.driver.now, self.session._retry_at)
        self.follow(self.session.tick(self.driver.now))

    @precondition(lambda self: self.session.state is State.CONNECTING)
    @rule()
    def it_connects(self) -> None:
        self.connected = True
        self.follow(self.session.connected(self.driver.now))

    @precondition(lambda self: self.session.state in (State.CONNECTING, *LIVE))
    @rule()
    def the_connection_is_lost(self) -> None:
        self.connected, self.open_claims = False, []
        self.follow(self.session.connection_lost("lost", self.driver.now))

    @precondition(lambda self: self.session.state in LIVE)
    @rule()
    def it_is_registered(self) -> None:
        lease = frames.Lease(lease_duration_seconds=60, heartbeat_cadence_seconds=20)
        self.deliver(frames.Registered(worker_session_token="token", lease=lease))

    @precondition(lambda self: self.open_claims and self.session.state in LIVE)
    @rule(actions=st.lists(st.sampled_from(["work", "rare", "safe", "unknown"]), max_size=5), again=st.booleans())
    def a_claim_is_answered(self, actions: list[str], again: bool) -> None:
        jobs = []
        for action in actions:
            self.jobs += 1
            number = self.jobs
            if again and self.running:
                # The server leases a job once more that is still in hand here.
                number = int(next(iter(self.running.values())).id.removeprefix("job-"))
            jobs.append(claimed_job(number, action=action, token=f"lease-{self.jobs}"))
        claim = self.open_claims.pop()
        self.deliver(frames.Claimed(message_id=claim, jobs=jobs))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def a_job_finishes(self, data: st.DataObject, outcome: Outcome) -> None:
        execution = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[execution]
        self.follow(self.session.job_finished(execution, outcome, self.driver.now))

    @precondition(lambda self: self.running and not self.ended)
    @rule(data=st.data())
    def a_job_is_abandoned(self, data: st.DataObject) -> None:
        execution = data.draw(st.sampled_from(sorted(self.running)))
        known = execution in self.session._jobs
        del self.running[execution]
        if known:
            self.stuck.add(execution)
        self.follow(self.session.job_abandoned(execution, OUTCOMES[1], self.driver.now))

    @precondition(lambda self: self.stuck)
    @rule()
    def abandoned_code_returns(self) -> None:
        execution = self.stuck.pop()
        self.follow(self.session.code_returned(execution, self.driver.now))

    @precondition(lambda self: self.reports)
    @rule(data=st.data(), by_id=st.booleans(), fails=st.booleans())
    def a_report_is_answered(self, data: st.DataObject, by_id: bool, fails: bool) -> None:
        message_id = data.draw(st.sampled_from(sorted(self.reports)))
        report = self.reports[message_id]
        if fails:
            error = frames.ProtocolError(code="unknown_job", message="no")
            self.deliver(frames.Error(message_id=message_id, error=error))
        else:
            self.deliver(frames.ReportAck(message_id=message_id if by_id else None, job_id=report.job_id))

    @rule(number=st.integers(1, 20), lost=st.booleans(), by_heartbeat=st.booleans())
    def a_cancel_arrives(self, number: int, lost: bool, by_heartbeat: bool) -> None:
        reason = "lease_lost" if lost else "operator"
        job_id = f"job-{number}"
        if by_heartbeat:
            cancel = frames.CancelDirective(job_id=job_id, reason=reason)
            self.deliver(frames.HeartbeatAck(job_id=job_id, cancel=cancel))
        else:
            self.deliver(frames.JobCancel(job_id=job_id, reason=reason))

    @precondition(lambda self: self.sent_frames)
    @rule(data=st.data())
    def an_old_frame_is_repeated(self, data: st.DataObject) -> None:
        frame = data.draw(st.sampled_from(self.sent_frames[-10:]))
        if not isinstance(frame, frames.Claimed):
            self.deliver(frame)

    @rule(frame=st.sampled_from([frames.WorkAvailable(), frames.Keepalive(), frames.DrainingAck()]))
    def something_else_arrives(self, frame: frames.FromServer) -> None:
        self.deliver(frame)

    @precondition(lambda self: self.session.state in LIVE)
    @rule()
    def garbage_arrives(self) -> None:
        claim = self.open_claims.pop() if self.open_claims else None
        self.follow(self.session.garbage_received("bad", claim, self.driver.now))

    @rule()
    def the_machine_was_suspended(self) -> None:
        self.follow(self.session.suspended(self.driver.now))

    @rule(server=st.booleans(), seldom=st.integers(0, 9))
    def a_drain_is_asked_for(self, server: bool, seldom: int) -> None:
        if seldom:
            return
        if server:
            self.deliver(frames.Drain())
        elif not self.ended:
            self.follow(self.session.drain(30.0, "asked to", self.driver.now))

    # --- what holds -------------------------------------------------------------------------------------------------

    @invariant()
    def never_more_jobs_than_slots(self) -> None:
        assert len(self.session._jobs) + len(self.stuck) <= CONCURRENCY
        assert sum(job.action == "rare" for job in self.session._jobs.values()) <= 1

    @invariant()
    def whatever_the_server_does_this_end_owes_nothing(self) -> None:
        """Its supervisor would take the process for one that stands still, and end it."""
        assert self.session.state is State.ENDED or self.session.stalled_for(self.driver.now) == 0.0

    @invariant()
    def the_journal_and_the_session_agree(self) -> None:
        claimed, reported = self.session.outstanding()
        expected = {job.lease_token: "claimed" for job in claimed}
        expected |= {report.lease_token: "reported" for report in reported}
        assert len(expected) == len(claimed) + len(reported), "one lease is owed twice"
        assert expected == self.owed

    @invariant()
    def every_running_job_is_in_hand_or_was_cut_off(self) -> None:
        in_hand = set(self.session._jobs)
        assert in_hand <= set(self.running)
        assert self.session.counts["cut_off"] or self.ended or in_hand == set(self.running)

    @invariant()
    def slots_are_counted_right(self) -> None:
        holding = sum(kept.slot_until != float("-inf") for kept in self.session._kept.values())
        assert self.session._slots_kept == holding
        assert set(self.session._stuck) == self.stuck

    @invariant()
    def there_is_always_a_next_deadline(self) -> None:
        waits_for_shell = self.session.state is State.CONNECTING
        assert self.ended or waits_for_shell or self.session.next_deadline() < float("inf")


SessionUnderRandomEvents.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestSessionUnderRandomEvents = SessionUnderRandomEvents.TestCase
