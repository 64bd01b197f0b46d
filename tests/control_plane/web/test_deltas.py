"""Generations' deltas from worker sockets to readers, over real connections, on both stores."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection

from control_plane.domain.deltas import START
from control_plane.session import TakeDelta
from control_plane.web import deltas
from tests.support.control_plane_server import DEADLINE, Serving, answer_to, ask, register, serving

P = "/v1/projects/default"


@pytest.fixture
async def plane(tmp_path, place) -> AsyncIterator[Serving]:
    async with serving(tmp_path, store=place.url) as running:
        yield running


async def publish(plane: Serving) -> None:
    project = await plane.store.project("default")
    step = {"key": "one", "kind": "action", "config": {"action_name": "print"}, "retry": {"max_attempts": 3}}
    await plane.store.create_automation(project.id, "a", "A", {})
    await plane.store.create_version(project.id, "a", {"steps": [step]}, None)
    await plane.store.publish_version(project.id, "a", 1)


async def claim(worker: ClientConnection, message_id: str = "c-1") -> dict[str, Any]:
    frame = {"type": "jobs.claim", "message_id": message_id, "available_slots": 1}
    [job] = (await ask(worker, frame))["jobs"]
    return dict(job)


async def start(plane: Serving) -> None:
    project = await plane.store.project("default")
    await plane.store.start_run(project.id, "a")


def delta(job: dict[str, Any], sequence: int, text: str = "", **fields: Any) -> dict[str, Any]:
    return {
        "type": "generation.delta",
        "message_id": f"d-{sequence}",
        "job_id": job["id"],
        "lease_token": job["lease_token"],
        "sequence": sequence,
        "delta": {"text": text or f"word {sequence} "},
        **fields,
    }


def report(job: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "type": "job.report",
        "message_id": f"r-{job['claim_attempt']}",
        "job_id": job["id"],
        "lease_token": job["lease_token"],
        **fields,
    }


class Reader:
    """An open stream, event by event: (event, id, data)."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def next(self) -> tuple[str, str | None, dict[str, Any]]:
        fields: dict[str, str] = {}
        async with asyncio.timeout(DEADLINE):
            async for line in self._lines:
                if not line and fields:
                    return fields["event"], fields.get("id"), json.loads(fields["data"])
                if line and not line.startswith(":"):
                    name, value = line.split(": ", 1)
                    fields[name] = value
        raise EOFError

    async def rest(self) -> list[tuple[str, str | None, dict[str, Any]]]:
        found = []
        while True:
            try:
                found.append(await self.next())
            except EOFError:
                return found


@asynccontextmanager
async def reading(plane: Serving, job: dict[str, Any], **arguments: Any) -> AsyncIterator[Reader]:
    async with (
        plane.http() as http,
        http.stream("GET", f"{P}/jobs/{job['id']}/deltas.stream", **arguments) as response,
    ):
        assert response.status_code == 200, await response.aread()
        yield Reader(response)


def words(events: list[tuple[str, str | None, dict[str, Any]]]) -> str:
    return "".join(data["delta"]["text"] for name, _, data in events if name == "generation.delta")


async def test_deltas_are_live_replayed_and_end_with_the_job(plane: Serving) -> None:
    await publish(plane)
    async with plane.worker() as worker:
        await register(worker)
        await start(plane)
        job = await claim(worker)
        async with reading(plane, job) as live:
            ack = await ask(worker, delta(job, 0, "Hello"))
            assert (ack["type"], ack["received_sequence"]) == ("generation.delta.ack", 0)
            assert await live.next() == ("generation.started", None, {"job_id": job["id"], "attempt": 1})
            name, place, data = await live.next()
            assert (name, place) == ("generation.delta", "1-0")
            assert data == {"job_id": job["id"], "attempt": 1, "sequence": 0, "delta": {"text": "Hello"}}
            await ask(worker, delta(job, 1, ", "))
            await ask(worker, delta(job, 1, "said twice"))
            await ask(worker, delta(job, 2, "world"))
            await ask(worker, report(job, result={}))
            rest = await live.rest()
        assert words(rest) == ", world"
        assert rest[-1] == ("generation.ended", None, {"job_id": job["id"], "attempt": 1, "outcome": "completed"})
        async with reading(plane, job) as late:
            everything = await late.rest()
        assert words(everything) == "Hello, world"
        assert [name for name, _, _ in everything] == [
            "generation.started",
            *["generation.delta"] * 3,
            "generation.ended",
        ]
        for arguments in ({"params": {"since": "1-0"}}, {"headers": {"last-event-id": "1-0"}}):
            async with reading(plane, job, **arguments) as resumed:
                assert await resumed.rest() == rest
    assert plane.plane._deltas.generations == 0


async def test_a_retry_begins_anew_and_says_what_is_void(plane: Serving) -> None:
    await publish(plane)
    async with plane.worker() as worker:
        await register(worker, concurrency_limit=2)
        await start(plane)
        first = await claim(worker)
        async with reading(plane, first) as live:
            await ask(worker, delta(first, 0, "wrong"))
            await live.next()
            await live.next()
            await ask(worker, report(first, status="failed", error_type="Oops"))
            second = await claim(worker, "c-2")
            assert second["claim_attempt"] == 2
            await ask(worker, delta(first, 1, "a zombie's"))
            await ask(worker, {**delta(second, 0, "right"), "message_id": "d-again"})
            said = {"job_id": first["id"], "attempt": 2, "supersedes": 1}
            assert await live.next() == ("generation.started", None, said)
            await ask(worker, report(second))
            rest = await live.rest()
        assert words(rest) == "right"
        assert rest[-1][2]["outcome"] == "completed"
        async with reading(plane, first, headers={"last-event-id": "1-0"}) as resumed:
            assert [name for name, _, _ in await resumed.rest()] == [
                "generation.started",
                "generation.delta",
                "generation.ended",
            ]


async def test_whoever_has_no_lease_is_not_heard(plane: Serving) -> None:
    await publish(plane)
    async with plane.worker() as worker:
        await register(worker)
        await start(plane)
        job = await claim(worker)
        guess = await ask(worker, delta(job, 0, "made up", lease_token="a guess"))
        assert guess["type"] == "generation.delta.ack"
        await ask(worker, delta({"id": "job_none", "lease_token": "x"}, 3))
        await ask(worker, report(job))
        async with reading(plane, job) as late:
            assert [name for name, _, _ in await late.rest()] == ["generation.ended"]


async def test_a_report_under_another_lease_ends_no_stream(plane: Serving) -> None:
    await publish(plane)
    async with plane.worker() as worker:
        await register(worker)
        await start(plane)
        job = await claim(worker)
        await ask(worker, delta(job, 0, "one "))
        await worker.send(json.dumps(delta(job, 1, "two ")))
        await ask(worker, report(job, lease_token="an old one", message_id="r-stale"))
        project = await plane.store.project("default")
        assert plane.plane._deltas.live((project.id, job["id"])) is not None
        await ask(worker, delta(job, 2, "three"))
        await ask(worker, report(job))
        async with reading(plane, job) as late:
            assert words(await late.rest()) == "one two three"


async def test_a_job_id_that_no_store_could_have_is_forgotten(plane: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "IDLE_AFTER", 0.05)
    async with plane.worker() as worker:
        await register(worker)
        await ask(worker, delta({"id": "job\0", "lease_token": "x"}, 0))
        async with asyncio.timeout(DEADLINE):
            while plane.plane._deltas.generations:  # noqa: ASYNC110 - forgetting is no event
                await asyncio.sleep(0.01)


async def test_a_project_has_its_own_share(plane: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "MOST_GENERATIONS", 2)
    monkeypatch.setattr(deltas, "MOST_UNCONFIRMED_BYTES", 100)
    streams = deltas.DeltaStreams(plane.store)

    def take(project: str, job: str, sequence: int = 0) -> None:
        said = TakeDelta(project_id=project, job_id=job, lease_token="t", sequence=sequence, delta={"text": "x" * 100})
        streams.take(said)

    for number in range(5):
        take("proj_a", f"job_{number}")
    assert (streams.generations, streams.taken, streams.left_out) == (2, 1, 4)
    take("proj_b", "job_0")
    assert (streams.generations, streams.taken) == (3, 2)
    take("proj_b", "job_0", 1)
    assert (streams.taken, streams.left_out) == (2, 5)
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*streams._confirming.values())
    assert set(streams._unconfirmed.values()) == {0}
    await streams.stop()


async def test_megabytes_at_once_have_no_gaps(plane: Serving) -> None:
    await publish(plane)
    async with plane.worker() as worker:
        await register(worker)
        await start(plane)
        job = await claim(worker)
        for number in range(35):
            await worker.send(json.dumps(delta(job, number, "x" * 100_000)))
        await answer_to(worker, "d-34")
        await ask(worker, report(job))
        async with reading(plane, job) as late:
            assert len(words(await late.rest())) == 35 * 100_000
    assert plane.plane._deltas.left_out == 0


async def test_ten_thousand_deltas_are_few_rows(plane: Serving, place: Any) -> None:
    await publish(plane)
    async with plane.worker() as worker:
        await register(worker)
        await start(plane)
        job = await claim(worker)
        async with reading(plane, job) as live:
            collecting = asyncio.create_task(live.rest())
            for number in range(10_000):
                await worker.send(json.dumps(delta(job, number, f"{number} ")))
                if number % 100 == 99:
                    await answer_to(worker, f"d-{number}")
            await ask(worker, report(job))
            async with asyncio.timeout(DEADLINE):
                everything = await collecting
    assert words(everything) == "".join(f"{number} " for number in range(10_000))
    ((rows,),) = await place.read(plane.store, "SELECT count(*) FROM deltas")
    assert 1 <= rows <= 200
    assert plane.plane._deltas.chunks_written == rows


async def test_a_new_connection_and_a_new_process_go_on_where_it_was(tmp_path: Any, place: Any) -> None:
    job: dict[str, Any] = {}
    for number in range(3):
        async with serving(tmp_path, store=place.url) as plane, plane.worker() as worker:
            await register(worker, f"w-{number}")
            if not job:
                await publish(plane)
                await start(plane)
                job = await claim(worker)
            for sequence in range(2 * number, 2 * number + 3):  # the last one is said again by the next
                await ask(worker, delta(job, sequence))
            if number == 2:
                await ask(worker, report(job))
                async with reading(plane, job) as late:
                    assert words(await late.rest()) == "".join(f"word {sequence} " for sequence in range(7))


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
async def test_a_reader_on_another_replica(tmp_path: Any, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "IDLE_AFTER", 60.0)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(serving(tmp_path, store=place.url))
        two = await stack.enter_async_context(serving(tmp_path, store=place.url))
        await publish(one)
        worker = await stack.enter_async_context(one.worker())
        await register(worker)
        await start(one)
        job = await claim(worker)
        async with reading(two, job) as elsewhere:
            await ask(worker, delta(job, 0, "far "))
            assert (await elsewhere.next())[0] == "generation.started"
            assert (await elsewhere.next())[1] == "1-0"  # written while the generation goes on
            await ask(worker, delta(job, 1, "away "))
            began = asyncio.get_running_loop().time()
            assert (await elsewhere.next())[1] == "1-1"  # and the next chunk as soon, not when the idle are looked for
            assert asyncio.get_running_loop().time() - began < deltas.IDLE_AFTER / 2 - 1
            await ask(worker, delta(job, 2, "still"))
            await ask(worker, report(job))
            assert words(await elsewhere.rest()) == "still"


async def test_a_store_that_is_away_delays_what_is_kept_and_loses_nothing(
    plane: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "WRITE_AGAIN_AFTER", 0.05)
    await publish(plane)
    refused = asyncio.Event()
    append = plane.store.append_deltas

    async def away(*_: Any, **__: Any) -> list[bool]:
        refused.set()
        raise deltas.StoreUnavailable("away")

    async with plane.worker() as worker:
        await register(worker)
        await start(plane)
        job = await claim(worker)
        monkeypatch.setattr(plane.store, "append_deltas", away)
        async with reading(plane, job) as live:
            await ask(worker, delta(job, 0, "kept"))
            await live.next()
            assert (await live.next())[1] == "1-0"
            async with asyncio.timeout(DEADLINE):
                await refused.wait()
            monkeypatch.setattr(plane.store, "append_deltas", append)
            await ask(worker, report(job))
            await live.rest()
        project = await plane.store.project("default")
        page = await plane.store.deltas(project.id, job["id"], after=START, limit=10)
        assert page.newest == (1, 0)


async def test_idle_generations_are_forgotten_and_taken_up_again(
    plane: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "IDLE_AFTER", 0.05)
    await publish(plane)
    async with plane.worker() as worker:
        await register(worker)
        await start(plane)
        job = await claim(worker)
        await ask(worker, delta(job, 0, "one "))
        async with asyncio.timeout(DEADLINE):
            while plane.plane._deltas.generations:  # noqa: ASYNC110 - forgetting is no event
                await asyncio.sleep(0.01)
        await ask(worker, delta(job, 1, "two"))
        await ask(worker, report(job))
        async with reading(plane, job) as late:
            assert words(await late.rest()) == "one two"


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("path", "arguments", "status"),
    [
        ("job_none", {}, 404),
        ("job_none", {"params": {"since": "x"}}, 400),
        ("job_none", {"headers": {"last-event-id": "1-"}}, 400),
        ("job_none", {"headers": {"last-event-id": "9" * 10 + "-1"}}, 400),
    ],
)
async def test_refusals(plane: Serving, path: str, arguments: dict[str, Any], status: int) -> None:
    async with plane.http() as http:
        assert (await http.get(f"{P}/jobs/{path}/deltas.stream", **arguments)).status_code == status
