"""The server's end of one worker socket, without the socket: frames and answers in, actions out.

A transport owns the bytes, the clock and the store. For every frame, answer, timer and close it calls the method of
that name, and performs the actions that come back, in order. An action with a `question` is answered exactly once, by
`answered(question, result, now)` or by `refused(question, error, now)`, also after the socket is gone. `now` is the
transport's monotonic clock in seconds. Section names are those of the worker socket's contract.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from control_plane.domain.model import Dialect, Job, Selector, Session
from control_plane.domain.selection import Kind, Routed, admits, kind_of
from control_plane.domain.store import (
    CancelRequested,
    ClaimOrder,
    HeartbeatOutcome,
    JobClaimable,
    Lease,
    LeaseTerms,
    ReportOutcome,
    SessionContested,
    SessionTaken,
)
from control_plane.domain.times import rfc3339
from control_plane.errors import StoreUnavailable
from control_plane.keys import hash_secret
from wire import frames
from wire.codec import RemoteFrameError
from wire.verdicts import OVER_CAPACITY

PING_TIMEOUT = 2.0
"""Seconds that the owner of an identity has to answer a ping before another process may take the identity over."""

HAND_BACK_PAUSE = 1.0
"""Seconds for which a job is not offered to the session that handed it back."""

REMEMBERED_ANSWERS = 256
"""How many answers are kept per session token, to be given again when a message id is repeated."""

REMEMBERED_CLAIMS = 4
"""How many of them may carry jobs, which may be large."""

CLAIM_POLL = 5.0
"""Seconds after which an open claim asks the store again, whatever the hints said."""

MOST_JOBS = 256
"""The largest number of jobs that one claim leases; a worker with more free slots claims again."""

RETRY_PAUSE = 1.0
"""Seconds after which an open claim asks again when the store was away, or a worker that does not claim is hinted."""

MOST_NAMES_TEXT = 65_536
"""Characters of all names that a worker gives itself, its queues, its actions and its models."""

MOST_ERROR_TEXT = 500
"""Characters of what is wrong with a frame that its sender is told."""

POLICY_VIOLATION = 1008
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013
REPLACED = 4000
"""Close code for a socket whose session, or whose identity, has a newer socket."""

_decoder = msgspec.json.Decoder(dict[str, Any])

_LATER_ORIGINS = {"automation_action_step": "loop_action_step"}
"""How the loops and org dialects say it."""


class Action(Struct, frozen=True, kw_only=True):
    """Base of what a transport is asked to do."""


class Send(Action, frozen=True):
    """Encode this frame and write it."""

    frame: frames.FromServer


class Close(Action, frozen=True):
    """Close this socket, after what was sent before."""

    code: int
    reason: str


class ClosePeer(Action, frozen=True):
    """Close the socket of another connection."""

    connection: "Connection"
    code: int
    reason: str


class TakeDelta(Action, frozen=True):
    """A piece of what a generation says. Whether its lease holds the job is for the transport to find out."""

    project_id: str
    job_id: str
    lease_token: str
    sequence: int
    delta: dict[str, Any]


class Question(Action, frozen=True):
    """Base of the actions that are answered."""

    question: int


class PingPeer(Question, frozen=True):
    """Ping the socket of another connection; answer True if a pong (or any frame) came within `timeout` seconds, False
    if none came or that socket is gone."""

    connection: "Connection"
    timeout: float = PING_TIMEOUT


class StoreContest(Question, frozen=True):
    """`store.contest(project_id, worker_instance_id)`; answer its result."""

    project_id: str
    worker_instance_id: str


class AnswerContest(Question, frozen=True):
    """Ping this very socket, as in PingPeer, and give what came of it to `store.answer_contest(contest_id, alive=...)`;
    answer None."""

    contest_id: str
    timeout: float = PING_TIMEOUT


class StoreFindSession(Question, frozen=True):
    """`store.session_by_token(project_id, token_hash)`; answer its result."""

    project_id: str
    token_hash: bytes


class StoreRegister(Question, frozen=True):
    """`store.register_session(session)`; answer the Session. The store sets id (when empty) and times."""

    session: Session


class StoreUpdateSession(Question, frozen=True):
    """`store.update_session(session_id, ...)`; answer None."""

    session_id: str
    draining: bool | None = None
    ended: bool | None = None
    selector: Selector | None = None


class StoreClaim(Question, frozen=True):
    """`store.claim(order)`; answer the list of Lease."""

    order: ClaimOrder


class StoreHeartbeat(Question, frozen=True):
    """`store.heartbeat(project_id, job_id, lease_token)`; answer the HeartbeatOutcome."""

    project_id: str
    job_id: str
    lease_token: str


class StoreReports(Question, frozen=True):
    """`store.reports(project_id, reports)`; answer its list of ReportOutcome."""

    project_id: str
    reports: list[frames.Report]


class Peer(Struct, frozen=True, kw_only=True):
    """What the upgrade request proved."""

    project_id: str
    dialect: Dialect
    api_key_id: str | None = None


Key = tuple[type[Struct], str | None]
"""What a repeated frame is known by: the kind of its answer and its message id. Ids of another kind are other ids."""

_ANSWERS: dict[type[Struct], type[Struct]] = {
    frames.Claim: frames.Claimed,
    frames.Heartbeat: frames.HeartbeatAck,
    frames.Report: frames.ReportAck,
    frames.GenerationDelta: frames.GenerationDeltaAck,
    frames.Draining: frames.DrainingAck,
}


class Memory:
    """What outlives a socket of a session: answers already given, and jobs handed back a moment ago (the times until
    which they are not offered, by job id)."""

    def __init__(self) -> None:
        self.answers: OrderedDict[Key, list[frames.FromServer]] = OrderedDict()
        self.excluded: dict[str, float] = {}
        self._claims: deque[tuple[Key, int]] = deque()
        """The answers with jobs, and the bytes of these jobs' specs."""

    @property
    def bytes(self) -> int:
        """Of the specs in the answers."""
        return sum(size for _, size in self._claims)

    def remember(self, key: Key, answer: list[frames.FromServer]) -> None:
        """Keep an answer; the oldest beyond REMEMBERED_ANSWERS is forgotten, and of those with jobs, which may be
        large, the oldest beyond REMEMBERED_CLAIMS."""
        self.answers[key] = answer
        if len(self.answers) > REMEMBERED_ANSWERS:
            self.answers.popitem(last=False)
        last = answer[-1]
        if isinstance(last, frames.Claimed) and last.jobs:
            self._claims.append((key, sum(_size(job.spec) for job in last.jobs)))
            if len(self._claims) > REMEMBERED_CLAIMS:
                oldest, _ = self._claims.popleft()
                self.answers.pop(oldest, None)


def _size(spec: Any) -> int:
    return memoryview(spec if isinstance(spec, msgspec.Raw) else msgspec.json.encode(spec)).nbytes


class Registry(Protocol):
    """What a connection asks of the process that it lives in (control_plane.hub.Hub)."""

    terms: LeaseTerms
    replicated: bool
    new_session_token: Callable[[], str]
    new_lease_tokens: Callable[[int], list[str]]

    def owner(self, project_id: str, worker_instance_id: str) -> "Connection | None":
        """The connection that owns the identity now."""

    def take(self, connection: "Connection", worker_instance_id: str) -> None:
        """Make the connection the identity's owner."""

    def release(self, connection: "Connection") -> None:
        """The connection owns no identity any more."""

    def adopt(self, connection: "Connection", session_id: str) -> "tuple[Memory, Connection | None]":
        """The connection carries the session from now on: the session's memory, and the connection that carried it."""

    def disconnected(self, connection: "Connection") -> bool:
        """The connection is gone; True if its session is without a connection now."""


class _Claim:
    """One jobs.claim that is not answered yet. `promised`: jobs of which the session was woken since it last asked;
    `early`: those among them that were still being stored then, by their kinds. `lease_tokens`: what it was last asked
    with, as good as new while it finds nothing."""

    def __init__(self, message_id: str | None, selector: Selector, slots: int, until: float) -> None:
        self.message_id = message_id
        self.selector = selector
        self.slots = slots
        self.until = until
        self.poll_at = until
        self.question: int | None = None
        self.ask_again = False
        self.promised = 0
        self.early: dict[Kind, int] = {}
        self.lease_tokens: list[str] = []

    def forget_promises(self) -> None:
        """It was asked for, and has an answer."""
        self.promised = 0
        self.early = {}


class Connection:
    """One accepted worker socket, from the upgrade to its close. Made by Hub.connect.

    `session` is set once the worker has registered, `last_seen` whenever it gives a sign of life.
    """

    def __init__(self, registry: Registry, peer: Peer, now: float) -> None:
        self.peer = peer
        self.session: Session | None = None
        self.last_seen = now
        self.draining = False
        self._registry = registry
        self._cadence = registry.terms.heartbeat_cadence
        self._lease = frames.Lease(
            lease_duration_seconds=_whole(registry.terms.lease_duration),
            heartbeat_cadence_seconds=_whole(self._cadence),
        )
        self._phase: Literal["new", "registering", "registered", "refused", "gone"] = "new"
        self._questions = 0
        self._open: dict[int, Callable[[Any, float], list[Action]]] = {}
        self._failures: dict[int, Callable[[Exception, float], list[Action]]] = {}
        self._registration: frames.Register | None = None
        self._known: Session | None = None
        self._token = ""
        self._memory = Memory()
        self._unanswered: set[Key] = set()
        self._claim: _Claim | None = None
        self._free_slots = 0
        self._hint_at = 0.0

    # --- what a transport calls

    def receive(self, received: Sequence[frames.FromWorker], now: float) -> list[Action]:
        """The frames of one read. Their reports become one question, which costs little more than one report's."""
        self.last_seen = now
        actions: list[Action] = []
        reports: list[frames.Report] = []
        place = 0
        for frame in received:
            if type(frame) is frames.Report and self._phase == "registered":
                if frame.message_id is not None:
                    key = (frames.ReportAck, frame.message_id)
                    if key in self._memory.answers or key in self._unanswered:
                        actions += self._known_answer(frame) or ()
                        continue
                    self._unanswered.add(key)
                if not reports:
                    place = len(actions)
                reports.append(frame)
            else:
                actions += self._receive(frame, now)
        if reports:
            actions.insert(place, self._report(reports, now))
        return actions

    def _receive(self, frame: frames.FromWorker, now: float) -> list[Action]:
        if self._phase in ("refused", "gone") or isinstance(frame, frames.Keepalive):
            return []
        if self._phase != "registered":
            if isinstance(frame, frames.Register) and self._phase == "new":
                return self._register(frame)
            return [_error("not_registered", "the first frame of a connection is worker.register", frame.message_id)]
        answer = self._known_answer(frame)
        return answer if answer is not None else self._take(frame, now)

    def _known_answer(self, frame: frames.Frame) -> list[Action] | None:
        """What a repeated frame gets: its answer once more, nothing if that is still to come; None: it is new."""
        if frame.message_id is None:
            return None
        key = _key(frame)
        answer = self._memory.answers.get(key)
        if answer is not None:
            return [Send(frame=each) for each in answer]
        return [] if key in self._unanswered else None

    def receive_error(self, error: RemoteFrameError, now: float) -> list[Action]:
        """What the worker sent is no frame: it is told, and the conversation goes on."""
        self.last_seen = now
        if self._phase in ("refused", "gone"):
            return []
        return [_error("invalid_frame", str(error)[:MOST_ERROR_TEXT], error.message_id)]

    def answered(self, question: int, result: Any, now: float) -> list[Action]:
        """The result of a Question."""
        self._failures.pop(question, None)
        return self._open.pop(question)(result, now)

    def refused(self, question: int, error: Exception, now: float) -> list[Action]:
        """A Question ended in a ControlPlaneError."""
        self._open.pop(question)
        failure = self._failures.pop(question, None)
        return failure(error, now) if failure is not None else []

    def seen(self, now: float) -> None:
        """A ping or pong of the worker: it lives."""
        self.last_seen = now

    def next_deadline(self) -> float | None:
        """When `tick` is to be called at the latest; changes with every other call."""
        if self._phase != "registered":
            return None
        deadlines = list(self._memory.excluded.values())
        claim = self._claim
        if claim is not None and claim.question is None:
            deadlines += (claim.until, claim.poll_at)
        if self._may_be_hinted():
            deadlines.append(self._hint_at)
        return min(deadlines, default=None)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        if self._phase != "registered":
            return []
        actions: list[Action] = []
        claim = self._claim
        if claim is not None and claim.question is None:
            if now >= claim.until:
                actions += self._answer_claim(claim, [], now)
            elif now >= claim.poll_at:
                actions += self._ask(claim, now)
        over = [job_id for job_id, until in self._memory.excluded.items() if now >= until]
        for job_id in over:
            del self._memory.excluded[job_id]
        if over and self._claim is not None:
            actions += self.wake(0, now)
        elif self._may_be_hinted() and (over or now >= self._hint_at):
            actions += self._hint(now)
        return actions

    def closed(self, now: float) -> list[Action]:
        """The socket is gone. Questions that are still open are to be answered nevertheless; of what comes back then,
        Send and Close are to be dropped."""
        self.last_seen = now
        self._phase = "gone"
        self._claim = None
        without_connection = self._registry.disconnected(self)
        if self.session is not None and self.draining and without_connection:
            # It said that it would go: its row need not wait for the sweeper.
            question = self._question(_no_actions)
            return [StoreUpdateSession(question=question, session_id=self.session.id, ended=True)]
        return []

    # --- what the hub calls

    def cancel(self, fact: CancelRequested) -> list[Action]:
        """A job that this session holds is to be cancelled."""
        requested_at = rfc3339(fact.requested_at)
        return [Send(frame=frames.JobCancel(job_id=fact.job_id, reason=fact.reason, requested_at=requested_at))]

    def disown(self) -> list[Action]:
        """The worker's API key has ended (contract, "Frames": `invalid_actor` ends the worker)."""
        if self._phase in ("refused", "gone"):
            return []
        self._phase = "refused"
        self._claim = None
        error = _error(frames.INVALID_ACTOR, "this API key has expired or was revoked", None)
        return [error, Close(code=POLICY_VIOLATION, reason=frames.INVALID_ACTOR)]

    def drain(self, now: float) -> list[Action]:
        """An operator asked the worker to drain (contract, "Obligations of a server")."""
        if self.session is None:
            return []
        self.session = replace(self.session, drain_requested=True)
        return [Send(frame=frames.Drain()), *self._end_claim(now)]

    def drain_lifted(self) -> list[Action]:
        """No drain stands any more. A worker that drains does so for good: it has to register anew."""
        if self.session is None or not self.session.drain_requested:
            return []
        self.session = replace(self.session, drain_requested=False, draining=False)
        self.draining = False
        return [Close(code=SERVICE_RESTART, reason="the drain is lifted: register again")]

    def taken(self, fact: SessionTaken) -> list[Action]:
        """Another process has the session's worker, or another worker its identity."""
        if self.session is None or self.session.last_seen_at >= fact.before:
            return []  # it has come back here since
        self._registry.release(self)
        return [Close(code=REPLACED, reason="the worker, or its identity, is connected elsewhere")]

    def contested(self, fact: SessionContested) -> list[Action]:
        """Another process asks whether this socket answers."""
        return [AnswerContest(question=self._question(_no_actions), contest_id=fact.contest_id)]

    @property
    def waits(self) -> bool:
        """Whether there is an open claim."""
        return self._claim is not None

    def room_for(self, job: Routed) -> int:
        """How many jobs like this the open claim could still take."""
        claim = self._claim
        if claim is None or not admits(claim.selector, job):
            return 0
        if isinstance(job, JobClaimable) and job.job_id in self._memory.excluded:
            return 0
        return max(0, min(claim.slots, MOST_JOBS) - claim.promised)

    def wake_early(self, job: Routed, promised: int, now: float) -> list[Action]:
        """Ask for the open claim together with so many jobs like this for it that are being stored. Whether they will
        be is known when they are: nothing may depend on it."""
        if self._claim is not None:
            kind = kind_of(job)
            self._claim.early[kind] = self._claim.early.get(kind, 0) + promised
        return self.wake(promised, now, with_new=True)

    def came(self, job: JobClaimable, count: int) -> int:
        """So many jobs like this are stored: for how many of them the open claim is being asked for already. Should it
        get others, these wait for the next poll of another claim, as always when a claim gets what it was not promised.
        """
        claim = self._claim
        if not count or claim is None or not claim.early:
            return 0
        kind = kind_of(job)
        known = min(claim.early.get(kind, 0), count)
        if not known:
            return 0
        claim.early[kind] -= known
        # It may have been asked for too early, and finds nothing then.
        claim.ask_again = True
        return known

    def wake(self, promised: int, now: float, *, with_new: bool = False) -> list[Action]:
        """Ask for the open claim again: there should be so many jobs for it. `with_new`: see ClaimOrder."""
        claim = self._claim
        if claim is None:
            return []
        claim.promised += promised
        if claim.question is not None:
            claim.ask_again = True
            return []
        return self._ask(claim, now, with_new=with_new)

    def hint(self, job: JobClaimable, now: float) -> list[Action]:
        """Tell a worker with free slots and no open claim."""
        if self.session is None or not self._may_be_hinted():
            return []
        if job.job_id in self._memory.excluded or not admits(self.session.selector, job):
            return []
        return self._hint(now)

    # --- registration: section "Identity" of the contract

    def _register(self, frame: frames.Register) -> list[Action]:
        texts = (frame.worker_instance_id, frame.name, frame.version, frame.environment_id)
        texts += (*(frame.capabilities or ()), *_names(frame))
        if (refused := _unfit(frame, texts)) is not None:
            return [refused]
        self._phase = "registering"
        self._registration = frame
        token = frame.worker_session_token
        if not token:
            return self._contest(frame)

        def found(session: Session | None, now: float) -> list[Action]:
            del now
            if session is not None and session.worker_instance_id == frame.worker_instance_id:
                if session.superseded:
                    return self._refuse_identity("another process has taken over this worker_instance_id")
                self._known = session
            # A token that is unknown here (another project's, or its row was retired) is as good as none.
            return self._contest(frame)

        question = self._question(found, self._not_now)
        return [
            StoreFindSession(question=question, project_id=self.peer.project_id, token_hash=hash_secret(token)),
        ]

    def _contest(self, frame: frames.Register, *, elsewhere_asked: bool = False) -> list[Action]:
        """Register, unless another live connection owns the identity: then that one is pinged first."""
        if self._phase == "gone":
            return []
        known = self._known
        if known is not None and known.draining:
            # A draining session owns nothing, and contests nothing.
            return self._store_session(frame)
        owner = self._registry.owner(self.peer.project_id, frame.worker_instance_id)
        if owner is None and known is None and self._registry.replicated and not elsewhere_asked:
            return self._contest_elsewhere(frame)
        if owner is None or (known is not None and owner.session is not None and owner.session.id == known.id):
            self._registry.take(self, frame.worker_instance_id)
            return self._store_session(frame)

        def ponged(alive: bool, now: float) -> list[Action]:  # noqa: FBT001 - the answer of a question
            del now
            if alive:
                return self._refuse_identity("another live worker is connected under this worker_instance_id")
            self._registry.release(owner)
            closing = ClosePeer(connection=owner, code=REPLACED, reason="another process took over the identity")
            # Another rival may own it by now: then that one is asked.
            return [closing, *self._contest(frame, elsewhere_asked=elsewhere_asked)]

        return [PingPeer(question=self._question(ponged, self._not_now), connection=owner)]

    def _contest_elsewhere(self, frame: frames.Register) -> list[Action]:
        def asked(alive: bool, now: float) -> list[Action]:  # noqa: FBT001 - the answer of a question
            del now
            if alive:
                return self._refuse_identity("another live worker is connected under this worker_instance_id")
            return self._contest(frame, elsewhere_asked=True)

        return [
            StoreContest(
                question=self._question(asked, self._not_now),
                project_id=self.peer.project_id,
                worker_instance_id=frame.worker_instance_id,
            )
        ]

    def _store_session(self, frame: frames.Register) -> list[Action]:
        known = self._known
        self._token = (frame.worker_session_token or "") if known is not None else self._registry.new_session_token()
        session = Session(
            id=known.id if known is not None else "",
            project_id=self.peer.project_id,
            worker_instance_id=frame.worker_instance_id,
            token_hash=hash_secret(self._token),
            concurrency_limit=frame.concurrency_limit or 1,
            selector=_selector(Selector(environment_id=frame.environment_id), frame),
            created_at=0,
            last_seen_at=0,
            name=frame.name,
            version=frame.version,
            capabilities=tuple(frame.capabilities or ()),
            api_key_id=self.peer.api_key_id,
            draining=known.draining if known is not None else False,
        )
        question = self._question(self._registered, self._not_registered)
        return [StoreRegister(question=question, session=session)]

    def _registered(self, session: Session, now: float) -> list[Action]:
        if self._phase == "gone":
            return []
        frame = self._registration
        self.session = session
        self.draining = session.draining
        self._phase = "registered"
        self._memory, predecessor = self._registry.adopt(self, session.id)
        self._free_slots = session.concurrency_limit
        if frame is not None and frame.available_slots is not None:
            self._free_slots = frame.available_slots
        self._hint_at = now + min(RETRY_PAUSE, self._cadence)
        answer = frames.Registered(
            message_id=frame.message_id if frame is not None else None,
            worker_session_token=self._token,
            lease=self._lease,
        )
        actions: list[Action] = [Send(frame=answer)]
        if predecessor is not None:
            actions.append(ClosePeer(connection=predecessor, code=REPLACED, reason="the session has a newer socket"))
        if session.drain_requested:
            actions.append(Send(frame=frames.Drain()))
        return actions

    def _not_registered(self, error: Exception, now: float) -> list[Action]:
        self._registry.release(self)
        if isinstance(error, StoreUnavailable):
            return self._not_now(error, now)
        return self._refuse_identity("another process has taken over this worker_instance_id")

    def _not_now(self, error: Exception, now: float) -> list[Action]:
        del error, now
        self._phase = "refused"
        text = "the control plane cannot register workers now; try again later"
        return [self._registration_error("store_unavailable", text), Close(code=TRY_AGAIN_LATER, reason=text)]

    def _refuse_identity(self, text: str) -> list[Action]:
        self._phase = "refused"
        refusal = self._registration_error(frames.WORKER_INSTANCE_CONFLICT, text)
        return [refusal, Close(code=POLICY_VIOLATION, reason=frames.WORKER_INSTANCE_CONFLICT)]

    def _registration_error(self, code: str, text: str) -> Action:
        return _error(code, text, self._registration.message_id if self._registration is not None else None)

    # --- frames of a registered worker

    def _take(self, frame: frames.FromWorker, now: float) -> list[Action]:
        match frame:
            case frames.Claim():
                return self._claimed(frame, now)
            case frames.Heartbeat():
                return self._heartbeat(frame)
            case frames.GenerationDelta():
                answer = frames.GenerationDeltaAck(
                    message_id=frame.message_id, job_id=frame.job_id, received_sequence=frame.sequence
                )
                taken = TakeDelta(
                    project_id=self.peer.project_id,
                    job_id=frame.job_id,
                    lease_token=frame.lease_token,
                    sequence=frame.sequence,
                    delta=frame.delta,
                )
                return [taken, Send(frame=answer)]
            case frames.Ready():
                return self._ready(frame, now)
            case frames.Draining():
                return self._drain_begun(frame, now)
            case _:
                return [_error("already_registered", "this connection has registered already", frame.message_id)]

    def _claimed(self, frame: frames.Claim, now: float) -> list[Action]:
        if (refused := _unfit(frame, _names(frame))) is not None:
            return [refused]
        session = self._registered_session()
        actions = self._end_claim(now)
        slots = frame.available_slots if frame.available_slots is not None else max(1, self._free_slots)
        self._free_slots = slots
        claim = _Claim(frame.message_id, _selector(session.selector, frame), slots, now + self._cadence)
        if slots == 0 or self.draining or session.drain_requested:
            return [*actions, *self._answer_claim(claim, [], now)]
        self._claim = claim
        self._await_answer(frame)
        return [*actions, *self._ask(claim, now)]

    def _ask(self, claim: _Claim, now: float, *, with_new: bool = False) -> list[Action]:
        session = self._registered_session()
        claim.ask_again = False
        claim.poll_at = min(claim.until, now + min(CLAIM_POLL, self._cadence / 2))
        limit = min(claim.slots, MOST_JOBS)
        if not claim.lease_tokens:
            claim.lease_tokens = self._registry.new_lease_tokens(limit)

        def leased(leases: list[Lease], now: float) -> list[Action]:
            claim.question = None
            claim.forget_promises()
            if self._phase in ("refused", "gone"):
                return self._hand_back(leases)
            current = claim is self._claim
            if leases or not current or now >= claim.until:
                actions = self._answer_claim(claim, leases, now)
                # What came meanwhile was promised to this claim, and to nobody else.
                return [*actions, *self._hint(now)] if claim.ask_again and self._may_be_hinted() else actions
            return self._ask(claim, now) if claim.ask_again else []

        def failed(error: Exception, now: float) -> list[Action]:
            del error
            claim.question = None
            claim.forget_promises()
            claim.lease_tokens = []  # what became of them is not known
            if self._phase == "gone":
                return []
            if claim is not self._claim or now >= claim.until:
                return self._answer_claim(claim, [], now)
            claim.poll_at = min(claim.until, now + RETRY_PAUSE)
            return []

        claim.question = self._question(leased, failed)
        order = ClaimOrder(
            project_id=session.project_id,
            session_id=session.id,
            worker_instance_id=session.worker_instance_id,
            selector=claim.selector,
            limit=limit,
            lease_tokens=claim.lease_tokens,
            excluded=tuple(self._memory.excluded),
            with_new=with_new,
        )
        return [StoreClaim(question=claim.question, order=order)]

    def _answer_claim(self, claim: _Claim, leases: Sequence[Lease], now: float) -> list[Action]:
        if claim is self._claim:
            self._claim = None
        self._free_slots = max(0, self._free_slots - len(leases))
        self._hint_at = now + self._cadence
        jobs = [self._job_frame(lease) for lease in leases]
        return self._answer(claim.message_id, [frames.Claimed(message_id=claim.message_id, jobs=jobs)])

    def _end_claim(self, now: float) -> list[Action]:
        """Answer the open claim without jobs; one whose question is out is answered when that is."""
        claim, self._claim = self._claim, None
        return self._answer_claim(claim, [], now) if claim is not None and claim.question is None else []

    def _hand_back(self, leases: Sequence[Lease]) -> list[Action]:
        """The socket, or its key, went before the jobs could be sent: nobody has begun them."""
        if not leases:
            return []
        reports = [
            frames.Report(
                job_id=lease.job.id,
                lease_token=lease.lease_token,
                status="failed",
                error_type=OVER_CAPACITY,
                error_message="the worker's connection was lost before the job could be sent",
            )
            for lease in leases
        ]
        return [
            StoreReports(question=self._question(_no_actions), project_id=leases[0].job.project_id, reports=reports)
        ]

    def _heartbeat(self, frame: frames.Heartbeat) -> list[Action]:
        def beaten(outcome: HeartbeatOutcome, now: float) -> list[Action]:
            del now
            cancel = _directive(frame.job_id, outcome)
            answer = frames.HeartbeatAck(message_id=frame.message_id, job_id=frame.job_id, cancel=cancel)
            return self._answer(frame.message_id, [answer])

        question = self._question(beaten, self._unanswerable(frame))
        return [
            StoreHeartbeat(
                question=question,
                project_id=self.peer.project_id,
                job_id=frame.job_id,
                lease_token=frame.lease_token,
            )
        ]

    def _report(self, reports: list[frames.Report], now: float) -> Action:
        for frame in reports:
            if frame.error_type == OVER_CAPACITY:
                self._memory.excluded[frame.job_id] = now + HAND_BACK_PAUSE

        def taken(outcomes: list[ReportOutcome], now: float) -> list[Action]:
            actions: list[Action] = []
            told = False
            freed = 0
            for frame, outcome in zip(reports, outcomes, strict=True):
                actions += self._answer(frame.message_id, _acknowledgement(frame, outcome))
                if outcome.verdict == "unknown":
                    self._memory.excluded.pop(frame.job_id, None)
                told = told or (outcome.verdict != "unknown" and frame.job_id not in self._memory.excluded)
                freed += outcome.verdict not in ("duplicate", "unknown")
            if self.session is not None:
                self._free_slots = min(self.session.concurrency_limit, self._free_slots + freed)
            # The public Python workers claim again only when they are hinted, also for the slots that free now.
            if told and self._may_be_hinted():
                actions += self._hint(now)
            return actions

        def forget(error: Exception, now: float) -> list[Action]:
            # The store is away: no answer, since an error would settle the reports; the worker asks again.
            del error, now
            self._unanswered.difference_update([_key(frame) for frame in reports])
            return []

        question = self._question(taken, forget)
        return StoreReports(question=question, project_id=self.peer.project_id, reports=reports)

    def _unanswerable(self, frame: frames.Frame) -> Callable[[Exception, float], list[Action]]:
        """The store is away: no answer, since an error would settle the report; the worker asks again."""
        self._await_answer(frame)

        def forget(error: Exception, now: float) -> list[Action]:
            del error, now
            self._unanswered.discard(_key(frame))
            return []

        return forget

    def _ready(self, frame: frames.Ready, now: float) -> list[Action]:
        if (refused := _unfit(frame, _names(frame))) is not None:
            return [refused]
        session = self._registered_session()
        actions: list[Action] = []
        selector = _selector(session.selector, frame)
        if selector != session.selector:
            self.session = replace(session, selector=selector)
            question = self._question(_no_actions)
            actions.append(StoreUpdateSession(question=question, session_id=session.id, selector=selector))
        if frame.available_slots is not None:
            self._free_slots = frame.available_slots
        return actions + self._hint(now) if self._may_be_hinted() else actions

    def _drain_begun(self, frame: frames.Draining, now: float) -> list[Action]:
        session = self._registered_session()
        self.draining = True
        self.session = replace(session, draining=True)
        self._registry.release(self)
        actions = self._end_claim(now)

        def recorded(_result: Any, _now: float) -> list[Action]:
            return self._answer(frame.message_id, [frames.DrainingAck(message_id=frame.message_id)])

        question = self._question(recorded, self._unanswerable(frame))
        return [*actions, StoreUpdateSession(question=question, session_id=session.id, draining=True)]

    # --- small things

    def _registered_session(self) -> Session:
        if self.session is None:
            raise AssertionError("the worker has not registered")
        return self.session

    def _question(
        self,
        answered: Callable[[Any, float], list[Action]],
        refused: Callable[[Exception, float], list[Action]] | None = None,
    ) -> int:
        self._questions += 1
        self._open[self._questions] = answered
        if refused is not None:
            self._failures[self._questions] = refused
        return self._questions

    def _await_answer(self, frame: frames.Frame) -> None:
        if frame.message_id is not None:
            self._unanswered.add(_key(frame))

    def _answer(self, message_id: str | None, answer: list[frames.FromServer]) -> list[Action]:
        if message_id is not None:
            key = (type(answer[-1]), message_id)
            self._unanswered.discard(key)
            self._memory.remember(key, answer)
        return [Send(frame=frame) for frame in answer]

    def _may_be_hinted(self) -> bool:
        return (
            self._phase == "registered"
            and self._claim is None
            and self._free_slots > 0
            and not self.draining
            and self.session is not None
            and not self.session.drain_requested
        )

    def _hint(self, now: float) -> list[Action]:
        self._hint_at = now + self._cadence
        return [Send(frame=frames.WorkAvailable())]

    def _job_frame(self, lease: Lease) -> frames.ClaimedJob:
        job = lease.job
        dialect = self.peer.dialect
        org = dialect == "org"
        return frames.ClaimedJob(
            id=job.id,
            kind=job.kind,
            origin=job.origin if dialect == "automations" else _LATER_ORIGINS.get(job.origin, job.origin),
            executor_kind="customer_worker",
            queue=job.queue,
            spec=_spec_with_our_own(lease),
            lease_token=lease.lease_token,
            claim_attempt=job.claim_attempt,
            lease_duration_seconds=self._lease.lease_duration_seconds,
            heartbeat_cadence_seconds=self._lease.heartbeat_cadence_seconds,
            action_name=job.action_name,
            environment_id=job.environment_id,
            provider=job.provider,
            model=job.model,
            run_id=None if org else job.run_id,
            step_id=None if org else job.step_id,
        )


def _acknowledgement(report: frames.Report, outcome: ReportOutcome) -> list[frames.FromServer]:
    duplicate = True if outcome.verdict == "duplicate" else None
    ack = frames.ReportAck(message_id=report.message_id, job_id=report.job_id, duplicate=duplicate)
    if outcome.verdict != "unknown":
        return [ack]
    problem = frames.ProtocolError(code="unknown_job", message=f"there is no job {report.job_id} in this project")
    return [frames.Error(message_id=report.message_id, error=problem), ack]


def _key(frame: frames.Frame) -> Key:
    return (_ANSWERS.get(type(frame), frames.Error), frame.message_id)


_deadline_text = lru_cache(maxsize=1024)(rfc3339)
"""The jobs of one claim mostly have the same."""


def _spec_with_our_own(lease: Lease) -> Any:
    """The spec as it is stored, with `mobius` at its end: it is not read to be written again."""
    spec, own = lease.spec, _our_own(lease.job)
    if '"mobius"' in spec:
        return {**_decoder.decode(spec), "mobius": _decoder.decode(own)}
    return msgspec.Raw(f'{spec[:-1]}{"," if len(spec) > len("{}") else ""}"mobius":{own}}}'.encode())


def _our_own(job: Job) -> str:
    """What only our own worker reads (contract, "Frames": `spec.mobius`), as JSON."""
    deadline = job.execution_deadline_at
    ends = "" if deadline is None else f',"deadline_at":"{_deadline_text(deadline)}"'
    return f'{{"max_attempts":{job.max_attempts},"idempotency_key":"{job.id}"{ends}}}'


def _selector(base: Selector, frame: frames.Register | frames.Ready | frames.Claim) -> Selector:
    """What the frame says over what was known: an absent list changes nothing, an empty one means everything."""
    return Selector(
        queues=tuple(frame.queues) if frame.queues is not None else base.queues,
        action_names=tuple(frame.action_names) if frame.action_names is not None else base.action_names,
        models=tuple((model.provider, model.model) for model in frame.models)
        if frame.models is not None
        else base.models,
        environment_id=base.environment_id,
    )


def _names(frame: frames.Register | frames.Ready | frames.Claim) -> tuple[str, ...]:
    """Of the queues, actions and models."""
    models = (name for model in frame.models or () for name in (model.provider, model.model))
    return (*(frame.queues or ()), *(frame.action_names or ()), *models)


def _unfit(frame: frames.Register | frames.Ready | frames.Claim, texts: Sequence[str | None]) -> Action | None:
    """What is wrong with the texts of a frame: not every store could look for a NUL character, and whoever lists the
    sessions gets the names of all."""
    joined = "".join(text for text in texts if text is not None)
    if "\0" in joined:
        return _error("invalid_frame", "a text holds a NUL character, which no text may hold", frame.message_id)
    if len(joined) > MOST_NAMES_TEXT:
        message = f"the worker's names have {len(joined)} characters together; at most {MOST_NAMES_TEXT} may be"
        return _error("invalid_frame", message, frame.message_id)
    return None


def _directive(job_id: str, outcome: HeartbeatOutcome) -> frames.CancelDirective | None:
    if outcome.lost:
        return frames.CancelDirective(job_id=job_id, reason=frames.LEASE_LOST)
    if not outcome.cancel_requested:
        return None
    at = outcome.cancel_requested_at
    requested_at = rfc3339(at) if at is not None else None
    return frames.CancelDirective(job_id=job_id, reason=outcome.cancel_reason, requested_at=requested_at)


def _whole(seconds: float) -> int:
    return max(1, int(seconds))


def _error(code: str, text: str, message_id: str | None) -> Action:
    return Send(frame=frames.Error(message_id=message_id, error=frames.ProtocolError(code=code, message=text)))


def _no_actions(result: Any, now: float) -> list[Action]:
    del result, now
    return []
