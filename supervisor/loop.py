"""Events -> fleet.step(now) -> perform. One asyncio loop; the only file that knows what time it is."""

import asyncio
import contextlib
import math
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from service_manager.log_writer import LogWriter
from service_manager.notify import Notifier
from supervisor import journals
from supervisor.child_settings import child_settings, mold_settings
from supervisor.children import Children
from supervisor.commands import Commands
from supervisor.config import Config
from supervisor.control import Control
from supervisor.control_messages import Reload
from supervisor.exit_records import ExitRecords
from supervisor.facts import (
    REPLACED,
    ActionFailed,
    ChangeAdopted,
    Commanded,
    ControlListening,
    Fact,
    JobProcessEnded,
    JournalAdopted,
    Listening,
    Noted,
    OutputDropped,
    Overslept,
)
from supervisor.fleet import CONTROL_PLANE_SLOT, Fleet, Phase
from supervisor.log import Log, Source
from supervisor.memory import KillCounter, MemoryUse, Sampler
from supervisor.metrics import Metrics
from supervisor.oom import Blame
from supervisor.ops import Ops
from supervisor.output import Line
from supervisor.programs import control_plane_program, mold_program
from supervisor.slots import (
    AbandonSpawn,
    Action,
    AskToDrain,
    Died,
    Event,
    Examine,
    KeepEvidence,
    KillProcess,
    LoopBeat,
    MemorySampled,
    SpawnFailed,
    SpawnProcess,
    Step,
    ThreadBeat,
)
from supervisor.unjoined import in_thread
from wire.pipe import ChildSettings

ROUND_INTERVAL = 1.0
"""Seconds between two rounds at most."""

OVERSLEPT = 2.0
"""Seconds by which a round may be late before the time counts as the supervisor's own absence."""

THOROUGH_SWEEP_INTERVAL = 10.0
"""Seconds between two searches for orphans that live, when no process ended meanwhile."""

ADOPTION_PATIENCE = 5.0
"""Seconds that a child's start waits for the disk to say whether a journal was left by a slot that is gone."""

SAMPLING_ROUNDS = 30
"""Rounds in which the memory of every process is looked at once."""

_MOST_ROUNDS_AT_ONCE = 100
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_random = random.SystemRandom()


class Loop:
    """The supervisor at work. `run` is called once."""

    def __init__(
        self,
        settings: Config,
        *,
        fleet: Fleet,
        instance_prefix: str,
        environ: Mapping[str, str],
        log: Log,
        writer: LogWriter,
        notifier: Notifier,
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._instance_prefix = instance_prefix
        self._environ = environ
        self._log = log
        self._writer = writer
        self._notifier = notifier
        self._metrics = Metrics(
            fleet,
            build=fleet.build,
            clock=time.monotonic,
            dropped_lines=lambda: self._writer.dropped,
            round_lag=lambda: self._lag,
        )
        self._records = ExitRecords(Path(settings.supervisor.state_dir), self._complain)
        self._events: deque[Event] = deque()
        self._signals: deque[signal.Signals] = deque()
        self._over = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._woken = False
        self._expected = time.monotonic()
        self._lag = 0.0
        self._kill_counter = KillCounter()
        self._blame = Blame()
        # However short the service manager's patience is, two rounds fit into it.
        self._round_interval = min(ROUND_INTERVAL, (notifier.watchdog_interval or math.inf) / 2)
        self._sampler = Sampler(self._memory_found)
        self._sampled: deque[str] = deque()
        self._swept_at = self._searched_at = self._fed_at = self._heard_at = 0.0
        self._search = False
        self._forking: set[asyncio.Task[None]] = set()
        self._dropped_told = 0
        self._status = ""

    async def run(self, load: Callable[[], Config] | None = None) -> None:
        """From the first process to the last. `load` reads the pool file anew, if there is one.

        Raises CannotListenError.
        """
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._unexpected)
        self._children = Children(
            self._loop,
            deliver=self._deliver,
            publish=self._publish,
            forward=self._forward,
            mold_of=lambda slot: self._fleet.terms(slot)[2],
            unexplained=self._wake,
        )
        ops = Ops(self._fleet, self._metrics)
        self._commands = Commands(
            self._fleet, self._children, self._records, perform=self._ordered, publish=self._publish, load=load
        )
        control = Control(Path(self._settings.supervisor.runtime_dir), self._commands.handle, self._commanded)
        for note in self._settings.notes:
            self._publish(Noted(sentence=note))
        if self._settings.supervisor.listen:
            self._publish(Listening(address=await ops.start(self._settings.supervisor.listen)))
        self._publish(ControlListening(path=await control.start()))
        for number in (*_STOP_SIGNALS, signal.SIGQUIT, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._signalled, number)
        self._notifier.ready("starting")
        try:
            self._expected = time.monotonic()
            self._wake()
            await self._over.wait()
        finally:
            self._notifier.stopping("draining")
            ops.close()
            control.close()
            self._children.close()
            self._records.close()
            self._kill_counter.close()
            if self._timer is not None:
                self._timer.cancel()
            self._notifier.close()

    # --- what comes in: enqueued, and the loop woken; nothing else -----------------------------------------------

    def _signalled(self, number: signal.Signals) -> None:
        self._signals.append(number)
        self._wake()

    def _ordered(self, steps: list[Step]) -> None:
        """What an operator's command brought about."""
        self._perform(steps)
        self._wake()

    def _commanded(self, command: str, uid: int, exit_code: int) -> None:
        if command not in ("status", "stacks"):
            self._publish(Commanded(command=command, uid=uid, exit_code=exit_code))

    def _deliver(self, event: Event) -> None:
        self._events.append(event)
        # Beats are many and wait for the next round, which takes them before it looks at any deadline.
        if not isinstance(event, LoopBeat | ThreadBeat | MemorySampled):
            self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._round)

    # --- one round -----------------------------------------------------------------------------------------------

    def _round(self) -> None:
        self._woken = False
        now = time.monotonic()
        try:
            self._notice_own_absence(now)
            self._hear(now)
            self._take_signals(now)
            self._attribute_kills(now)
            self._take_events(now)
            self._sweep(now)
            self._commands.round_done()
            self._tell_status(now)
        except Exception as error:  # noqa: BLE001 - the last resort: one bad round must not end supervision
            self._unexpected(self._loop, {"message": "a round failed", "exception": error})
        if self._fleet.phase is Phase.OVER:
            self._over.set()
            return
        self._schedule()

    def _notice_own_absence(self, now: float) -> None:
        late = now - self._expected
        self._lag = max(0.0, late)
        if late > OVERSLEPT:
            self._fleet.forgive(late)
            self._publish(Overslept(seconds=late))

    def _hear(self, now: float) -> None:
        """Once a second, and always before a deadline is judged: a beat that waits in its pipe is heard in time."""
        if now - self._heard_at >= self._round_interval / 2 or self._fleet.next_deadline() <= now:
            self._heard_at = now
            self._children.hear()

    def _take_signals(self, now: float) -> None:
        while self._signals:
            number = self._signals.popleft()
            if number is signal.SIGHUP and not os.isatty(0):
                # Its outcome is told in the log, by facts.
                self._reloading = self._loop.create_task(self._commands.handle(Reload()))
            elif number is signal.SIGQUIT:
                self._perform(self._fleet.kill(number.name, now))
            else:
                self._notifier.stopping("draining")
                self._perform(self._fleet.stop(number.name, now))

    def _attribute_kills(self, now: float) -> None:
        """Deaths by a SIGKILL that nobody here sent: was it the kernel, for want of memory?"""
        self._blame.observe(self._kill_counter.read(), now)
        killed = [
            index
            for index, event in enumerate(self._events)
            if isinstance(event, Died) and event.signal == signal.SIGKILL and not self._fleet.kills(event.slot)
        ]
        jobs = self._children.jobs
        if killed or jobs.unjudged:
            verdict = self._blame.judge(len(killed) + jobs.unjudged, now)
            for index in killed:
                self._events[index] = msgspec.structs.replace(self._events[index], out_of_memory=verdict)
            jobs.explain(out_of_memory=verdict)

    def _take_events(self, now: float) -> None:
        """Until nothing follows from anything any more; bounded, because a bug here must not hold the loop."""
        for _ in range(_MOST_ROUNDS_AT_ONCE):
            while self._events:
                event = self._events.popleft()
                self._search = self._search or isinstance(event, Died)
                self._perform(self._fleet.step(event, now))
            self._perform(self._fleet.tick(now))
            if not self._events:
                return

    def _sweep(self, now: float) -> None:
        if not self._search and now - self._swept_at < ROUND_INTERVAL:
            return
        thorough = self._search or now - self._searched_at >= THOROUGH_SWEEP_INTERVAL
        if not self._children.sweep(thorough=thorough):
            # A process that ended may have left orphans: they are looked for as soon as it can be told who is one.
            return
        self._sample_memory()
        self._swept_at, self._search = now, False
        self._searched_at = now if thorough else self._searched_at

    def _sample_memory(self) -> None:
        """A few processes in a round, in turn: it costs the kernel a walk over all that a process has in memory."""
        alive = {slot.name: slot for slot in self._fleet.slots if slot.beat_age(0.0) is not None}
        if not self._sampled:
            self._sampled.extend(alive)
        few = [self._sampled.popleft() for _ in range(min(len(self._sampled), 1 + len(alive) // SAMPLING_ROUNDS))]
        chosen = [alive[name] for name in few if name in alive]
        if chosen:
            self._sampler.ask([((slot.name, slot.incarnation), slot.pid) for slot in chosen if slot.pid is not None])

    def _memory_found(self, key: tuple[str, int], use: MemoryUse) -> None:
        """From the sampler's thread."""
        event = MemorySampled(slot=key[0], incarnation=key[1], private=use.private, shared_fairly=use.shared_fairly)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, event)

    def _tell_status(self, now: float) -> None:
        if self._writer.dropped > self._dropped_told:
            self._publish(OutputDropped(lines=self._writer.dropped - self._dropped_told))
            self._dropped_told = self._writer.dropped
        working = sum(child.is_working for child in self._fleet.children)
        wanted = sum(pool.workers for pool in self._fleet.running.pool)
        status = f"{self._fleet.phase.value}: {min(working, wanted)} of {wanted} workers ready"
        if self._fleet.phase is Phase.DRAINING:
            left = [child for child in self._fleet.children if not child.is_over]
            jobs = sum(child.jobs_in_hand for child in left)
            status = f"draining: {len(left)} of {wanted} workers left, with {jobs} job{'s' * (jobs != 1)} in hand"
        if self._fleet.build_skew:
            status += f"; {REPLACED}"
        loops = [slot for slot in self._fleet.slots if slot.crash_loop is not None]
        if loops and loops[0].crash_loop is not None:
            more = f" (and {len(loops) - 1} more)" if len(loops) > 1 else ""
            status += f"; crash loop of {loops[0].name}{more}: {loops[0].crash_loop.says}"
        if status != self._status:
            self._status = status
            self._notifier.status(status)
        interval = self._notifier.watchdog_interval
        if interval is not None and now - self._fed_at >= interval / 2:
            self._fed_at = now
            self._notifier.watchdog()

    def _schedule(self) -> None:
        """The next round is due at the next deadline, and within ROUND_INTERVAL anyway."""
        now = time.monotonic()
        self._expected = max(now, min(self._fleet.next_deadline(), now + self._round_interval))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._expected - now, self._wake)

    # --- what goes out -------------------------------------------------------------------------------------------

    def _perform(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, Fact):
                self._publish(step)
                continue
            try:
                self._act(step)
            except Exception as error:  # noqa: BLE001 - one process that cannot be acted on harms no other
                self._failed(step, error)

    def _act(self, action: Action) -> None:
        match action:
            case SpawnProcess():
                self._spawn(action)
            case AskToDrain():
                self._children.drain(action.slot, action.incarnation, action.grace)
            case Examine():
                self._children.examine(action)
            case KeepEvidence():
                self._children.keep_evidence(action)
            case KillProcess():
                self._children.kill(action.slot, action.incarnation)
            case AbandonSpawn():
                self._children.abandon(action.slot, action.incarnation)

    def _spawn(self, action: SpawnProcess) -> None:
        slot, incarnation = action.slot, action.incarnation
        if slot == CONTROL_PLANE_SLOT:
            self._children.start(
                slot, incarnation, "control_plane", control_plane_program(self._settings, self._environ)
            )
            return
        settings, pool, mold = self._fleet.terms(slot)
        if slot == mold:
            self._children.start(slot, incarnation, "mold", mold_program(self._settings, self._environ))
            self._children.instruct(slot, incarnation, mold_settings(settings, pool))
            return
        told = child_settings(settings, pool, slot, self._instance_prefix, action.previous_end)
        if not told.journal_path:
            self._children.fork(slot, incarnation, mold, told)
            return
        forking = self._loop.create_task(self._fork_with_journal(action, mold, told))
        self._forking.add(forking)
        forking.add_done_callback(self._forking.discard)

    async def _fork_with_journal(self, action: SpawnProcess, mold: str, told: ChildSettings) -> None:
        """What a slot that is gone has left is looked for beside the loop: a disk may stand still, and it must not."""
        names, left = {child.name for child in self._fleet.children}, None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ADOPTION_PATIENCE):
                left = await in_thread(lambda: journals.adopt(Path(told.journal_path), names))
        if left is not None:
            self._publish(JournalAdopted(slot=action.slot, journal=left.name))
            told = msgspec.structs.replace(told, previous_end=None)
        try:
            self._children.fork(action.slot, action.incarnation, mold, told)
        except Exception as error:  # noqa: BLE001 - see _perform
            self._failed(action, error)

    def _failed(self, action: Action, error: Exception) -> None:
        name = type(action).__name__
        problem = f"{type(error).__name__}: {error}"
        self._publish(
            ActionFailed(pool="", slot=action.slot, incarnation=action.incarnation, action=name, problem=problem)
        )
        if isinstance(action, SpawnProcess):
            self._deliver(
                SpawnFailed(slot=action.slot, incarnation=action.incarnation, message=problem, jitter=_random.random())
            )

    def _publish(self, fact: Fact) -> None:
        self._metrics.publish(fact)
        self._records.publish(fact)
        self._log.publish(fact)
        if isinstance(fact, JobProcessEnded):
            # What it started in a session of its own is a child of ours now; the next round is soon enough.
            self._search = True
        if isinstance(fact, ChangeAdopted):
            self._log.set_level(self._fleet.settings.supervisor.log_level)

    def _forward(self, slot: str, incarnation: int, lines: list[Line]) -> None:
        pool = self._fleet.pool_of(slot)
        self._log.forward(Source(pool=pool.name if pool is not None else "", slot=slot, incarnation=incarnation), lines)

    def _complain(self, sentence: str) -> None:
        """Of the thread that writes exit records, which may not touch anything of the loop."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._publish, Noted(sentence=sentence))

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        problem = f"{type(error).__name__}: {error}" if error is not None else ""
        self._log.write("error", "unexpected", {"what": context.get("message", ""), "problem": problem})
