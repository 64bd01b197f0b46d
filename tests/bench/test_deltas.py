from bench import deltas


def test_every_token_arrives_and_is_timed() -> None:
    figures = deltas.measure(tokens=100, interval=0.001, readers=2)
    assert 0 < figures["p50 ms"] <= figures["p99 ms"] <= figures["most ms"]
    assert 1 <= figures["rows"] < 100
