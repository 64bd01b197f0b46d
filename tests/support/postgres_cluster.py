"""A PostgreSQL server of the tests' own: made with initdb in a temporary directory, ended with the tests.

`shared_cluster()` is one for each test process; `Cluster` makes another, for tests that restart or kill it. The server
refuses to run as root, so root starts it as `postgres` or `nobody`.
"""

import atexit
import ctypes
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path

OLDEST = 15
_libc = ctypes.CDLL(None)
START_TIMEOUT = 60.0
_PR_SET_PDEATHSIG = 1
USER = "mobius"
PASSWORD = "not a secret: the server listens to this machine alone"


@functools.cache
def binaries() -> Path | None:
    """Where initdb and postgres are; None where there is no PostgreSQL, or only one that is too old."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    named = shutil.which("initdb")
    if named is not None:
        found.append(Path(named).resolve().parent)
    versions = [(_version(folder), folder) for folder in found if (folder / "postgres").exists()]
    return max((pair for pair in versions if pair[0] >= OLDEST), default=(0, None))[1]


def why_not() -> str | None:
    """What is missing to run a server; None: nothing."""
    return None if binaries() is not None else f"no PostgreSQL {OLDEST} or newer (Debian: apt install postgresql)"


def needed_here() -> bool:
    """In continuous integration the server is installed: tests that miss it fail."""
    return os.environ.get("CI") == "true"


def _version(folder: Path) -> int:
    text = subprocess.run([folder / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    return int(text.split(")")[1].split(".")[0])


class Cluster:
    """One server on a Unix socket and a loopback port. `durable`: with fsync, for tests that kill it."""

    def __init__(self, *, durable: bool = False) -> None:
        self._prepare()
        password = self.directory / "password"
        password.write_text(PASSWORD + "\n")
        password.chmod(0o644)
        self._run(
            *("initdb", "--no-sync", "--username", USER, "--pwfile", password, "--encoding", "UTF8", "--locale", "C"),
            *("--auth-local", "trust", "--auth-host", "scram-sha-256", "--pgdata", self.data),
        )
        fsync = "on" if durable else "off"
        self._configure(
            {
                "fsync": fsync,
                "full_page_writes": fsync,
                "synchronous_commit": "on",
                "listen_addresses": "'127.0.0.1'",
                "max_connections": 200,
                "shared_buffers": "128MB",
                "logging_collector": "off",
                "log_min_messages": "warning",
                "max_wal_size": "1GB",
            }
        )
        self.start()

    def _prepare(self) -> None:
        folder = binaries()
        assert folder is not None, why_not()
        self._binaries = folder
        self._user = _server_user()
        self._numbers = count(1)
        self._templates: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.directory = Path(tempfile.mkdtemp(prefix="mobius-pg-"))
        self.data = self.directory / "data"
        # Bound and never listening: nobody else is given the port, and the server may share it (SO_REUSEADDR).
        self._reserved_port = socket.socket()
        self._reserved_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved_port.bind(("127.0.0.1", 0))
        self.port: int = self._reserved_port.getsockname()[1]
        self.own(self.directory)

    def _configure(self, settings: dict[str, object]) -> None:
        where = {"port": self.port, "unix_socket_directories": f"'{self.directory}'"}
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in {**settings, **where}.items())

    def own(self, directory: Path) -> None:
        """Give it to the user whom the server runs as."""
        if self._user is not None:
            shutil.chown(directory, *self._user)

    # --- life

    def start(self) -> None:
        """Start, and return when it takes connections."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start. It ends with the thread that calls this."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one call of libc, loaded before the fork
                cwd="/",
                **self._as_user(),
            )

    def wait_until_ready(self) -> None:
        """Until it takes connections."""
        assert self.process is not None
        ready = self._run("pg_isready", "--quiet", "--host", self.directory, "--port", str(self.port), check=False)
        deadline = START_TIMEOUT
        while ready != 0:
            assert self.process.poll() is None, self.log()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
            deadline -= 0.05
            assert deadline > 0, self.log()
            ready = self._run("pg_isready", "--quiet", "--host", self.directory, "--port", str(self.port), check=False)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """SIGINT cuts connections and shuts down cleanly, SIGQUIT goes down like in a crash."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(START_TIMEOUT)
        self.process = None

    def restart(self, number: signal.Signals = signal.SIGINT) -> None:
        """Down and up again."""
        self.stop(number)
        self.start()

    def close(self) -> None:
        """End it and remove what it has written."""
        if self.process is not None:
            self.stop(signal.SIGQUIT)
        self._reserved_port.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """What it has logged."""
        return (self.directory / "log").read_text()

    # --- databases

    def url(self, database: str) -> str:
        """Over the socket, where no password is asked."""
        return f"postgresql://{USER}@/{database}?host={self.directory}&port={self.port}"

    def network_url(self, database: str) -> str:
        """Over loopback, where PASSWORD is asked."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def new_database(self, template: str = "template0") -> str:
        """The name of a fresh copy of the template."""
        name = f"db{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Also while somebody is connected to it."""
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def template(self, name: str, text: str) -> str:
        """A database in which this SQL was run, once for each cluster."""
        if name not in self._templates:
            database = self.new_database()
            self.sql(text, database)
            self._templates[name] = database
        return self._templates[name]

    def sql(self, text: str, database: str = "postgres") -> str:
        """Run it with psql; rows come back as lines."""
        command = [self._binaries / "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]
        command += ["--set", "ON_ERROR_STOP=1", "--username", USER, "--host", self.directory, "--port", str(self.port)]
        done = subprocess.run(
            [*command, "--dbname", database], input=text, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _run(self, program: str, *arguments: "str | Path", check: bool = True) -> int:
        done = subprocess.run(
            [self._binaries / program, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=START_TIMEOUT,
            **self._as_user(),
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.returncode

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user[0], "group": self._user[1], "extra_groups": []}


class Standby(Cluster):
    """A copy of another server that follows it, and acknowledges before that one does."""

    def __init__(self, primary: Cluster) -> None:
        self._prepare()
        self._run(
            *("pg_basebackup", "--host", primary.directory, "--port", str(primary.port), "--username", USER),
            *("--no-sync", "--write-recovery-conf", "--pgdata", self.data),
        )
        self._configure({})
        self.start()
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'; SELECT pg_reload_conf()")

    def promote(self) -> None:
        """It follows nobody any more, and takes writes."""
        self.sql("SELECT pg_promote()")


def _server_user() -> tuple[int, int] | None:
    """Uid and gid for the server's processes; None: our own."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise AssertionError("root cannot run PostgreSQL, and there is neither a user postgres nor nobody")


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


@functools.cache
def shared_cluster() -> Cluster:
    """The one of this process, without fsync."""
    cluster = Cluster()
    atexit.register(cluster.close)
    return cluster
