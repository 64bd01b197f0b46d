"""`mobius-control-plane`: arguments -> configuration -> objects -> loop; the only place that builds them.

Exit codes (sysexits): 0 ended as asked, 64 usage, 65 the store is not as it should be or a value cannot be, 66 no such
project or key, 69 the store is away, 70 our fault, 73 the port is in use, the handle is taken, the file exists or the
key has ended, 78 configuration.
"""

import wire.structlog_alone  # noqa: F401 - before anything else imports structlog

# isort: split
import asyncio
import contextlib
import errno
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import structlog

from control_plane import log, serve_file
from control_plane.config import (
    Address,
    ConfigurationError,
    PortInUse,
    ServeConfig,
    parse_address,
    parse_duration,
    parse_handle,
    parse_keep,
    parse_project_dialects,
)
from control_plane.domain.store import LeaseTerms
from control_plane.errors import (
    CannotCreate,
    Conflict,
    ControlPlaneError,
    Invalid,
    NotFound,
    StoreDamaged,
    StoreInUse,
    StoreRefused,
    StoreUnavailable,
)
from control_plane.key_commands import TOOLS_LOG, keys_group
from control_plane.parent import Parent, inherited_pipe
from control_plane.server import ControlPlane, tune_the_interpreter
from control_plane.store import maintenance
from control_plane.store_options import chosen_password_file, opened_store, run, store_options, with_store
from service_manager import journal
from service_manager.notify import Notifier
from wire import stacks
from wire.build import package_version

EX_OK, EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE = 0, 64, 65, 66, 69
EX_SOFTWARE, EX_CANTCREAT, EX_CONFIG = 70, 73, 78

EXIT_CODES: tuple[tuple[type[ControlPlaneError], int], ...] = (
    (PortInUse, EX_CANTCREAT),
    (CannotCreate, EX_CANTCREAT),
    (ConfigurationError, EX_CONFIG),
    (StoreInUse, EX_CANTCREAT),
    (StoreDamaged, EX_DATAERR),
    (StoreRefused, EX_CONFIG),
    (StoreUnavailable, EX_UNAVAILABLE),
    (NotFound, EX_NOINPUT),
    (Conflict, EX_CANTCREAT),
    (Invalid, EX_DATAERR),
)


_CONFIG_FILE = "control_plane.config_file"
_FILE = click.Path(dir_okay=False, path_type=Path)
_level_option = click.option("--log-level", type=click.Choice(log.LEVELS), default="info", show_default=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_version())
def cli() -> None:
    """The Mobius control plane on your own machine."""


def _read_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    # Options of the command line go over those of the file.
    context.default_map = serve_file.read(path) if path is not None else None
    context.meta[_CONFIG_FILE] = path


@cli.command("serve")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_read_file,
    is_eager=True,
    expose_value=False,
    help="A TOML file with any of these options; see configs/control_plane.cluster.toml.",
)
@click.option("--listen", default="127.0.0.1:8780", show_default=True, metavar="HOST:PORT")
@store_options
@click.option(
    "--bootstrap-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="On the first start on an empty store, write an API key here (mode 0600).",
)
@click.option(
    "--dialect",
    type=click.Choice(["automations", "loops"]),
    default="automations",
    show_default=True,
    help="What the projects' worker sockets speak; it depends on the age of the workers.",
)
@click.option("--project-dialect", multiple=True, metavar="PROJECT=DIALECT", help="... for one project. Repeatable.")
@click.option("--lease-duration", default="60s", show_default=True, help="How long a claimed job is held.")
@click.option("--heartbeat-cadence", default="20s", show_default=True, help="How often its worker says so.")
@click.option("--insecure-listen", is_flag=True, help="Listen beyond loopback without TLS: a proxy ends it.")
@click.option(
    "--tls-certificate-file",
    type=_FILE,
    help="PEM certificate (with its chain) to serve TLS with; taken up when renewed.",
)
@click.option("--tls-key-file", type=_FILE, help="Its key, of mode 0600; default: in the same file.")
@click.option(
    "--tls-client-ca-file", type=_FILE, help="Let only peers in that have a certificate of these authorities."
)
@click.option("--metrics-listen", metavar="HOST:PORT", help="Serve /metrics here too, without a key: loopback only.")
@click.option(
    "--rate-limit", type=int, default=2000, show_default=True, metavar="N", help="Requests a second of one key; 0: any."
)
@click.option(
    "--connections-per-key", type=int, default=2000, show_default=True, metavar="N", help="Worker sockets and streams."
)
@click.option("--trusted-proxy", multiple=True, metavar="ADDRESS", help="Believe its X-Forwarded-For. Repeatable.")
@click.option(
    "--keep-finished", default="30d", show_default=True, help="Delete finished runs and jobs later; off: never."
)
@click.option("--keep-deltas", default="10m", show_default=True, help="The same for what generations have streamed.")
@_level_option
def serve_command(**options: Any) -> None:
    """Serve the HTTP API and the worker sockets until SIGTERM or Ctrl-C."""
    log.configure(options["log_level"])
    config = ServeConfig(
        listen=parse_address(options["listen"]),
        store=options["store"],
        store_password_file=options["store_password_file"],
        bootstrap_key_file=options["bootstrap_key_file"],
        dialect=options["dialect"],
        dialects=parse_project_dialects(options["project_dialect"]),
        lease_duration=parse_duration(options["lease_duration"], "--lease-duration"),
        heartbeat_cadence=parse_duration(options["heartbeat_cadence"], "--heartbeat-cadence"),
        insecure_listen=options["insecure_listen"],
        tls_certificate_file=options["tls_certificate_file"],
        tls_key_file=options["tls_key_file"],
        tls_client_ca_file=options["tls_client_ca_file"],
        metrics_listen=_address_if_given(options["metrics_listen"], "--metrics-listen"),
        rate_limit=options["rate_limit"],
        connections_per_key=options["connections_per_key"],
        trusted_proxies=frozenset(options["trusted_proxy"]),
        keep_finished=parse_keep(options["keep_finished"], "--keep-finished"),
        keep_deltas=parse_keep(options["keep_deltas"], "--keep-deltas"),
    )
    terms = LeaseTerms(lease_duration=config.lease_duration, heartbeat_cadence=config.heartbeat_cadence)
    store = opened_store(config.store, config.store_password_file, terms)
    pipe = inherited_pipe()
    if pipe is not None:
        stacks.answer()
    with (
        contextlib.closing(Notifier.from_environment(os.environ)) as notifier,
        contextlib.closing(_bind(config.listen)) as listening,
        _bound_if_given(config.metrics_listen, "--metrics-listen") as metrics_listening,
    ):
        run(_serve(ControlPlane(config, terms, store, notifier, metrics_listening), listening, pipe, notifier))


cli.add_command(keys_group)


@cli.group("projects")
def projects_group() -> None:
    """Projects."""
    log.configure(TOOLS_LOG)


@projects_group.command("create")
@store_options
@click.argument("handle")
@click.option("--name", help="For display; default: the handle.")
def projects_create(store: str, store_password_file: Path | None, handle: str, name: str | None) -> None:
    """Create a project; `keys create` then makes a key for it."""
    handle = parse_handle(handle, "HANDLE")
    opened = opened_store(store, store_password_file, LeaseTerms(), shared=True)
    project = run(with_store(opened, lambda: opened.create_project(handle, name or handle)))
    click.echo(project.id)


@cli.command("migrate")
@store_options
@_level_option
def migrate_command(store: str, store_password_file: Path | None, log_level: str) -> None:
    """Bring the store's tables up to date; `serve` does the same when it starts."""
    log.configure(log_level)
    before, after = run(maintenance.migrate(store, chosen_password_file(store, store_password_file)))
    changed = f"schema {before} -> {after}" if before else f"schema {after}, in a new store"
    click.echo(f"schema {after}, as it was" if before == after else changed)


@cli.command("check")
@store_options
def check_command(store: str, store_password_file: Path | None) -> int:
    """Read the whole store and say whether it is as it should be; also while it is served."""
    findings = run(maintenance.check(store, chosen_password_file(store, store_password_file)))
    for finding in findings:
        word = "-" if finding.faults is None else "ok" if finding.faults == 0 else f"BROKEN ({finding.faults})"
        click.echo(f"{word:<12} {finding.sentence}")
    return EX_DATAERR if any(finding.faults for finding in findings) else EX_OK


@cli.command("backup")
@store_options
@click.option("--to", "target", required=True, metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
def backup_command(store: str, store_password_file: Path | None, target: Path) -> None:
    """Write a copy of the store as of one moment, while it is served: a SQLite file, or what pg_dump makes."""
    size = maintenance.backup(store, chosen_password_file(store, store_password_file), target)
    click.echo(f"{target}: {size} bytes")


@cli.command("copy")
@click.option("--from", "source", required=True, metavar="URL", help="sqlite:///absolute/path.db; not served now.")
@click.option("--to", "target", required=True, metavar="URL", help="postgresql://user@host/database; empty.")
@click.option(
    "--store-password-file", type=click.Path(dir_okay=False, path_type=Path), help="Of the PostgreSQL database."
)
def copy_command(source: str, target: str, store_password_file: Path | None) -> None:
    """Copy a SQLite store into an empty PostgreSQL database, as a whole or not at all; no control plane serves either.

    The file keeps its rows. Serve the database next: whoever holds a job has a lease duration from that start on.
    """
    log.configure(TOOLS_LOG)
    copied = run(maintenance.copy(source, target, chosen_password_file(target, store_password_file)))
    for table, number in copied.items():
        click.echo(f"{number:>12} {table}")
    click.echo(f"{sum(copied.values()):>12} rows, counted again at their destination")


async def _serve(plane: ControlPlane, listening: socket.socket, pipe: socket.socket | None, notifier: Notifier) -> None:
    def stop(reason: str) -> None:
        notifier.stopping(f"stopping: {reason}")
        plane.stop(reason)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, f"received {number.name}")
    parent = None if pipe is None else Parent(pipe, loop, stop, plane.watch_writes())
    host, port = listening.getsockname()[:2]

    def on_listening() -> None:
        tune_the_interpreter()
        structlog.get_logger(__name__).info("listening", url=f"{plane.scheme}://{Address(host=host, port=port)}")
        notifier.ready()
        if parent is not None:
            parent.ready()

    try:
        await plane.run(listening, on_listening)
    except ControlPlaneError as error:
        if parent is not None:
            parent.close(str(error), refused=isinstance(error, ConfigurationError | StoreRefused))
        raise
    if parent is not None:
        parent.close("stopped")


def _address_if_given(text: str | None, option: str) -> Address | None:
    return None if text is None else parse_address(text, option)


@contextlib.contextmanager
def _bound_if_given(address: Address | None, option: str) -> Iterator[socket.socket | None]:
    if address is None:
        yield None
        return
    with contextlib.closing(_bind(address, option)) as listening:
        yield listening


def _bind(address: Address, option: str = "--listen") -> socket.socket:
    """A bound socket whose connections notice a dead or silent peer. Raises PortInUse, ConfigurationError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
        listening.bind((address.host, address.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"{option} {address}: another process listens there already") from error
        raise ConfigurationError(f"{option} {address}: {error.strerror or error}") from error
    return listening


def main() -> None:
    """Entry point: every failure is one sentence on standard error and an exit code that means something."""
    # Whoever kills it for standing still (a watchdog sends ABRT) learns where it stood.
    faulthandler.enable()
    sys.exit(_exit_code(sys.argv[1:]))


def _exit_code(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="mobius-control-plane", standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.MissingParameter) and error.ctx and error.ctx.meta.get(_CONFIG_FILE):
            key = error.param.name if error.param else ""
            missing = f"--config {error.ctx.meta[_CONFIG_FILE]}: {key} is missing, there and on the command line"
            return _failed(ConfigurationError(missing), EX_CONFIG)
        error.show()
        return EX_USAGE
    except (click.Abort, KeyboardInterrupt):
        return 130
    except ControlPlaneError as error:
        return _failed(error, next((code for kind, code in EXIT_CODES if isinstance(error, kind)), EX_SOFTWARE))
    except Exception:  # noqa: BLE001 - the last resort: a traceback in the log, an exit code for the supervisor
        structlog.get_logger(__name__).exception("the control plane failed")
        return EX_SOFTWARE
    return result if isinstance(result, int) else EX_OK


def _failed(error: ControlPlaneError, code: int) -> int:
    # In the journal, as grave as it is: sd-daemon(3).
    grave = "<3>" if journal.is_behind(sys.stderr.fileno(), os.environ) else ""
    click.echo(f"{grave}mobius-control-plane: {error}", err=True)
    return code


if __name__ == "__main__":
    main()
