"""A short campaign, with everything that a long one proves but for the supervisor's memory; `make campaign` is long."""

import asyncio
from pathlib import Path

import pytest

from tests.campaign.campaign import Campaign, Terms
from tests.campaign.report import as_text
from tests.campaign.schedule import KINDS

SEED = 28696
"""Whose first faults are of every kind."""


@pytest.mark.timeout(300)
def test_a_short_campaign(tmp_path: Path) -> None:
    terms = Terms(seed=SEED, faults=18, workers=6)
    findings = asyncio.run(Campaign(terms, tmp_path, print).run())
    assert findings.problems == [], as_text(findings)
    assert set(findings.recoveries) == set(KINDS)
    assert sum(len(seconds) for seconds in findings.recoveries.values()) == terms.faults
    assert findings.jobs > 0
