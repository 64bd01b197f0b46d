"""Lines of effects in, what is wrong with them out."""

import pytest

from tests.campaign.effects import problems_of


@pytest.mark.parametrize(
    ("lines", "attempts"),
    [
        (["1 begins", "1 is done"], 1),
        (["1 begins", "2 begins", "2 is done"], 2),
    ],
)
def test_done_once(lines: list[str], attempts: int) -> None:
    assert problems_of({"job_1": lines}, {"job_1": attempts}) == []


@pytest.mark.parametrize(
    ("lines", "attempts", "says"),
    [
        (["1 begins"], 1, "was done 0 times"),
        (["1 begins", "1 is done", "2 begins", "2 is done"], 2, "was done 2 times"),
        (["1 begins", "1 is done", "2 begins"], 2, "was done, and begun again"),
        (["1 begins", "1 begins", "1 is done"], 1, "was begun 2 times, and its record says 1"),
    ],
)
def test_not_done_once(lines: list[str], attempts: int, says: str) -> None:
    (told,) = problems_of({"job_1": lines}, {"job_1": attempts})
    assert says in told


def test_a_job_without_a_trace() -> None:
    assert problems_of({}, {"job_1": 1}) == ["job job_1 was never begun"]
