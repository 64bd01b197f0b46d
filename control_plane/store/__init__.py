"""Adapters of the storage port. The URL decides which."""

from importlib.util import find_spec
from pathlib import Path

from control_plane.domain.store import LeaseTerms, Store
from control_plane.errors import StoreRefused

_EXPECTED = "expected sqlite:///path/to/file.db or postgresql://user@host/database"


def store_at(url: str, terms: LeaseTerms, *, password_file: Path | None = None, shared: bool = False) -> Store:
    """A store, not yet open, for `sqlite:///absolute/path`, `sqlite:relative/path` or `postgresql://user@host/database`
    (whose password may be in `password_file`). Raises StoreRefused.

    `shared`: for projects and keys only, beside a control plane that may be serving the same store.
    """
    # Imported here so that a program that runs on one database does not load the other's driver.
    if is_postgres(url):
        require_driver()
        from control_plane.store.postgres import PostgresStore  # noqa: PLC0415

        return PostgresStore(url, terms, password_file=password_file, shared=shared)
    from control_plane.store.sqlite import SqliteStore  # noqa: PLC0415

    return SqliteStore(sqlite_path(url, password_file), terms, shared=shared)


def is_postgres(url: str) -> bool:
    """Whether the URL is that of a PostgreSQL database."""
    return url.startswith(("postgresql:", "postgres:"))


def require_driver() -> None:
    """Raises StoreRefused where PostgreSQL's driver is not installed."""
    if find_spec("asyncpg") is None:
        raise StoreRefused("store postgresql:... needs the driver asyncpg: install mobius-supervisor[postgres]")


def sqlite_path(url: str, password_file: Path | None = None) -> Path:
    """The file that a sqlite: URL names, for which there is no password. Raises StoreRefused."""
    scheme, separator, rest = url.partition(":")
    if scheme != "sqlite" or not separator:
        # What was meant may hold a password: it is not repeated.
        raise StoreRefused(f"store {scheme[:16]}:... is not supported; {_EXPECTED}")
    if rest.startswith("//") and not rest.startswith("///"):
        raise StoreRefused("store sqlite://host/... names a host; expected sqlite:///path/to/file.db")
    path = rest[2:] if rest.startswith("///") else rest
    if not path.strip("/"):
        raise StoreRefused("store sqlite: names no file; expected sqlite:///path/to/file.db")
    if password_file is not None:
        raise StoreRefused("--store-password-file: a SQLite file has no password; it is for postgresql:// alone")
    return Path(path)
