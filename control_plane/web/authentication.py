"""Who asks: an API key in, the project that it opens out. The same rules for requests and for the worker socket."""

import re
from collections import OrderedDict
from collections.abc import Callable

from control_plane.domain.model import ApiKey
from control_plane.domain.store import Store
from control_plane.errors import NotFound
from control_plane.keys import hash_secret
from control_plane.web.error_status import HttpError

CACHE_SECONDS = 3.0
"""How long a key is believed without asking the store: the longest that a revoked key still opens anything."""

CACHE_SIZE = 4096
MAX_KEY_LENGTH = 256

_BEARER = re.compile(r"[Bb]earer +(mb[xc]_[\x21-\x7e]+) *")


class Authenticator:
    """Looks keys up by their hash. `clock` gives monotonic seconds, `wall_clock` microseconds since the epoch."""

    def __init__(self, store: Store, clock: Callable[[], float], wall_clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: OrderedDict[bytes, tuple[ApiKey, float]] = OrderedDict()

    async def key_of(self, authorization: str | None) -> ApiKey:
        """The valid key in an Authorization header. Raises HttpError 401, StoreUnavailable."""
        if authorization is None:
            raise _unauthorized("unauthorized", "an API key is needed: send `Authorization: Bearer mbx_...`")
        match = _BEARER.fullmatch(authorization) if len(authorization) <= MAX_KEY_LENGTH else None
        if match is None:
            raise _unauthorized("unauthorized", "the Authorization header holds no API key; expected `Bearer mbx_...`")
        key = await self._look_up(hash_secret(match[1]))
        if key is None:
            raise _unauthorized("invalid_api_key", "this API key is unknown")
        if key.revoked_at is not None:
            raise _unauthorized("invalid_api_key", "this API key was revoked")
        if key.expires_at is not None and key.expires_at <= self._wall_clock():
            raise _unauthorized("invalid_api_key", "this API key has expired")
        return key

    async def admit(self, authorization: str | None, project: str | None) -> ApiKey:
        """The key, where it opens `project` (None: its own). Raises HttpError 401, 403, 404, StoreUnavailable."""
        key = await self.key_of(authorization)
        if project is None or project == key.project_handle:
            return key
        try:
            await self._store.project(project)
        except NotFound as error:
            raise HttpError(404, "project_not_found", f"there is no project {project!r}") from error
        raise HttpError(403, "forbidden", f"this API key belongs to another project than {project!r}")

    async def _look_up(self, secret_hash: bytes) -> ApiKey | None:
        # The table is searched by the hash of 160 random bits: how long that takes says nothing about any key, and the
        # secret itself is compared with nothing.
        now = self._clock()
        cached = self._known.get(secret_hash)
        if cached is not None and cached[1] > now:
            return cached[0]
        key = await self._store.key(secret_hash)
        if key is None:
            self._known.pop(secret_hash, None)
            return None
        self._known[secret_hash] = (key, now + CACHE_SECONDS)
        self._known.move_to_end(secret_hash)
        if len(self._known) > CACHE_SIZE:
            self._known.popitem(last=False)
        return key


def _unauthorized(code: str, message: str) -> HttpError:
    return HttpError(401, code, message, headers={"www-authenticate": "Bearer"})
