"""A seed in, the faults of a campaign out."""

from collections import Counter

import pytest

from tests.campaign.changes import CampaignError
from tests.campaign.store.schedule import CRASH, CUT, CUT_ALL, KILL, KILL_ALL, RESTART, Terms, schedule

LONG = Terms(seed=7, store="postgresql", kills=200, restarts=20, cuts=40)


def test_a_seed_decides() -> None:
    assert schedule(LONG) == schedule(LONG)
    assert schedule(LONG) != schedule(Terms(seed=8, store="postgresql", kills=200, restarts=20, cuts=40))


def test_as_many_as_are_asked_for() -> None:
    kinds = Counter(fault.kind for fault in schedule(LONG))
    assert kinds[KILL] + kinds[KILL_ALL] == 200
    assert (kinds[RESTART], kinds[CRASH]) == (10, 10)
    assert kinds[CUT] + kinds[CUT_ALL] == 40
    assert min(kinds.values()) > 0
    assert [fault.number for fault in schedule(LONG)] == list(range(1, 261))


def test_a_file_has_one_control_plane_and_no_server() -> None:
    assert {fault.kind for fault in schedule(Terms(seed=7, store="sqlite", kills=50))} == {KILL}
    with pytest.raises(CampaignError):
        Terms(seed=7, store="sqlite", kills=1, restarts=1)
