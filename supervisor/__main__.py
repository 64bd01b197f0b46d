"""`mobius-supervisor`: arguments -> config -> objects -> loop. The only place that builds objects."""

import wire.structlog_alone  # noqa: F401 - before anything else imports structlog

# isort: split
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import uvloop

from service_manager import journal
from service_manager.notify import Notifier
from supervisor import exit_records, identity, journals, state_directory
from supervisor.check import import_modules
from supervisor.children import become_subreaper
from supervisor.commands import allow_files_for
from supervisor.config import Config, load, with_workers
from supervisor.errors import SupervisorError
from supervisor.facts import IdentityDetected, Noted
from supervisor.fleet import Fleet
from supervisor.log import open_log
from supervisor.loop import Loop
from supervisor.operator_commands import COMMANDS, config_option
from wire.build import build_id, package_version

USAGE = 64


def run(
    config: Config,
    load: Callable[[], Config] | None = None,
    complain: Callable[[SupervisorError], None] | None = None,
) -> int:
    """Supervise until told to stop. Returns the exit code; `complain` says what went wrong, on standard error.

    `load` reads the configuration anew, for a reload; without it there is none.

    To be called from the main thread, once in a process: it owns the signals, and every child of the process.
    """
    # Nobody who inherits our environment finds the key there.
    os.environ.pop("MOBIUS_API_KEY", None)
    try:
        return _run(config, load)
    except SupervisorError as error:
        (complain or _complain)(error)
        return error.exit_code


def _run(config: Config, load: Callable[[], Config] | None) -> int:
    prefix = Path(config.supervisor.state_dir)
    state = (state_directory.take_first_free if config.state_dir_numbered else state_directory.take)(prefix)
    # Supervisors that share a numbered prefix must not share a control socket either.
    runtime_dir = str(state.path) if config.state_dir_numbered else config.supervisor.runtime_dir
    supervisor = msgspec.structs.replace(config.supervisor, state_dir=str(state.path), runtime_dir=runtime_dir)
    config = msgspec.structs.replace(config, supervisor=supervisor)
    notifier = Notifier.from_environment(os.environ)
    log, writer = open_log(config.supervisor.log_level, config.supervisor.log_format, os.environ)
    try:
        allow_files_for(config.pool)
        become_subreaper()
        instance_id, source = identity.detect(config.supervisor.instance_id, os.environ, str(state.path))
        log.publish(IdentityDetected(instance_id=instance_id, source=source))
        for pid in journals.continue_holders((state.path / state_directory.JOURNALS).resolve()):
            log.publish(
                Noted(sentence=f"process {pid} of an earlier supervisor was stopped: it goes on, to end itself")
            )
        fleet = Fleet(config, build_id())
        exit_records.prune(state.path)
        exit_records.remember(fleet.children, state.path)
        loop = Loop(
            config,
            fleet=fleet,
            instance_prefix=instance_id,
            environ=os.environ,
            log=log,
            writer=writer,
            notifier=notifier,
        )
        uvloop.run(loop.run(load))
    finally:
        writer.close()
        state.close()
    if fleet.error is not None:
        raise fleet.error
    return fleet.exit_code


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@click.option("--workers", type=click.IntRange(1, 1000), metavar="N", help="Children of the sole pool.")
@click.version_option(package_version(), prog_name="mobius-supervisor")
@click.pass_context
def cli(context: click.Context, path: Path | None, workers: int | None) -> int:
    """Run the worker pools of a pool file until SIGTERM or Ctrl-C, which drain them.

    A second signal shortens the grace to five seconds; a third, or SIGQUIT, kills.

    Exit codes: 0 drained, 64 usage, 70 internal, 73 cannot create (state or runtime directory, port), 75 jobs were cut
    off, 78 configuration. Of the commands to a running supervisor: 0 done, 66 no such slot or pool, 69 no supervisor,
    75 not now or not done in time, 77 not permitted, 78 refused and nothing changed.
    """
    context.obj = path
    if context.invoked_subcommand is not None:
        return 0
    path = _named(context, path)
    environ = dict(os.environ)

    def load_again() -> Config:
        config = load(path, environ)
        return config if workers is None else with_workers(config, workers)

    return run(load_again(), load_again)


@cli.command()
@config_option
@click.pass_context
def check(context: click.Context, path: Path | None) -> int:
    """Check a pool file, import the modules of its pools (as whoever runs this), and say what would run."""
    config = load(_named(context, path or context.obj), os.environ)
    import_modules(config, os.environ)
    where = "embedded" if config.control_plane.embedded else config.control_plane.api_url
    click.echo(f"control plane: {where}")
    for pool in config.pool:
        modules = ", ".join([*pool.modules, *pool.entry_points]) or "no modules"
        workers, jobs = _counted(pool.workers, "worker"), _counted(pool.concurrency, "job")
        click.echo(f"pool {pool.name}: {workers}, {jobs} in each, {modules}")
    for note in config.notes:
        click.echo(f"note: {note}", err=True)
    return 0


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> int:
    """Console script."""
    try:
        return int(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return USAGE
    except SupervisorError as error:
        _complain(error)
        return error.exit_code


def _named(context: click.Context, path: Path | None) -> Path:
    if path is None:
        raise click.UsageError("-c FILE is missing: name the pool file", context)
    return path


def _complain(error: SupervisorError) -> None:
    # In the journal, as grave as it is: sd-daemon(3).
    grave = "<3>" if journal.is_behind(sys.stderr.fileno(), os.environ) else ""
    for line in str(error).splitlines():
        click.echo(f"{grave}error: {line}", err=True)


if __name__ == "__main__":
    sys.exit(main())
