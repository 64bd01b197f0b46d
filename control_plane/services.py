"""What the control plane does by the clock.

Every service has one shape: a frozen config, `start`, an idempotent `stop`, and `run_once(now)`, which is one round by
the store's clock (microseconds) and all that tests need.

A round that fails because the store is away is logged once per outage and tried again at the next turn.
"""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import structlog
from msgspec import Struct

from control_plane.domain.retention import Retired
from control_plane.domain.store import COUNTED_UP_TO, Committed, JobClaimable, Listener, Reaped, Store, TimerArmed
from control_plane.domain.times import MICROSECONDS, to_microseconds
from control_plane.errors import StoreUnavailable
from control_plane.rounds import Rounds
from service_manager.notify import Notifier

_log = structlog.get_logger("control_plane.services")


class Service(ABC):
    """Calls `run_once` every `interval` seconds from `start` to `stop`, and at once after `wake`."""

    def __init__(self, store: Store, interval: float) -> None:
        self.store = store
        self.interval = interval
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._failing = False

    @abstractmethod
    async def run_once(self, now: int) -> None:
        """One round; `now` is store.now()."""

    async def start(self) -> None:
        """Begin; the first round comes at once."""
        self._task = asyncio.create_task(self._run(), name=type(self).__name__)

    async def stop(self) -> None:
        """End; a round that is under way is given up. A second call does nothing."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def wake(self) -> None:
        """Have the next round now."""
        self._woken.set()

    def pause(self) -> float:
        """Seconds until the next round."""
        return self.interval

    def _pause_until(self, due: int | None) -> float:
        """Until then (microseconds; None: nothing is due), at most the interval."""
        if due is None:
            return self.interval
        return min(self.interval, max(0.0, (due - self.store.now()) / MICROSECONDS))

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self.run_once(self.store.now())
                self._failing = False
            except StoreUnavailable as error:
                if not self._failing:
                    _log.warning("store unavailable", service=type(self).__name__, error=str(error))
                self._failing = True
            except Exception:  # noqa: BLE001 - the last resort: one bad round must not end a service
                _log.exception("round failed", service=type(self).__name__)
            # Not wait_for, which until Python 3.12 loses a cancellation that comes together with what it waits for.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pause()):
                    await self._woken.wait()


def _seconds_since_boot() -> float:
    """The machine's suspends count."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Judge(Service):
    """A service that takes something from whoever was not heard. `overslept_after`: so many seconds late, a round finds
    everybody silent because nobody could be heard, and all get one lease duration more."""

    def __init__(
        self, store: Store, interval: float, overslept_after: float, seconds: Callable[[], float] = _seconds_since_boot
    ) -> None:
        super().__init__(store, interval)
        self._rounds = Rounds(interval, overslept_after)
        self._seconds = seconds

    def judge(self) -> None:
        """To be called before anything is taken."""
        overslept = self._rounds.begin(self._seconds())
        if overslept:
            self.store.postpone_lapses()
            _log.warning(
                "this process stood still, or its machine slept: leases get one lease duration of grace",
                service=type(self).__name__,
                seconds=round(overslept, 1),
            )


class ReaperConfig(Struct, frozen=True, kw_only=True):
    """`interval` and `overslept_after` (see Judge) in seconds; at most `limit` jobs of each deadline a transaction."""

    interval: float = 1.0
    overslept_after: float = 15.0
    limit: int = 500


class Reaper(Judge):
    """Takes back lapsed leases, ends what ran too long, renews what waited too long; `observe` is told what it did."""

    def __init__(
        self,
        store: Store,
        config: ReaperConfig,
        observe: Callable[[Reaped], None] = lambda _: None,
        seconds: Callable[[], float] = _seconds_since_boot,
    ) -> None:
        super().__init__(store, config.interval, config.overslept_after, seconds)
        self._observe = observe
        self._limit = config.limit

    async def run_once(self, now: int) -> None:
        """Sweep until a sweep finds less than its limit."""
        while True:
            # Before each: a round with much to do may be long.
            self.judge()
            reaped = await self.store.reap(limit=self._limit, now=now)
            self._observe(reaped)
            if reaped.leases_lapsed or reaped.executions_timed_out or reaped.pending_renewed:
                _log.info(
                    "reaped",
                    leases_lapsed=reaped.leases_lapsed,
                    executions_timed_out=reaped.executions_timed_out,
                    pending_renewed=reaped.pending_renewed,
                )
            if max(reaped.leases_lapsed, reaped.executions_timed_out, reaped.pending_renewed) < self._limit:
                return


class SessionSweeperConfig(Struct, frozen=True, kw_only=True):
    """Seconds. A session without a live socket ends `end_after` seconds after it was last seen. `overslept_after`: see
    Judge."""

    interval: float = 5.0
    overslept_after: float = 15.0
    end_after: float = 600.0


class SessionSweeper(Judge):
    """Writes when sessions were last seen, and ends those of which nothing has been seen for long.

    `take_seen` gives the ids of the sessions seen since it was last asked (Hub.take_seen), `live` those with an open
    socket (Hub.live_sessions).
    """

    def __init__(
        self,
        store: Store,
        take_seen: Callable[[], Sequence[str]],
        live: Callable[[], Sequence[str]],
        config: SessionSweeperConfig,
        seconds: Callable[[], float] = _seconds_since_boot,
    ) -> None:
        super().__init__(store, config.interval, config.overslept_after, seconds)
        self._take_seen = take_seen
        self._live = live
        self._end_after = to_microseconds(config.end_after)

    async def run_once(self, now: int) -> None:
        """Write what was seen, then end what was not."""
        self.judge()
        seen = self._take_seen()
        if seen:
            await self.store.sessions_seen(dict.fromkeys(seen, now))
        await self.store.end_sessions(unseen_since=now - self._end_after, except_for=self._live(), now=now)


class PulseConfig(Struct, frozen=True, kw_only=True):
    """`interval` in seconds."""

    interval: float = 10.0


class Pulse(Service):
    """Tells the service manager that the event loop turns and the store's writer writes, and what there is to do.

    The watchdog is fed by a write that came back, and by nothing else. A write that was refused (a full disk, a
    database that is away) came back too: starting again would not help, and would take the API away besides.
    """

    def __init__(
        self, store: Store, live: Callable[[], Sequence[str]], notifier: Notifier, config: PulseConfig
    ) -> None:
        super().__init__(store, min(config.interval, notifier.watchdog_interval or config.interval))
        self._live = live
        self._notifier = notifier

    async def run_once(self, now: int) -> None:  # noqa: ARG002 - the shape of a service
        """One write, one look."""
        try:
            await self.store.ping()
        except StoreUnavailable as error:
            self._notifier.watchdog()
            self._notifier.status(f"not serving: {error}")
            raise
        self._notifier.watchdog()
        load = await self.store.load()
        self._notifier.status(
            f"serving: {_counted(len(self._live()), 'worker session')}; {_counted(load.jobs_claimed, 'job')} in hand, "
            f"{_counted(load.jobs_pending)} waiting; {_counted(load.runs_open, 'open run')}"
        )


def _counted(number: int, what: str = "") -> str:
    more = "+" if number >= COUNTED_UP_TO else ""
    return f"{number}{more} {what}{'s' if number != 1 else ''}" if what else f"{number}{more}"


class WakeupsConfig(Struct, frozen=True, kw_only=True):
    """`interval`: longest pause (seconds); at most `limit` jobs are announced a round."""

    interval: float = 1.0
    limit: int = 500


class Wakeups(Service):
    """Announces delayed jobs when they become claimable. `notice` sees every committed fact."""

    def __init__(self, store: Store, listener: Listener, config: WakeupsConfig) -> None:
        super().__init__(store, config.interval)
        self._listener = listener
        self._limit = config.limit
        self._announced_until: int | None = None
        self._next: int | None = None

    def notice(self, facts: Sequence[Committed]) -> None:
        """A job that is delayed beyond what the next round waits for brings that round forward."""
        due = min((fact.available_at for fact in facts if isinstance(fact, JobClaimable)), default=None)
        if due is not None and due > self.store.now() and (self._next is None or due < self._next):
            self.wake()

    def pause(self) -> float:
        """Until the next delayed job is due, at most the interval."""
        return self._pause_until(self._next)

    async def run_once(self, now: int) -> None:
        """Announce what became claimable since the last round."""
        since = self._announced_until if self._announced_until is not None else now
        due = await self.store.claimable(limit=self._limit, since=since, now=now)
        if due:
            self._listener(due)
        more = sum(fact.count for fact in due) == self._limit
        self._announced_until = due[-1].available_at if more else now
        self._next = now if more else await self.store.next_available_at(now=now)


class TimersConfig(Struct, frozen=True, kw_only=True):
    """Seconds. `interval`: longest pause, after which the timers of a process are found that set them and died before
    they were due; `busy_pause`: until timers are tried again about whose runs somebody else was deciding. At most
    `limit` timers a transaction."""

    interval: float = 5.0
    busy_pause: float = 0.02
    limit: int = 64


class Timers(Service):
    """Lets happen what is due: steps wake, waits and runs end, queued runs start. `notice` sees every fact."""

    def __init__(self, store: Store, config: TimersConfig) -> None:
        super().__init__(store, config.interval)
        self._config = config
        self._next: int | None = None
        self._busy = False

    def notice(self, facts: Sequence[Committed]) -> None:
        """A timer that is due before the next round brings that round forward."""
        due = min((fact.due_at for fact in facts if isinstance(fact, TimerArmed)), default=None)
        if due is not None and (self._next is None or due < self._next):
            self._next = due
            self.wake()

    def pause(self) -> float:
        """Until the next timer is due, at most the interval."""
        return self._config.busy_pause if self._busy else self._pause_until(self._next)

    async def run_once(self, now: int) -> None:
        """Fire until nothing is due but what others are deciding about. Nothing is written when nothing is due."""
        self._busy = False
        while True:
            self._next = None
            found = await self.store.next_timer_at()
            if found is None or found > now:
                # One that was set meanwhile may be due earlier than what was read.
                self._next = min((at for at in (self._next, found) if at is not None), default=None)
                return
            fired = await self.store.fire_timers(limit=self._config.limit, now=now)
            self._busy = fired.left > 0
            if fired.fired == 0:
                return


class WriteWatchConfig(Struct, frozen=True, kw_only=True):
    """Seconds. A write that has not come back after `limit` stands still."""

    interval: float = 10.0
    limit: float = 30.0


class WriteWatch(Service):
    """Tries a write now and then, so that a supervisor can be told when writes do not come back. One that is refused
    came back too: starting again would not help."""

    def __init__(self, store: Store, config: WriteWatchConfig) -> None:
        super().__init__(store, config.interval)
        self._limit = config.limit
        self._asked_at: float | None = None

    def stands_still(self) -> bool:
        """Whether a write has been out for too long."""
        return self._asked_at is not None and time.monotonic() > self._asked_at + self._limit

    async def run_once(self, now: int) -> None:  # noqa: ARG002 - the shape of a service
        """One write."""
        self._asked_at = time.monotonic()
        try:
            await self.store.ping()
        finally:
            self._asked_at = None


class RetentionConfig(Struct, frozen=True, kw_only=True):
    """Seconds; None keeps for ever. Of each kind so much is kept behind its end; a round begins every `interval`. One
    transaction deletes about `limit` rows, and the pause behind it is `rest` times as long as it took."""

    runs: float | None
    sessions: float | None
    deltas: float | None
    interval: float = 60.0
    limit: int = 500
    rest: float = 4.0
    shortest_rest: float = 0.01


class Retention(Service):
    """Deletes what is past, in small transactions with pauses, so that nobody waits for it.

    Runs and jobs are walked in the order of their creation, from the oldest that is still there up to the age at which
    nothing can be past.
    """

    def __init__(
        self, store: Store, config: RetentionConfig, observe: Callable[[Retired, int], None] = lambda *_: None
    ) -> None:
        super().__init__(store, config.interval)
        self._config = config
        self._observe = observe
        self._oldest: dict[Retired, int] = {}

    async def run_once(self, now: int) -> None:
        """Delete until nothing past is left."""
        config = self._config
        kept: tuple[tuple[Retired, float | None], ...] = (
            ("deltas", config.deltas),
            ("runs", config.runs),
            ("jobs", config.runs),
            ("sessions", config.sessions),
        )
        for what, seconds in kept:
            if seconds is not None:
                await self._retire(what, now - to_microseconds(seconds))

    async def _retire(self, what: Retired, before: int) -> None:
        position: int | None = self._oldest.get(what, 0)
        number, all_gone = 0, True
        while position is not None:
            began = time.monotonic()
            retired = await self.store.retire(what, before=before, after=position, limit=self._config.limit)
            number += retired.number
            position = retired.position
            all_gone = all_gone and not retired.kept
            if all_gone and position is not None:
                self._oldest[what] = position
            if position is not None:
                took = time.monotonic() - began
                await asyncio.sleep(max(self._config.shortest_rest, took * self._config.rest))
        if number:
            self._observe(what, number)
            _log.info("retired", what=what, number=number)
