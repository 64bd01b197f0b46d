"""The program as a user meets it: a process, its exit code, and the one sentence that it leaves."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import apsw
import httpx
import pytest

from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.postgres_cluster import PASSWORD, Cluster
from tests.support.small_disk import small_disk
from wire.pipe import PIPE_FD_VARIABLE, Bye, Hello

KEY = "mbx_" + "k3" * 16


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "control_plane", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | environment,
    )


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    with ControlPlaneProcess(tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["serve"], 64, ["--store"]),
        (["serve", "--store", "sqlite:x.db", "--prot", "1"], 64, ["--prot"]),
        (["serve", "--store", "sqlite:x.db", "--dialect", "klingon"], 64, ["--dialect"]),
        (["nonsense"], 64, ["nonsense"]),
        (["serve", "--store", "sqlite:x.db", "--listen", "nowhere"], 78, ["--listen", "127.0.0.1:8780"]),
        (["serve", "--store", "sqlite:x.db", "--listen", "0.0.0.0:0"], 78, ["--insecure-listen"]),
        (["serve", "--store", "sqlite:x.db", "--listen", "192.0.2.1:0", "--insecure-listen"], 78, ["192.0.2.1:0"]),
        (["serve", "--store", "sqlite:x.db", "--metrics-listen", "nowhere"], 78, ["--metrics-listen", "127.0.0.1"]),
        (["serve", "--store", "sqlite:x.db", "--metrics-listen", "0.0.0.0:0"], 78, ["--metrics-listen", "reader"]),
        (["serve", "--store", "sqlite:x.db", "--lease-duration", "soon"], 78, ["--lease-duration", "60s"]),
        (["serve", "--store", "sqlite:x.db", "--lease-duration", "10s"], 78, ["twice"]),
        (["serve", "--store", "mysql://x", "--listen", "127.0.0.1:0"], 78, ["mysql"]),
        (["keys", "create", "--store", "sqlite:x.db", "--project", "Not A Handle"], 78, ["--project"]),
        (["keys", "create", "--store", "sqlite:typo.db", "--project", "default"], 78, ["typo.db: No such", "`serve`"]),
        (["keys", "list", "--store", "sqlite:typo.db", "--project", "default"], 78, ["typo.db: No such", "`serve`"]),
        (["projects", "create", "lab", "--store", "sqlite:typo.db"], 78, ["typo.db: No such", "`migrate`"]),
        (["check", "--store", "sqlite:typo.db"], 78, ["typo.db: No such", "`migrate`"]),
    ],
)
def test_a_wrong_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    refused(run(*arguments), code, *words)
    assert not list(tmp_path.iterdir())


def test_help_and_version() -> None:
    assert "serve" in run("--help").stdout
    assert run("--version").returncode == 0


def test_an_empty_store_without_a_key_is_refused(tmp_path: Path) -> None:
    result = run("serve", "--store", f"sqlite://{tmp_path}/x.db", "--listen", "127.0.0.1:0")
    refused(result, 78, "--bootstrap-key-file", "MOBIUS_BOOTSTRAP_API_KEY")


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    result = run(
        *["serve", "--store", f"sqlite://{tmp_path}/no/x.db", "--listen", "127.0.0.1:0"],
        *["--bootstrap-key-file", str(key_file)],
    )
    refused(result, 78, "no/x.db")
    assert not key_file.exists()


def test_the_port_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        refused(run("serve", "--store", f"sqlite://{tmp_path}/x.db", "--listen", address), 73, address)


def test_a_pipe_that_is_none(tmp_path: Path) -> None:
    result = run("serve", "--store", f"sqlite://{tmp_path}/x.db", "--listen", "127.0.0.1:0", **{PIPE_FD_VARIABLE: "99"})
    refused(result, 78, PIPE_FD_VARIABLE)


def test_the_first_start_writes_a_key_that_works(plane: ControlPlaneProcess) -> None:
    assert plane.key_file.stat().st_mode & 0o777 == 0o600
    with plane.http() as http:
        assert [project["handle"] for project in http.get("/v1/projects").json()["items"]] == ["default"]
    assert plane.key not in plane.log()
    plane.restart()
    with plane.http() as http:
        assert http.get("/v1/projects/default").status_code == 200


def test_a_key_that_a_crash_left_in_the_file_is_taken(tmp_path: Path) -> None:
    plane = ControlPlaneProcess(tmp_path)
    plane.key_file.touch(mode=0o600)
    plane.key_file.write_text(KEY + "\n")
    with plane, plane.http() as http:
        assert http.get("/v1/projects/default").status_code == 200


@pytest.mark.parametrize(("mode", "text"), [(0o644, KEY), (0o600, "no key at all")])
def test_a_key_file_that_cannot_be_trusted(tmp_path: Path, mode: int, text: str) -> None:
    key_file = tmp_path / "key"
    key_file.touch(mode=mode)
    key_file.write_text(text)
    store = f"sqlite://{tmp_path}/x.db"
    refused(run("serve", "--store", store, "--listen", "127.0.0.1:0", "--bootstrap-key-file", str(key_file)), 78, "key")


def test_a_key_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBIUS_BOOTSTRAP_API_KEY", KEY)
    with ControlPlaneProcess(tmp_path) as plane:
        assert not plane.key_file.exists()
        with plane.http(KEY) as http:
            assert http.get("/v1/projects/default").status_code == 200
        # What `ps e` would show is the environment at the start; nothing that we start inherits the key.
        assert KEY not in plane.log()
        monkeypatch.setenv("MOBIUS_BOOTSTRAP_API_KEY", KEY[:-1] + "x")
        plane.restart()
        assert "bootstrap key ignored" in plane.log()


def test_a_key_that_is_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "bootstrap-key").write_text(KEY + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    with ControlPlaneProcess(tmp_path) as plane:
        assert not plane.key_file.exists()
        with plane.http(KEY) as http:
            assert http.get("/v1/projects/default").status_code == 200
        assert KEY not in plane.log()
        (credentials / "bootstrap-key").write_text(KEY[:-1] + "x")
        plane.restart()
        assert "the credential bootstrap-key is not among them" in plane.log()


def test_a_credential_that_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "bootstrap-key").write_text("mbx_secret-and-short")
    store = f"sqlite://{tmp_path}/x.db"
    arguments = ["serve", "--store", store, "--listen", "127.0.0.1:0"]
    result = run(*arguments, CREDENTIALS_DIRECTORY=str(tmp_path))
    refused(result, 78, "the credential bootstrap-key")
    assert "secret-and-short" not in result.stderr


def test_a_key_file_among_the_credentials_may_have_their_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    plane = ControlPlaneProcess(tmp_path)
    plane.key_file.write_text(KEY + "\n")
    plane.key_file.chmod(0o440)
    with plane, plane.http() as http:
        assert http.get("/v1/projects/default").status_code == 200


def test_a_service_manager_hears_when_it_listens_and_when_it_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        command = [sys.executable, "-m", "control_plane", "serve", "--listen", "127.0.0.1:0"]
        command += ["--store", f"sqlite://{tmp_path}/x.db", "--bootstrap-key-file", str(tmp_path / "api-key")]
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                heard = []
                while "READY=1" not in heard:
                    heard.append(manager.recv(4096).decode())
                process.terminate()
                while not heard[-1].startswith("STOPPING=1\n"):
                    heard.append(manager.recv(4096).decode())
                assert process.wait(20) == 0
            finally:
                process.kill()
    assert heard[-1] == "STOPPING=1\nSTATUS=stopping: received SIGTERM"
    assert not any("WATCHDOG" in message for message in heard)


def test_a_malformed_key_from_the_environment(tmp_path: Path) -> None:
    store = f"sqlite://{tmp_path}/x.db"
    result = run("serve", "--store", store, "--listen", "127.0.0.1:0", MOBIUS_BOOTSTRAP_API_KEY="mbx_secret-and-short")
    refused(result, 78, "MOBIUS_BOOTSTRAP_API_KEY")
    assert "secret-and-short" not in result.stderr


def test_a_second_control_plane_keeps_out_of_the_store(plane: ControlPlaneProcess) -> None:
    refused(run("serve", "--listen", "127.0.0.1:0", "--store", plane.store_url), 73, "in use by another control plane")


def test_projects_and_keys_without_a_control_plane(plane: ControlPlaneProcess) -> None:
    plane.terminate()
    key = plane.command("keys", "create", "--project", "default")
    plane.start()
    with plane.http(key) as http:
        assert http.get("/v1/projects/default").status_code == 200


def test_keys_from_the_servers_machine_while_it_serves(plane: ControlPlaneProcess) -> None:
    project = ("--project", "default")
    secret = plane.command("keys", "create", *project, "--name", "ci", "--scope", "reader", "--expires-in", "30d")
    first, second = plane.command("keys", "list", *project).splitlines()
    key_id = first.split()[0]
    assert "active until" in first
    assert first.endswith("ci")
    assert "  reader  " in first
    assert "operator,reader,worker" in second
    rotated = plane.command("keys", "rotate", *project, "--overlap", "1h", key_id)
    with plane.http(secret) as http, plane.http(rotated) as new:
        assert [client.get("/v1/projects/default/runs").status_code for client in (http, new)] == [200, 200]
        assert plane.command("keys", "revoke", *project, key_id) == f"{key_id} is revoked"
        deadline = time.monotonic() + 20
        while http.get("/v1/projects/default/runs").status_code == 200:
            assert time.monotonic() < deadline
        assert new.get("/v1/projects/default/runs").status_code == 200
    listed = plane.command("keys", "list", *project)
    assert "revoked since" in listed
    assert secret not in listed
    place = ("--store", plane.store_url)
    refused(run("keys", "revoke", *project, "key_none", *place), 66, "key_none")
    refused(run("keys", "rotate", *project, key_id, *place), 73, "has ended")
    refused(run("keys", "rotate", *project, key_id, "--overlap", "soon", *place), 78, "--overlap")
    refused(run("keys", "create", *project, "--expires-in", "99999d", *place), 78, "36500d")
    refused(run("keys", "create", *project, "--expires-in", "0s", *place), 65, "in the past")


def test_further_projects_and_keys(plane: ControlPlaneProcess) -> None:
    assert plane.command("projects", "create", "team-2").startswith("proj_")
    key = plane.command("keys", "create", "--project", "team-2", "--name", "ci")
    second = plane.command("keys", "create", "--project", "default")
    refused(run("projects", "create", "team-2", "--store", plane.store_url), 73, "team-2")
    refused(run("keys", "create", "--project", "team-3", "--store", plane.store_url), 66, "team-3")
    assert key.endswith(".team-2")
    with plane.http(key) as http:
        assert http.get("/v1/projects/team-2").status_code == 200
        assert http.post("/v1/projects/team-2/automations", json={"handle": "a", "name": "A"}).status_code == 201
        assert http.get("/v1/projects/default").status_code == 403
    with plane.http(second) as http:
        assert http.get("/v1/projects/default").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_gracefully(plane: ControlPlaneProcess, number: signal.Signals) -> None:
    assert plane.process is not None
    plane.process.send_signal(number)
    plane.wait_for(Bye)
    assert plane.process.wait(10) == 0


def test_it_stops_with_its_supervisor(plane: ControlPlaneProcess) -> None:
    assert plane.process is not None
    assert plane.pipe is not None
    hello = plane.said[0]
    assert isinstance(hello, Hello)
    assert hello.pid == plane.pid
    plane.pipe.close()
    plane.pipe = None
    assert plane.process.wait(10) == 0
    assert "the supervisor is gone" in plane.log()


def test_it_stops_although_nobody_is_left_to_read_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "control_plane", "serve", "--listen", "127.0.0.1:0"]
    command += ["--store", f"sqlite://{tmp_path}/control-plane.db", "--bootstrap-key-file", str(tmp_path / "api-key")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "listening" not in process.stderr.readline():
            assert process.poll() is None
        process.stderr.close()
        process.terminate()
        try:
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_killed_and_started_again_on_the_same_port(plane: ControlPlaneProcess) -> None:
    with plane.http() as http:
        http.post("/v1/projects/default/automations", json={"handle": "a", "name": "A"}).raise_for_status()
        plane.kill()
        with pytest.raises(httpx.TransportError):
            http.get("/healthz")
        plane.start()
    with plane.http() as http:
        assert http.get("/v1/projects/default/automations/a").status_code == 200


def test_debug_logs_requests_and_never_a_key(tmp_path: Path) -> None:
    with ControlPlaneProcess(tmp_path, "--log-level", "debug") as plane:
        with plane.http() as http:
            http.get("/v1/projects/default/runs?limit=1")
        plane.terminate()
        log = plane.log()
        assert '"path": "/v1/projects/default/runs"' in log
        assert plane.key not in log


def test_options_come_from_a_file_and_the_command_line_goes_over_them(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text("store = 'sqlite:x.db'\nlisten = 'nowhere'\nlease_duration = '10s'\n")
    serve = ("serve", "--config", str(tmp_path / "serve.toml"))
    refused(run(*serve), 78, "--listen is 'nowhere'")
    refused(run(*serve, "--listen", "127.0.0.1:0"), 78, "--lease-duration 10s must be at least twice")
    refused(run("serve", "--config", str(tmp_path / "no.toml")), 78, "no.toml cannot be read")
    (tmp_path / "serve.toml").write_text("stor = 'sqlite:x.db'\n")
    refused(run(*serve), 78, "did you mean store?")
    (tmp_path / "serve.toml").write_text("listen = '127.0.0.1:0'\n")
    refused(run(*serve), 78, "serve.toml: store is missing")
    (tmp_path / "serve.toml").write_text("store = 'sqlite:x.db'\ndialect = 'x'\n")
    refused(run(*serve), 78, "serve.toml", "dialect", "automations")


# --- the store, and what operators do with it


def test_migrate_check_and_backup(plane: ControlPlaneProcess) -> None:
    store = ("--store", plane.store_url)
    refused(run("migrate", *store), 73, "in use by another control plane")
    checked = run("check", *store)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "ok           every job is in exactly one state" in checked.stdout
    copy = plane.directory / "backup.db"
    made = run("backup", *store, "--to", str(copy))
    assert (made.returncode, made.stdout) == (0, f"{copy}: {copy.stat().st_size} bytes\n")
    refused(run("backup", *store, "--to", str(copy)), 73, "File exists")
    plane.terminate()
    assert run("migrate", *store).stdout.endswith(", as it was\n")
    assert run("migrate", "--store", f"sqlite://{plane.directory}/other.db").stdout.endswith(", in a new store\n")


def test_a_store_that_is_not_as_it_should_be(plane: ControlPlaneProcess) -> None:
    plane.terminate()
    with contextlib.closing(apsw.Connection(f"{plane.directory}/control-plane.db")) as connection:
        connection.execute(
            "INSERT INTO jobs_claimed VALUES (1, 1, 1, 1, 1, 1, 'x', NULL, 1, 's', 'w', 1, 1, 1, 'r', 1)"
        )
    checked = run("check", "--store", plane.store_url)
    assert checked.returncode == 65
    assert "BROKEN (1)   every state is a job's" in checked.stdout


def damage(path: Path, table: str) -> None:
    """Overwrite the table's first page."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,))
        size = connection.pragma("page_size")
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)


def test_a_damaged_file_is_said_to_be_damaged(plane: ControlPlaneProcess, cluster: Cluster) -> None:
    plane.terminate()
    path = plane.directory / "control-plane.db"
    damage(path, "projects")
    database = cluster.new_database()
    refused(run("copy", "--from", plane.store_url, "--to", cluster.url(database)), 65, f"{path} is damaged", "backup")
    cluster.drop_database(database)
    refused(run("check", "--store", plane.store_url), 65, f"{path} is damaged", "malformed")
    refused(run("backup", "--store", plane.store_url, "--to", f"{path}.copy"), 65, f"{path} is damaged")
    os.truncate(path, path.stat().st_size // 2)
    for command in ("check", "migrate"):
        refused(run(command, "--store", plane.store_url), 65, f"{path} is damaged")


def test_a_backup_to_a_full_disk_blames_the_disk(plane: ControlPlaneProcess) -> None:
    with small_disk(plane.directory / "disk", 1) as disk:
        disk.fill()
        target = disk.path / "backup.db"
        refused(run("backup", "--store", plane.store_url, "--to", str(target)), 73, f"backup {target}: No space left")
        assert not list(disk.path.glob("backup*"))


def test_from_a_file_to_a_server(plane: ControlPlaneProcess, cluster: Cluster) -> None:
    database = cluster.new_database()
    url = cluster.url(database)
    with plane.http() as http:
        http.post("/v1/projects/default/automations", json={"handle": "a", "name": "A"}).raise_for_status()
    copy = ("copy", "--from", plane.store_url, "--to", url)
    refused(run(*copy), 73, "in use by another control plane")
    plane.terminate()
    copied = run(*copy)
    assert "1 automations" in copied.stdout
    assert "schema migrated" in copied.stderr
    assert "schema migrated" not in copied.stdout
    refused(run(*copy), 78, "is not empty")
    moved = ControlPlaneProcess(plane.directory, store_url=url, key_file=plane.key_file)
    with moved, moved.http() as http:
        assert http.get("/v1/projects/default/automations/a").json()["name"] == "A"
        assert run("check", "--store", url).stdout.count("ok ") >= 5
    cluster.drop_database(database)


@pytest.mark.parametrize(
    ("command", "result"),
    [(["projects", "create", "lab"], "proj_"), (["keys", "list", "--project", "default"], "")],
)
def test_what_a_command_logs_is_no_part_of_its_result(command: list[str], result: str, cluster: Cluster) -> None:
    database = cluster.new_database()
    told = run(*command, "--store", cluster.url(database))
    assert "schema migrated" in told.stderr
    assert told.stdout.strip().startswith(result)
    assert len(told.stdout.split()) == (1 if result else 0)
    cluster.drop_database(database)


def test_the_databases_password_is_shown_nowhere(tmp_path: Path, cluster: Cluster) -> None:
    database = cluster.new_database()
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    password.chmod(0o600)
    url = cluster.network_url(database)
    with_password = url.replace("@", f":{quote(PASSWORD)}@")
    result = run("check", "--store", with_password)
    refused(result, 78, "--store-password-file")
    assert quote(PASSWORD) not in result.stderr
    refused(run("check", "--store", url, PGPASSFILE=str(tmp_path / "none")), 78, "does not let us in")
    password.chmod(0o644)
    refused(run("check", "--store", url, "--store-password-file", str(password)), 78, "chmod 600")
    password.chmod(0o600)
    plane = ControlPlaneProcess(tmp_path, "--store-password-file", str(password), store_url=url)
    with plane, plane.http() as http:
        assert http.get("/readyz").status_code == 200
        assert PASSWORD.encode() not in Path(f"/proc/{plane.pid}/cmdline").read_bytes()
        assert PASSWORD.encode() not in Path(f"/proc/{plane.pid}/environ").read_bytes()
        assert PASSWORD not in plane.log()
    # As a credential, and from where libpq looks.
    password.rename(tmp_path / "store-password")
    assert run("migrate", "--store", url, CREDENTIALS_DIRECTORY=str(tmp_path)).returncode == 0
    assert run("migrate", "--store", url, PGPASSWORD=PASSWORD).returncode == 0
    refused(
        run(
            "migrate", "--store", f"sqlite://{tmp_path}/x.db", "--store-password-file", str(tmp_path / "store-password")
        ),
        78,
        "--store-password-file",
    )
    cluster.drop_database(database)


def test_a_database_that_does_not_exist_or_cannot_be_reached(cluster: Cluster, tmp_path: Path) -> None:
    serve = ("serve", "--listen", "127.0.0.1:0", "--bootstrap-key-file", str(tmp_path / "key"), "--store")
    refused(run(*serve, cluster.url("nowhere")), 78, "nowhere", "createdb")
    refused(run(*serve, "postgresql://mobius@127.0.0.1:1/db"), 69, "cannot be reached")
    refused(run(*serve, "postgresql://mobius@db.example.com/db"), 78, "sslmode=verify-full")
    assert not (tmp_path / "key").exists()


def test_metrics_on_a_port_of_their_own_need_no_key(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        with ControlPlaneProcess(tmp_path, "--metrics-listen", address) as plane:
            found = httpx.get(f"http://{address}/metrics")
            assert "mobius_control_plane_store_up 1.0" in found.text
            assert httpx.get(f"http://{address}/v1/projects").status_code == 404
            assert httpx.get(f"{plane.url}/metrics").status_code == 401
            taken = run(
                "serve", "--store", f"sqlite:{tmp_path}/y.db", "--listen", "127.0.0.1:0", "--metrics-listen", address
            )
            refused(taken, 73, "--metrics-listen", address)
            assert plane.terminate() == 0
