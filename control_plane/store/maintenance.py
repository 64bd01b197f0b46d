"""What an operator does with a store, whichever database it is on. The URL decides, and only its driver is loaded."""

from pathlib import Path

from control_plane.errors import StoreRefused
from control_plane.store import is_postgres, require_driver, sqlite_path
from control_plane.store.audit import Finding


async def migrate(url: str, password_file: Path | None) -> tuple[int, int]:
    """Bring the schema up to date; the versions before and after. Raises StoreRefused, StoreInUse, StoreUnavailable."""
    if is_postgres(url):
        require_driver()
        from control_plane.store import postgres_migrations  # noqa: PLC0415
        from control_plane.store.postgres_connections import Database  # noqa: PLC0415

        return await postgres_migrations.migrate(Database(url, password_file))
    from control_plane.store import sqlite_maintenance  # noqa: PLC0415

    return await sqlite_maintenance.migrate(sqlite_path(url, password_file))


async def check(url: str, password_file: Path | None) -> list[Finding]:
    """Read everything and say what is wrong. Raises StoreRefused, StoreUnavailable."""
    if is_postgres(url):
        require_driver()
        from control_plane.store import postgres_maintenance  # noqa: PLC0415
        from control_plane.store.postgres_connections import Database  # noqa: PLC0415

        return await postgres_maintenance.check(Database(url, password_file))
    from control_plane.store import sqlite_maintenance  # noqa: PLC0415

    return sqlite_maintenance.check(sqlite_path(url, password_file))


def backup(url: str, password_file: Path | None, target: Path) -> int:
    """Write a copy as of one moment; its size. Raises StoreRefused, StoreUnavailable, CannotCreate."""
    if is_postgres(url):
        require_driver()
        from control_plane.store import postgres_maintenance  # noqa: PLC0415
        from control_plane.store.postgres_connections import Database  # noqa: PLC0415

        return postgres_maintenance.backup(Database(url, password_file), target)
    from control_plane.store import sqlite_maintenance  # noqa: PLC0415

    return sqlite_maintenance.backup(sqlite_path(url, password_file), target)


async def copy(source: str, target: str, password_file: Path | None) -> dict[str, int]:
    """Rows by table. Raises StoreRefused, StoreInUse, StoreUnavailable."""
    if is_postgres(source) or not is_postgres(target):
        raise StoreRefused("a store is copied from sqlite:... to postgresql:..., and no other way")
    require_driver()
    from control_plane.store import copying  # noqa: PLC0415
    from control_plane.store.postgres_connections import Database  # noqa: PLC0415

    return await copying.copy(sqlite_path(source), Database(target, password_file))
