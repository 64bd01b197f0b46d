"""The store takes nothing while work goes on: clients are told, workers keep what they have done, nobody is restarted,
and when the fault is over everything goes on by itself."""

import contextlib
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import automations
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.gate import Gate
from tests.support.postgres_cluster import Cluster, needed_here, why_not
from tests.support.small_disk import small_disk
from tests.support.supervisor_process import SupervisorProcess

LEASES = ("--lease-duration", "30s", "--heartbeat-cadence", "2s")
DEADLINE = 60.0
LARGE = {"text": "x" * 1_000_000}
SMALL: dict[str, str] = {}
DONE = "done while nothing could be stored"


class Fault:
    """Where the store is, and what is done to it. `begin` may be called again, until nothing is taken any more; unless
    `is_total`, what needs no room goes on."""

    def __init__(
        self,
        store: str | None,
        begin: Callable[[ControlPlaneProcess], None],
        end: Callable[[ControlPlaneProcess], None],
        *,
        is_total: bool = True,
    ) -> None:
        self.is_total = is_total
        self.store = store
        self.begin = begin
        self.end = end


@contextlib.contextmanager
def full_disk(directory: Path) -> Iterator[Fault]:
    """A file on a disk that gets full."""
    with small_disk(directory / "disk", 12) as disk:
        yield Fault(f"sqlite://{disk.path}/control-plane.db", lambda _: disk.fill(), lambda _: disk.free())


@contextlib.contextmanager
def limited_file(directory: Path) -> Iterator[Fault]:
    """A file that may not grow, as under a quota; for this nobody needs a right."""
    unlimited = resource.RLIM_INFINITY

    def begin(plane: ControlPlaneProcess) -> None:
        resource.prlimit(plane.pid, resource.RLIMIT_FSIZE, (4096, unlimited))

    def end(plane: ControlPlaneProcess) -> None:
        resource.prlimit(plane.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))

    yield Fault(f"sqlite://{directory}/control-plane.db", begin, end)


@contextlib.contextmanager
def own_cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason is not None:
        assert not needed_here(), f"these tests must not be skipped here: {reason}"
        pytest.skip(reason)
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.close()


@contextlib.contextmanager
def full_tablespace(directory: Path) -> Iterator[Fault]:
    """Tables on a disk that gets full."""
    # Below the server's own directory, since its user may not enter the test's.
    del directory
    with own_cluster() as cluster, small_disk(cluster.directory / "disk", 40) as disk:
        cluster.own(disk.path)
        cluster.sql(f"CREATE TABLESPACE small LOCATION '{disk.path}'")
        cluster.sql("CREATE DATABASE full_one TABLESPACE small")
        yield Fault(cluster.url("full_one"), lambda _: disk.fill(), lambda _: disk.free(), is_total=False)
        cluster.stop(signal.SIGQUIT)


@contextlib.contextmanager
def read_only_server(directory: Path) -> Iterator[Fault]:
    """A server that an operator has set to take no writes."""
    del directory
    with own_cluster() as cluster:

        def set_to(value: str) -> None:
            cluster.sql(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            cluster.sql("SELECT pg_reload_conf()")

        name = cluster.new_database()
        yield Fault(cluster.url(name), lambda _: set_to("on"), lambda _: set_to("off"))


KINDS = {
    "full disk": full_disk,
    "file that may not grow": limited_file,
    "full tablespace": full_tablespace,
    "read-only server": read_only_server,
}


def refused(http: httpx.Client, inputs: dict[str, str]) -> bool:
    """Whether a start is refused, and then in clear words."""
    response = http.post(f"{automations.AUTOMATIONS}/load/runs", json={"inputs": inputs})
    if response.is_success:
        return False
    error = response.json()["error"]
    assert (response.status_code, error["code"]) in ((503, "store_unavailable"), (503, "timeout")), response.text
    assert "again" in error["message"] or "may still take effect" in error["message"]
    assert int(response.headers["retry-after"]) > 0
    return True


def until_refused(fault: Fault, plane: ControlPlaneProcess, http: httpx.Client) -> None:
    """Begin the fault, until nothing is taken."""
    deadline = time.monotonic() + DEADLINE
    fault.begin(plane)
    while not (refused(http, LARGE) and refused(http, SMALL) and (not fault.is_total or is_not_ready(http))):
        assert time.monotonic() < deadline
        fault.begin(plane)


def is_not_ready(http: httpx.Client) -> bool:
    """Whether a load balancer is told to go elsewhere."""
    response = http.get("/readyz")
    assert http.get("/healthz").status_code == 200
    return response.status_code == 503 and "retry-after" in response.headers


def journals(supervisor: SupervisorProcess) -> bytes:
    """What its workers have written down to be reported."""
    return b"".join(
        path.read_bytes() for path in supervisor.state.rglob("*") if "journal" in str(path) and path.is_file()
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KINDS)
def test_clients_are_told_workers_keep_their_reports_and_everything_goes_on_by_itself(
    kind: str, tmp_path: Path
) -> None:
    with (
        KINDS[kind](tmp_path) as fault,
        ControlPlaneProcess(tmp_path / "plane", *LEASES, store_url=fault.store) as plane,
        Gate() as gate,
        SupervisorProcess(tmp_path / "box", plane, workers=2, concurrency=2) as supervisor,
        plane.http() as http,
    ):
        for slot in ("default-1", "default-2"):
            supervisor.wait_for("session.registered", slot=slot)
        automations.publish(http, "load", [automations.action_step("one", "test.noop")])
        automations.publish(http, "held", [automations.action_step("hold", "test.gate", {"port": gate.port})])
        before = [automations.start(http, "load") for _ in range(5)]
        held = automations.start(http, "held")
        visit = gate.knock()

        until_refused(fault, plane, http)
        visit.release(DONE)
        deadline = time.monotonic() + DEADLINE
        while DONE.encode() not in journals(supervisor):
            assert refused(http, LARGE)
            assert time.monotonic() < deadline
        # What is done is with the worker, and nothing says that it is in the record.
        assert http.get(f"{automations.RUNS}/{held}").json()["status"] == "suspended"
        fault.end(plane)

        record = automations.finish(http, held)
        assert (record["status"], record["result"]["hold"]["attempt"]) == ("completed", 1)
        assert automations.event_types(http, held).count("action.result") == 1
        for run in (*before, automations.start(http, "load", inputs=LARGE)):
            assert automations.finish(http, run)["status"] == "completed"
        assert http.get("/readyz").status_code == 200
        assert plane.process is not None
        assert plane.process.poll() is None
        assert not list(supervisor.matching("process ended"))
        assert supervisor.terminate() == 0
