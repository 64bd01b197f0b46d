"""Adapters of the storage port. The URL decides which."""

from control_plane.domain.store import LeaseTerms, Store
from control_plane.errors import StoreRefused


def store_at(url: str, terms: LeaseTerms, *, shared: bool = False) -> Store:
    """A store, not yet open, for `sqlite:///absolute/path` or `sqlite:relative/path`. Raises StoreRefused.

    `shared`: for projects and keys only, beside a control plane that may be serving the same store.
    """
    # Imported here so that a program that runs on one database does not load the other's driver.
    from control_plane.store.sqlite import SqliteStore  # noqa: PLC0415

    scheme, separator, rest = url.partition(":")
    if scheme != "sqlite" or not separator:
        raise StoreRefused(f"store {scheme}:... is not supported; expected sqlite:///path/to/file.db")
    if rest.startswith("//") and not rest.startswith("///"):
        raise StoreRefused("store sqlite://host/... names a host; expected sqlite:///path/to/file.db")
    path = rest[2:] if rest.startswith("///") else rest
    if not path.strip("/"):
        raise StoreRefused("store sqlite: names no file; expected sqlite:///path/to/file.db")
    return SqliteStore(path, terms, shared=shared)
