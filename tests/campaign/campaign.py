"""A campaign: a real supervisor, a real control plane, a load that never lets up, and faults from a seed. Acts."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from msgspec import Struct

from mobius_cli.connection import resolve
from mobius_cli.http import Mobius
from supervisor.client import ask
from supervisor.control_messages import Status
from tests.campaign.changes import CampaignError, Changes
from tests.campaign.desk import Desk, new_address
from tests.campaign.faults import RECOVERY, Faults
from tests.campaign.handlers import DESK
from tests.campaign.load import Load
from tests.campaign.report import Findings, Sample, growth
from tests.campaign.schedule import Fault, schedule, slot_names
from tests.campaign.watch import MOLD, Watch
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.process_table import descriptors, end_marked, marked, memory
from tests.support.supervisor_process import SupervisorProcess

CONCURRENCY = 2
SETTINGS: dict[str, Any] = {
    "modules": ["tests.campaign.handlers"],
    "preload": False,
    "concurrency": CONCURRENCY,
    "limits": {"boot": "8s", "silence": "1500ms", "kill_after": "5s"},
    "restart": {"backoff_min": "50ms", "backoff_max": "500ms", "healthy_after": "2s", "max_unavailable": "50%"},
}
"""Short, because what the campaign proves does not depend on how long a deadline is."""

LEASES = ("--lease-duration", "6s", "--heartbeat-cadence", "2s")
"""A claim that its worker never read comes back when its lease lapses, and not before."""

START = 60.0
END = 120.0
"""Seconds."""

PROGRESS = 25
"""Faults from one line of progress to the next."""

MEMORY_SETTLES = 100
"""Faults until a supervisor has made use of all that it ever makes use of; before, its memory is not compared."""


class Terms(Struct, frozen=True, kw_only=True):
    """What to do: the faults of `seed`, in a pool of so many workers."""

    seed: int
    faults: int
    workers: int

    @property
    def baseline(self) -> int:
        """The fault after which the supervisor is looked at for the first time."""
        return min(MEMORY_SETTLES, self.faults // 5)


class Campaign:
    """One campaign in `directory`, which keeps what it leaves. `say` gets lines of progress."""

    def __init__(self, terms: Terms, directory: Path, say: Callable[[str], None]) -> None:
        self._terms = terms
        self._directory = directory
        self._say = say
        self._slots = slot_names(terms.workers)
        self._watch = Watch()
        self._changes = Changes()
        self._desk = Desk(new_address(), self._watch, self._changes)
        self._faults = Faults(self._watch, self._changes, self._desk)
        self._findings = Findings(seed=terms.seed, faults=terms.faults, workers=terms.workers)
        self._lanes = {slot: asyncio.Lock() for slot in (*self._slots, MOLD)}
        self._overlap = asyncio.Semaphore(max(2, terms.workers * 2 // 3))
        self._recovering: set[asyncio.Task[None]] = set()

    async def run(self) -> Findings:
        """Never raises for what it finds: that is in `problems`."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        with ControlPlaneProcess(self._directory, *LEASES) as plane:
            supervisor = SupervisorProcess(
                self._directory / "supervisor",
                plane,  # type: ignore[arg-type]
                environment={DESK: self._desk.address},
                heard=lambda entry: loop.call_soon_threadsafe(self._hear, entry),
                workers=self._terms.workers,
                **SETTINGS,
            )
            connection = resolve({}, api_url=plane.url, api_key=plane.key, project="default")
            await self._desk.open()
            async with Mobius(connection) as mobius:
                load = Load(mobius, CONCURRENCY * self._terms.workers * 3 // 2, self._terms.seed)
                try:
                    with supervisor:
                        await self._fight(supervisor, load)
                    await self._judge(load)
                except CampaignError as error:
                    self._findings.problems.append(str(error))
                finally:
                    self._desk.close()
                    await self._abandon()
                    await load.abandon()
                    end_marked(DESK, self._desk.address)
                    self._keep_log(supervisor)
        self._findings.seconds = time.monotonic() - began
        return self._findings

    def _hear(self, entry: dict[str, Any]) -> None:
        self._watch.hear(entry)
        self._changes.told()

    # --- the fight ---------------------------------------------------------------------------------------------------

    async def _fight(self, supervisor: SupervisorProcess, load: Load) -> None:
        await self._changes.until(lambda: self._watch.all_ready(self._slots), START, "every worker is ready")
        await load.begin()
        await load.changes.until(lambda: load.jobs >= self._terms.workers, START, "the load runs")
        for fault in schedule(self._terms.seed, self._terms.faults, self._terms.workers):
            await self._next(fault, load)
            if fault.number == self._terms.baseline:
                await self._sample(supervisor, fault.number)
            if fault.number % PROGRESS == 0:
                self._progress(fault.number, load)
        await self._sample(supervisor, self._terms.faults)
        await self._every_worker_works(load)
        await load.finish(END)
        await self._look_at(supervisor)
        code = await asyncio.to_thread(supervisor.terminate, END)
        if code != 0:
            self._findings.problems.append(f"the supervisor ended with exit code {code}")

    async def _next(self, fault: Fault, load: Load) -> None:
        """When it is due and its victim is at work; its recovery is not waited for."""
        pause = load.jobs + fault.pause
        await load.changes.until(lambda: load.jobs >= pause, RECOVERY, "the load goes on")
        await self._overlap.acquire()
        lanes = [self._lanes[slot] for slot in ((MOLD, fault.slot) if "mold" in fault.kind else (fault.slot,))]
        for lane in lanes:
            await lane.acquire()
        await self._faults.until_ready(*((MOLD, fault.slot) if "mold" in fault.kind else (fault.slot,)))
        task = asyncio.create_task(self._recover(fault, lanes))
        self._recovering.add(task)
        self._raise_failures(load)

    async def _recover(self, fault: Fault, lanes: list[asyncio.Lock]) -> None:
        try:
            self._findings.add(await self._faults.commit(fault))
        finally:
            for lane in lanes:
                lane.release()
            self._overlap.release()

    def _raise_failures(self, load: Load) -> None:
        for task in [task for task in self._recovering if task.done()]:
            self._recovering.discard(task)
            task.result()
        load.check()

    async def _sample(self, supervisor: SupervisorProcess, faults: int) -> None:
        """When everything is made good: what the supervisor holds then is what it holds for good."""
        await asyncio.gather(*self._recovering)
        self._recovering.clear()
        what = f"after {faults} faults every slot is at work"
        await self._changes.until(lambda: self._watch.all_ready(self._slots), RECOVERY, what)
        pid = supervisor.process.pid
        uss, pss = memory(pid)
        # Files that a thread has open for a moment are no part of what it holds.
        lasting = {
            what: number
            for what, number in descriptors(pid).items()
            if not what.startswith("/proc/") or "/exits/" in what
        }
        self._findings.samples.append(Sample(faults=faults, descriptors=lasting, uss=uss, pss=pss))

    async def _every_worker_works(self, load: Load) -> None:
        """Ready is a word; a finished job is a proof."""
        before = dict(load.workers)
        names = [f"box-{number}" for number in range(1, self._terms.workers + 1)]
        await load.changes.until(
            lambda: all(load.workers[name] > before.get(name, 0) for name in names),
            END,
            "every worker has finished a job after the last fault",
        )

    def _progress(self, number: int, load: Load) -> None:
        ready = sum(self._watch.seat(slot).is_ready for slot in self._slots)
        self._say(
            f"fault {number:>4} of {self._terms.faults}   {ready:>3} of {self._terms.workers} workers ready   "
            f"{load.finished:>5} runs   {load.jobs:>6} jobs"
        )

    async def _abandon(self) -> None:
        """Of a campaign that failed: nobody waits for what is still to be made good."""
        for task in self._recovering:
            task.cancel()
        await asyncio.gather(*self._recovering, return_exceptions=True)

    # --- the verdict -------------------------------------------------------------------------------------------------

    async def _look_at(self, supervisor: SupervisorProcess) -> None:
        """At full strength, with every slot and nothing besides."""
        answer = await asyncio.to_thread(ask, supervisor.file.parent / "run", Status())
        assert answer.status is not None
        states = {slot.slot: slot.state for slot in answer.status.slots}
        if states != dict.fromkeys([MOLD, *self._slots], "ready"):
            self._findings.problems.append(f"the slots are {states}")
        if [pool.working for pool in answer.status.pools] != [self._terms.workers]:
            self._findings.problems.append(f"the pools are {answer.status.pools}")
        ours = {supervisor.process.pid, *(slot.pid for slot in answer.status.slots)}
        family = await asyncio.to_thread(marked, DESK, self._desk.address)
        # What has ended and is not reaped has no environment left to be known by.
        family += psutil.Process(supervisor.process.pid).children(recursive=True)
        strangers = [str(process) for process in family if process.pid not in ours]
        if strangers:
            self._findings.problems.append(f"processes that nobody ordered: {strangers}")

    async def _judge(self, load: Load) -> None:
        """When the supervisor has stopped: nothing of it is left, and nothing changes the record any more."""
        findings = self._findings
        left = await asyncio.to_thread(marked, DESK, self._desk.address)
        if left:
            findings.problems.append(f"left over after the stop: {[str(process) for process in left]}")
        problems, failed = await load.verify()
        findings.problems += problems
        findings.failed_attempts = dict(failed)
        findings.runs, findings.jobs = len(load.runs), load.jobs
        findings.causes = dict(self._watch.causes())
        findings.orphans_ended = self._watch.orphans_ended
        findings.problems += self._watch.faults_of_its_own
        findings.problems += [f"nobody harmed it, and it ended: {end}" for end in self._watch.unexpected_ends]
        first, last = findings.samples
        findings.problems += growth(first, last, memory=first.faults >= MEMORY_SETTLES)

    def _keep_log(self, supervisor: SupervisorProcess) -> None:
        (self._directory / "supervisor.log").write_text(supervisor.text() + "\n")
