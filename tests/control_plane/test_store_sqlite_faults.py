"""The disk under the file fails: full, read-only, broken, slow, or gone. Callers are told, nothing is made up, and when
the fault is over the store works again."""

import asyncio
import os
import re
import threading

import apsw
import httpx
import pytest

from control_plane import metrics
from control_plane.errors import StoreUnavailable
from control_plane.web import api, app
from tests.support.control_plane_server import ask, next_of, register, serving
from tests.support.faulty_disk import FaultyDisk
from tests.support.store_scenario import SqlitePlace, action, scenario

DEADLINE = 30.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def disk():
    with FaultyDisk() as made:
        yield made


async def until_it_works(ask_for):
    """Until it is not refused any more; its answer."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await ask_for()
            except StoreUnavailable:
                await asyncio.sleep(0.01)


async def runs(s):
    page = await s.store.runs(s.project.id, status=None, automation_id=None, cursor=None, limit=99)
    return {run.id for run in page.items}


# --- the disk refuses


REFUSALS = [
    apsw.FullError("database or disk is full"),
    apsw.ReadOnlyError("attempt to write a readonly database"),
    apsw.IOError("disk I/O error"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=["full", "read-only", "broken"])
async def test_a_disk_that_takes_no_writes(path, disk, refusal):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        before = {(await s.start("a")).id}
        lease = await s.claim_one()
        disk.writes_raise = refusal
        for asked in (s.start("a"), s.claim(), s.report(lease), s.heartbeat(lease), s.store.ping()):
            with pytest.raises(StoreUnavailable, match="the store cannot write now"):
                await asked
        # What is there can be read meanwhile.
        assert await runs(s) == before
        disk.writes_raise = None
        run = await until_it_works(lambda: s.start("a"))
        assert await runs(s) == before | {run.id}
        assert await s.report(lease) == "accepted"
        # Nobody could heartbeat meanwhile.
        assert s.store._leases_lapse_from > s.store.now()
    await all_is_there(path, before | {run.id})


async def all_is_there(path, expected):
    """Of what was acknowledged, when the file is opened anew."""
    async with scenario(SqlitePlace(path), prepared=False) as s:
        (s.project,) = await s.store.projects()
        assert await runs(s) == expected
        assert await s.read("PRAGMA integrity_check") == [("ok",)]


async def test_after_a_flush_that_failed_the_log_is_emptied_before_anything_is_acknowledged(path, disk):
    """The kernel may forget what it failed to write: what is behind it in the log would be lost with it."""
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        before = await s.start("a")
        # With a reader the log outlives the writer's connection.
        assert await runs(s) == {before.id}
        disk.flushes_raise.append(apsw.IOError("disk I/O error"))
        with pytest.raises(StoreUnavailable):
            await s.start("a")
        assert not disk.flushes_raise
        disk.flushed.clear()
        run = await s.start("a")
        # The file into which the old log goes, and only then the new log.
        assert disk.flushed.index("store.db") < len(disk.flushed) - 1
        assert disk.flushed[-1] == "store.db-wal"
        assert {before.id, run.id} <= await runs(s)


async def test_a_flush_that_goes_on_failing(path, disk):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        await s.start("a")
        disk.flushes_raise += [apsw.IOError("disk I/O error")] * 5
        while disk.flushes_raise:
            with pytest.raises(StoreUnavailable):
                await s.start("a")
        await s.start("a")


async def test_a_slow_flush_keeps_its_callers_waiting_and_nobody_who_reads(path, disk):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        with disk.flushes_held():
            starting = asyncio.ensure_future(s.start("a"))
            assert await asyncio.to_thread(disk.holding.wait, DEADLINE)
            others = [asyncio.ensure_future(s.start("a")) for _ in range(20)]
            assert (await s.store.projects())[0].handle == "default"
            assert await runs(s) == set()
            assert not any(task.done() for task in (starting, *others))
            flushed = len(disk.flushed)
        acknowledged = {run.id for run in await asyncio.gather(starting, *others)}
        assert await runs(s) == acknowledged
        # What came meanwhile went together.
        assert len(disk.flushed) - flushed <= 4


# --- the file


async def test_a_file_that_was_removed_acknowledges_nothing_and_goes_on_when_it_is_back(path):
    aside = path.with_name("aside.db")
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        before = {(await s.start("a")).id}
        path.rename(aside)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="removed or replaced"):
                await s.start("a")
        assert not path.exists()
        aside.rename(path)
        run = await until_it_works(lambda: s.start("a"))
    await all_is_there(path, before | {run.id})


async def test_another_file_under_its_name_is_not_written_to(path, tmp_path):
    other = tmp_path / "other.db"
    async with scenario(SqlitePlace(other)) as s:
        await s.publish("b", [action()])
    content = other.read_bytes()
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        await s.start("a")
        os.replace(other, path)  # noqa: PTH105 - what a restored backup does
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="removed or replaced"):
                await s.start("a")
    assert path.read_bytes() == content


async def test_a_log_that_was_removed_loses_nothing_that_was_acknowledged(path):
    log = path.with_name("store.db-wal")
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        before = {(await s.start("a")).id}
        assert await runs(s) == before
        log.unlink()
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="restart the control plane"):
                await s.start("a")
    await all_is_there(path, before)


async def test_damaged_pages_are_told_and_not_passed_on(path):
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        for _ in range(50):
            await s.start("a")
        await s.store._writer.submit(lambda writing: None)
        ((root,),) = await s.read("SELECT rootpage FROM sqlite_schema WHERE name = 'runs'")
        ((size,),) = await s.read("PRAGMA page_size")
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    async with scenario(SqlitePlace(path), prepared=False) as s:
        (s.project,) = await s.store.projects()
        with pytest.raises(StoreUnavailable, match="malformed"):
            await runs(s)
        with pytest.raises(StoreUnavailable, match="malformed"):
            await s.start("a")
        # Whoever does not need the damaged part is served.
        await s.store.create_project("other", "Other")


# --- as it is seen from outside


async def published(plane):
    project = await plane.store.project("default")
    await plane.store.create_automation(project.id, "a", "A", {})
    await plane.store.create_version(project.id, "a", {"steps": [action()]}, None)
    await plane.store.publish_version(project.id, "a", 1)


START = "/v1/projects/default/automations/a/runs"


def is_clear(response: httpx.Response) -> bool:
    error = response.json()["error"]
    return (response.status_code, error["code"]) == (503, "store_unavailable") and "retry-after" in response.headers


async def test_clients_are_told_and_workers_get_no_answer_that_is_not_true(tmp_path, disk):
    async with serving(tmp_path) as plane, plane.http() as http, plane.worker() as worker:
        await published(plane)
        await http.post(START, json={})
        await register(worker, concurrency_limit=2)
        (job,) = (await ask(worker, {"type": "jobs.claim", "available_slots": 1}))["jobs"]
        disk.writes_raise = apsw.FullError("database or disk is full")
        assert is_clear(await http.post(START, json={}))
        assert is_clear(await http.get("/readyz"))
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/v1/projects/default/runs")).status_code == 200
        report = {"type": "job.report", "job_id": job["id"], "lease_token": job["lease_token"], "status": "completed"}
        beat = {"type": "job.heartbeat", "job_id": job["id"], "lease_token": job["lease_token"], "message_id": "beat"}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await ask(worker, report | {"message_id": "report"})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await ask(worker, beat)
        disk.writes_raise = None
        # Sent again, as a worker does until it is answered.
        acknowledged = await ask(worker, report | {"message_id": "report"})
        assert (acknowledged["type"], acknowledged.get("duplicate")) == ("job.report.ack", None)
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.post(START, json={})).status_code == 202
        await next_of(worker, "work.available")


async def store_up(http):
    (said,) = re.findall(r"^mobius_control_plane_store_up (.*)$", (await http.get("/metrics")).text, re.MULTILINE)
    return float(said)


async def test_a_scrape_says_that_nothing_is_accepted_until_something_is(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(metrics, "CENSUS_MAX_AGE", 0.0)
    async with serving(tmp_path) as plane, plane.http() as http:
        assert await store_up(http) == 1
        disk.writes_raise = apsw.FullError("database or disk is full")
        assert [await store_up(http) for _ in range(2)] == [0, 0]
        disk.writes_raise = None
        await until_it_works(plane.store.ping)
        assert await store_up(http) == 1
        plane.store.path.rename(tmp_path / "aside.db")
        assert await store_up(http) == 0


async def test_a_flush_that_takes_too_long_for_a_client_is_told_as_unknown(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(app, "HANDLER_TIMEOUT", 0.5)
    monkeypatch.setattr(api, "READINESS_TIMEOUT", 0.2)
    async with serving(tmp_path) as plane, plane.http() as http:
        await published(plane)
        with disk.flushes_held():
            starting = asyncio.ensure_future(http.post(START, json={"external_id": "x"}))
            assert await asyncio.to_thread(disk.holding.wait, DEADLINE)
            assert is_clear(await http.get("/readyz"))
            late = await starting
            assert (late.status_code, late.json()["error"]["code"]) == (503, "timeout")
            assert "it may still take effect" in late.json()["error"]["message"]
            assert late.headers["retry-after"]
        monkeypatch.undo()
        # Behind what was held, in order.
        assert (await http.post(START, json={"external_id": "x"})).is_success
        assert (await http.get("/readyz")).status_code == 200
        assert len((await http.get("/v1/projects/default/runs")).json()["items"]) == 1


async def test_a_writer_that_stands_still_stops_no_stop(path, disk):
    """A close waits for the flush, and what it has acknowledged is there."""
    async with scenario(SqlitePlace(path)) as s:
        await s.publish("a", [action()])
        release = threading.Event()
        with disk.flushes_held():
            starting = asyncio.ensure_future(s.start("a"))
            assert await asyncio.to_thread(disk.holding.wait, DEADLINE)
            closing = asyncio.ensure_future(s.store.close())
            await asyncio.sleep(0)
            assert not closing.done()
            release.set()
        run = await starting
        await closing
    await all_is_there(path, {run.id})
