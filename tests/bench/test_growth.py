"""The measurement of what is not to grow: short versions of all of it, whose figures are of the right things."""

import json
import sys

import pytest

from bench import growth
from control_plane.domain.store import JobFilter
from tests.support.postgres_cluster import why_not

KINDS = ["sqlite", *([] if why_not() else ["postgresql"])]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_seeded_store_has_what_was_asked_for(kind, tmp_path) -> None:
    with growth.place(kind, tmp_path) as url:
        await growth.seed(url, pending=300, finished=200)
        store, session = await growth.opened(url)
        assert (await store.load()).jobs_pending == 300
        leases = await growth.claim(store, session)
        assert len(leases) == growth.CLAIMED
        await growth.report(store, leases)
        page = await store.jobs(session.project_id, JobFilter(status="completed"), cursor=None, limit=1000)
        assert len(page.items) == 200 + len(leases)
        await store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_claims_are_compared_between_much_and_little(kind) -> None:
    figures = growth.claims(kind, 20 * growth.CLAIMED * growth.CALLERS, 1000, 1)
    for figure in ("claims/s", "reports/s"):
        little, much = figures[f"{figure} with little"], figures[f"{figure} with much"]
        assert min(little, much) > 0
        assert figures[f"{figure}, much to little"] == much / little


def test_memory_and_idleness_are_those_of_the_control_plane(monkeypatch, capsys) -> None:
    command = ["bench", "memory", "idle", "--store=sqlite", "--jobs=400", "--workers=30", "--idle-seconds=1"]
    monkeypatch.setattr(sys, "argv", [*command, "--output=json"])
    growth.main()
    figures = json.loads(capsys.readouterr().out)["figures"]
    memory, idle = figures["memory, sqlite"], figures["idle, sqlite"]
    assert len(memory["samples"]) == growth.SAMPLES
    assert all(megabytes > 1 for megabytes in memory["samples"])
    assert 0 <= idle["% of a core"] <= idle["% in the busiest window"]
