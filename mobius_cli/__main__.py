"""The `mobius` command."""

import contextlib
import os
import sys
from pathlib import Path

import click

from mobius_cli.actions import actions
from mobius_cli.automations import automations
from mobius_cli.errors import INTERNAL, INTERRUPTED, OUTPUT_CLOSED, CommandError, UsageError
from mobius_cli.jobs import jobs
from mobius_cli.keys import keys
from mobius_cli.queues import queues
from mobius_cli.quickstart import quickstart
from mobius_cli.runs import runs
from mobius_cli.worker import worker
from mobius_cli.worker_sessions import worker_sessions
from wire.build import package_version

_EPILOG = (
    "Environment: MOBIUS_API_URL (default https://api.mobiusops.ai), MOBIUS_API_KEY, MOBIUS_PROJECT, MOBIUS_CA_FILE, "
    "MOBIUS_CLIENT_CERTIFICATE_FILE, MOBIUS_CLIENT_KEY_FILE, MOBIUS_QUEUES, "
    "MOBIUS_LOG_LEVEL. Exit codes: 0 done, 1 the run failed, 64 usage, 65 bad input, 66 not found, 69 unreachable, "
    "73 cannot create, 77 key refused, 78 configuration."
)


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_version(), prog_name="mobius")
def mobius() -> None:
    """Work with Mobius: run workers, make automations, follow runs."""


mobius.add_command(actions)
mobius.add_command(automations)
mobius.add_command(jobs)
mobius.add_command(keys)
mobius.add_command(queues)
mobius.add_command(quickstart)
mobius.add_command(runs)
mobius.add_command(worker)
mobius.add_command(worker_sessions)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code. Every fault that we foresee is one sentence on standard error."""
    # A worker's name may hold what this terminal's encoding does not.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        result = mobius.main(arguments, prog_name="mobius", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "mobius"
        click.echo(f"{where}: {error.format_message()}", err=True)
        return UsageError.exit_code
    except CommandError as error:
        click.echo(f"mobius: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except SystemExit:
        # How click ends a command whose output nobody reads any more; its code 1 would mean that a run failed.
        return OUTPUT_CLOSED
    except OSError as error:
        click.echo(f"mobius: {error}", err=True)
        # What could not be written would be tried again at the interpreter's end, and spoil the exit code.
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return INTERNAL


if __name__ == "__main__":
    main()
