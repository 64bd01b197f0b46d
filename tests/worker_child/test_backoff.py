import pytest

from worker_child.backoff import AT_ONCE, CAP, FIRST, HEALTHY_AFTER, MAX_AGE, Backoff


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


def test_a_server_that_goes_away_is_believed_once() -> None:
    backoff = Backoff(lambda: 1.0)
    assert backoff.delay(5.0, going_away=True) == pytest.approx(AT_ONCE)
    assert [backoff.delay(0.1, going_away=True) for _ in range(3)] == pytest.approx([2, 4, 8])
    assert backoff.delay(HEALTHY_AFTER, going_away=True) == pytest.approx(AT_ONCE)
    assert backoff.delay() == pytest.approx(FIRST)


def test_connections_that_began_together_do_not_end_together() -> None:
    ages = [Backoff(lambda share=share: share).age() for share in (0.0, 0.5, 0.999)]
    assert ages == sorted(set(ages))
    assert MAX_AGE / 2 < ages[0] < ages[-1] < MAX_AGE
