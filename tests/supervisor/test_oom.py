"""Blame for a kill, as a table: (what the counter says and which deaths come, in order) -> the verdicts."""

import pytest

from supervisor.oom import FRESH, Blame

SEE, DIE, WAIT = "see", "die", "wait"


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ([(SEE, 0), (SEE, 1), (DIE, 1)], [True]),
        ([(SEE, 7), (DIE, 1)], [False]),
        ([(SEE, 7), (SEE, 8), (DIE, 1), (DIE, 1)], [True, False]),
        ([(SEE, 0), (SEE, 2), (DIE, 2)], [True]),
        ([(SEE, 0), (SEE, 1), (SEE, 1), (DIE, 1)], [True]),
        ([(SEE, 0), (SEE, 1), (DIE, 2)], [None]),
        ([(SEE, 0), (SEE, 1), (DIE, 2), (DIE, 1)], [None, False]),
        ([(SEE, 0), (SEE, 1), (WAIT, FRESH + 1), (DIE, 1)], [False]),
        ([(SEE, 0), (SEE, 1), (WAIT, FRESH + 1), (SEE, 2), (DIE, 2)], [None]),
        ([(SEE, None), (DIE, 1)], [None]),
        ([(DIE, 1)], [None]),
        ([(SEE, None), (SEE, 5), (DIE, 1)], [False]),
    ],
)
def test_blame(story: list[tuple[str, float]], expected: list[bool | None]) -> None:
    blame, now, verdicts = Blame(), 1000.0, []
    for what, value in story:
        if what == SEE:
            blame.observe(value if value is None else int(value), now)
        elif what == DIE:
            verdicts.append(blame.judge(int(value), now))
        else:
            now += value
    assert verdicts == expected
