"""A campaign against a store: control planes killed, a database restarted, connections cut, under load. Acts."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.campaign.changes import CampaignError
from tests.campaign.store import throughput
from tests.campaign.store.handlers import LEDGER
from tests.campaign.store.ledger import Ledger
from tests.campaign.store.load import Load, jobs_of
from tests.campaign.store.report import Findings
from tests.campaign.store.schedule import Fault, Terms, schedule
from tests.campaign.store.site import Site
from tests.campaign.store.throughput import Moment
from tests.support.process_table import end_marked
from tests.support.supervisor_process import SupervisorProcess

WORKERS = 4
SETTINGS: dict[str, Any] = {
    "modules": ["tests.campaign.store.handlers"],
    "workers": WORKERS,
    "concurrency": 10,
    "supervisor": {"log_level": "info"},
}
MILLISECONDS = 500
"""Of a job: what limits the throughput is how many run at once, and not what else this machine does. Of 80 ms, the way
from one job to the next was a third of all that passed, and every rate was this machine's."""

IN_FLIGHT = 60
"""Runs and batches, which are as many jobs at a time as the workers take nearly four times. Each fault brings as many
new ones, as what it has stopped may not move: more of them than are done until the next fault would pile up."""

START = 60.0
RECOVERY = 60.0
END = 240.0
"""Seconds."""

SETTLED = 2.0
"""Seconds of load before the first fault."""

PROGRESS = 10
"""Faults from one line of progress to the next."""


class Campaign:
    """One campaign in `directory`, which keeps what it leaves. `say` gets lines of progress. A lease lasts
    `lease_duration` seconds: so long a claim stays lost whose answer was on its way when a control plane died."""

    def __init__(
        self, terms: Terms, directory: Path, say: Callable[[str], None], *, lease_duration: float = 20.0
    ) -> None:
        self._terms = terms
        self._directory = directory
        self._say = say
        self._ledger = Ledger(jobs_of)
        self._site = Site(terms.store, directory, lease_duration)
        self._moments: list[Moment] = []
        self._connected: set[str] = set()
        self._findings = Findings(
            store=terms.store, seed=terms.seed, kills=terms.kills, restarts=terms.restarts, cuts=terms.cuts
        )

    async def run(self) -> Findings:
        """Never raises for what it finds: that is in `problems`."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        await self._ledger.open()
        environment = {LEDGER: str(self._ledger.port)}
        with self._site as site:
            plane: Any = site.plane

            def heard(entry: dict[str, Any]) -> None:
                loop.call_soon_threadsafe(self._hear, entry)

            supervisor = SupervisorProcess(
                self._directory / "supervisor", plane, environment=environment, heard=heard, **SETTINGS
            )
            load = Load(site.port, site.plane.key, self._ledger, in_flight=IN_FLIGHT, milliseconds=MILLISECONDS)
            try:
                with supervisor:
                    await self._fight(supervisor, load)
                    await self._judge(supervisor, load)
            except (CampaignError, TimeoutError) as error:
                self._findings.problems.append(str(error) or type(error).__name__)
            finally:
                await load.abandon()
                end_marked(LEDGER, environment[LEDGER])
                (self._directory / "supervisor.log").write_text(supervisor.text() + "\n")
        self._findings.seconds = time.monotonic() - began
        return self._findings

    def _hear(self, entry: dict[str, Any]) -> None:
        if entry["event"] == "session.registered":
            self._connected.add(entry["slot"])
        elif entry["event"] == "session.disconnected":
            self._connected.discard(entry["slot"])
        self._ledger.changes.told()

    # --- the fight

    async def _fight(self, supervisor: SupervisorProcess, load: Load) -> None:
        for number in range(1, WORKERS + 1):
            await asyncio.to_thread(supervisor.wait_for, "session.registered", slot=f"default-{number}")
        await load.begin()
        await self._ledger.changes.until(lambda: bool(self._ledger.done_at), START, "the load runs")
        await asyncio.sleep(SETTLED)
        for fault in schedule(self._terms):
            # A worker that is harmed while it is away stays away for longer, and in the end for longer than a lease.
            await self._ledger.changes.until(
                lambda: len(self._connected) == WORKERS, RECOVERY, "every worker is connected again"
            )
            await asyncio.sleep(fault.pause)
            await self._commit(fault)
            load.check()
            if fault.number % PROGRESS == 0:
                self._progress(fault.number)

    async def _commit(self, fault: Fault) -> None:
        at = time.monotonic()
        usual = throughput.usual_lately(self._ledger.done_at, [*(moment.at for moment in self._moments), at])
        before = psutil.cpu_times()
        self._ledger.forget_moving()
        await self._site.commit(fault)
        with contextlib.suppress(CampaignError):
            # What is late is told as late; what never comes is missed in the end.
            await self._ledger.changes.until(lambda: self._is_back(at, usual), RECOVERY, "the throughput is back")
        self._moments.append(Moment(kind=fault.kind, at=at, stolen=_stolen(before, psutil.cpu_times())))

    def _is_back(self, at: float, usual: float) -> bool:
        now = time.monotonic()
        begin = now - throughput.WINDOW
        return begin >= at and throughput.rate(self._ledger.done_at, begin, now) >= throughput.BACK * usual

    def _progress(self, number: int) -> None:
        rate = throughput.usual(self._ledger.done_at, [moment.at for moment in self._moments[-PROGRESS:]])
        self._say(f"fault {number:>4}   {len(self._ledger.done_at):>7} jobs done, {rate:>4.0f}/s")

    # --- the verdict

    async def _judge(self, supervisor: SupervisorProcess, load: Load) -> None:
        findings = self._findings
        await load.finish(END)
        done = f"{len(load.runs)} runs and {len(load.batches)} batches"
        self._say(f"{done} were acknowledged and are done; reading the record")
        findings.problems += await load.verify(END)
        if list(supervisor.matching("process ended")):
            findings.problems.append("a process of the supervisor ended")
        code = await asyncio.to_thread(supervisor.terminate, END)
        if code != 0:
            findings.problems.append(f"the supervisor ended with exit code {code}")
        await self._ledger.close()
        findings.problems += await asyncio.to_thread(self._site.check)
        findings.runs, findings.batches = len(load.runs), len(load.batches)
        findings.jobs = len(self._ledger.done_at)
        findings.repeated, findings.lost_claims = load.repeated, load.lost_claims
        findings.measure(self._ledger.done_at, self._moments)


def _stolen(before: Any, after: Any) -> float:
    """The share of the time between these two that other machines on the same hardware took."""
    total = sum(after) - sum(before)
    return float(after.steal - before.steal) / total if total > 0 else 0.0
