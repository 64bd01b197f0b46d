"""`kill -9` of a program that loads a store: what it was acknowledged is there, once."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.store_scenario import SqlitePlace, scenario
from wire.frames import Report

ROOT = Path(__file__).resolve().parents[2]


def killed_in_mid_load(url, moment):
    """What the load had been acknowledged by kind, killed with -9 after so many reports."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.store_load", url], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    lines = []
    reports = 0
    for line in process.stdout:
        lines.append(line.split())
        reports += lines[-1][0] == "report"
        if reports == moment:
            process.send_signal(signal.SIGKILL)
            break
    # What it had written before it died was acknowledged too; its last line may be cut off.
    rest = process.stdout.read()
    lines += [line.split() for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    return {kind: [line[1:] for line in lines if line[0] == kind] for kind in ("project", "run", "job", "report")}


@pytest.mark.parametrize("moment", [1, 60, 400])
async def test_a_kill_in_mid_load_loses_nothing_that_was_acknowledged(place, moment):
    said = await asyncio.to_thread(killed_in_mid_load, place.url, moment)
    ((project_id,),) = said["project"]

    async with scenario(place, prepared=False) as s:
        if isinstance(place, SqlitePlace):
            assert await s.read("PRAGMA integrity_check") == [("ok",)]
        for (run_id,) in said["run"]:
            await s.store.run(project_id, run_id)
        reported = {job_id for (job_id,) in said["report"]}
        for job_id in reported:
            job = await s.store.job(project_id, job_id)
            assert (job.status, job.result) == ("completed", {"done": job_id})
            run = await s.store.run(project_id, job.run_id)
            assert run.status == "completed"
            events = await s.store.events(project_id, job.run_id, since=0, limit=99)
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert [event.event_type for event in events].count("action.result") == 1
        for job_id, token in said["job"]:
            # Who held a job holds it still, or had reported it without hearing of it.
            report = Report(job_id=job_id, lease_token=token, result={})
            (outcome,) = await s.store.reports(project_id, [report])
            assert outcome.verdict == ("duplicate" if job_id in reported else outcome.verdict)
            assert outcome.verdict in ("accepted", "duplicate")
