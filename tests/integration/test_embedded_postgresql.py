"""A supervisor whose embedded control plane has its store on PostgreSQL: one pool file, and a database beside it."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import automations
from tests.support.gate import Gate
from tests.support.postgres_cluster import PASSWORD, Cluster, needed_here, why_not
from tests.support.supervisor_process import SupervisorProcess

WORKERS = ("default-1", "default-2")


class Embedding:
    """Stands where a SupervisorProcess is told its control plane, and lets it run its own on a free port."""

    def __init__(self, directory: Path) -> None:
        self.key_file = directory / "key"
        # Bound and not listening: nobody else is given the port, and a server may share it.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.listen = f"127.0.0.1:{self._reserved.getsockname()[1]}"
        self.url = f"http://{self.listen}"

    def http(self) -> httpx.Client:
        key = self.key_file.read_text().strip()
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=30)

    def close(self) -> None:
        self._reserved.close()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A server that may be restarted, and asks for a password."""
    reason = why_not()
    if reason is not None:
        assert not needed_here(), f"these tests must not be skipped here: {reason}"
        pytest.skip(reason)
    made = Cluster(durable=True)
    yield made
    made.close()


@pytest.fixture
def embedding(tmp_path: Path) -> Iterator[Embedding]:
    made = Embedding(tmp_path)
    yield made
    made.close()


def supervised(
    directory: Path, embedding: Embedding, store: str, *, environment: dict[str, str], keys: str = ""
) -> SupervisorProcess:
    supervisor = SupervisorProcess(directory, embedding, environment=environment, workers=2)  # type: ignore[arg-type]
    embedded = f'embedded = true\nlisten = "{embedding.listen}"\nstore = "{store}"\n{keys}'
    supervisor.file.write_text(supervisor.file.read_text().replace("[supervisor]", f"{embedded}\n[supervisor]"))
    return supervisor


def test_work_is_done_across_a_restart_of_the_database_and_handlers_never_see_its_password(
    own_cluster: Cluster, embedding: Embedding, tmp_path: Path
) -> None:
    store = own_cluster.network_url(own_cluster.new_database()) + "?sslmode=disable"
    environment = {"PGPASSWORD": PASSWORD, "HARMLESS": "yes"}
    with (
        Gate() as gate,
        supervised(tmp_path / "box", embedding, store, environment=environment) as supervisor,
    ):
        for slot in WORKERS:
            supervisor.wait_for("session.registered", slot=slot)
        with embedding.http() as http:
            automations.publish(http, "look", [automations.action_step("look", "test.environment")])
            automations.publish(http, "held", [automations.action_step("hold", "test.gate", {"port": gate.port})])
            names = automations.finish(http, automations.start(http, "look"))["result"]["look"]["names"]
            assert "HARMLESS" in names
            assert not {name for name in names if name.startswith(("PG", "MOBIUS_API_KEY"))}

            held = automations.start(http, "held")
            visit = gate.knock()
            own_cluster.restart()
            visit.release("held through it")
            record = automations.finish(http, held)
            assert (record["status"], record["result"]["hold"]["attempt"]) == ("completed", 1)
            assert automations.finish(http, automations.start(http, "look"))["status"] == "completed"
        assert not list(supervisor.matching("process ended"))
        assert PASSWORD not in supervisor.text()
        assert supervisor.terminate() == 0
        assert supervisor.leftovers() == []


def test_with_a_file_as_store_the_variable_is_the_handlers_own(embedding: Embedding, tmp_path: Path) -> None:
    environment = {"PGPASSWORD": "of another database, which a handler uses"}
    with supervised(tmp_path / "box", embedding, "sqlite:control-plane.db", environment=environment) as supervisor:
        supervisor.wait_for("session.registered", slot="default-1")
        with embedding.http() as http:
            automations.publish(http, "look", [automations.action_step("look", "test.environment")])
            names = automations.finish(http, automations.start(http, "look"))["result"]["look"]["names"]
            assert "PGPASSWORD" in names
        assert supervisor.terminate() == 0


def test_a_database_that_does_not_let_us_in_ends_the_start_with_a_sentence(
    cluster: Cluster, embedding: Embedding, tmp_path: Path
) -> None:
    store = cluster.network_url("nobody_made_this") + "?sslmode=disable"
    password = tmp_path / "box" / "password"
    password.parent.mkdir()
    password.touch(mode=0o600)
    password.write_text(PASSWORD)
    with supervised(
        tmp_path / "box", embedding, store, environment={}, keys='store_password_file = "password"'
    ) as supervisor:
        assert supervisor.wait_for_end() == 78
        assert 'database \\"nobody_made_this\\" does not exist' in supervisor.text()
        assert PASSWORD not in supervisor.text()
