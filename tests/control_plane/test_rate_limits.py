"""Token buckets and arrivals, by fed time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.rate_limits import Arrivals, Buckets, Limits, Rate


def test_a_burst_and_then_the_rate():
    buckets = Buckets(Rate(per_second=2, burst=3))
    assert [buckets.take("k", 0.0).allowed for _ in range(4)] == [True, True, True, False]
    assert not buckets.take("k", 0.4).allowed
    assert buckets.take("k", 0.5).allowed
    assert not buckets.take("k", 0.6).allowed
    refused = buckets.take("k", 0.6)
    assert (refused.remaining, refused.retry_after, refused.reset_after) == (0, 1, 2)
    assert buckets.take("other", 0.6).remaining == 2
    assert buckets.policy == "2;w=1;burst=3"


@given(
    st.floats(0.1, 50),
    st.integers(1, 20),
    st.lists(st.floats(0, 3), max_size=60),
)
def test_no_more_than_the_burst_and_the_rate_whatever_the_rhythm(per_second, burst, pauses):
    buckets, now, allowed = Buckets(Rate(per_second=per_second, burst=burst)), 0.0, 0
    for pause in pauses:
        now += pause
        verdict = buckets.take("k", now)
        allowed += verdict.allowed
        assert 0 <= verdict.remaining <= burst
        assert (verdict.retry_after > 0) is not verdict.allowed
        assert allowed <= burst + now * per_second + 1e-6
        if not verdict.allowed:
            assert buckets.left("k", now + verdict.retry_after) >= 1.0 - 1e-9


def test_a_clock_that_stands_still_or_goes_back_gives_nothing():
    buckets = Buckets(Rate(per_second=1, burst=1))
    assert buckets.take("k", 10.0).allowed
    assert not buckets.take("k", 10.0).allowed
    assert not buckets.take("k", 5.0).allowed


def test_what_is_remembered_is_bounded_and_the_silent_are_forgotten():
    buckets = Buckets(Rate(per_second=0.001, burst=1), most=3)
    for name in "abc":
        assert buckets.take(name, 0.0).allowed
    assert not buckets.take("a", 1.0).allowed
    assert buckets.take("d", 1.0).allowed
    assert len(buckets) == 3
    assert not buckets.take("a", 1.0).allowed
    assert buckets.take("b", 1.0).allowed


def test_arrivals_are_counted_by_address_until_they_leave():
    arrivals = Arrivals(2)
    one, two = arrivals.arrive("192.0.2.1"), arrivals.arrive("192.0.2.1")
    assert arrivals.arrive("192.0.2.1") is None
    assert arrivals.arrive("192.0.2.2") is not None
    one.leave()
    one.leave()
    three = arrivals.arrive("192.0.2.1")
    assert three is not None
    assert arrivals.arrive("192.0.2.1") is None
    two.leave()
    three.leave()
    assert len(arrivals) == 1


def test_this_machine_is_not_counted_out():
    arrivals = Arrivals(1)
    assert all(arrivals.arrive("127.0.0.1") is not None for _ in range(5))


PROXIES = frozenset({"10.0.0.7", "10.0.0.8"})


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),
        ("10.0.0.7", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.7", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.7", "203.0.113.9, 10.0.0.8", "203.0.113.9"),
        ("10.0.0.7", "", "10.0.0.7"),
        ("10.0.0.7", None, "10.0.0.7"),
        ("10.0.0.7", "nonsense", "10.0.0.7"),
        ("2001:db8::1:2", None, "2001:db8::/64"),
        ("::ffff:192.0.2.1", None, "192.0.2.1"),
        ("::1", None, "::1"),
        ("", None, ""),
        ("x" * 500, None, "x" * 64),
    ],
)
def test_whom_to_hold_to_account(peer, forwarded, address):
    assert Limits(trusted_proxies=PROXIES).address_of(peer, forwarded) == address
