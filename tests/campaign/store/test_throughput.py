"""Times of finished jobs in, what a fault cost out."""

import pytest

from tests.campaign.store.throughput import back_after, longest_silence, rate, usual, usual_lately


def every(step: float, begin: float, end: float) -> list[float]:
    return [begin + step * number for number in range(round((end - begin) / step))]


OUTAGE = [*every(0.1, 0, 10), *every(0.2, 13, 15), *every(0.1, 15, 20)]
"""Ten a second, nothing from 10 to 13, half of it until 15."""


def test_what_is_usual() -> None:
    assert rate(OUTAGE, 0, 10) == pytest.approx(10)
    assert usual(OUTAGE, [5, 10, 13]) == pytest.approx(10)
    assert usual_lately(OUTAGE, [5, 6, 7, 8, 9, 10, 14, 14.2, 14.4, 14.6, 14.8]) == pytest.approx(5)


def test_throughput_is_back_when_nine_tenths_of_it_last_for_a_second() -> None:
    assert back_after(OUTAGE, 10, 20, 10) == pytest.approx(4.8, abs=0.21)
    assert back_after(OUTAGE, 10, 20, 5) == pytest.approx(3.0, abs=0.01)


def test_what_nobody_notices_costs_nothing() -> None:
    assert back_after(OUTAGE, 5, 10, 10) == 0.0


def test_what_does_not_come_back() -> None:
    assert back_after(OUTAGE, 10, 14, 10) is None
    assert back_after([], 10, 20, 10) is None


def test_the_longest_silence() -> None:
    assert longest_silence(OUTAGE, 9, 20) == pytest.approx(3.1)
    assert longest_silence([], 1, 4) == 3
