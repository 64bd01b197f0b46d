import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from control_plane import metrics
from control_plane.config import Address, ConfigurationError, ServeConfig
from control_plane.domain.enqueue import NewJob
from control_plane.domain.model import Job
from control_plane.domain.store import Lease, Reaped, ReportOutcome
from control_plane.observations import MOST_QUEUES, OTHER, Observations
from tests.support.control_plane_server import ask, register, serving
from tests.support.store_scenario import action, at, scenario
from wire.frames import Report

DOCUMENT = (Path(__file__).parents[2] / "docs" / "control-plane-metrics.md").read_text()
NOTHING = metrics.Live(
    worker_sockets=lambda: 3,
    run_readers=lambda: 1,
    generation_readers=lambda: 2,
    generations=lambda: 0,
    deltas_taken=lambda: 10,
    deltas_refused=lambda: 1,
    deltas_left_out=lambda: 2,
    delta_chunks=lambda: 2,
)


def lease(number, queue="default", project="proj_1", waited=0.5):
    job = Job(
        id=f"job_{number}",
        project_id=project,
        kind="action_execution",
        origin="x",
        queue=queue,
        status="claimed",
        spec={},
        created_at=0,
        updated_at=0,
        available_at=at(0),
        claimed_at=at(waited),
    )
    return Lease(job=job, lease_token="t", spec="{}")


def report(number, status="completed"):
    return Report(job_id=f"job_{number}", lease_token="t", status=status)


def outcome(verdict="accepted"):
    return ReportOutcome(verdict=verdict)


def samples(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode() if isinstance(text, bytes) else text)
        for sample in family.samples
    }


def of(found, name, **labels):
    return found.get((f"mobius_control_plane_{name}", tuple(sorted(labels.items()))))


# --- observations


def test_a_job_is_timed_from_when_it_could_be_claimed_to_its_report():
    observed = Observations()
    observed.claimed([lease(1), lease(2)], 0.002, now=10.0)
    observed.claimed([], 0.001, now=10.0)
    observed.reported([report(1), report(2, "failed"), report(3)], [outcome(), outcome(), outcome("unknown")], now=13.0)
    queue = ("proj_1", "default")
    assert (observed.waits[queue].sum, observed.claims.sum) == (1.0, 0.003)
    assert observed.executions[queue, "completed"].sum == 3.0
    assert observed.executions[queue, "failed"].sum == 3.0
    assert observed.reports == {"accepted": 2, "unknown": 1}


def test_only_what_was_accepted_was_executed():
    observed = Observations()
    observed.claimed([lease(1)], 0.0, now=1.0)
    observed.reported([report(1)], [outcome("handed_back")], now=2.0)
    observed.reported([report(1)], [outcome()], now=2.0)
    assert observed.executions == {}


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr("control_plane.observations.MOST_RUNNING", 5)
    observed = Observations()
    for number in range(10):
        observed.claimed([lease(number)], 0.0, now=1.0)
    assert list(observed._running) == [f"job_{number}" for number in range(5, 10)]


def test_queues_beyond_the_bound_are_one():
    observed = Observations()
    for number in range(3 * MOST_QUEUES):
        observed.claimed([lease(number, queue=f"q-{number}", project=f"proj_{number}")], 0.0, now=1.0)
    assert len(observed.waits) == 2 * MOST_QUEUES + 1
    assert sum(observed.waits[OTHER, OTHER].counts) == MOST_QUEUES


# --- the store's part


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


def rendering(s, observed=None, clock=lambda: 0.0):
    return metrics.Metrics(s.store, observed or Observations(), NOTHING, stale_after=90.0, clock=clock)


async def test_the_census_of_a_store(s):
    await s.publish("a", [action()])
    await s.publish("b", [action()], settings={"queue": "slow"})
    for handle in ("a", "a", "b"):
        await s.start(handle)
    await s.claim_one(limit=1)
    drained = await s.register("w-2")
    await s.store.update_session(drained.id, draining=True)
    await s.register("w-3")
    await s.store.sessions_seen({each.id: at(200) for each in (drained, s.session)})
    census = await s.store.census(stale_before=at(100), now=at(300))
    assert census.projects == {s.project.id: "default"}
    queues = {depth.queue: (depth.pending, depth.delayed, depth.oldest_at) for depth in census.queues}
    assert queues == {"default": (1, 0, at(0)), "slow": (1, 0, at(0))}
    assert census.claimed == {s.project.id: 1}
    assert census.sessions == {
        (s.project.id, "live"): 1,
        (s.project.id, "draining"): 1,
        (s.project.id, "stale"): 1,
    }
    before = await s.store.census(stale_before=0, now=at(-1))
    assert sum(depth.delayed for depth in before.queues) == 2
    assert {depth.oldest_at for depth in before.queues} == {None}


async def test_jobs_of_a_paused_queue_are_counted_apart_and_wake_nobody(s):
    await s.enqueue([NewJob(action_name=name, spec={}, queue="held") for name in ("a", "b")])
    await s.enqueue([NewJob(action_name="a", spec={})])
    await s.enqueue([NewJob(action_name="a", spec={}, queue="held", run_at=at(9e9))])
    await s.store.update_queue(s.project.id, "held", {"paused": True})
    found = samples(await rendering(s).render())
    assert [of(found, "jobs", project="default", state=state) for state in metrics.JOB_STATES] == [1, 1, 2, 0]
    assert of(found, "queue_jobs", project="default", queue="held") == 0
    assert of(found, "queue_oldest_job_age_seconds", project="default", queue="held") == 0
    await s.store.update_queue(s.project.id, "held", {"paused": False})
    found = samples(await rendering(s).render())
    assert [of(found, "jobs", project="default", state=state) for state in metrics.JOB_STATES] == [3, 1, 0, 0]
    assert of(found, "queue_jobs", project="default", queue="held") == 2
    assert of(found, "queue_oldest_job_age_seconds", project="default", queue="held") > 1e6


async def test_commits_are_observed(s):
    seen = []
    s.store.observe_commits(lambda calls, seconds: seen.append((calls, seconds)))
    async with s.writes_held():
        pings = [asyncio.ensure_future(s.store.ping()) for _ in range(3)]
        await asyncio.sleep(0)
    await asyncio.gather(*pings)
    assert sum(calls for calls, _ in seen) >= 3
    assert all(seconds > 0 for _, seconds in seen)


async def test_a_scrape(s):
    observed = Observations()
    observed.claimed([lease(1, project=s.project.id)], 0.002, now=1.0)
    observed.reported([report(1)], [outcome()], now=2.0)
    observed.reaped(Reaped(leases_lapsed=2, executions_timed_out=1))
    observed.committed(7, 0.004)
    await s.publish("a", [action()])
    await s.start("a")
    found = samples(await rendering(s, observed).render())
    assert of(found, "jobs", project="default", state="pending") == 1
    assert of(found, "queue_jobs", project="default", queue="default") == 1
    assert of(found, "queue_oldest_job_age_seconds", project="default", queue="default") > 1e6
    assert of(found, "worker_sessions", project="default", state="stale") == 1
    assert of(found, "schedule_to_start_seconds_sum", project="default", queue="default") == 0.5
    assert of(found, "execution_seconds_count", project="default", queue="default", outcome="completed") == 1
    assert of(found, "reports_total", verdict="accepted") == 1
    assert of(found, "reports_total", verdict="superseded") == 0
    assert (of(found, "leases_lapsed_total"), of(found, "executions_timed_out_total")) == (2, 1)
    assert of(found, "store_commit_calls_sum") == 7
    assert of(found, "stream_readers", stream="generation") == 2
    assert of(found, "store_up") == 1


async def test_a_project_sees_its_own_queues_and_sessions_alone(s):
    secret = await s.store.create_project("secret", "Secret")
    observed = Observations()
    observed.claimed([lease(1, queue="hidden", project=secret.id)], 0.0, now=1.0)
    text = (await rendering(s, observed).render(s.project.id)).decode()
    assert "default" in text
    assert "secret" not in text
    assert "hidden" not in text
    assert "hidden" in (await rendering(s, observed).render()).decode()


async def test_long_queues_have_series_of_their_own_and_the_rest_is_other(s, monkeypatch):
    monkeypatch.setattr(metrics, "MOST_QUEUES", 1)
    for queue, number in (("long", 3), ("short", 2), ("shorter", 1)):
        await s.publish(queue, [action()], settings={"queue": queue})
        for _ in range(number):
            await s.start(queue)
    found = samples(await rendering(s).render())
    depths = {dict(labels)["queue"]: value for (name, labels), value in found.items() if name.endswith("_queue_jobs")}
    assert depths == {"long": 3, "other": 3}


async def test_the_store_is_looked_at_now_and_then_and_its_absence_is_said(s, monkeypatch):
    looks = []
    census = s.store.census
    now = [0.0]

    async def counted(**arguments):
        looks.append(arguments)
        return await census(**arguments)

    monkeypatch.setattr(s.store, "census", counted)
    rendered = rendering(s, clock=lambda: now[0])
    await asyncio.gather(*(rendered.render() for _ in range(5)))
    assert len(looks) == 1
    now[0] += metrics.CENSUS_MAX_AGE
    await rendered.render()
    assert len(looks) == 2

    async def away(**_):
        raise metrics.StoreUnavailable("away")

    monkeypatch.setattr(s.store, "census", away)
    now[0] += metrics.CENSUS_MAX_AGE
    found = samples(await rendered.render())
    assert of(found, "store_up") == 0
    assert of(found, "jobs", project="default", state="pending") is None
    assert of(found, "reports_total", verdict="accepted") == 0


# --- as a whole


@pytest.fixture
async def plane(tmp_path):
    async with serving(tmp_path) as running:
        yield running


async def work(plane):
    project = await plane.store.project("default")
    step = {"key": "one", "kind": "action", "config": {"action_name": "print"}}
    await plane.store.create_automation(project.id, "a", "A", {})
    await plane.store.create_version(project.id, "a", {"steps": [step]}, None)
    await plane.store.publish_version(project.id, "a", 1)
    await plane.store.start_run(project.id, "a")
    async with plane.worker() as worker:
        await register(worker)
        [job] = (await ask(worker, {"type": "jobs.claim", "message_id": "c", "available_slots": 1}))["jobs"]
        said = {"type": "job.report", "job_id": job["id"], "lease_token": job["lease_token"]}
        await ask(worker, {**said, "message_id": "r-1"})
        await ask(worker, {**said, "message_id": "r-2"})


async def test_the_api_serves_them_for_a_key(plane):
    await work(plane)
    async with plane.http() as http, httpx.AsyncClient(base_url=plane.url) as nobody:
        assert (await nobody.get("/metrics")).status_code == 401
        answer = await http.get("/metrics")
    assert answer.headers["content-type"] == metrics.CONTENT_TYPE
    found = samples(answer.text)
    assert of(found, "reports_total", verdict="accepted") == 1
    assert of(found, "reports_total", verdict="duplicate") == 1
    assert of(found, "schedule_to_start_seconds_count", project="default", queue="default") == 1
    assert of(found, "execution_seconds_count", project="default", queue="default", outcome="completed") == 1
    assert of(found, "store_commit_seconds_count") > 3
    assert of(found, "claim_seconds_count") >= 1


async def test_names_say_kind_and_unit_and_the_page_has_them_all(plane):
    await work(plane)
    async with plane.http() as http:
        text = (await http.get("/metrics")).text
    shown = re.findall(r"^# TYPE (mobius_\w+) ", text, re.MULTILINE)
    listed = re.findall(r"^\| `(mobius_control_plane_\w+)` \|", DOCUMENT, re.MULTILINE)
    assert sorted(listed) == sorted(shown)
    for expression in re.findall(r"mobius_control_plane_\w+", DOCUMENT.partition("What to be woken for")[2]):
        assert expression.removesuffix("_bucket") in shown, expression
    for family in text_string_to_metric_families(text):
        if family.name.startswith("mobius_"):
            assert family.documentation.endswith("."), family.name
            names = {label for sample in family.samples for label in sample.labels}
            assert names <= {"project", "queue", "state", "outcome", "verdict", "stream", "version", "kind", "le"}


async def test_promtool_accepts_it(plane):
    if shutil.which("promtool") is None:
        installable = os.geteuid() == 0 and shutil.which("apt-get") is not None
        assert not (installable and os.environ.get("CI") == "true"), "promtool must not be missing here"
        pytest.skip("promtool (Debian package prometheus) is not installed")
    await work(plane)
    async with plane.http() as http:
        scrape = (await http.get("/metrics")).content
    done = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=scrape, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_without_a_key_they_are_for_this_machine_alone():
    config = ServeConfig(listen=Address(host="127.0.0.1", port=0), store="sqlite:x")
    assert replace(config, metrics_listen=Address(host="::1", port=9465)).metrics_listen is not None
    with pytest.raises(ConfigurationError, match=r"--metrics-listen 0\.0\.0\.0:9465 is reachable"):
        replace(config, metrics_listen=Address(host="0.0.0.0", port=9465))
