"""Workers and a control plane joined in memory: both ends' sessions as they are, under one virtual clock.

Between them is a network that a test may harm, below them a store in memory that follows the domain's own decisions,
above them processes with journals that may be killed. Nothing here waits, and nothing is left to chance.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, Literal

from msgspec.structs import replace

from control_plane.domain import jobs as domain
from control_plane.domain.model import TERMINAL_JOB, Job, Session
from control_plane.domain.selection import admits
from control_plane.domain.store import (
    CancelRequested,
    ClaimOrder,
    Committed,
    HeartbeatOutcome,
    JobClaimable,
    Lease,
    LeaseTerms,
    ReportOutcome,
    SessionDrainRequested,
)
from control_plane.errors import Conflict, StoreUnavailable
from control_plane.hub import Hub
from control_plane.keys import hash_secret
from control_plane.session import (
    Action,
    Close,
    ClosePeer,
    Connection,
    Peer,
    PingPeer,
    Question,
    Send,
    StoreClaim,
    StoreFindSession,
    StoreHeartbeat,
    StoreRegister,
    StoreReports,
    StoreUpdateSession,
)
from wire import codec, frames, pipe
from worker_child import decisions
from worker_child.backoff import Backoff
from worker_child.decisions import Decision, Outcome
from worker_child.session import ActionTerms, SessionSettings
from worker_child.session import Session as WorkerSession
from worker_child.suspicion import Suspect, accuse, crash_reports, poison, stays

PROJECT = "proj_1"
LEASE, CADENCE = 60.0, 20.0
PING_INTERVAL, REGISTER_TIMEOUT, CLOSE_TIMEOUT = 20.0, 10.0, 3.0
"""Those of the control plane's transport."""
RESTARTING = 1012
MOST_MESSAGES = 5_000
"""More without any time passing is a conversation that never ends."""
MOST_ROUNDS = 100
"""More deadlines without any time passing is one that nothing is done about."""

DONE = Outcome(status="completed", result={"ok": True})
FAILED = Outcome(status="failed", error_type="ValueError", error_message="no")
CANCELLED = Outcome(status="cancelled")


class MemoryStore:
    """What the sessions ask of a store, answered by the domain's decisions on jobs in a dict."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.jobs: dict[str, Job] = {}
        self.sessions: dict[str, Session] = {}
        self.facts: list[Committed] = []
        self.completions: Counter[str] = Counter()
        self.lapse_from = 0.0
        self._numbers = count(1)

    @property
    def now(self) -> int:
        """Microseconds."""
        return int(self._clock() * 1_000_000)

    def enqueue(self, action: str) -> str:
        """A new job that may be tried without end."""
        job = Job(
            id=f"job_{next(self._numbers)}",
            project_id=PROJECT,
            kind="action_execution",
            origin="automation_action_step",
            queue="default",
            status="pending",
            spec={"parameters": {}},
            created_at=self.now,
            updated_at=self.now,
            available_at=self.now,
            action_name=action,
            max_attempts=1_000_000,
            execution_timeout=1e6,
        )
        self._put(job)
        return job.id

    def cancel(self, job_id: str) -> None:
        """What a user asks for."""
        outcome = domain.cancelled(self.jobs[job_id], "somebody asked", self.now)
        if outcome.after is not None:
            self._put(outcome.after)
            if outcome.event == "cancel_requested" and outcome.after.session_id is not None:
                self.facts.append(
                    CancelRequested(
                        project_id=PROJECT,
                        job_id=job_id,
                        session_id=outcome.after.session_id,
                        reason="somebody asked",
                        requested_at=self.now,
                    )
                )

    def request_drain(self, session_id: str) -> None:
        """What an operator asks for."""
        self.sessions[session_id] = replace(self.sessions[session_id], drain_requested=True)
        self.facts.append(SessionDrainRequested(session_id=session_id))

    def sweep(self) -> None:
        """Leases that lapsed."""
        if self._clock() < self.lapse_from:
            return
        for job in list(self.jobs.values()):
            if job.status == "claimed" and (job.lease_expires_at or 0) <= self.now:
                outcome = domain.lapsed(job, 600.0, self.now)
                assert outcome.after is not None
                self._put(outcome.after)

    def answer(self, question: Question) -> Any:
        """The result of a question of a session. Raises Conflict."""
        match question:
            case StoreFindSession():
                found = [row for row in self.sessions.values() if row.token_hash == question.token_hash]
                return found[0] if found else None
            case StoreRegister():
                return self._register(question.session)
            case StoreUpdateSession():
                row = self.sessions[question.session_id]
                self.sessions[row.id] = replace(
                    row,
                    draining=row.draining if question.draining is None else question.draining,
                    selector=question.selector or row.selector,
                    ended_at=self.now if question.ended else row.ended_at,
                )
                return None
            case StoreClaim():
                return self._claim(question.order)
            case StoreHeartbeat():
                return self._heartbeat(question.job_id, hash_secret(question.lease_token))
            case StoreReports():
                return [self._report(report) for report in question.reports]
        raise AssertionError(question)

    def _register(self, session: Session) -> Session:
        earlier = self.sessions.get(session.id)
        if earlier is not None and earlier.superseded:
            raise Conflict("session_superseded", "another process has taken over")
        row = replace(
            session,
            id=session.id or f"wsess_{next(self._numbers)}",
            drain_requested=earlier.drain_requested if earlier is not None else False,
        )
        self.sessions[row.id] = row
        if not row.draining:
            for other in list(self.sessions.values()):
                if other.worker_instance_id == row.worker_instance_id and other.id != row.id:
                    self.sessions[other.id] = replace(other, superseded=True)
        return row

    def _claim(self, order: ClaimOrder) -> list[Lease]:
        leases: list[Lease] = []
        for job in list(self.jobs.values()):
            if len(leases) == order.limit:
                break
            if job.status != "pending" or job.available_at > self.now or job.id in order.excluded:
                continue
            if not admits(order.selector, job):
                continue
            token = order.lease_tokens[len(leases)]
            claimant = domain.Claimant(
                session_id=order.session_id,
                worker_instance_id=order.worker_instance_id,
                token_hash=hash_secret(token),
            )
            after = domain.claimed(job, claimant, LEASE, self.now)
            assert after is not None
            self._put(after)
            leases.append(Lease(job=after, spec='{"parameters":{}}', lease_token=token))
        return leases

    def _heartbeat(self, job_id: str, token_hash: bytes) -> HeartbeatOutcome:
        job = self.jobs.get(job_id)
        if job is None or not domain.holds(job, token_hash):
            return HeartbeatOutcome(lost=True)
        self._put(replace(job, lease_expires_at=self.now + int(LEASE * 1_000_000)))
        return HeartbeatOutcome(
            lost=False,
            cancel_requested=job.cancel_requested_at is not None,
            cancel_reason=job.cancel_reason,
            cancel_requested_at=job.cancel_requested_at,
        )

    def _report(self, report: frames.Report) -> ReportOutcome:
        job = self.jobs.get(report.job_id)
        if job is None:
            return ReportOutcome(verdict="unknown")
        reported = domain.read_report(report)
        outcome = domain.reported(job, reported, 600.0, self.now)
        if outcome.after is not None:
            self._put(outcome.after)
            if outcome.event == "completed":
                self.completions[job.id] += 1
                assert self.completions[job.id] == 1, f"{job.id} was completed twice"
        return ReportOutcome(verdict=outcome.verdict)

    def _put(self, job: Job) -> None:
        before = self.jobs.get(job.id)
        assert before is None or before.status not in TERMINAL_JOB, f"{before} became {job}"
        self.jobs[job.id] = job
        if job.status == "pending":
            self.facts.append(
                JobClaimable(
                    project_id=PROJECT,
                    job_id=job.id,
                    queue=job.queue,
                    available_at=job.available_at,
                    action_name=job.action_name,
                )
            )


Item = tuple[str, Any]
Harm = Literal["lose", "repeat", "delay", "pass"]


class Way:
    """One direction of a connection: what was sent and has not arrived, and what will be done to what is sent next."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.flows = True
        self.plan: deque[Harm] = deque()
        """One for each of the next frames. "delay": it comes after the frame that follows it."""
        self._late: list[Item] = []

    def put(self, item: Item) -> None:
        """Sent."""
        if item[0] != "frame":
            # What ends a connection, or only shows that it lives, comes through if anything does, and comes last.
            self.items += [*self._late, item]
            self._late = []
            return
        harm = self.plan.popleft() if self.plan else "pass"
        if harm == "delay":
            self._late.append(item)
        elif harm != "lose":
            self.items += [item, item] if harm == "repeat" else [item]
            self.items += self._late
            self._late = []

    def clear(self) -> None:
        """What is on its way gets lost."""
        self.items.clear()
        self._late = []


class Link:
    """One connection: what each side has sent and the other has not got yet, and whether it gets there at all."""

    def __init__(self, room: "Room", process: "Process") -> None:
        self.room = room
        self.process = process
        self.connection: Connection = room.hub.connect(Peer(project_id=PROJECT, dialect="automations"), room.now)
        self.up = Way()
        self.down = Way()
        self.dead = False
        """Nothing gets through any more, and nobody is told."""
        self.worker_open = self.server_open = True
        self._register_by = room.now + REGISTER_TIMEOUT
        self._heard_at = room.now
        self._pinged = False
        self._drop_at: float | None = None

    # --- the server's end

    def perform(self, actions: Iterable[Action]) -> None:
        """What the server's session asks for."""
        for action in actions:
            if isinstance(action, Send):
                if self.server_open and self._drop_at is None:
                    self.down.put(("frame", codec.encode_to_worker(action.frame)))
            elif isinstance(action, Question):
                self.room.questions.append((self, action))
            elif isinstance(action, Close):
                self.close(action.code, action.reason)
            elif isinstance(action, ClosePeer):
                other = self.room.link_of(action.connection)
                if other is not None:
                    other.close(action.code, action.reason)

    def close(self, code: int, reason: str) -> None:
        """The server closes."""
        if self.server_open and self._drop_at is None:
            self.down.put(("close", (code, reason)))
            self._drop_at = self.room.now + CLOSE_TIMEOUT

    def abort(self) -> None:
        """The server's end is gone."""
        if self.server_open:
            self.server_open = False
            self.up.clear()
            self.down.put(("gone", None))
            self.perform(self.connection.closed(self.room.now))

    def server_deadline(self) -> float:
        """When `server_tick` is due."""
        if not self.server_open:
            return float("inf")
        if self._drop_at is not None:
            return self._drop_at
        deadlines = [self._heard_at + PING_INTERVAL * (2 if self._pinged else 1)]
        if self.connection.session is None:
            deadlines.append(self._register_by)
        if (session_deadline := self.connection.next_deadline()) is not None:
            deadlines.append(session_deadline)
        return min(deadlines)

    def server_tick(self) -> None:
        """What the server's transport does by the clock."""
        now = self.room.now
        if not self.server_open or now < self.server_deadline():
            return
        if self._drop_at is not None or (self._pinged and now >= self._heard_at + 2 * PING_INTERVAL):
            self.abort()
            return
        if not self._pinged and now >= self._heard_at + PING_INTERVAL:
            self._pinged = True
            self.down.put(("ping", None))
        if self.connection.session is None and now >= self._register_by:
            self.close(1008, "no worker.register in time")
            return
        if (deadline := self.connection.next_deadline()) is not None and now >= deadline:
            self.perform(self.connection.tick(now))

    def deliver_up(self) -> None:
        """One item reaches the server."""
        kind, content = self.up.items.popleft()
        if not self.server_open:
            return
        self._heard_at, self._pinged = self.room.now, False
        if kind == "frame":
            self.perform(self.connection.receive([codec.decode_from_worker(content)], self.room.now))
        elif kind == "gone":
            self.abort()
        else:
            self.connection.seen(self.room.now)
            if kind == "ping":
                self.down.put(("pong", None))

    # --- the worker's end

    def send(self, item: Item) -> None:
        """The worker sends."""
        assert self.worker_open
        self.up.put(item)

    def drop(self) -> None:
        """The worker's end is gone."""
        self.worker_open = False
        self.down.clear()
        self.up.put(("gone", None))

    def deliver_down(self) -> None:
        """One item reaches the worker, or all the frames that have come together."""
        kind, content = self.down.items.popleft()
        if not self.worker_open or self.process.link is not self:
            return
        session = self.process.session
        session.last_read = self.room.now
        if kind == "frame":
            together = [codec.decode_from_server(content)]
            while self.down.items and self.down.items[0][0] == "frame":
                together.append(codec.decode_from_server(self.down.items.popleft()[1]))
            session.solitude.suspects = {job_id: poison(one) for job_id, one in self.process.box.suspects.items()}
            self.process.step(session.frames_received, together)
        elif kind == "ping":
            self.send(("pong", None))
        elif kind in ("close", "gone"):
            code = content[0] if content else None
            self.process.link = None
            self.drop()
            decided = session.connection_lost(f"closed {content}", self.room.now, going_away=code == RESTARTING)
            self.process.follow(decided)


class Process:
    """One incarnation of one worker: its session, and a shell that follows its decisions."""

    def __init__(self, room: "Room", box: "Box", leftover: list[frames.Report]) -> None:
        self.room = room
        self.box = box
        self.link: Link | None = None
        self.dialling = False
        self.ended = False
        self.running: dict[int, frames.ClaimedJob] = {}
        self.asked_to_stop: set[int] = set()
        settings = SessionSettings(
            worker_instance_id=box.name,
            concurrency=box.concurrency,
            queues=["default"],
            actions={**box.actions, f"only-{box.name}": ActionTerms()},
            id_prefix=f"{box.name}-{box.incarnation}",
        )
        self.session = WorkerSession(settings, Backoff(lambda: 0.5), room.now, leftover)

    def step(self, event: Callable[..., list[Decision]], *facts: Any) -> None:
        """Tell the session, and follow."""
        self.follow(event(*facts, self.room.now))

    def follow(self, decided: list[Decision]) -> None:
        """Carry decisions out, as the shell does: the journal first, and nothing after the end."""
        for decision in decided:
            assert not self.ended, f"{decision} after the end"
            if not self._write_down(decision):
                self._act(decision)

    def _write_down(self, decision: Decision) -> bool:
        journal = self.box.journal
        match decision:
            case decisions.JournalClaimed():
                journal[decision.lease_token] = "job in hand"
                self.box.jobs_in_journal[decision.lease_token] = decision.job_id
            case decisions.JournalReported():
                journal[decision.report.lease_token] = decision.report
            case decisions.JournalSettled():
                del journal[decision.lease_token]
            case decisions.DeadLetter():
                del journal[decision.report.lease_token]
                self.room.dead_letters.append(decision)
            case _:
                return False
        return True

    def _act(self, decision: Decision) -> None:
        match decision:
            case decisions.Send():
                self._send(decision.frame)
            case decisions.Ping():
                if self.link is not None:
                    self.link.send(("ping", None))
            case decisions.Connect():
                assert self.link is None
                self.dialling = True
            case decisions.DropConnection():
                self.dialling = False
                self._hang_up()
            case decisions.StartJob():
                assert self.box.journal[decision.job.lease_token] == "job in hand", "started, then journalled"
                self.running[decision.execution] = decision.job
                assert len(self.running) <= self.box.concurrency
                suspects = [job.id for job in self.running.values() if job.id in self.session.solitude.suspects]
                assert not suspects or len(self.running) == 1, "a suspect runs alone"
                assert poisonous(self.box.suspects, decision.job.id) is None
            case decisions.ClearSuspect():
                if not stays(self.box.suspects[decision.job_id]):
                    del self.box.suspects[decision.job_id]
            case decisions.CancelJob():
                self.asked_to_stop.add(decision.execution)
            case decisions.End():
                self.ended = True
                self._hang_up()

    def _hang_up(self) -> None:
        if self.link is not None:
            self.link.drop()
            self.link = None

    def _send(self, frame: frames.FromWorker) -> None:
        if self.link is None:
            return
        if isinstance(frame, frames.Report):
            assert self.box.journal[frame.lease_token] != "job in hand", "sent, then journalled"
        self.link.send(("frame", codec.encode_to_server(frame)))

    def dial(self) -> None:
        """The connection that was asked for, or why there is none."""
        self.dialling = False
        if self.box.reachable and self.room.serving:
            self.link = Link(self.room, self)
            self.room.links.append(self.link)
            self.step(self.session.connected)
        else:
            self.step(self.session.connection_lost, "nobody there")

    def finish(self, execution: int, outcome: Outcome) -> None:
        """A handler has returned."""
        del self.running[execution]
        self.asked_to_stop.discard(execution)
        if not self.ended:
            self.step(self.session.job_finished, execution, outcome)


def poisonous(suspects: dict[str, Suspect], job_id: str) -> str | None:
    """Why the job must not run, if it must not."""
    return poison(suspects[job_id]) if job_id in suspects else None


class Box:
    """The place of one worker: its journal and what it knows of suspects outlive its processes."""

    def __init__(self, room: "Room", name: str, concurrency: int, actions: dict[str, ActionTerms]) -> None:
        self.room = room
        self.name = name
        self.concurrency = concurrency
        self.actions = actions
        self.reachable = True
        self.incarnation = 0
        self.journal: dict[str, Any] = {}
        """Lease token -> "job in hand" or the report that is owed."""
        self.jobs_in_journal: dict[str, str] = {}
        self.suspects: dict[str, Suspect] = {}
        self.process = self._next(None)

    def _next(self, end: pipe.PreviousEnd | None) -> Process:
        self.incarnation += 1
        reported = [replace(entry, message_id=None) for entry in self.journal.values() if entry != "job in hand"]
        in_hand = [
            (self.jobs_in_journal[token], token) for token, entry in self.journal.items() if entry == "job in hand"
        ]
        if end is not None:
            self.suspects |= accuse(self.suspects, in_hand, end, self.name, self.room.now)
        crashed = crash_reports(in_hand, end, self.suspects)
        for report in crashed:
            self.journal[report.lease_token] = report
        return Process(self.room, self, [*reported, *crashed])

    def restart(self, *, cut: bool, self_made: bool = False) -> None:
        """The process ends as by SIGKILL and another takes its place; `cut`: nothing tells the control plane.
        `self_made`: a job is to blame."""
        link = self.process.link
        if link is not None:
            link.drop()
            link.dead = link.dead or cut
        end = pipe.PreviousEnd(incarnation=self.incarnation, cause="signal", detail="signal", self_made=self_made)
        self.process = self._next(end)


class Room:
    """The whole world. `settle` lets everything happen that takes no time, `wait` lets time pass."""

    def __init__(self, boxes: dict[str, int], actions: dict[str, ActionTerms]) -> None:
        self.now = 1000.0
        self._tokens = count(1)
        self.hub = self._new_hub()
        self.store = MemoryStore(lambda: self.now)
        self.links: list[Link] = []
        self.questions: deque[tuple[Link, Question]] = deque()
        self.dead_letters: list[decisions.DeadLetter] = []
        self.serving = True
        self.store_answers = True
        self.store_is_away = False
        self._sweep_at = self.now
        self.boxes = [Box(self, name, concurrency, actions) for name, concurrency in boxes.items()]
        self.wait(0)

    def _new_hub(self) -> Hub:
        terms = LeaseTerms(lease_duration=LEASE, heartbeat_cadence=CADENCE)
        return Hub(
            terms,
            lambda: f"session-{next(self._tokens)}",
            lambda number: [f"lease-{next(self._tokens)}" for _ in range(number)],
        )

    def link_of(self, connection: Connection) -> Link | None:
        """The link of a connection, while the server has it."""
        return next((link for link in self.links if link.connection is connection and link.server_open), None)

    def restart_control_plane(self, *, tidily: bool, heard: bool) -> None:
        """It stops and is there again; what was asked may have been done, but is not answered."""
        if heard and not self.store_is_away:
            for _, question in self.questions:
                if not isinstance(question, PingPeer | StoreFindSession):
                    self._ask(question)
        self.questions.clear()
        for link in self.links:
            if link.server_open:
                if tidily:
                    link.down.put(("close", (RESTARTING, "restart")))
                link.server_open = False
                link.up.clear()
                link.down.put(("gone", None))
        self.store.facts.clear()
        self.hub = self._new_hub()
        self.store.lapse_from = self.now + LEASE

    def _ask(self, question: Question) -> Any:
        try:
            return self.store.answer(question)
        except Conflict as error:
            return error

    def settle(self) -> None:
        """Until nothing is left that happens by itself now."""
        for _ in range(MOST_MESSAGES):
            if not self._one_thing():
                self.links = [link for link in self.links if link.server_open or link.worker_open]
                return
        raise AssertionError("they never stop talking")

    def _one_thing(self) -> bool:
        if self.store.facts:
            facts, self.store.facts = self.store.facts, []
            for connection, actions in self.hub.committed(facts, self.now, self.store.now):
                link = self.link_of(connection)
                if link is not None:
                    link.perform(actions)
            return True
        if self.questions and self.store_answers:
            self.answer_one()
            return True
        for box in self.boxes:
            if box.process.dialling:
                box.process.dial()
                return True
        for link in self.links:
            if link.up.items and link.up.flows and not link.dead:
                link.deliver_up()
                return True
            if link.down.items and link.down.flows and not link.dead:
                link.deliver_down()
                return True
        return False

    def answer_one(self) -> None:
        """The store (or a peer that was pinged) answers the oldest question."""
        link, question = self.questions.popleft()
        number, result = question.question, None
        if isinstance(question, PingPeer):
            peer = self.link_of(question.connection)
            result = peer is not None and peer.worker_open and peer.up.flows and peer.down.flows and not peer.dead
        elif self.store_is_away:
            link.perform(link.connection.refused(number, StoreUnavailable("away"), self.now))
            return
        else:
            result = self._ask(question)
        if isinstance(result, Exception):
            link.perform(link.connection.refused(number, result, self.now))
        else:
            link.perform(link.connection.answered(number, result, self.now))

    def wait(self, seconds: float) -> None:
        """Time passes; whatever is due on the way is done when it is due."""
        end = self.now + seconds
        self.settle()
        rounds = 0
        while (due := self._next_deadline()) <= end:
            rounds = rounds + 1 if due <= self.now else 0
            assert rounds < MOST_ROUNDS, "a deadline does not go away"
            self.now = max(self.now, due)
            self._tick()
            self.settle()
        self.now = end

    def _next_deadline(self) -> float:
        deadlines = [self._sweep_at]
        deadlines += [link.server_deadline() for link in self.links]
        deadlines += [box.process.session.next_deadline() for box in self.boxes if not box.process.ended]
        return min(deadlines)

    def _tick(self) -> None:
        if self.now >= self._sweep_at:
            self._sweep_at = self.now + 1.0
            if not self.store_is_away:
                self.store.sweep()
        for link in list(self.links):
            link.server_tick()
        for box in self.boxes:
            process = box.process
            if not process.ended and process.session.next_deadline() <= self.now:
                process.step(process.session.tick)

    def heal(self) -> None:
        """Everything works again, and every handler gets done."""
        self.serving = self.store_answers = True
        self.store_is_away = False
        for box in self.boxes:
            box.reachable = True
            if box.process.ended:
                box.restart(cut=False)
        for link in self.links:
            for way in (link.up, link.down):
                way.flows = True
                way.plan.clear()

    def work(self) -> None:
        """Every handler that runs returns."""
        for box in self.boxes:
            for execution in list(box.process.running):
                asked = execution in box.process.asked_to_stop
                box.process.finish(execution, CANCELLED if asked else DONE)
                self.settle()
