import pytest

from worker_child.backoff import CAP, FIRST, HEALTHY_AFTER, Backoff


def test_the_ceiling_doubles_from_two_to_sixty_seconds() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.delay() for _ in range(7)] == pytest.approx([2, 4, 8, 16, 32, 60, 60])


def test_every_delay_is_jittered_and_none_is_zero() -> None:
    least, most = Backoff(lambda: 0.0), Backoff(lambda: 1.0)
    for _ in range(8):
        low, high = least.delay(), most.delay()
        assert 0 < low < high / 2
        assert high <= CAP


def test_a_short_life_does_not_reset_it() -> None:
    backoff = Backoff(lambda: 1.0)
    backoff.delay()
    backoff.delay()
    assert backoff.delay(healthy_for=HEALTHY_AFTER - 0.1) == pytest.approx(8)


def test_thirty_seconds_of_health_reset_it() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(5):
        backoff.delay()
    assert backoff.delay(healthy_for=HEALTHY_AFTER) == pytest.approx(FIRST)
    assert backoff.delay() == pytest.approx(FIRST * 2)
