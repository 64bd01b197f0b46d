"""`mobius-supervisor reload`, `scale`, `drain`, `restart`, `status`, `top`, `stacks`: requests to one that runs."""

import itertools
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec

from supervisor import view
from supervisor.client import ask
from supervisor.config import runtime_directory
from supervisor.control import SOCKET
from supervisor.control_messages import Answer, Drain, FleetStatus, Reload, Request, Restart, Scale, Stacks, Status
from supervisor.errors import NoSupervisorError

FALLBACK = Path("/run/mobius-supervisor")
"""Where the systemd unit has its runtime directory."""

config_option = click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path), metavar="FILE", help="The pool file (TOML)."
)
_output_option = click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", help="For people, or JSON for programs."
)


@click.command("reload")
@config_option
@click.option("--dry-run", is_flag=True, help="Check and say what would be done.")
@click.pass_context
def reload_command(context: click.Context, path: Path | None, *, dry_run: bool) -> int:
    """Take over the changed pool file and new code of handlers: first a few new children, then the others.

    Returns when the first new children are ready (0) or one of them is not, or the file is wrong (78: nothing changed).
    """
    return _told(_ask(context, path, Reload(dry_run=dry_run)))


@click.command()
@config_option
@click.argument("pool")
@click.argument("workers", type=click.IntRange(1, 1000))
@click.pass_context
def scale(context: click.Context, path: Path | None, pool: str, workers: int) -> int:
    """Give a pool another number of children, until the next reload or restart."""
    return _told(_ask(context, path, Scale(pool=pool, workers=workers)))


@click.command()
@config_option
@click.argument("slot")
@click.pass_context
def drain(context: click.Context, path: Path | None, slot: str) -> int:
    """Let one child finish, and leave its slot empty until it is restarted. 75: jobs were cut off."""
    return _told(_ask(context, path, Drain(slot=slot)))


@click.command()
@config_option
@click.argument("target", metavar="SLOT|POOL")
@click.pass_context
def restart(context: click.Context, path: Path | None, target: str) -> int:
    """Exchange one child or all of a pool, each for one that is ready first."""
    return _told(_ask(context, path, Restart(target=target)))


@click.command()
@config_option
@click.argument("slot", required=False)
@_output_option
@click.pass_context
def status(context: click.Context, path: Path | None, slot: str | None, output: str) -> int:
    """Show everything, or one slot with its last output and how its last process ended."""
    answer = _ask(context, path, Status(slot=slot))
    found = answer.detail if slot is not None else answer.status
    if found is None:
        return _told(answer)
    if output == "json":
        click.echo(msgspec.json.encode(found).decode())
    elif answer.detail is not None:
        click.echo("\n".join(view.detail_lines(answer.detail)))
    elif answer.status is not None:
        _print(answer.status)
    return 0


@click.command()
@config_option
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, metavar="SECONDS", help="Between two looks.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many looks (default: at Ctrl-C).")
@click.pass_context
def top(context: click.Context, path: Path | None, interval: float, count: int | None) -> int:
    """Show all slots, again and again."""
    looks = range(count) if count is not None else itertools.count()
    with ExitStack() as stack:
        show: Callable[[FleetStatus], None] = _print
        if sys.stdout.isatty():
            from supervisor import live_view  # noqa: PLC0415 - see there

            show = stack.enter_context(live_view.screen())
        for look in looks:
            if look:
                time.sleep(interval)
            answer = _ask(context, path, Status())
            if answer.status is None:
                return _told(answer)
            show(answer.status)
    return 0


@click.command()
@config_option
@click.argument("slot")
@click.pass_context
def stacks(context: click.Context, path: Path | None, slot: str) -> int:
    """Show the Python stacks of all threads of a child, also of one that hangs."""
    return _told(_ask(context, path, Stacks(slot=slot)))


COMMANDS = (reload_command, scale, drain, restart, status, top, stacks)


def _ask(context: click.Context, path: Path | None, request: Request) -> Answer:
    """Raises NoSupervisorError, ControlDeniedError, ConfigurationError."""
    named: Any = path or context.obj
    directory = runtime_directory(named, os.environ)
    try:
        return ask(directory, request)
    except NoSupervisorError as error:
        # Nothing says where it is: then the service is meant, and not one that this user might have started.
        is_named = "RUNTIME_DIRECTORY" in os.environ or directory != runtime_directory(None, os.environ)
        if is_named:
            raise
        if not (FALLBACK / SOCKET).exists():
            raise NoSupervisorError(f"{error}; and there is none in {FALLBACK}") from error
        return ask(FALLBACK, request)


def _print(found: FleetStatus) -> None:
    lines = [view.plain(view.headline(found)), *view.warnings(found), *view.aligned(view.rows(found))]
    click.echo("\n".join(lines))


def _told(answer: Answer) -> int:
    for line in answer.lines:
        click.echo(view.plain(line))
    for line in answer.errors:
        click.echo(f"error: {view.plain(line)}", err=True)
    return answer.exit_code
