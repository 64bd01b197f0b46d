"""What every command that talks to a Mobius has in common: its options, and how it is run."""

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click

from mobius_cli.connection import Connection, resolve
from mobius_cli.errors import SettingError
from mobius_cli.http import Mobius
from mobius_cli.output import Output

P = ParamSpec("P")
_LARGEST_KEY_FILE = 4096

api_url_option = click.option("--api-url", metavar="URL", help="Address of the API.  [MOBIUS_API_URL]")
api_key_file_option = click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="File that holds the API key; without it MOBIUS_API_KEY is the key.",
)
ca_file_option = click.option(
    "--ca-file", metavar="PATH", help="PEM file of the authorities to trust instead of the usual.  [MOBIUS_CA_FILE]"
)
project_option = click.option("--project", metavar="HANDLE", help="Project to work in.  [MOBIUS_PROJECT]")
_output_option = click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    help="table for people (default), json for programs.",
)


def limit_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--limit of a listing of `what`."""
    return click.option(
        "--limit", type=click.IntRange(min=1), default=50, show_default=True, help=f"At most so many {what}."
    )


def asks_mobius(
    function: Callable[Concatenate[Mobius, Output, P], Awaitable[None]],
) -> Callable[..., None]:
    """Make a click callback of a coroutine function that takes an open Mobius and an Output first."""

    @api_url_option
    @api_key_file_option
    @project_option
    @ca_file_option
    @_output_option
    @functools.wraps(function)
    def command(
        *,
        api_url: str | None,
        api_key_file: Path | None,
        project: str | None,
        ca_file: str | None,
        output: Any,
        **arguments: Any,
    ) -> None:
        connection = connect(api_url=api_url, api_key_file=api_key_file, project=project, ca_file=ca_file)

        async def ask() -> None:
            async with Mobius(connection) as mobius:
                await function(mobius, Output(output), **arguments)  # type: ignore[call-arg]

        asyncio.run(ask())

    return command


def connect(
    *, api_url: str | None, api_key_file: Path | None, project: str | None, ca_file: str | None = None
) -> Connection:
    """The connection that options and environment mean. Raises as mobius_cli.connection.resolve does."""
    key = None if api_key_file is None else read_key(api_key_file, "--api-key-file")
    return resolve(os.environ, api_url=api_url, api_key=key, project=project, ca_file=ca_file)


def read_key(path: Path, source: str) -> str:
    """The content of the key file that `source` (an option, a key of a file) names. Raises SettingError."""
    try:
        with path.open("rb") as file:
            key = file.read(_LARGEST_KEY_FILE).decode("utf-8", "replace").strip()
    except OSError as error:
        raise SettingError(f"{source}: cannot read {str(path)!r}: {error.strerror}") from error
    if not key:
        raise SettingError(f"{source}: {str(path)!r} is empty; expected the API key as it was issued")
    return key
