"""What an end says, and when two ends are the same."""

import pytest

from supervisor.faults import fingerprint, says


@pytest.mark.parametrize(
    ("output", "last_words", "expected"),
    [
        ([], "", ""),
        (
            ["Traceback (most recent call last):", "  File x", "ValueError: no such port", ""],
            "",
            "ValueError: no such port",
        ),
        (["noise"], "the key was refused", "the key was refused"),
        (
            ["Fatal Python error: Segmentation fault", "Current thread 0x7f:", "  File x"],
            "",
            "Fatal Python error: Segmentation fault",
        ),
        (
            ['{"level":"error","event":"child.cannot_work","reason":"no queues","timestamp":"now"}'],
            "",
            "child.cannot_work: no queues",
        ),
        (['{"level":"info","event":"ready"}'], "", "ready"),
        (["{broken"], "", "{broken"),
        (["[1]"], "", "[1]"),
        (['{"no":"event"}'], "", '{"no":"event"}'),
    ],
)
def test_the_line_that_explains_an_end(output: list[str], last_words: str, expected: str) -> None:
    assert says(output, last_words) == expected


def test_it_is_bounded() -> None:
    assert len(says(["x" * 8192], "")) == 400


def test_numbers_make_no_difference_and_words_do() -> None:
    first = fingerprint("exit code 1", "12:31:01 worker 4711 at 0x7fa3: refused by 10.0.0.1")
    assert first == fingerprint("exit code 1", "12:31:05 worker 4802 at 0x7fb9: refused by 10.0.0.1")
    assert first != fingerprint("exit code 1", "12:31:05 worker 4802 at 0x7fb9: accepted by 10.0.0.1")
    assert first != fingerprint("signal 11", "12:31:01 worker 4711 at 0x7fa3: refused by 10.0.0.1")
