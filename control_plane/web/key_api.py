"""The routes on API keys: for operators, of their own project alone. A secret is in the one answer that makes it."""

from datetime import datetime
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from control_plane.domain import api_keys
from control_plane.domain.model import ApiKey, Scope
from control_plane.domain.times import MICROSECONDS
from control_plane.keys import hash_secret, key_for_project
from control_plane.web.routes import Call, Route
from control_plane.web.shapes import (
    Name,
    NoQuery,
    Request,
    Response,
    if_known,
    microseconds_of,
    moment,
    moment_if_known,
)

LONGEST_OVERLAP = 90 * 86_400

Moment = Annotated[datetime, Meta(tz=True)]


class CreateKeyRequest(Request, frozen=True):
    """`scopes`: what the key is to open; there is no default, so that nobody gives more away than he says."""

    name: Name
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=3)]
    expires_at: Moment | UnsetType = UNSET


class RotateKeyRequest(Request, frozen=True):
    """`overlap_seconds`: for how long the old key stays valid. Without `expires_at` the new one lives as long as the
    old one was to live."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=LONGEST_OVERLAP)] = 86_400
    expires_at: Moment | UnsetType = UNSET


class KeyResponse(Response, frozen=True, kw_only=True):
    """A key without its secret. `last_used_at` may be a minute behind."""

    id: str
    name: str
    scopes: list[Scope]
    status: api_keys.KeyStatus
    created_at: datetime
    expires_at: datetime | UnsetType = UNSET
    revoked_at: datetime | UnsetType = UNSET
    last_used_at: datetime | UnsetType = UNSET
    replaced_by: str | UnsetType = UNSET


class KeyListResponse(Response, frozen=True):
    """Newest first, also those that have ended."""

    items: list[KeyResponse]


class NewKeyResponse(Response, frozen=True):
    """The one answer that holds the secret."""

    key: KeyResponse
    secret: str


class RotationResponse(NewKeyResponse, frozen=True):
    """`replaced`: the old key, with its new end."""

    replaced: KeyResponse


def key_shape(key: ApiKey, now: int) -> KeyResponse:
    """As the API shows it at `now`, microseconds."""
    return KeyResponse(
        id=key.id,
        name=key.name,
        scopes=list(key.scopes),
        status=api_keys.status_at(key, now),
        created_at=moment(key.created_at),
        expires_at=moment_if_known(key.expires_at),
        revoked_at=moment_if_known(key.revoked_at),
        last_used_at=moment_if_known(key.last_used_at),
        replaced_by=if_known(key.replaced_by),
    )


async def list_keys(call: Call[NoQuery, None]) -> KeyListResponse:
    """All keys of the project."""
    now = call.services.wall_clock()
    return KeyListResponse(items=[key_shape(key, now) for key in await call.store.keys(call.project_id)])


async def create_key(call: Call[NoQuery, CreateKeyRequest]) -> NewKeyResponse:
    """A new key."""
    own: ApiKey = call.key
    secret = key_for_project(own.project_handle)
    key = await call.store.create_key(
        own.project_handle,
        call.body.name,
        hash_secret(secret),
        scopes=call.body.scopes,
        expires_at=microseconds_of(call.body.expires_at),
    )
    return NewKeyResponse(key=key_shape(key, call.services.wall_clock()), secret=secret)


async def rotate_key(call: Call[NoQuery, RotateKeyRequest]) -> RotationResponse:
    """A new key in the place of the one of the path, which ends after the overlap."""
    own: ApiKey = call.key
    secret = key_for_project(own.project_handle)
    rotation = await call.store.rotate_key(
        call.project_id,
        call.path["id"],
        hash_secret(secret),
        overlap=call.body.overlap_seconds * MICROSECONDS,
        expires_at=microseconds_of(call.body.expires_at),
    )
    now = call.services.wall_clock()
    return RotationResponse(key=key_shape(rotation.new, now), secret=secret, replaced=key_shape(rotation.old, now))


async def revoke_key(call: Call[NoQuery, None]) -> KeyResponse:
    """The key of the path opens nothing any more, and what it had opened is closed."""
    key = await call.store.revoke_key(call.project_id, call.path["id"])
    return key_shape(key, call.services.wall_clock())


_KEYS = "/v1/projects/{project}/keys"

ROUTES = (
    Route(method="GET", path=_KEYS, handler=list_keys, response=KeyListResponse, scope="operator"),
    Route(
        method="POST",
        path=_KEYS,
        handler=create_key,
        status=201,
        body=CreateKeyRequest,
        response=NewKeyResponse,
    ),
    Route(
        method="POST",
        path=_KEYS + "/{id}/rotations",
        handler=rotate_key,
        status=201,
        body=RotateKeyRequest,
        response=RotationResponse,
    ),
    Route(method="POST", path=_KEYS + "/{id}/revocations", handler=revoke_key, response=KeyResponse),
)
