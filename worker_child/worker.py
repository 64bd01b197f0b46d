"""One worker: carries out what its session decides, over its connection, its runner and its journal."""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from wire import codec, frames, pipe
from worker_child import decisions
from worker_child.actions import Registry
from worker_child.catalogue import NOTHING, Catalogue
from worker_child.decisions import Decision, End, Outcome
from worker_child.endpoint import Endpoint
from worker_child.errors import CredentialError
from worker_child.isolation import JobProcesses
from worker_child.journal import Journal
from worker_child.parent import Parent
from worker_child.runner import Runner
from worker_child.session import Session
from worker_child.suspects import NOBODY, Suspects
from worker_child.transport import ApiKey, Connection, UpgradeRefused, open_connection

WATCH_INTERVAL = 1.0
OVERSLEPT = 10.0
"""Seconds by which the watch may be late before the process counts as having been suspended."""
SUSPEND_STEP = 2.0
"""Seconds by which CLOCK_BOOTTIME may run ahead of CLOCK_MONOTONIC between two rounds of the watch."""
JOURNAL_RETRY = 10.0
SYNC_PATIENCE = 5.0
"""Seconds that the end of a worker waits for the journal's last sync."""


class Worker:
    """Events in, decisions of the session carried out. One for the life of the process."""

    def __init__(
        self,
        session: Session,
        journal: Journal,
        registry: Registry,
        key: ApiKey,
        where: Endpoint,
        parent: Parent,
        catalogue: Catalogue = NOTHING,
        suspects: Suspects = NOBODY,
    ) -> None:
        self._session = session
        self._journal = journal
        self._suspects = suspects
        self._key = key
        self._endpoint = where
        self._parent = parent
        self._log = structlog.get_logger()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[End] = self._loop.create_future()
        settings = session.settings
        self._runner = Runner(
            registry,
            settings.worker_instance_id,
            threads=settings.concurrency,
            finished=self._job_finished,
            came_back=self._job_came_back,
            produced=self._delta_produced,
            catalogue=catalogue,
        )
        self._catalogue = catalogue
        self.last_read = 0.0
        """When bytes were last read, for the session's rolling read deadline."""
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._finished: list[tuple[int, Outcome, bool]] = []
        """Outcomes of this turn of the loop that the session does not know yet."""
        self._outgoing: list[bytes] = []
        self._last_frame: frames.FromWorker | None = None
        self._last_data: bytes | None = None
        self._turn_over_scheduled = False
        self._beginning = False
        """Whether jobs are making their first steps: what comes of those is told together."""
        self._unsynced = False
        self._rewrite_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._announced: set[str] = set()
        self._watch_at = 0.0
        self._suspended_for = _time_suspended()
        self._journal_retry_at = 0.0
        self._perform: dict[type[Decision], Callable[[Any], None]] = {
            decisions.Send: self._send,
            decisions.StartJob: self._start,
            decisions.JournalReported: self._journal_reported,
            decisions.JournalClaimed: self._journal.claimed,
            decisions.JournalSettled: self._journal.settled,
            decisions.CancelJob: lambda cancel: self._runner.cancel(cancel.execution, cancel.reason),
            decisions.LoseLease: lambda lose: self._runner.lose_lease(lose.execution),
            decisions.DeadLetter: lambda letter: self._journal.dead_letter(letter.report, letter.code, letter.message),
            decisions.ClearSuspect: lambda clear: self._suspects.clear(clear.job_id),
            decisions.Connect: self._connect,
            decisions.DropConnection: self._drop,
            decisions.Ping: self._ping,
            decisions.Announce: self._announce,
            decisions.Note: lambda note: getattr(self._log, note.level)(note.event, **note.fields),
            decisions.End: self._end,
        }

    def isolate(self, processes: JobProcesses) -> None:
        """Where jobs run whose action asks for a process for each. Before `run`; without, such a job fails."""
        self._runner.processes = processes

    async def run(self) -> End:
        """Works until the session ends; returns why it did. What is unsettled by then is in the journal."""
        now = time.monotonic()
        self._watch_at = now
        self._watch()
        self._step(self._session.tick)
        looking_for_models = self._loop.create_task(self._catalogue.watch(self._models_changed))
        end = await self._ended
        looking_for_models.cancel()
        self._runner.stop()
        self._step(self._session.jobs_finished, self._take_finished())
        if self._syncing is not None:
            # A disk that stands still keeps nobody here: what it has not taken is in the kernel's hands already.
            await asyncio.wait([self._syncing], timeout=SYNC_PATIENCE)
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            await self._connection.say_goodbye()
        claimed, reported = self._session.outstanding()
        if self._journal.compaction_due(outstanding=bool(claimed or reported)):
            self._journal.rewrite(claimed, reported)
        self._journal.close()
        await self._catalogue.close()
        return end

    def drain(self, grace: float, reason: str, *, ordered: bool) -> None:
        """Claim no more, finish within `grace` seconds, end. See `Session.drain`."""
        self._step(functools.partial(self._session.drain, ordered=ordered), grace, reason)

    def beat(self, now: float) -> pipe.Beat:
        """The worker's part of a beat."""
        return msgspec.structs.replace(
            self._session.beat(now), overdue=self._runner.overdue(now), journal_degraded=self._journal.degraded
        )

    # --- what the connection and the runner tell --------------------------------------------------------------------

    def messages_received(self, messages: list[bytes]) -> None:
        """Messages of the server that arrived together."""
        received: list[frames.FromServer] = []
        for message in messages:
            try:
                frame = codec.decode_from_server(message)
            except codec.RemoteFrameError as error:
                self._step(self._session.frames_received, received)
                received = []
                self._unreadable(message, error)
                continue
            if type(frame) is frames.Claimed:
                self._session.solitude.suspects = self._suspects.current()
            received.append(frame)
        self._step(self._session.frames_received, received)

    def _unreadable(self, message: bytes, error: codec.RemoteFrameError) -> None:
        in_part = codec.claimed_in_part(message) if len(message) <= codec.MAX_FRAME_TO_WORKER else None
        if in_part is None:
            self._step(self._session.garbage_received, str(error), error.message_id)
        else:
            self._session.solitude.suspects = self._suspects.current()
            self._step(self._session.claimed_in_part, *in_part)

    def binary_received(self) -> None:
        """A message that is no frame."""
        self._step(self._session.garbage_received, "a binary message is no frame", None)

    def connection_closed(self, reason: str, *, going_away: bool = False) -> None:
        """The connection is gone."""
        self._connection = None
        self._outgoing.clear()
        self._step(functools.partial(self._session.connection_lost, going_away=going_away), reason)

    def _job_finished(self, execution: int, outcome: Outcome, returned: bool) -> None:  # noqa: FBT001 - the runner's word
        self._finished.append((execution, outcome, returned))
        if self._beginning:
            return
        if self._runner.idle:
            # Nothing runs that could finish in this turn of the loop too.
            self._step(self._session.jobs_finished, self._take_finished())
        elif not self._turn_over_scheduled:
            self._turn_over_scheduled = True
            self._loop.call_soon(self._turn_over)

    def _job_came_back(self, execution: int) -> None:
        self._step(self._session.code_returned, execution)

    def _delta_produced(self, execution: int, delta: dict[str, Any]) -> None:
        self._step(self._session.delta_produced, execution, delta)

    def _models_changed(self, models: Sequence[frames.ModelCapability]) -> None:
        self._step(self._session.models_changed, models)

    def writable(self) -> None:
        """Every byte that was handed to the connection has left."""
        if self._session.awaits_written and not self._outgoing:
            self._step(self._session.written)

    # --- carrying decisions out -------------------------------------------------------------------------------------

    def _step(self, event: Callable[..., list[Decision]], *facts: Any) -> None:
        """Tells the session of one event, and carries out what it decides."""
        try:
            now = time.monotonic()
            if self._finished:
                # What waits for the end of the turn was there before this event, and must not look later.
                self._carry_out(self._session.jobs_finished(self._take_finished(), now))
            self._carry_out(event(*facts, now))
            self._write()
            while self._runner.unbegun:
                now = self._begin()
            # Only now, as what was decided is on its way.
            self._set_timer(now)
        except Exception as error:  # noqa: BLE001 - a session with a bug is not worked on with: the process ends, says why
            self._fail(error)

    def _start(self, start: decisions.StartJob) -> None:
        self._runner.start(start.execution, start.job)

    def _begin(self) -> float:
        """First steps of the jobs that were started, which are in the journal by now, and the outcomes that some have
        already. Returns the time at which they were made, as they take what they take."""
        self._beginning = True
        self._runner.begin()
        self._beginning = False
        now = time.monotonic()
        if self._finished:
            self._carry_out(self._session.jobs_finished(self._take_finished(), now))
            self._write()
        return now

    def _carry_out(self, decided: list[Decision]) -> None:
        perform = self._perform
        for decision in decided:
            perform[type(decision)](decision)

    def _take_finished(self) -> list[tuple[int, Outcome, bool]]:
        finished, self._finished = self._finished, []
        return finished

    def _set_timer(self, now: float) -> None:
        deadline = self._session.next_deadline()
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self._loop.call_later(max(0.0, deadline - now), self._tick)

    def _fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        self._session.last_read = max(self._session.last_read, self.last_read)
        self._step(self._session.tick)

    def _send(self, send: decisions.Send) -> None:
        if self._connection is None or (send.repeated and self._connection.unsent):
            return
        # A report is written down and sent as the same bytes: it is encoded once for both.
        data = self._last_data if send.frame is self._last_frame else self._encoded(send.frame)
        if data is not None:
            self._outgoing.append(data)

    def _encoded(self, frame: frames.FromWorker) -> bytes | None:
        try:
            return codec.encode_to_server(frame)
        except codec.LocalFrameError:
            self._log.exception("worker.frame_not_sent", frame=type(frame).__name__)
            return None

    def _journal_reported(self, reported: decisions.JournalReported) -> None:
        self._last_frame = report = reported.report
        self._last_data = data = self._encoded(report)
        if data is not None:
            self._journal.reported(report, data)
            self._unsynced = True

    def _turn_over(self) -> None:
        """Every job that could finish in this turn of the loop has done so."""
        self._turn_over_scheduled = False
        if self._finished:
            self._step(self._session.jobs_finished, self._take_finished())

    def _write(self) -> None:
        """One write to the journal, then one to the socket, for everything that was decided together.

        The jobs that were started with it make their first steps only afterwards.
        """
        self._journal.flush()
        if self._unsynced and self._journal.must_sync:
            self._start_sync()
        else:
            self._unsynced = False
            self._transmit()

    def _start_sync(self) -> None:
        if self._syncing is None:
            self._syncing = self._loop.create_task(self._sync())

    async def _sync(self) -> None:
        """What the journal needs a thread for: syncs in mode "fsync", and a new file in place of a long one.

        Group commit: whatever is decided while one sync runs is covered by the next.
        """
        try:
            while self._unsynced or self._rewrite_due:
                outgoing, self._outgoing = self._outgoing, []
                connection = self._connection
                await self._sync_once()
                if outgoing and connection is not None and connection is self._connection:
                    connection.transmit(outgoing)
            self._syncing = None
            self._transmit()
        except Exception as error:  # noqa: BLE001 - see _step
            self._fail(error)

    async def _sync_once(self) -> None:
        self._journal.flush()
        rewrite = self._journal.begin_rewrite(*self._session.outstanding()) if self._rewrite_due else None
        self._unsynced = self._rewrite_due = False
        try:
            await self._loop.run_in_executor(None, self._journal.sync, rewrite)
        except OSError as error:
            self._journal.degrade("sync", error)
        if rewrite is not None:
            self._journal.adopt(rewrite)

    def _transmit(self) -> None:
        if self._outgoing and self._connection is not None:
            outgoing, self._outgoing = self._outgoing, []
            self._connection.transmit(outgoing)
        if self._session.awaits_written and self._connection is not None and not self._connection.unsent:
            self.writable()

    def _connect(self, _decision: decisions.Connect) -> None:
        self._connecting = self._loop.create_task(self._open())

    async def _open(self) -> None:
        try:
            connection = await open_connection(self._endpoint, self._key, self)
        except UpgradeRefused as refusal:
            refused = functools.partial(self._session.upgrade_refused, key_changed=self._key_changed())
            self._step(refused, str(refusal))
        except ConnectionError as error:
            self._step(self._session.connection_lost, str(error))
        else:
            self._connecting = None
            self._connection = connection
            self._step(self._session.connected)

    def _key_changed(self) -> bool:
        try:
            return self._key.read_again()
        except CredentialError as error:
            self._log.warning("worker.key_file", error=str(error))
            return False

    def _drop(self, drop: decisions.DropConnection) -> None:
        self._log.warning("worker.drops_connection", reason=drop.reason)
        self._outgoing.clear()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None

    def _ping(self, _decision: decisions.Ping) -> None:
        if self._connection is not None:
            self._connection.ping()

    def _announce(self, announce: decisions.Announce) -> None:
        if announce.fact not in self._announced:
            self._announced.add(announce.fact)
            (self._parent.registered if announce.fact == "registered" else self._parent.ready)()

    def _end(self, end: End) -> None:
        if not self._ended.done():
            self._ended.set_result(end)

    # --- once a second ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Suspends, writes that do not get away, and the size of the journal."""
        now = time.monotonic()
        late, self._watch_at = now - self._watch_at, now + WATCH_INTERVAL
        before, self._suspended_for = self._suspended_for, _time_suspended()
        if late >= OVERSLEPT or self._suspended_for - before >= SUSPEND_STEP:
            self._step(self._session.suspended)
        elif self._connection is not None and self._connection.is_stalled(now):
            self._connection.abandon()
            self.connection_closed("bytes could not be sent in time")
        self._watch_journal(now)
        if not self._ended.done():
            self._loop.call_later(WATCH_INTERVAL, self._watch)

    def _watch_journal(self, now: float) -> None:
        outstanding = any(self._session.outstanding())
        if not self._journal.compaction_due(outstanding=outstanding):
            return
        if not outstanding and not self._journal.degraded:
            self._journal.empty()
        elif now >= self._journal_retry_at:
            self._journal_retry_at = now + JOURNAL_RETRY
            self._rewrite_due = True
            self._start_sync()


def _time_suspended() -> float:
    """Seconds that this machine has spent suspended since it booted; a step of the wall clock does not change it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
