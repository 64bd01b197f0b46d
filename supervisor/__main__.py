"""`mobius-supervisor`: arguments -> config -> objects -> loop. The only place that builds objects."""

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import uvloop

from supervisor import identity, state_directory
from supervisor.children import become_subreaper
from supervisor.config import Config, load, with_workers
from supervisor.errors import SupervisorError
from supervisor.facts import IdentityDetected
from supervisor.fleet import Fleet
from supervisor.log import open_log
from supervisor.loop import Loop
from supervisor.systemd import Notifier
from wire.build import build_id, package_version

USAGE = 64

_config_option = click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path), metavar="FILE", help="The pool file (TOML)."
)


def run(config: Config, complain: Callable[[SupervisorError], None] | None = None) -> int:
    """Supervise until told to stop. Returns the exit code; `complain` says what went wrong, on standard error.

    To be called from the main thread, once in a process: it owns the signals, and every child of the process.
    """
    # Nobody who inherits our environment finds the key there.
    os.environ.pop("MOBIUS_API_KEY", None)
    try:
        return _run(config)
    except SupervisorError as error:
        (complain or _complain)(error)
        return error.exit_code


def _run(config: Config) -> int:
    prefix = Path(config.supervisor.state_dir)
    state = (state_directory.take_first_free if config.state_dir_numbered else state_directory.take)(prefix)
    supervisor = msgspec.structs.replace(config.supervisor, state_dir=str(state.path))
    config = msgspec.structs.replace(config, supervisor=supervisor)
    notifier = Notifier.from_environment(os.environ)
    log, writer = open_log(config.supervisor.log_level, config.supervisor.log_format)
    try:
        _allow_files_for(sum(pool.workers for pool in config.pool))
        become_subreaper()
        instance_id, source = identity.detect(config.supervisor.instance_id, os.environ, str(state.path))
        log.publish(IdentityDetected(instance_id=instance_id, source=source))
        fleet = Fleet(config, build_id())
        loop = Loop(
            config,
            fleet=fleet,
            instance_prefix=instance_id,
            environ=os.environ,
            log=log,
            writer=writer,
            notifier=notifier,
        )
        uvloop.run(loop.run())
    finally:
        writer.close()
        state.close()
    if fleet.error is not None:
        raise fleet.error
    return fleet.exit_code


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_config_option
@click.option("--workers", type=click.IntRange(1, 1000), metavar="N", help="Children of the sole pool.")
@click.version_option(package_version(), prog_name="mobius-supervisor")
@click.pass_context
def cli(context: click.Context, path: Path | None, workers: int | None) -> int:
    """Run the worker pools of a pool file until SIGTERM or Ctrl-C, which drain them.

    A second signal shortens the grace to five seconds; a third, or SIGQUIT, kills.

    Exit codes: 0 drained, 64 usage, 70 internal, 73 cannot create (state directory, port), 75 jobs were cut off,
    78 configuration.
    """
    context.obj = path
    if context.invoked_subcommand is not None:
        return 0
    config = _loaded(context, path)
    if workers is not None:
        config = with_workers(config, workers)
    return run(config)


@cli.command()
@_config_option
@click.pass_context
def check(context: click.Context, path: Path | None) -> int:
    """Check a pool file, and say what would run."""
    config = _loaded(context, path or context.obj)
    where = "embedded" if config.control_plane.embedded else config.control_plane.api_url
    click.echo(f"control plane: {where}")
    for pool in config.pool:
        modules = ", ".join(pool.modules) or "no modules"
        click.echo(f"pool {pool.name}: {pool.workers} workers, {pool.concurrency} jobs in each, {modules}")
    return 0


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


def _loaded(context: click.Context, path: Path | None) -> Config:
    if path is None:
        raise click.UsageError("-c FILE is missing: name the pool file", context)
    return load(path, os.environ)


def _allow_files_for(children: int) -> None:
    """A pipe, an output and a pidfd for each child; the usual soft limit of 1024 is for programs with fewer."""
    wanted = 256 + 4 * children
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _complain(error: SupervisorError) -> None:
    for line in str(error).splitlines():
        click.echo(f"error: {line}", err=True)


if __name__ == "__main__":
    sys.exit(main())
