"""What the commands that work on a store share: its options, and how it is opened."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop

from control_plane.domain.store import LeaseTerms, Store
from control_plane.store import store_at
from service_manager.credentials import credential

STORE_PASSWORD_CREDENTIAL = "store-password"  # noqa: S105 - the name of a systemd credential

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


def store_options(command: Function) -> Function:
    """Where the store is, and the file that has its password."""
    command = click.option(
        "--store-password-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"Of mode 0600; default: the systemd credential {STORE_PASSWORD_CREDENTIAL}, PGPASSFILE, PGPASSWORD.",
    )(command)
    return click.option(
        "--store",
        required=True,
        metavar="URL",
        help="sqlite:///absolute/path.db, sqlite:relative.db or postgresql://user@host/database",
    )(command)


def chosen_password_file(url: str, given: Path | None) -> Path | None:
    """The file that has the store's password, if there is one."""
    return credential(STORE_PASSWORD_CREDENTIAL) if given is None and not url.startswith("sqlite:") else given


def opened_store(url: str, password_file: Path | None, terms: LeaseTerms, *, shared: bool = False) -> Store:
    """See store.store_at."""
    return store_at(url, terms, password_file=chosen_password_file(url, password_file), shared=shared)


async def with_store(store: Store, work: Callable[[], Awaitable[T]]) -> T:
    """Open it for that long."""
    await store.open(lambda _: None)
    try:
        return await work()
    finally:
        await store.close()


def run(work: Any) -> Any:
    """On an event loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
