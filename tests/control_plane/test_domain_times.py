import pytest

from control_plane.domain.times import parse_duration, rfc3339


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("1m30s", 90), ("2h", 7200), ("1.5h", 5400), ("0s", 0), ("10us", 1e-5)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1 s", "1m 30s", "1d", "1s" * 1000, "."])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="expected a duration such as"):
        parse_duration(text)


def test_rfc3339():
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1_763_771_234_500_000) == "2025-11-22T00:27:14.500000Z"
