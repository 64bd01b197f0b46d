"""`make run`'s supervisor is killed with -9 in mid-job, again and again: nothing outlives the grace, no finished job is
done again, and the next start goes on.

At every kill two jobs are in hand and others wait. One of the two finishes when the supervisor is gone (or just before,
in turn), the other one is still at it when the grace is over, and is done by the next start.
"""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
from msgspec import Struct

from tests.campaign.effects import problems_of
from tests.support import automations
from tests.support.gate import Gate, Visit
from tests.support.process_table import end_marked, related
from tests.support.quickstart_copy import Copy, quickstart_copy, read_until

MARK = "MOBIUS_QUICKSTART_KILLED"
GRACE = 4.0
ROOM = 8.0
"""Seconds beyond the grace: a worker's last words, the control plane's end, and a machine that is busy."""

PATIENCE = 60.0
_ROOT = Path(__file__).resolve().parents[2]
_WAITING = 3


class Kill(Struct, frozen=True, kw_only=True):
    """What one kill showed: seconds until no process was left, and how many there had been."""

    number: int
    processes: int
    seconds: float


class Killed:
    """Kills the supervisors of one copy. `gate` is where the jobs knock that are to be in hand."""

    def __init__(self, copy: Copy, gate: Gate) -> None:
        self._copy = copy
        self._gate = gate
        self._effects = copy.state.parent / "effects"
        self._effects.mkdir()
        self._mark = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._runs: list[str] = []
        self._cut_off: set[str] = set()
        copy.environment[MARK] = self._mark
        copy.change('drain_timeout = "10s"', f'drain_timeout = "{GRACE:g}s"')
        copy.change('["quickstart_handlers"]', '["quickstart_handlers", "tests.campaign.effect_handlers"]')
        copy.change('module_path = ["."]', f'module_path = [".", "{_ROOT}"]')

    def kill(self, number: int) -> Kill:
        """One start that ends by a kill."""
        with self._copy.start() as process:
            output = "".join(read_until(process, "Everything keeps running"))
            (supervisor,) = map(int, re.findall(r"supervisor: process (\d+)", output))
            with self._http() as http:
                if number == 1:
                    self._publish(http)
                for run in [self._start(http, "quick") for _ in range(2)]:
                    automations.finish(http, run)
                for _ in range(2):
                    self._start(http, "held")
                finishes, is_cut_off = self._in_hand()
                for _ in range(_WAITING):
                    self._start(http, "quick")
            self._cut_off.add(is_cut_off.says["job_id"])
            family = [psutil.Process(supervisor), *psutil.Process(supervisor).children(recursive=True)]
            members = dict.fromkeys((one.pid for one in family), time.time())
            if number % 2 == 0:
                finishes.release()
            os.kill(supervisor, signal.SIGKILL)
            began = time.monotonic()
            if number % 2 == 1:
                finishes.release()
            _, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode > 0, "the quickstart must not pass this off as a success"
            assert "the supervisor ended with exit code -9" in errors, errors
            self._until_gone(members, began + GRACE + ROOM)
            is_cut_off.wait_for_end()
        return Kill(number=number, processes=len(members), seconds=time.monotonic() - began)

    def go_on(self) -> list[str]:
        """A last start, which does what is left, and is stopped by Ctrl-C. What is wrong, in sentences."""
        with self._copy.start() as process:
            read_until(process, "Everything keeps running")
            self._release_cut_off()
            told = []
            attempts: dict[str, int] = {}
            with self._http() as http:
                for run in self._runs:
                    status = automations.finish(http, run)["status"]
                    results = automations.event_types(http, run).count("action.result")
                    if (status, results) != ("completed", 1):
                        told.append(f"run {run} is {status}, with {results} results")
                    attempts |= {step["job_id"]: step["attempt"] for step in automations.steps(http, run)}
            supervisor = psutil.Process(process.pid).children(recursive=True)
            members = dict.fromkeys((one.pid for one in supervisor), time.time())
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
            if process.returncode != 0:
                told.append(f"the last start ended with {process.returncode}: {errors}")
            self._until_gone(members, time.monotonic() + ROOM)
        effects = {file.name: file.read_text().splitlines() for file in self._effects.iterdir()}
        return told + problems_of(effects, attempts)

    def end(self) -> None:
        """Nothing goes on running, whatever went wrong."""
        end_marked(MARK, self._mark)

    def _publish(self, http: httpx.Client) -> None:
        for handle, port in (("quick", 0), ("held", self._gate.port)):
            parameters = {"directory": str(self._effects), "port": port}
            step = automations.action_step("one", "campaign.effect", parameters, retry={"max_attempts": 10})
            automations.publish(http, handle, [step])

    def _start(self, http: httpx.Client, handle: str) -> str:
        self._runs.append(automations.start(http, handle))
        return self._runs[-1]

    def _in_hand(self) -> tuple[Visit, Visit]:
        """The two new jobs that are held. Those that the last kill has cut off are done on the way."""
        visits: list[Visit] = []
        while len(visits) < 2:
            visit = self._gate.knock()
            if visit.says["job_id"] in self._cut_off:
                self._cut_off.remove(visit.says["job_id"])
                visit.release()
            else:
                visits.append(visit)
        assert not self._cut_off, "what was cut off is older than what is held, and comes first"
        return visits[0], visits[1]

    def _release_cut_off(self) -> None:
        while self._cut_off:
            visit = self._gate.knock()
            # Whoever else knocks does a job again, which its file will tell.
            self._cut_off.discard(visit.says["job_id"])
            visit.release()

    def _until_gone(self, members: dict[int, float], deadline: float) -> None:
        """No process of this quickstart is left in the whole table: by its mark, its session or its parent."""
        while left := related(MARK, self._mark, members):
            _, alive = psutil.wait_procs(left, timeout=max(0.0, deadline - time.monotonic()))
            assert not alive, f"after the grace of {GRACE:g} s and {ROOM:g} s more there are still {alive}"

    def _http(self) -> httpx.Client:
        key = (self._copy.state / "api-key").read_text().strip()
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self._copy.ports[0]}",
            headers={"authorization": f"Bearer {key}"},
            timeout=PATIENCE,
        )


def kill_again_and_again(
    directory: Path, kills: int, say: Callable[[str], None] = lambda _line: None
) -> tuple[list[Kill], list[str]]:
    """Every kill, and what is wrong in sentences. Raises AssertionError for what cannot be gone on from."""
    with Gate() as gate, quickstart_copy(directory) as copy:
        killed = Killed(copy, gate)
        done = []
        try:
            for number in range(1, kills + 1):
                done.append(killed.kill(number))
                say(f"kill {number:>2} of {kills}: {done[-1].processes} processes, gone {done[-1].seconds:.1f} s later")
            return done, killed.go_on()
        finally:
            killed.end()
