"""Workers at the server's end of their sockets under a virtual clock: no socket, no store, answers given by hand."""

import json
from itertools import count

from msgspec.structs import replace

from control_plane.domain.model import Job
from control_plane.domain.store import JobClaimable, Lease, LeaseTerms
from control_plane.hub import Hub
from control_plane.session import Peer, Question, Send, StoreClaim, StoreFindSession, StoreRegister
from wire import frames
from wire.codec import decode_from_server, encode_to_worker

CADENCE = 20.0
PROJECT = "proj_1"


class Room:
    """A hub, a clock, and the questions that nobody has answered yet."""

    def __init__(self, *, replicated=False):
        numbers = count(1)
        self.now = 1000.0
        self.hub = Hub(
            LeaseTerms(lease_duration=60.0, heartbeat_cadence=CADENCE),
            lambda: f"session token {next(numbers)}",
            lambda number: [f"lease token {next(numbers)}" for _ in range(number)],
            replicated=replicated,
        )
        self.sessions = count(1)
        self.rows = {}

    def worker(self, instance="w-1", **fields):
        """A registered worker."""
        worker = Worker(self)
        worker.register(instance, **fields)
        assert worker.connection.session is not None
        worker.take()
        return worker

    def committed(self, *facts):
        """Announce facts; what the workers get goes to their lists."""
        for connection, actions in self.hub.committed(facts, self.now, 10_000_000):
            connection.worker.perform(actions)

    def coming(self, *jobs):
        """Such jobs are being stored."""
        for connection, actions in self.hub.coming(PROJECT, jobs, self.now):
            connection.worker.perform(actions)

    def connect(self, dialect="automations", project=PROJECT):
        return self.hub.connect(Peer(project_id=project, dialect=dialect, api_key_id="key_1"), self.now)


class Worker:
    """One connection, and what has come out of it since it was last looked at."""

    def __init__(self, room, dialect="automations", project=PROJECT):
        self.room = room
        self.connection = room.connect(dialect, project)
        self.connection.worker = self
        self.sent = []
        self.questions = []
        self.closed = []
        self.token = None

    def perform(self, actions):
        for action in actions:
            if isinstance(action, Send):
                self.sent.append(decode_from_server(encode_to_worker(action.frame)))
            elif isinstance(action, Question):
                self.questions.append(action)
            else:
                self.closed.append(action)

    def send(self, frame):
        self.perform(self.connection.receive([frame], self.room.now))

    def take(self):
        sent, self.sent = self.sent, []
        return sent

    def asked(self, kind):
        """The one open question of this kind."""
        (question,) = [each for each in self.questions if isinstance(each, kind)]
        return question

    def answer(self, kind, result):
        question = self.asked(kind)
        self.questions.remove(question)
        if isinstance(result, Exception):
            self.perform(self.connection.refused(question.question, result, self.room.now))
        else:
            self.perform(self.connection.answered(question.question, result, self.room.now))
        return question

    def register(self, instance="w-1", **fields):
        """Send worker.register and let the store agree, as the store would."""
        self.send(frames.Register(worker_instance_id=instance, message_id="r", **fields))
        if any(isinstance(each, StoreFindSession) for each in self.questions):
            found = self.room.rows.get(self.asked(StoreFindSession).token_hash)
            self.answer(StoreFindSession, found)
        if any(isinstance(each, StoreRegister) for each in self.questions):
            self.store_agrees()

    def store_agrees(self):
        asked = self.asked(StoreRegister).session
        known = self.room.rows.get(asked.token_hash)
        row = replace(
            asked,
            id=asked.id or f"wsess_{next(self.room.sessions)}",
            drain_requested=known.drain_requested if known is not None else False,
        )
        self.room.rows[row.token_hash] = row
        self.answer(StoreRegister, row)
        self.token = self.sent[0].worker_session_token

    def claim(self, message_id="c", **fields):
        self.send(frames.Claim(message_id=message_id, **fields))

    def wait(self, seconds):
        """Let time pass, ticking whenever the connection asks for it."""
        until = self.room.now + seconds
        while (deadline := self.connection.next_deadline()) is not None and deadline <= until:
            self.room.now = max(self.room.now, deadline)
            self.perform(self.connection.tick(self.room.now))
            if any(isinstance(each, StoreClaim) for each in self.questions):
                self.answer(StoreClaim, [])
        self.room.now = until

    def close(self):
        self.perform(self.connection.closed(self.room.now))


def job(number=1, **fields):
    return Job(
        **{
            "id": f"job_{number}",
            "project_id": PROJECT,
            "kind": "action_execution",
            "origin": "automation_action_step",
            "queue": "default",
            "status": "claimed",
            "spec": {},
            "created_at": 0,
            "updated_at": 0,
            "available_at": 0,
            "action_name": "print",
            "run_id": "run_1",
            "step_id": "step_1",
            "claim_attempt": 1,
            "max_attempts": 3,
            "execution_deadline_at": 1_763_771_234_000_000,
            **fields,
        }
    )


def lease(number=1, **fields):
    spec = json.dumps(fields.pop("spec", {"parameters": {"message": "hi"}}))
    return Lease(job=job(number, **fields), spec=spec, lease_token=f"secret {number}")


def claimable(number=1, **fields):
    return JobClaimable(
        **{
            "project_id": PROJECT,
            "job_id": f"job_{number}",
            "queue": "default",
            "available_at": 0,
            "action_name": "print",
            **fields,
        }
    )


def hints(worker):
    """How many work.available the worker has got since it was last looked at."""
    return sum(isinstance(frame, frames.WorkAvailable) for frame in worker.take())
