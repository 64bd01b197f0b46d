"""API keys on real stores."""

import pytest

from control_plane.domain.store import KeyChanged
from control_plane.errors import Conflict, Invalid, NotFound
from tests.support.store_scenario import at, scenario

HOUR = 3_600_000_000


@pytest.fixture
async def s(place):
    async with scenario(place) as made:
        yield made


def told(s):
    return [fact for fact in s.facts if isinstance(fact, KeyChanged)]


async def test_a_key_is_stored_as_it_was_granted(s):
    made = await s.store.create_key(
        "default", "ci", b"h" * 32, scopes=("reader", "worker"), expires_at=at(60), now=at(0)
    )
    assert (made.scopes, made.expires_at, made.created_at) == (("reader", "worker"), at(60), at(0))
    assert await s.store.key(b"h" * 32) == made
    every = await s.store.create_key("default", "all", b"i" * 32)
    assert every.scopes == ("operator", "reader", "worker")
    assert [key.id for key in await s.store.keys(s.project.id)] == [every.id, made.id]
    with pytest.raises(Conflict):
        await s.store.create_key("default", "again", b"h" * 32)
    with pytest.raises(Invalid):
        await s.store.create_key("default", "late", b"j" * 32, expires_at=at(5), now=at(5))


async def test_keys_from_before_there_were_scopes_open_everything(s):
    columns = "id, project_id, name, secret_hash, created_at"
    await s.place.write(
        s.store,
        f"INSERT INTO api_keys ({columns}) SELECT 'key_old', '{s.project.id}', 'old', secret_hash, 1 FROM "
        "(SELECT token_hash AS secret_hash FROM sessions LIMIT 1) AS one",
    )
    (key,) = await s.store.keys(s.project.id)
    assert key.scopes == ("operator", "reader", "worker")


async def test_a_rotation_overlaps(s):
    old = await s.store.create_key("default", "ci", b"h" * 32, scopes=("worker",), now=at(0))
    rotation = await s.store.rotate_key(s.project.id, old.id, b"i" * 32, overlap=HOUR, now=at(10))
    assert await s.store.key(b"i" * 32) == rotation.new
    assert await s.store.key(b"h" * 32) == rotation.old
    assert (rotation.old.expires_at, rotation.old.replaced_by) == (at(10) + HOUR, rotation.new.id)
    assert rotation.new.scopes == ("worker",)
    assert told(s) == [KeyChanged(key_id=old.id, ends_at=at(10) + HOUR)]
    with pytest.raises(Conflict):
        await s.store.rotate_key(s.project.id, old.id, b"j" * 32, overlap=HOUR, now=at(11))
    assert await s.store.key(b"j" * 32) is None


async def test_a_revocation_is_announced_and_repeated_without_harm(s):
    key = await s.store.create_key("default", "ci", b"h" * 32, now=at(0))
    revoked = await s.store.revoke_key(s.project.id, key.id, now=at(7))
    assert revoked.revoked_at == at(7)
    assert await s.store.revoke_key(s.project.id, key.id, now=at(8)) == revoked
    assert (await s.store.key(b"h" * 32)).revoked_at == at(7)
    assert told(s)[0] == KeyChanged(key_id=key.id, ends_at=at(7))
    with pytest.raises(Conflict):
        await s.store.rotate_key(s.project.id, key.id, b"i" * 32, overlap=HOUR, now=at(9))


async def test_other_projects_cannot_touch_it(s):
    key = await s.store.create_key("default", "ci", b"h" * 32)
    other = await s.store.create_project("other", "Other")
    with pytest.raises(NotFound):
        await s.store.revoke_key(other.id, key.id)
    with pytest.raises(NotFound):
        await s.store.rotate_key(other.id, key.id, b"i" * 32, overlap=HOUR)
    assert await s.store.keys(other.id) == []
    assert (await s.store.key(b"h" * 32)).revoked_at is None


async def test_the_poll_finds_what_has_changed_since(s):
    one = await s.store.create_key("default", "one", b"h" * 32, now=at(10))
    two = await s.store.create_key("default", "two", b"i" * 32, now=at(20))
    assert {key.id for key in await s.store.changed_keys(at(0))} == {one.id, two.id}
    assert [key.id for key in await s.store.changed_keys(at(10))] == [two.id]
    await s.store.revoke_key(s.project.id, one.id, now=at(30))
    assert [(key.id, key.revoked_at) for key in await s.store.changed_keys(at(20))] == [(one.id, at(30))]


async def test_use_is_recorded_and_never_goes_back(s):
    one = await s.store.create_key("default", "one", b"h" * 32)
    two = await s.store.create_key("default", "two", b"i" * 32)
    await s.store.keys_used({one.id: at(50), "key_gone": at(50)})
    await s.store.keys_used({one.id: at(40), two.id: at(60)})
    used = {key.id: key.last_used_at for key in await s.store.keys(s.project.id)}
    assert used == {one.id: at(50), two.id: at(60)}
