"""An operator's request -> what is asked of the fleet, waited for, and answered. Acts; what happens the fleet decides.

Every command waits until what it asked for has happened, or a deadline passes; what was begun goes on even if nobody
waits for it any more.
"""

import asyncio
import contextlib
import math
import resource
import time
from collections.abc import Callable, Iterable

import msgspec

from supervisor import config, reload
from supervisor.children import Children
from supervisor.config import Config
from supervisor.control_messages import (
    Answer,
    AnyRequest,
    CrashLoopStatus,
    Drain,
    FleetStatus,
    PoolStatus,
    Reload,
    Restart,
    Scale,
    SlotDetail,
    SlotStatus,
    Stacks,
    Status,
)
from supervisor.errors import ConfigurationError, SupervisorError
from supervisor.exit_records import ExitRecords
from supervisor.facts import REPLACED, ChangeRefused, Fact
from supervisor.fleet import CUT_OFF_EXIT, Change, Fleet
from supervisor.pool import Pool
from supervisor.slots import Slot, State, Step
from supervisor.unjoined import in_thread

NOT_FOUND, BUSY, REFUSED = 66, 75, 78
LOAD_PATIENCE = 10.0
"""Seconds to read and check the pool file."""

MARGIN = 15.0
"""Seconds that a wait has beyond what the fleet itself waits for."""

MAX_WAIT = 3600.0
"""Seconds that any command waits at most."""

_OUTPUT_LINES = 100


class Commands:
    """`load` reads the pool file anew (None: there is none), `perform` does what the fleet answered."""

    def __init__(
        self,
        fleet: Fleet,
        children: Children,
        records: ExitRecords,
        *,
        perform: Callable[[list[Step]], None],
        publish: Callable[[Fact], None],
        load: Callable[[], Config] | None,
    ) -> None:
        self._fleet = fleet
        self._children = children
        self._records = records
        self._perform = perform
        self._publish = publish
        self._load = load
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def round_done(self) -> None:
        """Something may have changed: whoever waits for it goes on."""
        for condition, future in self._waiting:
            if not future.done() and condition():
                future.set_result(None)

    async def handle(self, request: AnyRequest) -> Answer:
        """Do it and say how it went."""
        match request:
            case Reload():
                return await self._reload(dry_run=request.dry_run)
            case Scale():
                return await self._scale(request.pool, request.workers)
            case Drain():
                return await self._drain(request.slot)
            case Restart():
                return await self._restart(request.target)
            case Stacks():
                return await self._stacks(request.slot)
            case Status(slot=None):
                return Answer(status=fleet_status(self._fleet, time.monotonic()))
            case Status():
                return await self._status(request.slot or "")

    # --- reload --------------------------------------------------------------------------------------------------

    async def _reload(self, *, dry_run: bool) -> Answer:
        if self._load is None:
            return self._refuse(["there is no pool file: this supervisor was started from flags; start it again"])
        try:
            async with asyncio.timeout(LOAD_PATIENCE):
                wanted = await in_thread(self._load)
        except TimeoutError:
            return self._refuse([f"the pool file could not be read within {LOAD_PATIENCE:g}s"])
        except ConfigurationError as error:
            return self._refuse(error.problems, tell=not dry_run)
        except SupervisorError as error:
            return self._refuse([str(error)], tell=not dry_run)
        if dry_run:
            return await self._rehearse(wanted)
        busy = self._fleet.busy(wanted)
        if busy:
            return self._refuse([busy], exit_code=BUSY)
        allow_files_for([*wanted.pool, *self._fleet.running.pool])
        change, steps = self._fleet.begin_change(wanted, time.monotonic())
        self._perform(steps)
        boot = max(pool.limits.boot for pool in wanted.pool)
        await self._until(lambda: change.outcome != "trying", 2 * boot + MARGIN)
        return _outcome(change)

    async def _rehearse(self, wanted: Config) -> Answer:
        """All of a reload but the part that is seen: whether the new molds come up is tried."""
        plan = self._fleet.plan(wanted)
        told = _told(plan)
        if plan.refused or not any(pool.needs_new_mold for pool in plan.pools):
            return Answer(exit_code=REFUSED if plan.refused else 0, **told)  # type: ignore[arg-type]
        rolling = any(pool.is_rolling for pool in self._fleet.pools)
        busy = self._fleet.busy(wanted) or ("children are being exchanged; ask again later" if rolling else "")
        if busy:
            return Answer(exit_code=BUSY, lines=told["lines"], errors=[f"the modules were not tried: {busy}"])
        change, steps = self._fleet.rehearse(wanted, time.monotonic())
        self._perform(steps)
        boot = max(pool.limits.boot for pool in wanted.pool)
        await self._until(lambda: change.outcome != "trying", boot + MARGIN)
        return _outcome(change)

    def _refuse(self, problems: list[str], *, exit_code: int = REFUSED, tell: bool = True) -> Answer:
        if tell:
            self._publish(ChangeRefused(problems=problems))
        return Answer(exit_code=exit_code, errors=problems)

    # --- pools and slots -----------------------------------------------------------------------------------------

    async def _scale(self, name: str, workers: int) -> Answer:
        pool = self._pool(name)
        if pool is None:
            return self._unknown(name, "pool")
        busy = self._fleet.busy() or ("its children are being exchanged; ask again later" if pool.is_rolling else "")
        if busy:
            return Answer(exit_code=BUSY, errors=[f"pool {name}: {busy}"])
        if pool.outdated and workers > len(pool.staying):
            return Answer(exit_code=REFUSED, errors=[f"pool {name}: {REPLACED}"])
        scaled = msgspec.structs.replace(pool.settings, workers=workers)
        allow_files_for([*self._fleet.running.pool, scaled])
        before = pool.settings.workers
        self._perform(pool.scale(workers, self._fleet.grace, time.monotonic()))
        done = await self._until(
            lambda: not pool.leaving and _is_settled(pool),
            pool.settings.limits.boot + self._fleet.grace + MARGIN,
        )
        lines = [f"pool {name}: {workers} workers, {before} before; a reload goes back to the pool file"]
        return Answer(lines=lines) if done else _still_under_way(lines)

    async def _drain(self, name: str) -> Answer:
        found = self._child(name)
        if found is None:
            return self._unknown(name, "worker's slot")
        pool, child = found
        role = pool.role(name)
        busy = self._fleet.busy() or (f"nothing to do, it is {role} already" if role else "")
        if busy:
            return Answer(exit_code=BUSY, errors=[f"{name}: {busy}"])
        self._perform(pool.hold(name, self._fleet.grace, time.monotonic()))
        done = await self._until(lambda: child.is_over, self._fleet.grace + MARGIN)
        if not done or child.state is State.STUCK:
            return Answer(exit_code=BUSY, errors=[f"{name}: {child.state.value}; see mobius-supervisor status {name}"])
        return _drain_report(child)

    async def _restart(self, target: str) -> Answer:
        busy = self._fleet.busy()
        if busy:
            return Answer(exit_code=BUSY, errors=[f"{target}: {busy}"])
        found = self._child(target)
        pool = found[0] if found is not None else self._pool(target)
        if pool is None:
            return self._unknown(target, "pool or worker's slot")
        names = [target] if found is not None else [child.name for child in pool.staying]
        if found is not None and pool.role(target) == "leaving":
            return Answer(exit_code=BUSY, errors=[f"{target}: leaving already"])
        if pool.outdated:
            return Answer(exit_code=REFUSED, errors=[f"{target}: {REPLACED}"])
        before = list(pool.children)
        pool.replace(names, self._fleet.grace)
        self._perform([])
        failed: list[str] = []

        def is_done() -> bool:
            failed[:] = [_failure(child) for child in pool.children if child not in before and _fails(child)]
            return bool(failed) or (not pool.is_rolling and _is_settled(pool))

        each = pool.settings.limits.boot + self._fleet.grace + MARGIN
        done = await self._until(is_done, each * math.ceil(len(names) / pool.share))
        if not done or failed:
            return _still_under_way([f"{name}: restarting" for name in names], *failed)
        return Answer(lines=[f"{name}: restarted" for name in names])

    async def _stacks(self, slot: str) -> Answer:
        answered: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

        def done(stacks: str, why_not: str) -> None:
            if not answered.done():
                answered.set_result((stacks, why_not))

        try:
            self._children.ask_stacks(slot, done)
        except LookupError:
            known = any(one.name == slot for one in self._fleet.slots)
            return Answer(exit_code=BUSY, errors=[f"{slot}: has no process"]) if known else self._unknown(slot, "slot")
        async with asyncio.timeout(MARGIN):
            stacks, why_not = await answered
        return Answer(lines=stacks.splitlines()) if stacks else Answer(exit_code=BUSY, errors=[f"{slot}: {why_not}"])

    async def _status(self, name: str) -> Answer:
        slot = next((one for one in self._fleet.slots if one.name == name), None)
        if slot is None:
            return self._unknown(name, "slot")
        last_exit = self._records.last(name)
        if last_exit is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MARGIN):
                    last_exit = await in_thread(lambda: self._records.newest(name))
        detail = SlotDetail(
            status=_slot_status(self._fleet, slot, time.monotonic()),
            output=self._children.last_lines(name)[-_OUTPUT_LINES:],
            job_processes=self._children.jobs.of(name, time.monotonic()),
            silence=msgspec.to_builtins(slot.suspicion) if slot.suspicion is not None else None,
            last_exit=last_exit,
        )
        return Answer(detail=detail)

    # --- parts ---------------------------------------------------------------------------------------------------

    def _pool(self, name: str) -> Pool | None:
        return next((pool for pool in self._fleet.pools if pool.name == name and not pool.retired), None)

    def _child(self, name: str) -> tuple[Pool, Slot] | None:
        return next(
            ((pool, child) for pool in self._fleet.pools for child in pool.children if child.name == name), None
        )

    def _unknown(self, name: str, what: str) -> Answer:
        pools = [f"pool {pool.name}" for pool in self._fleet.pools] if "pool" in what else []
        slots = [slot.name for slot in self._fleet.slots] if "slot" in what else []
        known = ", ".join(pools + slots)
        return Answer(exit_code=NOT_FOUND, errors=[f"{name}: is no {what} of this supervisor, which has {known}"])

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether it came true in time."""
        if condition():
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (condition, future)
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(min(seconds, MAX_WAIT)):
                await future
        except TimeoutError:
            return False
        finally:
            self._waiting.remove(waiting)
        return True


def _is_settled(pool: Pool) -> bool:
    """Nothing more happens by itself, or it would not soon."""
    at_rest = (State.READY, State.READY_SILENT, State.BACKOFF, State.STUCK)
    return all(child.state in at_rest or child.name in pool.held for child in pool.staying)


def _fails(child: Slot) -> bool:
    return child.state is State.BACKOFF and child.failures > 0


def _failure(child: Slot) -> str:
    return f"{child.name}: {child.last_end.detail if child.last_end is not None else child.state.value}"


def fleet_status(fleet: Fleet, now: float) -> FleetStatus:
    """Everything, as of now."""
    change = fleet.change
    return FleetStatus(
        phase=fleet.phase.value,
        ready=fleet.is_ready,
        build=fleet.build,
        restart_needed=fleet.build_skew,
        reload=change.outcome if change is not None else "",
        reload_problem=change.problem if change is not None else "",
        pools=[
            PoolStatus(
                pool=pool.name,
                workers=pool.settings.workers,
                working=sum(child.is_working for child in pool.children),
                rolling=pool.is_rolling,
            )
            for pool in fleet.pools
        ],
        slots=[_slot_status(fleet, slot, now) for slot in fleet.slots],
    )


def allow_files_for(pools: Iterable[config.Pool]) -> None:
    """Two pipes, an output, stacks and a pidfd for each child, and a pidfd for each job that may have a process.

    A child inherits the limit, and has three descriptors for such a job. The usual soft limit of 1024 is for programs
    with fewer.
    """
    pools = list(pools)
    children = sum(pool.workers * (6 + pool.concurrency) for pool in pools)
    wanted = 256 + max([children, *(4 * pool.concurrency for pool in pools)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _slot_status(fleet: Fleet, slot: Slot, now: float) -> SlotStatus:
    beat, totals, loop = slot.beat, slot.totals, slot.crash_loop
    pool = fleet.pool_of(slot.name)
    lives = slot.pid is not None
    return SlotStatus(
        slot=slot.name,
        pool=slot.pool,
        kind=slot.kind,
        state=slot.state.value,
        plan=pool.role(slot.name) if pool is not None else "",
        health=slot.health.replace("_", " "),
        session=slot.session if slot.kind == "child" and lives else "",
        incarnation=slot.incarnation,
        pid=slot.pid,
        ready_for=now - slot.ready_at if slot.ready_at is not None and lives else None,
        beat_age=slot.beat_age(now) if slot.kind != "mold" else None,
        loop_lag=beat.loop_lag if beat is not None else None,
        jobs_in_hand=slot.jobs_in_hand,
        oldest_job_age=beat.oldest_job_age if beat is not None else 0.0,
        acknowledgement_age=beat.last_acknowledgement_age if beat is not None and slot.kind == "child" else None,
        reports_waiting=beat.reports_waiting if beat is not None else 0,
        completed=totals.completed,
        failed=totals.failed,
        cancelled=totals.cancelled,
        handed_back=totals.handed_back,
        failures=slot.failures,
        retry_in=slot.backoff_left(now),
        crash_loop=CrashLoopStatus(times=loop.times, how=loop.how, says=loop.says) if loop is not None else None,
    )


def _told(plan: reload.Plan) -> dict[str, list[str]]:
    return {"errors": plan.refused} if plan.refused else {"lines": reload.lines(plan)}


def _outcome(change: Change) -> Answer:
    told = _told(change.plan)
    if change.outcome in ("adopted", "rehearsed"):
        last = "adopted" if change.outcome == "adopted" else "nothing was changed; the modules can be imported"
        return Answer(lines=[*told["lines"], last])
    if change.outcome == "trying":
        return _still_under_way(told["lines"])
    if change.plan.refused:
        return Answer(exit_code=REFUSED, errors=change.plan.refused)
    what = "it would be aborted" if change.rehearsal else "aborted"
    problem = f"{what}: {change.problem}; the settings and children from before stay"
    return Answer(exit_code=REFUSED, lines=told["lines"], errors=[problem])


def _still_under_way(lines: list[str], *why: str) -> Answer:
    return Answer(exit_code=BUSY, lines=lines, errors=[*why, "still under way; see mobius-supervisor status"])


def _drain_report(child: Slot) -> Answer:
    bye = child.bye
    counts = (bye.finished, bye.handed_back, bye.cut_off) if bye is not None else (0, 0, 0)
    how = "killed, its grace was over" if child.killed_in_stop else "drained"
    line = f"{child.name}: {how}; {counts[0]} jobs finished, {counts[1]} handed back, {counts[2]} cut off"
    return Answer(exit_code=CUT_OFF_EXIT if child.killed_in_stop or counts[2] else 0, lines=[line])
