"""Connections to one PostgreSQL database, and what its errors mean to a caller.

The password comes from a file, which is read at every connection, or from libpq's own places (PGPASSFILE, PGPASSWORD);
never from the URL, which every process list shows.
"""

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import structlog

from control_plane.errors import StoreRefused, StoreUnavailable
from service_manager.credentials import others_can_read
from wire.address import is_loopback

OLDEST_SERVER = 150000
"""Server version number: PostgreSQL 15."""

CONNECT_TIMEOUT = 5.0
COMMAND_TIMEOUT = 20.0
"""Seconds after which we stop waiting for an answer; above what the server itself allows a statement."""

_SETTINGS = {
    "application_name": "mobius-control-plane",
    "timezone": "UTC",
    # Nobody's locks outlive a fault of ours for long.
    "statement_timeout": "15s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
    # Every statement is prepared once and finds its rows by an index; a plan made while a table was empty must not
    # read it whole when it is not, and no plan may depend on the values of one call.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "jit": "off",
}
_SECRET_PARAMETERS = ("password", "sslpassword")

Connection = Any
"""An asyncpg.Connection; the driver has no types."""

LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""The connection is gone, or is not to be trusted any more."""

NUL = (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError)
"""A text holds what no text of PostgreSQL can."""

REPEATABLE = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
"""The transaction was undone and may simply be tried again."""

MISTAKES = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""One command's values cannot be stored; its neighbours' can."""

FAULTS = (asyncpg.PostgresError, *LOST)
"""Everything that PostgreSQL and the way to it may do to us."""

_log = structlog.get_logger("control_plane.store")


class Database:
    """Where the store is: `url` without a password, and the file that has it, if one does. Raises StoreRefused."""

    def __init__(self, url: str, password_file: Path | None = None) -> None:
        self._password_file = password_file
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        if parts.password is not None or any(name in query for name in _SECRET_PARAMETERS):
            raise StoreRefused(
                "the store's URL holds a password, which every list of processes would show: put it into a file of "
                "mode 0600 and say --store-password-file FILE, or use libpq's PGPASSFILE"
            )
        self.libpq_url = url
        self.name = f"postgresql://{parts.netloc}{parts.path}"
        distant = [host for host in _hosts(parts.netloc, query) if not (host.startswith("/") or is_loopback(host))]
        if distant and "sslmode" not in query:
            raise StoreRefused(
                f"store {self.name} is on another machine, and nothing says how the way there is protected: add "
                "?sslmode=verify-full (with sslrootcert=FILE if the certificate is not publicly trusted), or "
                "?sslmode=disable if the network itself is private"
            )

    async def connect(self, *, durable: bool = True, **settings: str) -> Connection:
        """A new connection, whose commits are on disk when they return unless `durable` is false; `settings` are server
        settings over ours. Raises StoreUnavailable, StoreRefused."""
        password = self.password()
        try:
            connection = await asyncpg.connect(
                self.libpq_url,
                password=password,
                timeout=CONNECT_TIMEOUT,
                command_timeout=COMMAND_TIMEOUT,
                statement_cache_size=500,
                max_cached_statement_lifetime=0,
                max_cacheable_statement_size=0,
                target_session_attrs="read-write",
                server_settings={**_SETTINGS, **settings},
            )
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
            raise StoreRefused(f"store {self.name} does not let us in: {error}") from error
        except asyncpg.InvalidCatalogNameError as error:
            raise StoreRefused(f"store {self.name}: {error}; create it with createdb, encoding UTF8") from error
        except (asyncpg.exceptions.ClientConfigurationError, ssl.SSLError) as error:
            raise StoreRefused(f"store {self.name}: {error}") from error
        except FAULTS as error:
            raise StoreUnavailable(f"store {self.name} cannot be reached: {_sentence(error)}") from error
        if durable:
            await self._insist_on_durability(connection)
        return connection

    async def check(self, connection: Connection) -> None:
        """Raises StoreRefused when the server or the database is not what we need."""
        version, encoding = await connection.fetchrow(
            "SELECT current_setting('server_version_num')::int, current_setting('server_encoding')"
        )
        if version < OLDEST_SERVER:
            raise StoreRefused(
                f"store {self.name} is PostgreSQL {version // 10000}; {OLDEST_SERVER // 10000} or newer is needed"
            )
        if encoding != "UTF8":
            raise StoreRefused(f"store {self.name} has encoding {encoding}; create the database with encoding UTF8")

    def unavailable(self, error: BaseException) -> StoreUnavailable:
        """The error as callers are told it."""
        return StoreUnavailable(f"the store cannot be used now: {_sentence(error)}")

    def password(self) -> str | None:
        """What the file says now; None without a file. Raises StoreRefused."""
        if self._password_file is None:
            return None
        try:
            if others_can_read(self._password_file):
                raise StoreRefused(f"--store-password-file {self._password_file} can be read by others: chmod 600 it")
            password = self._password_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreRefused(f"--store-password-file {self._password_file} cannot be read: {error}") from error
        if not password:
            raise StoreRefused(f"--store-password-file {self._password_file} is empty")
        return password

    async def _insist_on_durability(self, connection: Connection) -> None:
        # What we acknowledge must survive a crash, whatever the database's default is.
        try:
            if await connection.fetchval("SHOW synchronous_commit") == "off":
                await connection.execute("SET synchronous_commit = on")
        except FAULTS as error:
            connection.terminate()
            raise self.unavailable(error) from error


def _hosts(netloc: str, query: dict[str, list[str]]) -> list[str]:
    """Every host that the URL names; none means the socket of this machine."""
    named = unquote(netloc.rpartition("@")[2]) or ",".join(query.get("host", []))
    hosts = []
    for place in filter(None, named.split(",")):
        bracketed = place.startswith("[")
        hosts.append(place[1:].partition("]")[0] if bracketed else place.partition(":")[0])
    return hosts


def _sentence(error: BaseException) -> str:
    """The first line of the error, or what it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
