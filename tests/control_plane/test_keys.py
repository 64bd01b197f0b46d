import re

from control_plane.keys import (
    Identifiers,
    hash_secret,
    new_api_key,
    new_lease_tokens,
    new_session_token,
    project_of_key,
    same_hash,
)


def test_api_keys():
    assert re.fullmatch(r"mbx_[0-9a-z]{32}", new_api_key())
    key = new_api_key("on-prem")
    assert re.fullmatch(r"mbx_[0-9a-z]{32}\.on-prem", key)
    assert project_of_key(key) == "on-prem"
    assert project_of_key(new_api_key()) is None
    assert len({new_api_key() for _ in range(100)} | {*new_lease_tokens(64), new_session_token()}) == 165


def test_hashes_compare():
    assert same_hash(hash_secret("a"), hash_secret("a"))
    assert not same_hash(hash_secret("a"), hash_secret("b"))
    assert not same_hash(None, hash_secret("a"))


def test_identifiers_increase_whatever_the_clock_does():
    ids = Identifiers()
    times = [5_000_000, 5_000_000, 5_000_999, 4_000_000, 6_000_000]
    made = [ids.new("job", now) for now in times]
    assert made == sorted(set(made))
    assert all(re.fullmatch(r"job_[0-9a-hjkmnp-tv-z]{26}", each) for each in made)


def test_identifiers_of_two_processes_sort_by_time():
    assert Identifiers().new("run", 1_000_000) < Identifiers().new("run", 2_000_000)


def test_identifiers_go_on_when_a_millisecond_is_full():
    ids = Identifiers(random=lambda count: b"\xff" * count)
    ids.new("x", 1000)
    ids._tail = (1 << 80) - 1
    last = ids.new("x", 1000)
    assert last > Identifiers(random=lambda count: b"\xff" * count).new("x", 1000)
    assert ids.new("x", 1000) > last
