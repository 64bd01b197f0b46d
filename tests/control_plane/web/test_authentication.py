from typing import Any

import pytest

from control_plane.domain.model import ApiKey, Scope
from control_plane.domain.store import KeyChanged
from control_plane.errors import StoreUnavailable
from control_plane.key_holders import KeyHolders
from control_plane.keys import hash_secret
from control_plane.rate_limits import MOST_FAILURES, Limits
from control_plane.web import authentication
from control_plane.web.authentication import Authenticator
from control_plane.web.error_status import HttpError

SECRET = "mbx_" + "a" * 32


class Keys:
    """The two questions that an authenticator asks a store, answered from a dict, and counted."""

    def __init__(self) -> None:
        self.known: dict[bytes, ApiKey] = {}
        self.asked = 0
        self.away = False

    def add(self, secret: str, **fields: Any) -> None:
        self.known[hash_secret(secret)] = ApiKey(
            id="key_1", project_id="proj_1", project_handle="default", name="k", created_at=0, **fields
        )

    async def key(self, secret_hash: bytes) -> ApiKey | None:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        return self.known.get(secret_hash)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> int:
        return int(self.now * 1_000_000)


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authenticator(keys: Keys, clock: Clock) -> Authenticator:
    store: Any = keys
    return Authenticator(store, KeyHolders(), Limits(requests_per_second=1000), clock.monotonic, clock.wall)


async def status(
    authenticator: Authenticator, authorization: str | None, project: str | None = None, scope: Scope = "reader"
) -> int:
    try:
        await authenticator.admit(authorization, project, scope, "192.0.2.1")
    except HttpError as error:
        return error.status
    return 200


async def test_who_is_admitted(authenticator: Authenticator, keys: Keys) -> None:
    keys.add(SECRET)
    keys.add(SECRET + ".default")
    for authorization in (f"Bearer {SECRET}", f"bearer  {SECRET} ", f"Bearer {SECRET}.default"):
        assert await status(authenticator, authorization) == 200
        assert await status(authenticator, authorization, "default") == 200
    assert await status(authenticator, f"Bearer {SECRET}", "other") == 403
    assert await status(authenticator, f"Bearer {SECRET}", "nowhere") == 403
    for authorization in (None, "", SECRET, f"Basic {SECRET}", "Bearer ", f"Bearer {SECRET}x", f"Bearer {SECRET}\nx"):
        assert await status(authenticator, authorization, "nowhere") == 401


async def test_revoked_and_expired_keys(authenticator: Authenticator, keys: Keys, clock: Clock) -> None:
    keys.add(SECRET, revoked_at=1)
    assert await status(authenticator, f"Bearer {SECRET}") == 401
    keys.add("mbx_expiring", expires_at=clock.wall() + 1_000_000)
    assert await status(authenticator, "Bearer mbx_expiring") == 200
    clock.now += 1.0  # also while the key is still remembered
    assert await status(authenticator, "Bearer mbx_expiring") == 401


async def test_a_key_opens_what_its_scopes_say(authenticator: Authenticator, keys: Keys) -> None:
    keys.add(SECRET, scopes=("worker",))
    assert await status(authenticator, f"Bearer {SECRET}", "default", "worker") == 200
    for scope in ("reader", "operator"):
        with pytest.raises(HttpError) as refusal:
            await authenticator.admit(f"Bearer {SECRET}", "default", scope, "192.0.2.1")
        assert refusal.value.status == 403
        assert f"needs an API key with scope {scope}; this one has worker" in refusal.value.message


async def test_a_fact_refuses_a_remembered_key_at_once(authenticator: Authenticator, keys: Keys, clock: Clock) -> None:
    keys.add(SECRET)
    assert await status(authenticator, f"Bearer {SECRET}") == 200
    authenticator.holders.committed([KeyChanged(key_id="key_1", ends_at=clock.wall())], clock.wall())
    assert await status(authenticator, f"Bearer {SECRET}") == 401
    # Also when a replica of the database still says otherwise.
    clock.now += authentication.CACHE_SECONDS
    assert await status(authenticator, f"Bearer {SECRET}") == 401


async def test_a_key_is_remembered_for_seconds_only(authenticator: Authenticator, keys: Keys, clock: Clock) -> None:
    keys.add(SECRET)
    for _ in range(3):
        assert await status(authenticator, f"Bearer {SECRET}") == 200
    assert keys.asked == 1
    keys.add(SECRET, revoked_at=1)
    clock.now += authentication.CACHE_SECONDS
    assert await status(authenticator, f"Bearer {SECRET}") == 401
    assert keys.asked == 2


async def test_unknown_keys_are_not_remembered_and_the_memory_is_bounded(
    authenticator: Authenticator, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "CACHE_SIZE", 2)
    assert await status(authenticator, f"Bearer {SECRET}") == 401
    keys.add(SECRET)
    assert await status(authenticator, f"Bearer {SECRET}") == 200
    for number in range(5):
        keys.add(f"mbx_{number}")
        assert await status(authenticator, f"Bearer mbx_{number}") == 200
        await status(authenticator, f"Bearer mbx_unknown-{number}")
    assert len(authenticator._known) == 2


async def test_a_store_that_is_away_admits_and_refuses_nobody(authenticator: Authenticator, keys: Keys) -> None:
    keys.away = True
    with pytest.raises(StoreUnavailable):
        await authenticator.key_of(f"Bearer {SECRET}", "192.0.2.1")


async def test_an_address_that_is_refused_too_often_is_asked_to_wait(
    authenticator: Authenticator, keys: Keys, clock: Clock
) -> None:
    keys.add(SECRET)
    assert await status(authenticator, f"Bearer {SECRET}") == 200
    for number in range(MOST_FAILURES):
        assert await status(authenticator, f"Bearer mbx_{number}") == 401
    asked = keys.asked
    with pytest.raises(HttpError) as refusal:
        await authenticator.admit("Bearer mbx_one-more", None, "reader", "192.0.2.1")
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limited")
    assert refusal.value.headers["x-ratelimit-scope"] == "address"
    assert refusal.value.headers["retry-after"] == "1"
    assert keys.asked == asked  # the store is left in peace
    # A key that works goes on working there, and so does everybody elsewhere.
    assert await status(authenticator, f"Bearer {SECRET}") == 200
    await authenticator.admit(f"Bearer {SECRET}", None, "reader", "192.0.2.2")
    clock.now += 1.0
    assert await status(authenticator, "Bearer mbx_again") == 401
    assert await status(authenticator, "Bearer mbx_again") == 429


async def test_a_key_that_asks_too_often_is_asked_to_wait(keys: Keys, clock: Clock) -> None:
    store: Any = keys
    limits = Limits(requests_per_second=5)
    authenticator = Authenticator(store, KeyHolders(), limits, clock.monotonic, clock.wall)
    keys.add(SECRET)
    for left in range(9, -1, -1):
        _, verdict = await authenticator.admit(f"Bearer {SECRET}", None, "reader", "192.0.2.1")
        assert verdict is not None
        assert authentication.rate_headers(verdict) == {
            "x-ratelimit-limit": "10",
            "x-ratelimit-remaining": str(left),
            "x-ratelimit-reset": str(-(-(10 - left) // 5)),
        }
    with pytest.raises(HttpError) as refusal:
        await authenticator.admit(f"Bearer {SECRET}", None, "reader", "192.0.2.1")
    assert refusal.value.headers == {
        "retry-after": "1",
        "x-ratelimit-limit": "10",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": "2",
        "x-ratelimit-scope": "key",
        "x-ratelimit-policy": "5;w=1;burst=10",
    }
    clock.now += 0.2
    assert await status(authenticator, f"Bearer {SECRET}") == 200
    assert await status(authenticator, f"Bearer {SECRET}") == 429
