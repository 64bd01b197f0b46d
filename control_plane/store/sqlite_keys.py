"""Commands on API keys: each is one transaction of the writer."""

from collections.abc import Callable

from control_plane.domain import api_keys
from control_plane.domain.api_keys import Grant, Rotation
from control_plane.domain.model import ApiKey
from control_plane.domain.store import KeyChanged
from control_plane.errors import Conflict, NotFound
from control_plane.store import rows
from control_plane.store.sqlite_unit import Known, Unit
from control_plane.store.sqlite_writer import Writing


def create_key(known: Known, project_handle: str, grant: Grant, secret_hash: bytes) -> Callable[[Writing], ApiKey]:
    """See Store.create_key."""

    def command(writing: Writing) -> ApiKey:
        unit = Unit(known, writing)
        row = unit.one("project_by_handle", project_handle)
        if row is None:
            raise NotFound(f"no project {project_handle}")
        key = api_keys.created(grant, rows.project(row), unit.new_id("key"), writing.now)
        _insert(known, unit, writing, key, secret_hash)
        return key

    return command


def rotate_key(
    known: Known, project_id: str, key_id: str, secret_hash: bytes, overlap: int, expires_at: int | None
) -> Callable[[Writing], Rotation]:
    """See Store.rotate_key."""

    def command(writing: Writing) -> Rotation:
        unit = Unit(known, writing)
        old = _key(unit, project_id, key_id)
        rotation = api_keys.rotated(old, unit.new_id("key"), overlap, expires_at, writing.now)
        _insert(known, unit, writing, rotation.new, secret_hash)
        _end(known, writing, rotation.old)
        return rotation

    return command


def revoke_key(known: Known, project_id: str, key_id: str) -> Callable[[Writing], ApiKey]:
    """See Store.revoke_key."""

    def command(writing: Writing) -> ApiKey:
        key = api_keys.revoked(_key(Unit(known, writing), project_id, key_id), writing.now)
        _end(known, writing, key)
        return key

    return command


def keys_used(known: Known, used: dict[str, int]) -> Callable[[Writing], None]:
    """See Store.keys_used."""

    def command(writing: Writing) -> None:
        for key_id, at in used.items():
            writing.execute(known.sql["keys_used"], (at, key_id))

    return command


def _key(unit: Unit, project_id: str, key_id: str) -> ApiKey:
    row = unit.one("key_by_id", project_id, key_id)
    if row is None:
        raise NotFound(f"no API key {key_id} in this project")
    return rows.api_key(row)


def _insert(known: Known, unit: Unit, writing: Writing, key: ApiKey, secret_hash: bytes) -> None:
    if unit.one("key_by_hash", secret_hash) is not None:
        raise Conflict("key_exists", "this API key exists already")
    writing.execute(known.sql["insert_key"], rows.api_key_row(key, secret_hash, writing.now))


def _end(known: Known, writing: Writing, key: ApiKey) -> None:
    writing.execute(known.sql["end_key"], (key.expires_at, key.revoked_at, key.replaced_by, writing.now, key.id))
    ends_at = api_keys.ends_at(key)
    if ends_at is not None:
        writing.facts.append(KeyChanged(key_id=key.id, ends_at=ends_at))
