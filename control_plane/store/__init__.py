"""Adapters of the storage port. The URL decides which."""

from pathlib import Path

from control_plane.domain.store import LeaseTerms, Store
from control_plane.errors import StoreRefused

_EXPECTED = "expected sqlite:///path/to/file.db or postgresql://user@host/database"


def store_at(url: str, terms: LeaseTerms, *, password_file: Path | None = None, shared: bool = False) -> Store:
    """A store, not yet open, for `sqlite:///absolute/path`, `sqlite:relative/path` or `postgresql://user@host/database`
    (whose password may be in `password_file`). Raises StoreRefused.

    `shared`: for projects and keys only, beside a control plane that may be serving the same store.
    """
    scheme, separator, _ = url.partition(":")
    if separator and scheme in ("postgresql", "postgres"):
        return _postgres_store(url, terms, password_file, shared=shared)
    if scheme != "sqlite" or not separator:
        # What was meant may hold a password: it is not repeated.
        raise StoreRefused(f"store {scheme[:16]}:... is not supported; {_EXPECTED}")
    if password_file is not None:
        raise StoreRefused("--store-password-file: a SQLite file has no password; it is for postgresql:// alone")
    # Imported here so that a program that runs on one database does not load the other's driver.
    from control_plane.store.sqlite import SqliteStore  # noqa: PLC0415

    return SqliteStore(sqlite_path(url), terms, shared=shared)


def sqlite_path(url: str) -> Path:
    """The file that a sqlite: URL names. Raises StoreRefused."""
    rest = url.removeprefix("sqlite:")
    if rest.startswith("//") and not rest.startswith("///"):
        raise StoreRefused("store sqlite://host/... names a host; expected sqlite:///path/to/file.db")
    path = rest[2:] if rest.startswith("///") else rest
    if not path.strip("/"):
        raise StoreRefused("store sqlite: names no file; expected sqlite:///path/to/file.db")
    return Path(path)


def _postgres_store(url: str, terms: LeaseTerms, password_file: Path | None, *, shared: bool) -> Store:
    try:
        from control_plane.store.postgres import PostgresStore  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise StoreRefused(
            "store postgresql:... needs the driver asyncpg: install mobius-supervisor[postgres]"
        ) from error
    return PostgresStore(url, terms, password_file=password_file, shared=shared)
