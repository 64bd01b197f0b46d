"""What an API key opens, until when, and what becomes of it. Pure: `now` is microseconds."""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from control_plane.domain.model import ApiKey, Project, Scope
from control_plane.domain.times import LATEST, rfc3339
from control_plane.errors import Conflict, Invalid

KeyStatus = Literal["active", "expired", "revoked"]

SCOPES: tuple[Scope, ...] = ("operator", "reader", "worker")
"""All that there are; a key that names none has them all."""


class Grant(Struct, frozen=True, kw_only=True):
    """What a new key is to be. `expires_at` None: it never expires."""

    name: str
    scopes: tuple[Scope, ...] = SCOPES
    expires_at: int | None = None


class Rotation(Struct, frozen=True, kw_only=True):
    """The new key, and the one that it replaces, which ends by itself."""

    new: ApiKey
    old: ApiKey


def opens(key: ApiKey, scope: Scope) -> bool:
    """Whether the key has the scope. Who may change may also read: a change answers with what it has changed."""
    return scope in key.scopes or (scope == "reader" and "operator" in key.scopes)


def ends_at(key: ApiKey) -> int | None:
    """From when on it opens nothing; None: it has no end yet. It never moves later."""
    return min((at for at in (key.expires_at, key.revoked_at) if at is not None), default=None)


def status_at(key: ApiKey, now: int) -> KeyStatus:
    """What the key is then."""
    end = ends_at(key)
    if end is None or end > now:
        return "active"
    return "revoked" if key.revoked_at is not None else "expired"


def created(grant: Grant, project: Project, key_id: str, now: int) -> ApiKey:
    """A key of that project. Raises Invalid("invalid_field")."""
    if not grant.scopes:
        raise Invalid("invalid_field", f"a key needs at least one scope: {', '.join(SCOPES)}")
    _check_end(grant.expires_at, now)
    return ApiKey(
        id=key_id,
        project_id=project.id,
        project_handle=project.handle,
        name=grant.name,
        created_at=now,
        scopes=tuple(sorted(set(grant.scopes))),
        expires_at=grant.expires_at,
    )


def rotated(old: ApiKey, new_id: str, overlap: int, expires_at: int | None, now: int) -> Rotation:
    """A new key like `old`, which stays valid for `overlap` microseconds more at the most. Without `expires_at` the new
    one lives as long as the old one was to live. Raises Conflict("key_ended" | "key_rotated"), Invalid."""
    end = ends_at(old)
    if end is not None and end <= now:
        raise Conflict("key_ended", f"API key {old.id} has ended: create a new one instead")
    if old.replaced_by is not None:
        raise Conflict(
            "key_rotated",
            f"API key {old.id} was rotated already: rotate the one that replaced it, {old.replaced_by}",
            {"replaced_by": old.replaced_by},
        )
    _check_end(expires_at, now)
    if expires_at is None and old.expires_at is not None:
        expires_at = min(now + old.expires_at - old.created_at, LATEST)
    new = replace(old, id=new_id, created_at=now, expires_at=expires_at, revoked_at=None, last_used_at=None)
    until = now + overlap if end is None else min(end, now + overlap)
    return Rotation(new=new, old=replace(old, expires_at=until, replaced_by=new_id))


def revoked(key: ApiKey, now: int) -> ApiKey:
    """It opens nothing any more. One that is revoked already stays as it is."""
    return key if key.revoked_at is not None else replace(key, revoked_at=now)


def _check_end(expires_at: int | None, now: int) -> None:
    if expires_at is not None and expires_at <= now:
        raise Invalid("invalid_field", "expires_at is in the past: the key would open nothing")
    if expires_at is not None and expires_at > LATEST:
        raise Invalid("invalid_field", f"expires_at is after {rfc3339(LATEST)}; leave it out for a key without an end")
