"""Ten thousand tokens as fast as they come, through a real worker, across one cut connection."""

import pytest

from bench import tokens


@pytest.mark.parametrize("acknowledge", [True, False])
def test_ten_thousand_tokens_arrive_whole_and_in_order(acknowledge: bool) -> None:
    figures = tokens.measure(10_000, 0.0, acknowledge=acknowledge)
    assert figures["whole and in order"] is True, figures
    assert figures["deltas"] > 1
