"""Counts by size, cumulated as Prometheus wants them."""

from wire.histograms import Histogram


def test_each_value_is_counted_in_every_bucket_that_can_hold_it() -> None:
    histogram = Histogram((0.5, 1.0))
    for value in (0.1, 0.5, 0.6, 7.0):
        histogram.observe(value)
    assert histogram.buckets() == [("0.5", 2.0), ("1", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 8.2


def test_counts_of_others_are_added_and_a_copy_is_its_own() -> None:
    histogram = Histogram((0.5, 1.0))
    histogram.add([1, 2, 3], 9.0)
    histogram.add([1], 0.1)
    # Of a build with more buckets: what has no place here is not invented.
    histogram.add([0, 0, 0, 5], 0.0)
    other = histogram.copy()
    other.observe(0.1)
    assert histogram.buckets() == [("0.5", 2.0), ("1", 4.0), ("+Inf", 7.0)]
    assert other.buckets()[0] == ("0.5", 3.0)
