"""Commands on API keys: rare, each in a transaction of its own."""

import asyncpg

from control_plane.domain import api_keys
from control_plane.domain.api_keys import Grant, Rotation
from control_plane.domain.model import ApiKey
from control_plane.errors import Conflict, NotFound
from control_plane.store import rows
from control_plane.store.postgres_connections import Connection
from control_plane.store.postgres_decisions import Known


class Keys:
    """`connection` is in a transaction; `now` is microseconds."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._sql = known.sql

    async def create_key(
        self, connection: Connection, project_handle: str, grant: Grant, secret_hash: bytes, now: int
    ) -> ApiKey:
        """See Store.create_key."""
        row = await connection.fetchrow(self._sql["project_by_handle"], project_handle)
        if row is None:
            raise NotFound(f"no project {project_handle}")
        key = api_keys.created(grant, rows.project(tuple(row)), self._new_id(now), now)
        await self._insert(connection, key, secret_hash, now)
        return key

    async def rotate_key(
        self,
        connection: Connection,
        project_id: str,
        key_id: str,
        secret_hash: bytes,
        until: tuple[int, int | None],
        now: int,
    ) -> Rotation:
        """See Store.rotate_key; `until`: its overlap and expires_at."""
        old = await self._lock(connection, project_id, key_id)
        rotation = api_keys.rotated(old, self._new_id(now), *until, now)
        await self._insert(connection, rotation.new, secret_hash, now)
        await self._end(connection, rotation.old, now)
        return rotation

    async def revoke_key(self, connection: Connection, project_id: str, key_id: str, now: int) -> ApiKey:
        """See Store.revoke_key."""
        key = api_keys.revoked(await self._lock(connection, project_id, key_id), now)
        await self._end(connection, key, now)
        return key

    async def keys_used(self, connection: Connection, used: dict[str, int]) -> None:
        """See Store.keys_used."""
        await connection.execute(self._sql["keys_used"], list(used), list(used.values()))

    def _new_id(self, now: int) -> str:
        return self._known.identifiers.new("key", now)

    async def _lock(self, connection: Connection, project_id: str, key_id: str) -> ApiKey:
        row = await connection.fetchrow(self._sql["key_by_id"], project_id, key_id)
        if row is None:
            raise NotFound(f"no API key {key_id} in this project")
        return rows.api_key(tuple(row))

    async def _insert(self, connection: Connection, key: ApiKey, secret_hash: bytes, now: int) -> None:
        try:
            await connection.execute(self._sql["insert_key"], *rows.api_key_row(key, secret_hash, now))
        except asyncpg.UniqueViolationError as error:
            raise Conflict("key_exists", "this API key exists already") from error

    async def _end(self, connection: Connection, key: ApiKey, now: int) -> None:
        await connection.execute(self._sql["end_key"], key.expires_at, key.revoked_at, key.replaced_by, now, key.id)
