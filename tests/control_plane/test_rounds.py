"""Rounds, by fed time."""

import pytest

from control_plane.rounds import Rounds


@pytest.mark.parametrize(
    ("begun_at", "overslept"),
    [
        ([1000.0], [0.0]),
        ([1000.0, 1001.0, 1002.0], [0.0, 0.0, 0.0]),
        ([0.0, 10.9], [0.0, 0.0]),
        ([0.0, 11.0], [0.0, 10.0]),
        ([0.0, 69.0, 70.0, 140.0], [0.0, 68.0, 0.0, 69.0]),
        # Late again and again, but never by much.
        ([0.0, 6.0, 12.0, 18.0], [0.0, 0.0, 0.0, 0.0]),
        # Woken before its time.
        ([0.0, 0.1, 11.2], [0.0, 0.0, 10.1]),
    ],
)
def test_what_was_overslept(begun_at, overslept):
    rounds = Rounds(interval=1.0, slack=10.0)
    assert [rounds.begin(now) for now in begun_at] == pytest.approx(overslept)
