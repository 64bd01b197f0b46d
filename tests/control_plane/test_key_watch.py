"""The rounds of the key watch on real stores, run by hand."""

import pytest

from control_plane.key_holders import KeyHolders
from control_plane.key_watch import KeyWatch, KeyWatchConfig
from tests.support.store_scenario import scenario


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


async def test_what_nobody_told_is_found_by_the_next_round(s):
    holders, ended = KeyHolders(), []
    watch = KeyWatch(s.store, holders, KeyWatchConfig())
    key = await s.store.create_key("default", "ci", b"h" * 32)
    holders.hold(key, lambda: ended.append("it"))
    await watch.run_once(s.store.now())
    assert ended == []
    await s.store.revoke_key(s.project.id, key.id)  # its fact goes to the scenario, not to the holders
    await watch.run_once(s.store.now())
    assert ended == ["it"]


async def test_a_key_that_expires_is_waited_for(s):
    holders, ended = KeyHolders(), []
    watch = KeyWatch(s.store, holders, KeyWatchConfig(interval=30.0))
    assert watch.pause() == 30.0
    now = s.store.now()
    key = await s.store.create_key("default", "ci", b"h" * 32, expires_at=now + 5_000_000)
    holders.hold(key, lambda: ended.append("it"))
    assert 0 <= watch.pause() <= 5.0
    await watch.run_once(now)
    assert ended == []
    await watch.run_once(now + 5_000_000)
    assert ended == ["it"]
    assert watch.pause() == 30.0


async def test_one_that_cannot_be_ended_keeps_no_other(s):
    holders, ended = KeyHolders(), []

    def fails():
        raise RuntimeError

    watch = KeyWatch(s.store, holders, KeyWatchConfig())
    now = s.store.now()
    key = await s.store.create_key("default", "ci", b"h" * 32, expires_at=now + 60_000_000)
    holders.hold(key, fails)
    holders.hold(key, lambda: ended.append("it"))
    await watch.run_once(now + 60_000_000)
    assert ended == ["it"]


async def test_use_is_recorded_once_a_minute(s):
    holders = KeyHolders()
    watch = KeyWatch(s.store, holders, KeyWatchConfig())
    key = await s.store.create_key("default", "ci", b"h" * 32)
    now = s.store.now()
    await watch.run_once(now)
    holders.used(key, now + 1)
    await watch.run_once(now + 59_000_000)
    assert (await s.store.key(b"h" * 32)).last_used_at is None
    await watch.run_once(now + 60_000_000)
    assert (await s.store.key(b"h" * 32)).last_used_at == now + 1
