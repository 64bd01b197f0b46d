"""Lines of handlers in, what is wrong with them out."""

import pytest

from tests.campaign.store.ledger import Ledger, problems_of


@pytest.mark.parametrize(
    ("lines", "attempt"),
    [
        (["1 begins", "1 is done"], 1),
        (["3 begins", "3 is done"], 3),
        (["1 begins", "2 begins", "2 is done"], 2),
    ],
)
def test_done_once(lines: list[str], attempt: int) -> None:
    assert problems_of("job_1", lines, attempt) == []


@pytest.mark.parametrize(
    ("lines", "attempt", "says"),
    [
        ([], 1, "was done 0 times"),
        (["1 begins"], 1, "was done 0 times"),
        (["1 begins", "1 is done", "2 begins", "2 is done"], 2, "was done 2 times"),
        (["1 begins", "1 is done", "2 begins"], 2, "was done, and begun again"),
        (["1 begins", "1 begins", "1 is done"], 1, "begun twice in one attempt"),
        (["1 begins", "1 is done"], 2, "was done by attempt 1, and its record says 2"),
    ],
)
def test_not_done_once(lines: list[str], attempt: int, says: str) -> None:
    (told,) = problems_of("job_1", lines, attempt)
    assert says in told


def test_what_moves_and_what_is_done() -> None:
    ledger = Ledger(lambda _name: 2)
    ledger.note("run-1 job_1 1 begins\n", 1.0)
    ledger.note("run-1 job_1 1 is done\n", 2.0)
    ledger.note("run-2 job_3 1 begins\n", 2.5)
    assert (ledger.done_at, ledger.moving) == ([2.0], {"run-1", "run-2"})
    ledger.forget_moving()
    ledger.note("run-1 job_2 1 is done\n", 3.0)
    assert ledger.is_done("run-1")
    assert not ledger.is_done("run-2")
    assert ledger.moving == set()
    assert ledger.lines == {"job_1": ["1 begins", "1 is done"], "job_3": ["1 begins"], "job_2": ["1 is done"]}
