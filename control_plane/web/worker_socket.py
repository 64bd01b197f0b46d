"""One worker's WebSocket: messages <-> frames, driving control_plane/session.py.

uvicorn hands the connection over with the upgrade request; the credential is judged before the upgrade is accepted.
From then on every frame goes to the session's Connection, and what it asks for is done here: frames are written
together once a loop tick, questions become tasks, deadlines become one timer. A worker that does not read, does not
answer pings or sends faster than the store can follow is slowed down, then dropped; no other socket notices.
"""

import asyncio
import os
import re
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import unquote
from weakref import WeakValueDictionary

import msgspec
import structlog
from msgspec.structs import replace
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response

from control_plane.domain.enqueue import NewJob
from control_plane.domain.model import ApiKey, Dialect
from control_plane.domain.store import Committed, ReportOutcome, SessionContested, Store
from control_plane.errors import ControlPlaneError
from control_plane.hub import Hub, Performed
from control_plane.key_holders import Hold
from control_plane.key_watch import end_all
from control_plane.observations import Observations
from control_plane.rate_limits import Arrival
from control_plane.session import (
    Action,
    AnswerContest,
    Close,
    ClosePeer,
    Connection,
    Peer,
    PingPeer,
    Question,
    Send,
    StoreClaim,
    StoreContest,
    StoreFindSession,
    StoreHeartbeat,
    StoreRegister,
    StoreReports,
    StoreUpdateSession,
    TakeDelta,
)
from control_plane.turnstile import LARGE, Turnstile
from control_plane.web.authentication import Authenticator
from control_plane.web.deltas import DeltaStreams
from control_plane.web.error_status import HttpError, as_http_error
from control_plane.web.http_protocol import WRITE_TIMEOUT, error_response
from control_plane.web.inbound_bytes import InboundBytes
from control_plane.web.message_stream import Event, MessageStream
from wire.codec import (
    LocalFrameError,
    RemoteFrameError,
    decode_from_worker,
    encode_to_worker,
)
from wire.frames import FromWorker, Registered, Report

ADMISSION_TIMEOUT = 10.0
"""Seconds from the upgrade request to its answer."""

REGISTER_TIMEOUT = 10.0
"""Seconds from the accepted upgrade to an accepted `worker.register`."""

PING_INTERVAL = 20.0
"""Seconds of silence after which the worker is pinged, and again after which it is dropped."""

MESSAGE_TIMEOUT = 30.0
"""Seconds that a message has from its first byte to its last, beside those that SLOWEST gives it."""

SLOWEST = 32 * 1024
"""Bytes a second of a message that comes slowly."""

CLOSE_TIMEOUT = 3.0
"""Seconds that a worker has to answer our close."""

WRITE_BUFFER = 1024 * 1024
"""Bytes of unread answers above which we stop listening to the worker."""

MOST_UNREAD = 16 * 1024 * 1024
"""Bytes of unread answers above which the worker is dropped."""

MOST_UNANSWERED = 1024
"""Frames of one worker that the store has yet to answer, before we stop listening to it: whoever asks next waits for
them."""

MOST_UNANSWERED_BYTES = 32 * 1024 * 1024
"""Their bytes, with the same effect."""

MOST_INVALID_FRAMES = 20
"""Messages that are no frames, each of which is answered, before the socket is closed."""

INVALID_FRAMES_WITHIN = 60.0
"""Seconds in which they must come: one bad frame an hour is a fault to be told, not a reason to part."""

POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012

_PROJECT_PATH = re.compile(r"/v1/projects/([^/]+)/workers/socket")
_ORG_PATH = "/v1/workers/socket"
_LONGEST_REASON = 120
_ENDING = ("accepted", "handed_back")

_log = structlog.get_logger(__name__)


class WorkerGate:
    """What all worker sockets of this process share."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        authenticator: Authenticator,
        deltas: DeltaStreams,
        observations: Observations,
        turnstile: Turnstile,
        dialect: Dialect,
        dialects: Mapping[str, Dialect],
    ) -> None:
        self.store = store
        self.hub = hub
        self.authenticator = authenticator
        self.deltas = deltas
        self.observations = observations
        self.turnstile = turnstile
        self.sockets: dict[Connection, WorkerSocket] = {}
        self.inbound: WeakValueDictionary[str, InboundBytes] = WeakValueDictionary()
        """By key, as long as it has a socket."""
        self.tasks: set[asyncio.Task[None]] = set()
        self._dialect = dialect
        self._dialects = dialects

    async def admit(self, request: Request, peer: str) -> tuple[ApiKey, Peer]:
        """Who upgrades, with a key that is valid now. Raises HttpError 401, 403, 404, 429, StoreUnavailable."""
        path = request.path.partition("?")[0]
        match = _PROJECT_PATH.fullmatch(path)
        if match is None and path != _ORG_PATH:
            raise HttpError(404, "not_found", "there is no WebSocket at this path")
        authorization = request.headers.get_all("authorization")
        forwarded = ",".join(request.headers.get_all("x-forwarded-for"))
        key, _ = await self.authenticator.admit(
            authorization[0] if len(authorization) == 1 else None,
            None if match is None else unquote(match[1]),
            "worker",
            self.authenticator.limits.address_of(peer, forwarded),
        )
        dialect: Dialect = "org" if match is None else await self._dialect_of(key.project_handle)
        self.authenticator.check(key)
        self.authenticator.check_connections(key)
        return key, Peer(project_id=key.project_id, dialect=dialect, api_key_id=key.id)

    def committed(self, facts: Sequence[Committed]) -> None:
        """Tell the sockets what the store has made true; called by its listener, in the loop's thread."""
        end_all(self.authenticator.holders.committed(facts, self.store.now()))
        for fact in facts:
            if isinstance(fact, SessionContested) and not self.hub.carries(fact.session_id):
                self.keep(self.store.answer_contest(fact.contest_id, alive=False), "contest")
        now = asyncio.get_running_loop().time()
        self._perform(self.hub.committed(facts, now, self.store.now()))

    def coming(self, project_id: str, jobs: Sequence[NewJob]) -> None:
        """These are handed to the store next: claims that wait for such jobs go with them."""
        at_once = (job for job in jobs if job.run_at is None and not job.delay)
        now = asyncio.get_running_loop().time()
        self._perform(self.hub.coming(project_id, at_once, now))

    def _perform(self, performed: Performed) -> None:
        for connection, actions in performed:
            socket = self.sockets.get(connection)
            if socket is not None:
                socket.perform(actions)

    def keep(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Have it done, by a task that somebody remembers."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def finish(self, limit: float) -> None:
        """Wait until every question is answered, `limit` seconds at most; the sockets may be gone."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=limit)

    async def _dialect_of(self, project: str) -> Dialect:
        configured = self._dialects.get(project)
        return configured or (await self.store.project(project)).dialect or self._dialect


class WorkerSocket(asyncio.Protocol):
    """See the module's docstring. uvicorn makes one for every upgrade."""

    def __init__(self, gate: WorkerGate, *, config: Any, server_state: Any, app_state: Any) -> None:
        del config, app_state
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._open_sockets: set[Any] = server_state.connections
        self._transport: asyncio.Transport
        self._stream = MessageStream()
        self._connection: Connection | None = None
        self._held: Hold | None = None
        self.arrival: Arrival | None = None
        """Its place among the connections without a key, from the HTTP connection that it was."""
        self._fragments: bytearray | None = None
        self._questions: dict[int, int] = {}
        """Frames of each question to the store that is open."""
        self._unanswered = 0
        """Frames of them all."""
        self._received: list[FromWorker] = []
        """Frames of this read that the session has not seen yet."""
        self._unanswered_bytes = 0
        self._put_off: list[Event] = []
        """What came with a large message that waits for its turn, and this first."""
        self._inbound = InboundBytes()
        """Its key's, once it is known."""
        self._invalid_frames = 0
        self._invalid_since = 0.0
        self._pongs: list[asyncio.Future[bool]] = []
        self._last_heard = 0.0
        self._pinged_at: float | None = None
        self._register_by: float | None = None
        self._drop_at: float | None = None
        self._write_by: float | None = None
        self._unfinished_since: float | None = None
        """When the message began of which only a part is here."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        """uvloop gives no time for a timer that is due at once."""
        self._settling = False
        self._reading = True
        self._shutting_down = False

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The upgrade request is about to arrive."""
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._open_sockets.add(self)
        self._last_heard = self._loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone; the session stays, and so does every job."""
        del exc
        self._open_sockets.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._hear(alive=False)
        self._put_off = []
        self._inbound.hold(self, 0)
        self._inbound = InboundBytes()  # answers that are still to come count for nobody
        if self._held is not None:
            self._gate.authenticator.holders.release(self._held)
        if self.arrival is not None:
            self.arrival.leave()
        connection = self._connection
        if connection is not None:
            self._connection = None
            self._gate.sockets.pop(connection, None)
            self._perform_for(connection, connection.closed(self._loop.time()))

    def data_received(self, data: bytes) -> None:
        """Bytes of the upgrade request, or of frames."""
        self._last_heard = self._loop.time()
        self._pinged_at = None
        self._settling = True  # it is done below, once for all frames of this read
        events = self._stream.receive(data)
        if self._pongs:
            self._hear(alive=True)
        self._take_events(events)
        problem = self._stream.core.handshake_exc
        if problem is not None and self._connection is None:
            self._refuse(HttpError(400, "invalid_request", f"no WebSocket handshake: {problem}"))
            return
        self._settle()

    def _take_events(self, events: list[Event]) -> None:
        if self._put_off:
            self._put_off += events
            return
        for place, event in enumerate(events):
            if isinstance(event, Request):
                self._upgrade(event)
                continue
            data = event if isinstance(event, bytes) else self._frame(event)
            if data is None:
                continue
            if len(data) >= LARGE and self._held is not None:
                self._put_off = [data, *events[place + 1 :]]
                self._gate.turnstile.add(self._held.key.id, self._take_large)
                break
            self._message(data)
        self._take_received()
        unfinished = self._unfinished
        if not unfinished:
            self._unfinished_since = None
        elif self._unfinished_since is None:
            self._unfinished_since = self._last_heard
        if not self._questions:
            self._unanswered_bytes = 0  # what came is dealt with: nothing is to come that would count it down
        held = unfinished + self._unanswered_bytes
        if self._put_off:
            held += sum(len(event) for event in self._put_off if isinstance(event, bytes))
        self._inbound.hold(self, held)

    def _take_large(self) -> None:
        put_off, self._put_off = self._put_off, []
        if put_off and isinstance(put_off[0], bytes):
            try:
                self._message(put_off[0])
                self._take_events(put_off[1:])
            finally:
                self._settle_soon()

    def pause_writing(self) -> None:
        """The worker does not read: we stop listening, and it has WRITE_TIMEOUT to begin."""
        self._write_by = self._loop.time() + WRITE_TIMEOUT
        self._settle_soon()

    def resume_writing(self) -> None:
        """The worker reads again."""
        self._write_by = None
        self._settle_soon()

    def shutdown(self) -> None:
        """The server stops: answer what is asked already, then close so that the worker comes back soon."""
        self._shutting_down = True
        if self._connection is None:
            self._transport.close()
        elif not self._questions:
            self.close(SERVICE_RESTART, "the control plane restarts")

    # --- the upgrade

    def _upgrade(self, request: Request) -> None:
        # Nothing is read until the answer is decided: what follows would be parsed as frames.
        self._pause_reading()
        self._gate.keep(self._admit(request), "worker socket admission")

    async def _admit(self, request: Request) -> None:
        response = self._stream.accept(request)
        if response.status_code != 101:
            message = f"no WebSocket handshake: {self._stream.core.handshake_exc}"
            self._refuse(HttpError(response.status_code, "invalid_request", message))
            return
        try:
            async with asyncio.timeout(ADMISSION_TIMEOUT):
                key, peer = await self._gate.admit(request, self._peer_address())
            self._accept(key, peer, response)
        except TimeoutError:
            self._refuse(HttpError(503, "store_unavailable", "the control plane is too slow now; try again"))
        except Exception as error:  # noqa: BLE001 - the last resort: one failed upgrade harms nobody else
            refusal = as_http_error(error)
            if refusal.status >= 500:
                _log.warning("worker socket not opened", status=refusal.status, exc_info=error)
            self._refuse(refusal)

    def _accept(self, key: ApiKey, peer: Peer, response: Response) -> None:
        if self._transport.is_closing():
            return
        now = self._loop.time()
        self._held = self._gate.authenticator.holders.hold(key, self._disown)
        if self.arrival is not None:
            self.arrival.leave()
        self._inbound = self._gate.inbound.setdefault(key.id, self._inbound)
        self._connection = self._gate.hub.connect(peer, now)
        self._gate.sockets[self._connection] = self
        self._register_by = now + REGISTER_TIMEOUT
        self._stream.send_response(response)
        self._settle()

    def _peer_address(self) -> str:
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else ""

    def _disown(self) -> None:
        connection = self._connection
        if connection is not None:
            session = connection.session
            _log.info("worker's API key has ended", worker_instance_id=session and session.worker_instance_id)
            self.perform(connection.disown())

    def _refuse(self, error: HttpError) -> None:
        if self._transport.is_closing():
            return
        _log.debug("worker socket refused", status=error.status, code=error.code)
        self._transport.write(error_response(error.status, error.code, error.message, tuple(error.headers.items())))
        self._transport.close()

    # --- frames in

    def _invalid(self, connection: Connection, error: RemoteFrameError) -> None:
        self.perform(connection.receive_error(error, self._last_heard))
        if self._last_heard - self._invalid_since > INVALID_FRAMES_WITHIN:
            self._invalid_since, self._invalid_frames = self._last_heard, 0
        self._invalid_frames += 1
        if self._invalid_frames > MOST_INVALID_FRAMES:
            self.close(POLICY_VIOLATION, f"more than {MOST_INVALID_FRAMES} messages were no frames")

    def _frame(self, frame: Frame) -> bytes | None:
        """The message of which it is the last part, if it is."""
        connection = self._connection
        if connection is None or self._shutting_down:
            return None
        opcode = frame.opcode
        if opcode in (Opcode.PING, Opcode.PONG):
            connection.seen(self._last_heard)
        elif opcode is Opcode.CLOSE:
            self._fragments = None
        elif opcode is Opcode.CONT:
            return self._fragment(frame)
        elif opcode is Opcode.TEXT:
            self._fragments = bytearray(frame.data)
        else:
            message = "a binary message is no frame of this socket: send JSON as text"
            self._invalid(connection, RemoteFrameError(message))
        return None

    @property
    def _unfinished(self) -> int:
        return self._stream.unfinished + len(self._fragments or b"")

    def _message_by(self) -> float | None:
        since = self._unfinished_since
        return None if since is None or not self._reading else since + MESSAGE_TIMEOUT + self._unfinished / SLOWEST

    def _fragment(self, frame: Frame) -> bytes | None:
        if self._fragments is None:
            return None  # the rest of a binary message, which was refused
        self._fragments += frame.data
        if not frame.fin:
            return None
        data, self._fragments = bytes(self._fragments), None
        return data

    def _message(self, data: bytes) -> None:
        connection = self._connection
        if connection is None or self._shutting_down:
            return
        self._unfinished_since = None
        self._unanswered_bytes += len(data)
        try:
            frame = decode_from_worker(data)
        except RemoteFrameError as error:
            self._take_received()
            self._invalid(connection, error)
        else:
            self._received.append(frame if len(data) < LARGE else _with_text(frame))

    def _take_received(self) -> None:
        received, self._received = self._received, []
        if received and self._connection is not None:
            self._perform_for(self._connection, self._connection.receive(received, self._last_heard))

    # --- actions out

    def perform(self, actions: list[Action]) -> None:
        """Do what the session asks for, in order."""
        if self._connection is not None and actions:
            self._perform_for(self._connection, actions)
            self._settle_soon()

    def _perform_for(self, connection: Connection, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Question):
                frames = len(action.reports) if isinstance(action, StoreReports) else 1
                self._questions[action.question] = frames
                self._unanswered += frames
                self._gate.keep(self._ask(connection, action), "question")
            elif isinstance(action, Close):
                self.close(action.code, action.reason)
            elif isinstance(action, TakeDelta):
                self._gate.deltas.take(action)
            elif isinstance(action, ClosePeer):
                other = self._gate.sockets.get(action.connection)
                if other is not None:
                    other.close(action.code, action.reason)

    def _send(self, action: Send) -> None:
        if self._connection is None or not self._stream.is_open:
            return
        try:
            self._stream.send(encode_to_worker(action.frame))
        except LocalFrameError:
            _log.exception("a frame of ours breaks the contract", frame=type(action.frame).__name__)
            self.close(INTERNAL_ERROR, "the control plane failed")
            return
        if isinstance(action.frame, Registered):
            self._register_by = None
            self._log_registered()

    def _log_registered(self) -> None:
        session = None if self._connection is None else self._connection.session
        if session is not None:
            _log.info("worker registered", worker_instance_id=session.worker_instance_id, session_id=session.id)

    async def _ask(self, connection: Connection, question: Question) -> None:
        number = question.question
        try:
            try:
                result = await self._result_of(question)
            except ControlPlaneError as error:
                actions = connection.refused(number, error, self._loop.time())
            else:
                actions = connection.answered(number, result, self._loop.time())
        except Exception:  # noqa: BLE001 - the last resort of one socket
            # A bug of ours: this worker's conversation cannot go on, everybody else's can.
            _log.exception("worker socket failed", question=type(question).__name__)
            actions = [Close(code=INTERNAL_ERROR, reason="the control plane failed")]
        self._unanswered -= self._questions.pop(number)
        if not self._questions:
            self._unanswered_bytes = 0
            self._inbound.hold(self, self._unfinished)
        self._perform_for(connection, actions)
        if self._shutting_down and not self._questions:
            self.close(SERVICE_RESTART, "the control plane restarts")
        if self._questions:
            self._settle_soon()
        else:
            self._settle()  # nothing else is to come with it
            if isinstance(question, StoreClaim) and question.order.with_new:
                # An idle worker has got its job. The kernel wakes it on this processor, since a sender mostly sleeps
                # soon; we go on with the answer to whoever handed the job in, for which it would wait 0.15 ms.
                os.sched_yield()

    async def _result_of(self, question: Question) -> Any:
        store = self._gate.store
        match question:
            case StoreReports():
                return await self._report(question)
            case StoreClaim():
                asked_at = self._loop.time()
                leases = await store.claim(question.order)
                now = self._loop.time()
                # When the worker has its jobs.
                self._loop.call_soon(self._gate.observations.claimed, leases, now - asked_at, now)
                if self._gate.deltas.busy:
                    self._gate.deltas.leased(leases)
                return leases
            case StoreHeartbeat():
                return await store.heartbeat(question.project_id, question.job_id, question.lease_token)
            case StoreRegister():
                return await store.register_session(question.session)
            case StoreFindSession():
                return await store.session_by_token(question.project_id, question.token_hash)
            case StoreUpdateSession():
                return await store.update_session(
                    question.session_id,
                    draining=question.draining,
                    ended=question.ended,
                    selector=question.selector,
                )
            case StoreContest():
                return await store.contest(question.project_id, question.worker_instance_id)
            case AnswerContest():
                alive = await self.ping(question.timeout)
                return await store.answer_contest(question.contest_id, alive=alive)
            case PingPeer():
                other = self._gate.sockets.get(question.connection)
                return other is not None and await other.ping(question.timeout)
        raise AssertionError(question)

    async def _report(self, question: StoreReports) -> list[ReportOutcome]:
        deltas = self._gate.deltas
        if deltas.busy:
            await deltas.settle(question.project_id, [report.job_id for report in question.reports])
        outcomes = await self._gate.store.reports(question.project_id, question.reports)
        self._gate.observations.reported(question.reports, outcomes, self._loop.time())
        if deltas.busy:
            told = zip(question.reports, outcomes, strict=True)
            # Whoever reports what is not his has ended nothing.
            deltas.ended(question.project_id, [report.job_id for report, each in told if each.verdict in _ENDING])
        return outcomes

    async def ping(self, timeout: float) -> bool:  # noqa: ASYNC109 - the question carries it
        """Whether the worker gives a sign of life within `timeout` seconds of a ping. One that is not listened to has
        given more of them than are read."""
        if not self._stream.is_open or not self._reading:
            return self._stream.is_open
        pong: asyncio.Future[bool] = self._loop.create_future()
        self._pongs.append(pong)
        self._stream.send_ping(b"owner?")
        self._settle_soon()
        try:
            async with asyncio.timeout(timeout):
                return await pong
        except TimeoutError:
            return False

    def _hear(self, *, alive: bool) -> None:
        pongs, self._pongs = self._pongs, []
        for pong in pongs:
            if not pong.done():
                pong.set_result(alive)

    def close(self, code: int, reason: str) -> None:
        """Close after what was sent before; a worker that does not answer the close is dropped."""
        if self._stream.is_open and not self._transport.is_closing():
            self._stream.send_close(code, reason[:_LONGEST_REASON])
            self._drop_at = self._loop.time() + CLOSE_TIMEOUT
            self._settle_soon()

    # --- once a loop tick: write, listen or not, next deadline

    def look_again(self) -> None:
        """See inbound_bytes.Waiting."""
        self._settle_soon()

    def _settle_soon(self) -> None:
        if not self._settling:
            self._settling = True
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._settling = False
        transport = self._transport
        if transport.is_closing():
            return
        output = self._stream.take_output()
        if output or self._stream.ended:
            transport.write(b"".join(output))
            if self._stream.ended:
                self._end()
                return
            if transport.get_write_buffer_size() > MOST_UNREAD:
                self._drop("does not read what it is sent")
                return
        if (
            self._write_by is not None
            or self._unanswered > MOST_UNANSWERED
            or self._unanswered_bytes > MOST_UNANSWERED_BYTES
            or self._put_off
            or not self._inbound.may_send(self)
        ):
            self._pause_reading()
        elif self._connection is not None and not self._reading:
            self._reading = True
            # It was we who did not listen.
            self._last_heard, self._pinged_at = self._loop.time(), None
            if self._unfinished_since is not None:
                self._unfinished_since = self._last_heard
            transport.resume_reading()
        self._arm()

    def _end(self) -> None:
        problem = self._stream.core.parser_exc
        if problem is None:
            self._transport.close()
            return
        # The core has refused what the worker sent and said so in a close frame (1002, 1009). The worker may still be
        # writing: closing now would reset the connection before it has read why.
        _log.info("worker socket broken", reason=str(problem))
        if self._transport.can_write_eof():  # TLS has no half of an end
            self._transport.write_eof()
        self._drop_at = self._loop.time() + CLOSE_TIMEOUT
        self._arm()

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _arm(self) -> None:
        deadline = self._next_deadline()
        timer = self._timer
        # A timer that fires too early finds nothing to do and is set again: cheaper than one timer a frame.
        if timer is not None:
            if self._timer_at <= deadline:
                return
            timer.cancel()
        self._timer = self._loop.call_at(deadline, self._tick)
        self._timer_at = deadline

    def _next_deadline(self) -> float:
        deadline = (self._last_heard if self._pinged_at is None else self._pinged_at) + PING_INTERVAL
        if not self._reading:
            deadline = self._loop.time() + PING_INTERVAL
        session_deadline = None if self._connection is None else self._connection.next_deadline()
        for other in (session_deadline, self._register_by, self._drop_at, self._write_by, self._message_by()):
            if other is not None and other < deadline:
                deadline = other
        return deadline

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        connection = self._connection
        if _due(self._drop_at, now):
            self._drop("did not answer our close")
            return
        if _due(self._write_by, now):
            self._drop("does not read what it is sent")
            return
        if _due(self._message_by(), now):
            self._drop("sends a message too slowly")
            return
        if self._reading and self._is_silent(now):
            return
        if connection is not None:
            if _due(self._register_by, now):
                self._register_by = None
                if connection.session is None:
                    self.close(POLICY_VIOLATION, f"no worker.register within {REGISTER_TIMEOUT:g} seconds")
            if _due(connection.next_deadline(), now):
                self.perform(connection.tick(now))
        self._settle()

    def _is_silent(self, now: float) -> bool:
        """Whether it has been dropped because it answers no ping; after PING_INTERVAL of silence it is sent one."""
        if self._pinged_at is not None:
            if now < self._pinged_at + PING_INTERVAL:
                return False
            self._drop("answers no ping")
            return True
        if now >= self._last_heard + PING_INTERVAL and self._stream.is_open:
            self._pinged_at = now
            self._stream.send_ping(b"")
        return False

    def _drop(self, why: str) -> None:
        session = None if self._connection is None else self._connection.session
        _log.info("worker dropped", worker_instance_id=session and session.worker_instance_id, reason=f"it {why}")
        self._transport.abort()


def _with_text(frame: FromWorker) -> FromWorker:
    """A report's result as JSON again, as it is stored: as values it would take up to twenty times the memory."""
    if not isinstance(frame, Report) or frame.result is None:
        return frame
    result: Any = msgspec.Raw(msgspec.json.encode(frame.result))
    return replace(frame, result=result)


def _due(deadline: float | None, now: float) -> bool:
    return deadline is not None and now >= deadline
