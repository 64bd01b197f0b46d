"""Who asks: an API key in, what it opens out. The same rules for requests and for the worker socket."""

import re
from collections import OrderedDict
from collections.abc import Callable

from control_plane.domain.api_keys import opens
from control_plane.domain.model import ApiKey, Scope
from control_plane.domain.store import Store
from control_plane.key_holders import KeyHolders
from control_plane.keys import hash_secret
from control_plane.rate_limits import Limits, Verdict
from control_plane.web.error_status import HttpError

CACHE_SECONDS = 3.0
"""How long a key is believed without asking the store. One that was revoked through this server, or another that it
hears, is refused at once; one that was revoked by a command beside it, after this long at the most."""

CACHE_SIZE = 4096
MAX_KEY_LENGTH = 256
RETRY_CONNECTION = 10
"""Seconds after which a connection beyond the limit may be tried again."""

_BEARER = re.compile(r"[Bb]earer +(mb[xc]_[\x21-\x7e]+) *")


class Authenticator:
    """Looks keys up by their hash. `clock` gives monotonic seconds, `wall_clock` microseconds since the epoch."""

    def __init__(
        self,
        store: Store,
        holders: KeyHolders,
        limits: Limits,
        clock: Callable[[], float],
        wall_clock: Callable[[], int],
    ) -> None:
        self.holders = holders
        self.limits = limits
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: OrderedDict[bytes, tuple[ApiKey, float]] = OrderedDict()

    async def key_of(self, authorization: str | None, address: str) -> ApiKey:
        """The valid key in an Authorization header that came from `address`. Raises HttpError 401, 429,
        StoreUnavailable."""
        if authorization is None:
            raise _unauthorized("unauthorized", "an API key is needed: send `Authorization: Bearer mbx_...`")
        match = _BEARER.fullmatch(authorization) if len(authorization) <= MAX_KEY_LENGTH else None
        if match is None:
            raise _unauthorized("unauthorized", "the Authorization header holds no API key; expected `Bearer mbx_...`")
        try:
            key = await self._look_up(hash_secret(match[1]), address)
            if key is None:
                raise _unauthorized("invalid_api_key", "this API key is unknown")
            self.check(key)
        except HttpError as refusal:
            if refusal.status == 401:
                self.limits.failures.take(address, self._clock())
            raise
        self.holders.used(key, self._wall_clock())
        return key

    def check(self, key: ApiKey) -> None:
        """Once more, without asking the store: whether the key has not ended. Raises HttpError 401."""
        now = self._wall_clock()
        if self.holders.has_ended(key, now):
            expired = key.revoked_at is None and key.expires_at is not None and key.expires_at <= now
            raise _unauthorized("invalid_api_key", f"this API key {'has expired' if expired else 'was revoked'}")

    async def admit(
        self, authorization: str | None, project: str | None, scope: Scope, address: str
    ) -> tuple[ApiKey, Verdict | None]:
        """The key, where it opens `scope` of `project` (None: its own), and what is left of its rate. Raises HttpError
        401, 403, 429, StoreUnavailable.

        Whether another project exists is nobody's business: it is refused like one that does not.
        """
        key = await self.key_of(authorization, address)
        verdict = self._count(key)
        if project is not None and project != key.project_handle:
            raise HttpError(403, "forbidden", f"this API key opens project {key.project_handle!r}, not {project!r}")
        if not opens(key, scope):
            has = " and ".join(key.scopes)
            raise HttpError(403, "forbidden", f"this needs an API key with scope {scope}; this one has {has}")
        return key, verdict

    def check_connections(self, key: ApiKey) -> None:
        """Whether one more socket or stream may be held with the key. Raises HttpError 429."""
        most = self.limits.connections_per_key
        if self.holders.held_by(key) >= most:
            headers = {"retry-after": str(RETRY_CONNECTION), "x-ratelimit-limit": str(most)}
            headers |= {"x-ratelimit-remaining": "0", "x-ratelimit-scope": "connections"}
            message = f"this API key has {most} worker sockets and streams open, which is the limit"
            raise HttpError(429, "too_many_connections", message, headers=headers)

    def _count(self, key: ApiKey) -> Verdict | None:
        requests = self.limits.requests
        if requests is None:
            return None
        verdict = requests.take(key.id, self._clock())
        if not verdict.allowed:
            raise _too_many("this API key asks too often", verdict, "key", requests.policy)
        return verdict

    async def _look_up(self, secret_hash: bytes, address: str) -> ApiKey | None:
        # The table is searched by the hash of 160 random bits: how long that takes says nothing about any key, and the
        # secret itself is compared with nothing.
        now = self._clock()
        cached = self._known.get(secret_hash)
        if cached is not None and cached[1] > now:
            return cached[0]
        failures = self.limits.failures
        if failures.left(address, now) < 1.0:
            verdict = failures.take(address, now)
            raise _too_many("too many refused API keys from this address", verdict, "address", failures.policy)
        key = await self._store.key(secret_hash)
        if key is None:
            self._known.pop(secret_hash, None)
            return None
        self._known[secret_hash] = (key, now + CACHE_SECONDS)
        self._known.move_to_end(secret_hash)
        if len(self._known) > CACHE_SIZE:
            self._known.popitem(last=False)
        return key


def rate_headers(verdict: Verdict) -> dict[str, str]:
    """What every answer says of the key's rate."""
    return {
        "x-ratelimit-limit": str(verdict.limit),
        "x-ratelimit-remaining": str(verdict.remaining),
        "x-ratelimit-reset": str(verdict.reset_after),
    }


def _too_many(why: str, verdict: Verdict, scope: str, policy: str) -> HttpError:
    headers = {"retry-after": str(verdict.retry_after), **rate_headers(verdict)}
    headers |= {"x-ratelimit-scope": scope, "x-ratelimit-policy": policy}
    message = f"{why}: try again in {verdict.retry_after} s"
    return HttpError(429, "rate_limited", message, headers=headers)


def _unauthorized(code: str, message: str) -> HttpError:
    return HttpError(401, code, message, headers={"www-authenticate": "Bearer"})
