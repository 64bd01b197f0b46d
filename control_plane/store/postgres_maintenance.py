"""What an operator does with a PostgreSQL store: check, and back up with PostgreSQL's own tool."""

import os
import shutil
import subprocess
from pathlib import Path

from control_plane.errors import CannotCreate, StoreRefused, StoreUnavailable
from control_plane.store.audit import Finding, finding, questions
from control_plane.store.clock import lead
from control_plane.store.postgres_connections import FAULTS, Database
from control_plane.store.postgres_migrations import schema_version
from control_plane.store.statements import load_migrations, load_statements

_ADVICE = (
    "back the database up with what its operators use (pg_basebackup with an archive of the log, or the provider's "
    "snapshots), or install pg_dump (Debian: apt install postgresql-client) for a copy by this command"
)


async def check(database: Database) -> list[Finding]:
    """Read everything, as of one moment; also beside control planes that run. Raises StoreRefused, StoreUnavailable."""
    connection = await database.connect(statement_timeout="0", enable_seqscan="on")
    try:
        await database.check(connection)
        version, newest = await schema_version(connection), load_migrations("postgresql")[-1][0]
        if version != newest:
            return [Finding(sentence=f"schema {version}; this version knows {newest}", faults=1)]
        findings = [Finding(sentence=f"schema {version}")]
        for setting in ("fsync", "full_page_writes"):
            value = await connection.fetchval("SELECT current_setting($1)", setting)
            said = f"{setting} is {value}" + ("" if value == "on" else ": a crash may lose or damage what was stored")
            findings.append(Finding(sentence=said, faults=int(value != "on")))
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for sentence, faults, text in questions():
                number = await connection.fetchval(text, timeout=3600)
                findings.append(finding(sentence, number, faults=faults))
        current, latest = await connection.fetchrow(load_statements("postgresql")["clock"])
        if (ahead := lead(latest - current)) is not None:
            findings.append(Finding(sentence=ahead))
        return findings
    except FAULTS as error:
        raise database.unavailable(error) from error
    finally:
        connection.terminate()


def backup(database: Database, target: Path) -> int:
    """Have pg_dump write its custom format; its size in bytes. Raises StoreRefused, StoreUnavailable, CannotCreate."""
    program = _pg_dump()
    if program is None:
        raise StoreRefused(f"pg_dump is not installed: {_ADVICE}")
    if target.exists():
        raise CannotCreate(f"backup {target}: File exists")
    partial = target.with_name(target.name + ".partial")
    password = database.password()
    done = subprocess.run(  # noqa: S603 - the program of the distribution
        [program, "--format=custom", "--no-password", "--file", partial, "--dbname", database.libpq_url],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | ({"PGPASSWORD": password} if password is not None else {}),
        umask=0o077,
    )
    try:
        if done.returncode != 0:
            partial.unlink(missing_ok=True)
            raise StoreUnavailable(f"pg_dump failed: {done.stderr.strip()}; or {_ADVICE}")
        # A link, unlike a rename, replaces nothing.
        os.link(partial, target)
        partial.unlink()
        return target.stat().st_size
    except OSError as error:
        raise CannotCreate(f"backup {target}: {error.strerror}") from error


def _pg_dump() -> str | None:
    """Debian keeps the newest one out of the path."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"), key=lambda path: int(path.parts[4]))
    return str(installed[-1]) if installed else shutil.which("pg_dump")
