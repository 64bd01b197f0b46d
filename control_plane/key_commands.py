"""`mobius-control-plane keys ...`: API keys from the machine that has the store, beside a server that may be running.

A running server notices what was done here within seconds: it looks for changed keys (key_watch.py).
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from control_plane import log
from control_plane.config import ConfigurationError, parse_duration, parse_handle
from control_plane.domain import api_keys
from control_plane.domain.model import ApiKey
from control_plane.domain.store import LeaseTerms, Store
from control_plane.domain.times import MICROSECONDS, to_microseconds
from control_plane.keys import hash_secret, key_for_project
from control_plane.store_options import opened_store, run, store_options, with_store

T = TypeVar("T")
TOOLS_LOG = "info"
"""Level of what commands log, which has no option there: on standard error, so that scripts read the result alone."""

LONGEST_LIFETIME = 36_500 * 86_400.0

_project_option = click.option("--project", required=True, metavar="HANDLE", help="The one project of the key.")
_expires_in_option = click.option("--expires-in", metavar="DURATION", help="Such as 12h or 90d; default: never.")
_new_expiry_option = click.option(
    "--expires-in", metavar="DURATION", help="Such as 12h or 90d (default: as long as the old key was made for)."
)


@click.group("keys")
def keys_group() -> None:
    """API keys. A server that is running notices within seconds."""
    log.configure(TOOLS_LOG)


@keys_group.command("create")
@store_options
@_project_option
@click.option("--name", default="key", show_default=True, help="To tell keys apart.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(api_keys.SCOPES),
    help="What it opens: `worker` the worker socket, `reader` reading, `operator` everything else. Repeatable; "
    "default: all.",
)
@_expires_in_option
def create(
    store: str,
    store_password_file: Path | None,
    project: str,
    name: str,
    scopes: tuple[Any, ...],
    expires_in: str | None,
) -> None:
    """Create an API key and print it: it is shown this once, and only its hash is stored."""
    handle = parse_handle(project, "--project")
    lifetime = _lifetime(expires_in)
    secret = key_for_project(handle)

    async def work(opened: Store) -> ApiKey:
        expires_at = None if lifetime is None else opened.now() + lifetime
        granted = scopes or api_keys.SCOPES
        return await opened.create_key(handle, name, hash_secret(secret), scopes=granted, expires_at=expires_at)

    _on_store(store, store_password_file, work)
    click.echo(secret)


@keys_group.command("list")
@store_options
@_project_option
def list_keys(store: str, store_password_file: Path | None, project: str) -> None:
    """List a project's keys, without their secrets."""
    handle = parse_handle(project, "--project")

    async def work(opened: Store) -> tuple[list[ApiKey], int]:
        return await opened.keys((await opened.project(handle)).id), opened.now()

    keys, now = _on_store(store, store_password_file, work)
    for key in keys:
        click.echo("  ".join((key.id, _state(key, now), ",".join(key.scopes), _last_used(key), key.name)))


@keys_group.command("rotate")
@store_options
@_project_option
@click.option("--overlap", default="24h", show_default=True, help="For how long the old key stays valid.")
@_new_expiry_option
@click.argument("key_id", metavar="ID")
def rotate(
    store: str,
    store_password_file: Path | None,
    project: str,
    overlap: str,
    expires_in: str | None,
    key_id: str,
) -> None:
    """Create a key like the one named, which ends after the overlap, and print the new one."""
    handle = parse_handle(project, "--project")
    lifetime = _lifetime(expires_in)
    until = _microseconds(overlap, "--overlap")
    secret = key_for_project(handle)

    async def work(opened: Store) -> None:
        project_id = (await opened.project(handle)).id
        expires_at = None if lifetime is None else opened.now() + lifetime
        await opened.rotate_key(project_id, key_id, hash_secret(secret), overlap=until, expires_at=expires_at)

    _on_store(store, store_password_file, work)
    click.echo(secret)


@keys_group.command("revoke")
@store_options
@_project_option
@click.argument("key_id", metavar="ID")
def revoke(store: str, store_password_file: Path | None, project: str, key_id: str) -> None:
    """End a key now, and with it every worker socket and event stream that it has opened."""
    handle = parse_handle(project, "--project")

    async def work(opened: Store) -> ApiKey:
        return await opened.revoke_key((await opened.project(handle)).id, key_id)

    click.echo(f"{_on_store(store, store_password_file, work).id} is revoked")


def _on_store(url: str, password_file: Path | None, work: Callable[[Store], Awaitable[T]]) -> T:
    opened = opened_store(url, password_file, LeaseTerms(), shared=True)
    result: T = run(with_store(opened, lambda: work(opened)))
    return result


def _lifetime(text: str | None) -> int | None:
    return None if text is None else _microseconds(text, "--expires-in")


def _microseconds(text: str, option: str) -> int:
    seconds = parse_duration(text, option)
    if seconds > LONGEST_LIFETIME:
        raise ConfigurationError(f"{option} is {text!r}; a hundred years (36500d) are the most")
    return to_microseconds(seconds)


def _state(key: ApiKey, now: int) -> str:
    status, end = api_keys.status_at(key, now), api_keys.ends_at(key)
    if end is None:
        return status
    return f"{status} {'until' if status == 'active' else 'since'} {_moment(end)}"


def _last_used(key: ApiKey) -> str:
    return "never used" if key.last_used_at is None else f"last used {_moment(key.last_used_at)}"


def _moment(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds // MICROSECONDS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
