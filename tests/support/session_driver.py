"""A worker session under a virtual clock: tells it events, records its decisions, and plays the server's answers."""

from typing import Any, TypeVar

import msgspec

from wire import frames
from worker_child.backoff import Backoff
from worker_child.decisions import Decision, Outcome, Send
from worker_child.session import ActionTerms, Session, SessionSettings

DecisionT = TypeVar("DecisionT", bound=Decision)
FrameT = TypeVar("FrameT")

DONE = Outcome(status="completed", result={"ok": True})


def claimed_job(
    number: int | str, *, action: str = "work", token: str | None = None, **fields: Any
) -> frames.ClaimedJob:
    """A job `job-<number>`, leased for 60 s with a cadence of 20 s unless `fields` say otherwise."""
    given: dict[str, Any] = {"lease_duration_seconds": 60, "heartbeat_cadence_seconds": 20, "claim_attempt": 1}
    given |= {"spec": {"parameters": {}}} | fields
    return frames.ClaimedJob(
        id=f"job-{number}",
        kind="action_execution",
        origin="automation_action_step",
        executor_kind="customer_worker",
        queue="default",
        lease_token=token or f"lease-{number}",
        action_name=action,
        **given,
    )


def model(name: str) -> frames.ModelCapability:
    """`provider/model` as a frame has it."""
    provider, _, of_it = name.partition("/")
    return frames.ModelCapability(provider=provider, model=of_it)


def claimed_generation(number: int | str, *, token: str | None = None, **fields: Any) -> frames.ClaimedJob:
    """A generation `job-<number>` with the model `m` of the provider `p`, whose request is in `fields`' `spec`."""
    given: dict[str, Any] = {"provider": "p", "model": "m", "spec": {"request": {}}} | fields
    return msgspec.structs.replace(claimed_job(number, token=token), kind="llm_generation", action_name=None, **given)


class SessionDriver:
    """Drives one session. `decided` is what the last event led to, `history` everything so far."""

    def __init__(
        self,
        *,
        concurrency: int = 1,
        actions: dict[str, ActionTerms] | None = None,
        jitter: float = 1.0,
        leftover: list[frames.Report] | None = None,
        identity_conflict: float = 180.0,
        address: str = "",
        models: tuple[str, ...] = (),
        key_file: bool = False,
    ) -> None:
        self.now = 1000.0
        self.settings = SessionSettings(
            worker_instance_id="rig-1",
            concurrency=concurrency,
            queues=["default"],
            actions={"work": ActionTerms()} if actions is None else actions,
            models=tuple(model(name) for name in models),
            id_prefix="m",
            identity_conflict=identity_conflict,
            address=address,
            key_file=key_file,
        )
        self.session = Session(self.settings, Backoff(lambda: jitter), self.now, leftover or [])
        self.decided: list[Decision] = []
        self.history: list[Decision] = []

    def took(self, decisions: list[Decision]) -> "SessionDriver":
        """Records what an event led to."""
        self.decided = decisions
        self.history += decisions
        return self

    def of(self, kind: type[DecisionT]) -> list[DecisionT]:
        """The last event's decisions of one kind."""
        return [decision for decision in self.decided if isinstance(decision, kind)]

    def sent(self, kind: type[FrameT]) -> list[FrameT]:
        """The frames of one kind that the last event sent."""
        return [send.frame for send in self.of(Send) if isinstance(send.frame, kind)]

    def receive(self, frame: frames.FromServer) -> "SessionDriver":
        """The server sends a frame."""
        self.session.last_read = self.now
        return self.took(self.session.frames_received([frame], self.now))

    def wait(self, seconds: float) -> "SessionDriver":
        """Time passes; `tick` is called at every deadline on the way, and something is read as long as it does."""
        end, decided = self.now + seconds, []
        while self.session.next_deadline() <= end:
            self.now = max(self.now, self.session.next_deadline())
            self.session.last_read = self.now
            decided += self.session.tick(self.now)
        self.now = end
        return self.took(decided)

    def connect(self) -> "SessionDriver":
        """The back-off passes and the upgrade succeeds; the register frame is in `decided`."""
        self.now = max(self.now, self.session.next_deadline())
        self.took(self.session.tick(self.now))
        return self.took(self.session.connected(self.now))

    def register(self, *, lease: int = 60, cadence: int = 20, token: str = "session-1") -> "SessionDriver":
        """Connects, and the server accepts the registration."""
        self.connect()
        terms = frames.Lease(lease_duration_seconds=lease, heartbeat_cadence_seconds=cadence)
        return self.receive(frames.Registered(worker_session_token=token, lease=terms))

    def claim_answered(self, *jobs: frames.ClaimedJob) -> "SessionDriver":
        """The server answers the open claim."""
        return self.receive(frames.Claimed(message_id=self.last_claim().message_id, jobs=list(jobs)))

    def last_claim(self) -> frames.Claim:
        """The claim that was sent last."""
        claims = [d.frame for d in self.history if isinstance(d, Send) and isinstance(d.frame, frames.Claim)]
        return claims[-1]

    def finish(self, execution: int = 1, outcome: Outcome = DONE) -> frames.Report:
        """A job ends; the report that is sent (or, when disconnected, kept)."""
        self.took(self.session.job_finished(execution, outcome, self.now))
        return self.session.outstanding()[1][-1]

    def produce(self, *texts: str, execution: int = 1) -> list[frames.GenerationDelta]:
        """A generation produces texts; the deltas that are sent at once."""
        decided: list[Decision] = []
        for text in texts:
            decided += self.session.delta_produced(execution, {"text": text}, self.now)
        return self.took(decided).sent(frames.GenerationDelta)

    def written(self) -> list[frames.GenerationDelta]:
        """All bytes have left; the deltas that are sent now."""
        return self.took(self.session.written(self.now)).sent(frames.GenerationDelta)

    def acknowledge_delta(self, sequence: int, number: int | str = 1) -> list[frames.GenerationDelta]:
        """The server acknowledges a delta; those that are sent now."""
        ack = frames.GenerationDeltaAck(job_id=f"job-{number}", received_sequence=sequence)
        return self.receive(ack).sent(frames.GenerationDelta)

    def acknowledge(self, report: frames.Report) -> "SessionDriver":
        """The server acknowledges a report."""
        return self.receive(frames.ReportAck(message_id=report.message_id, job_id=report.job_id))

    def lose(self, reason: str = "gone") -> "SessionDriver":
        """The connection is lost."""
        return self.took(self.session.connection_lost(reason, self.now))

    def drain(self, grace: float = 30.0) -> "SessionDriver":
        """The supervisor asks for a drain."""
        return self.took(self.session.drain(grace, "asked to", self.now))

    def error(self, code: str, message_id: str | None = None) -> "SessionDriver":
        """The server sends an error."""
        return self.receive(frames.Error(message_id=message_id, error=frames.ProtocolError(code=code, message="no")))
