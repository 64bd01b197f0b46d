"""Short campaigns, with all that a long one proves; `make campaign-store` is long, and judges the seconds too."""

import asyncio
from pathlib import Path

import pytest

from tests.campaign.store.campaign import Campaign
from tests.campaign.store.report import as_text
from tests.campaign.store.schedule import CRASH, RESTART, Terms, schedule
from tests.support.postgres_cluster import needed_here, why_not

LEASE = 10.0
"""Seconds. Long enough for a busy machine to start a control plane and connect its workers."""

SQLITE = Terms(seed=1, store="sqlite", kills=2)
POSTGRESQL = Terms(seed=3, store="postgresql", kills=1, restarts=2, cuts=1)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("terms", [SQLITE, POSTGRESQL], ids=["sqlite", "postgresql"])
def test_a_short_campaign(terms: Terms, tmp_path: Path) -> None:
    reason = why_not()
    if terms is POSTGRESQL and reason is not None:
        assert not needed_here(), f"this test must not be skipped here: {reason}"
        pytest.skip(reason)
    findings = asyncio.run(Campaign(terms, tmp_path, print, lease_duration=LEASE).run())
    assert findings.problems == [], as_text(findings)
    assert [cost.kind for cost in findings.costs] == [fault.kind for fault in schedule(terms)]
    assert findings.runs > 0
    assert findings.jobs == 4 * (findings.runs + findings.batches)


def test_the_short_campaign_has_every_restart() -> None:
    assert {RESTART, CRASH} < {fault.kind for fault in schedule(POSTGRESQL)}
