"""Where a worker's identity comes from: the first that there is, in the documented order."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from supervisor import identity
from supervisor.identity import detect


def test_the_order() -> None:
    environ = {
        "HOSTNAME": "pod-1",
        "FLY_MACHINE_ID": "fly-1",
        "RAILWAY_REPLICA_ID": "railway-1",
        "RENDER_INSTANCE_ID": "render-1",
    }
    assert detect("mine", environ, "/state") == ("mine", "supervisor.instance_id")
    found = []
    for variable in list(environ):
        found.append(detect("", environ, "/state"))
        del environ[variable]
    assert found == [
        ("pod-1", "HOSTNAME"),
        ("fly-1", "FLY_MACHINE_ID"),
        ("railway-1", "RAILWAY_REPLICA_ID"),
        ("render-1", "RENDER_INSTANCE_ID"),
    ]


def test_the_host_name_is_the_same_until_the_next_boot_and_differs_by_state_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity.socket, "gethostname", lambda: "rig")
    first, source = detect("", {}, "/state")
    assert first.startswith("rig-")
    assert len(first) == len("rig-") + 8
    assert source == "host name and boot"
    assert detect("", {}, "/state")[0] == first
    assert detect("", {}, "/other")[0] != first


def test_a_machine_without_a_name_has_an_id_per_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity.socket, "gethostname", lambda: "localhost")
    found, source = detect("", {}, "/state")
    assert (len(found), source) == (36, "boot")
    assert detect("", {}, "/state")[0] == found


def test_what_a_name_may_not_hold_is_replaced() -> None:
    assert detect("", {"HOSTNAME": "a b/c\n"}, "/state")[0] == "a-b-c"
    assert len(detect("", {"HOSTNAME": "x" * 5000}, "/state")[0]) == 200


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Metadata-Flavor"] == "Google"
            assert self.path == identity.METADATA_PATH
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"00bf4bf02d8ad5e6f7a8b9c0d1")

        def log_message(self, *_arguments: object) -> None:
            """Not on the terminal."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(identity, "METADATA_HOST", f"127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("metadata")
def test_cloud_run_is_asked_for_its_instance() -> None:
    found, source = detect("", {"K_REVISION": "worker-00001", "HOSTNAME": "localhost"}, "/state")
    assert found == "worker-00001-e6f7a8b9c0d1"
    assert source == "Cloud Run (K_REVISION and metadata)"


def test_a_metadata_server_that_is_not_there_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "METADATA_HOST", "127.0.0.1:9")
    assert detect("", {"K_REVISION": "worker-00001", "HOSTNAME": "pod"}, "/state") == ("pod", "HOSTNAME")


def test_a_metadata_server_that_never_answers_has_one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(identity, "METADATA_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        found = detect("", {"K_REVISION": "worker-00001", "HOSTNAME": "pod"}, "/state")
        took = time.monotonic() - began
    assert found == ("pod", "HOSTNAME")
    assert identity.METADATA_PATIENCE == 1.0
    # A busy machine may be late, but not by as much as a resolver that waits by itself.
    assert 0.9 <= took < 4


@pytest.mark.parametrize("answer", [b"HTTP/1.0 500 no\r\n\r\n", b"HTTP/1.0 200 yes\r\n\r\n \xff ", b"nonsense\r\n\r\n"])
def test_an_answer_that_is_no_instance_is_none(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setattr(identity, "METADATA_HOST", f"127.0.0.1:{server.getsockname()[1]}")
        assert detect("", {"K_REVISION": "worker-00001", "HOSTNAME": "pod"}, "/state") == ("pod", "HOSTNAME")
        thread.join()


def test_cloud_run_is_asked_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere there is no metadata server, and nobody waits for one."""
    monkeypatch.setattr(identity, "_cloud_run_instance", lambda: pytest.fail("asked"))
    assert detect("", {"K_REVISION": "", "FLY_MACHINE_ID": "fly-1"}, "/state") == ("fly-1", "FLY_MACHINE_ID")
