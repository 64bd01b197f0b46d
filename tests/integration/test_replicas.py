"""Two control planes on one PostgreSQL database: what happens at one is seen at the other, and one may die."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support import automations
from tests.support.balancer import Balancer
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.control_plane_server import Serving, ask, next_of, register, serving
from tests.support.gate import Gate
from tests.support.postgres_cluster import Cluster
from tests.support.supervisor_process import SupervisorProcess

RUNS_BEFORE_THE_KILL = 60
RUNS_AFTER_THE_KILL = 40
NOOP = {"steps": [{"key": "one", "kind": "action", "config": {"action_name": "test.noop"}}]}


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    name = cluster.new_database()
    yield cluster.url(name)
    cluster.drop_database(name)


def name_of(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


@pytest.fixture
async def replicas(database: str, tmp_path: Path) -> AsyncIterator[tuple[Serving, Serving]]:
    async with serving(tmp_path, store=database) as one, serving(tmp_path, store=database) as two:
        yield one, two


async def published(http: httpx.AsyncClient, handle: str) -> None:
    path = "/v1/projects/default/automations"
    (await http.post(path, json={"handle": handle, "name": handle})).raise_for_status()
    (await http.post(f"{path}/{handle}/versions", json={"spec": NOOP})).raise_for_status()
    (await http.post(f"{path}/{handle}/versions/1/publication")).raise_for_status()


async def started(http: httpx.AsyncClient, handle: str) -> str:
    response = await http.post(f"/v1/projects/default/automations/{handle}/runs", json={})
    response.raise_for_status()
    return str(response.json()["id"])


async def test_a_key_revoked_at_one_replica_ends_its_worker_and_its_stream_at_another(
    replicas: tuple[Serving, Serving],
) -> None:
    one, two = replicas
    async with one.http() as http:
        await published(http, "a")
        run = await started(http, "a")
        made = await http.post("/v1/projects/default/keys", json={"name": "k", "scopes": ["worker", "reader"]})
        key_id, secret = made.json()["key"]["id"], made.json()["secret"]
        path = f"/v1/projects/default/runs/{run}/events.stream"
        async with two.http(secret) as reader, two.worker(key=secret) as worker, reader.stream("GET", path) as stream:
            await register(worker)
            chunks = stream.aiter_bytes()
            await anext(chunks)
            (await http.post(f"/v1/projects/default/keys/{key_id}/revocations")).raise_for_status()
            assert (await next_of(worker, "error"))["error"]["code"] == "invalid_actor"
            async with asyncio.timeout(20):
                _ = [chunk async for chunk in chunks]
            assert (await reader.get("/v1/projects/default/runs")).status_code == 401


async def test_a_job_started_at_one_replica_is_claimed_finished_and_streamed_at_another(
    replicas: tuple[Serving, Serving],
) -> None:
    one, two = replicas
    async with one.http() as http, two.http() as other, two.worker() as worker:
        await published(http, "a")
        await register(worker, concurrency_limit=1)
        claiming = asyncio.ensure_future(ask(worker, {"type": "jobs.claim", "available_slots": 1}))
        run = await started(http, "a")
        (job,) = (await claiming)["jobs"]
        assert job["run_id"] == run
        stream = asyncio.ensure_future(http.get(f"/v1/projects/default/runs/{run}/events.stream"))
        report = {"type": "job.report", "job_id": job["id"], "lease_token": job["lease_token"], "message_id": "m-2"}
        assert (await ask(worker, report))["type"] == "job.report.ack"
        text = (await stream).text
        assert "event: run.completed" in text
        assert (await other.get(f"/v1/projects/default/runs/{run}")).json()["status"] == "completed"


async def test_a_cancellation_at_one_replica_reaches_the_worker_at_another(replicas: tuple[Serving, Serving]) -> None:
    one, two = replicas
    async with one.http() as http, two.worker() as worker:
        await published(http, "a")
        run = await started(http, "a")
        await register(worker, concurrency_limit=1)
        (job,) = (await ask(worker, {"type": "jobs.claim", "available_slots": 1}))["jobs"]
        (await http.post(f"/v1/projects/default/runs/{run}/cancellations", json={"reason": "stop"})).raise_for_status()
        cancel = await next_of(worker, "job.cancel")
        assert (cancel["job_id"], cancel["reason"]) == (job["id"], "stop")


async def test_an_identity_belongs_to_the_worker_that_answers_wherever_it_is_connected(
    replicas: tuple[Serving, Serving],
) -> None:
    one, two = replicas
    async with one.worker() as owner:
        token = (await register(owner, "w-1"))["worker_session_token"]
        async with two.worker() as rival:
            refused = await register(rival, "w-1")
            assert refused["error"]["code"] == "worker_instance_conflict"
        # The same process on another replica is no rival, and its old socket is let go.
        async with two.worker() as again:
            assert (await register(again, "w-1", worker_session_token=token))["worker_session_token"] == token
            await asyncio.wait_for(owner.wait_closed(), 20)
            assert owner.close_code == 4000
    async with one.worker() as successor:
        assert (await register(successor, "w-1"))["type"] == "worker.registered"


def test_one_of_two_replicas_is_killed_under_load_and_nothing_is_lost_or_done_twice(
    cluster: Cluster, database: str, tmp_path: Path
) -> None:
    arguments = ("--lease-duration", "20s", "--heartbeat-cadence", "5s")
    first = ControlPlaneProcess(tmp_path / "one", *arguments, store_url=database)
    second = ControlPlaneProcess(tmp_path / "two", *arguments, store_url=database, key_file=first.key_file)
    with first, second, Balancer([first.port, second.port]) as balancer, Gate() as gate:
        first.url = balancer.url
        with (
            SupervisorProcess(tmp_path / "box", first, workers=4, concurrency=3) as supervisor,
            second.http() as http,
        ):
            for slot in range(1, 5):
                supervisor.wait_for("session.registered", slot=f"default-{slot}")
            sessions = http.get("/v1/projects/default/worker-sessions").json()["items"]
            assert len(sessions) == 4
            carried = cluster.sql("SELECT count(DISTINCT replica_id) FROM sessions", name_of(database))
            assert carried.strip() == "2"
            steps = [automations.action_step(key, "test.noop", retry={"max_attempts": 3}) for key in ("a", "b")]
            automations.publish(http, "load", steps)
            automations.publish(http, "held", [automations.action_step("hold", "test.gate", {"port": gate.port})])
            held = [automations.start(http, "held") for _ in range(3)]
            visits = [gate.knock() for _ in held]

            acknowledged: list[str] = []
            enough = threading.Event()

            def produce() -> None:
                """Start runs at whichever replica takes them; what was answered counts."""
                while len(acknowledged) < RUNS_BEFORE_THE_KILL + RUNS_AFTER_THE_KILL:
                    try:
                        with httpx.Client(base_url=balancer.url, headers=http.headers, timeout=30) as client:
                            acknowledged.append(automations.start(client, "load"))
                    except httpx.TransportError:
                        continue
                    if len(acknowledged) >= RUNS_BEFORE_THE_KILL:
                        enough.set()

            producer = threading.Thread(target=produce)
            producer.start()
            assert enough.wait(60)
            first.kill()
            producer.join()

            for run in acknowledged:
                assert automations.finish(http, run)["status"] == "completed", run
                types = automations.event_types(http, run)
                assert types.count("action.result") == 2
                sequences = [event["sequence"] for event in automations.events(http, run)]
                assert sequences == list(range(1, len(sequences) + 1))
            for visit in visits:
                visit.release("held through it all")
            for run in held:
                # Its worker may have been without a socket for a while: the job is still its own.
                record = automations.finish(http, run)
                assert record["status"] == "completed"
                assert [step["attempt"] for step in automations.steps(http, run)] == [1]
            assert not list(supervisor.matching("process ended"))
            assert supervisor.terminate() == 0


def test_what_a_killed_replica_was_to_wake_another_wakes_once(database: str, tmp_path: Path) -> None:
    nap = {"kind": "sleep", "config": {"duration": "1s"}}
    key_file = tmp_path / "api-key"
    with (
        ControlPlaneProcess(tmp_path / "one", store_url=database, key_file=key_file) as one,
        ControlPlaneProcess(tmp_path / "two", store_url=database, key_file=key_file) as two,
    ):
        with one.http() as http:
            automations.publish(http, "naps", [{"key": "a", **nap}, {"key": "b", **nap}])
            automations.publish(http, "line", [{"key": "a", **nap}], concurrency="queue")
            naps = [automations.start(http, "naps") for _ in range(10)]
            line = [automations.start(http, "line") for _ in range(3)]
        one.kill()
        with two.http() as http:
            for run in naps + line:
                assert automations.finish(http, run)["status"] == "completed"
                types = automations.event_types(http, run)
                assert types.count("step.completed") == (2 if run in naps else 1)
