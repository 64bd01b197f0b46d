"""What a campaign tells people and programs."""

import json

import msgspec

from tests.campaign.faults import Recovery
from tests.campaign.report import MIB, Findings, Sample, as_json, as_text, growth
from tests.campaign.schedule import schedule

HELD = Sample(faults=100, descriptors={"socket": 25, "pipe": 43}, uss=20 * MIB, pss=30 * MIB)


def later(**changed: object) -> Sample:
    return msgspec.structs.replace(HELD, faults=500, **changed)


def test_the_same_is_no_growth() -> None:
    assert growth(HELD, later(uss=int(20.9 * MIB), pss=int(28.6 * MIB)), memory=True) == []


def test_one_descriptor_more_or_less_is_told() -> None:
    (told,) = growth(HELD, later(descriptors={"socket": 25, "pipe": 44}), memory=True)
    assert told.endswith("{'pipe': 1}")
    (told,) = growth(HELD, later(descriptors={"socket": 25}), memory=True)
    assert told.endswith("{'pipe': -43}")


def test_memory_is_told_beyond_five_percent_both_ways() -> None:
    assert len(growth(HELD, later(uss=int(21.1 * MIB)), memory=True)) == 1
    assert len(growth(HELD, later(pss=int(28.4 * MIB)), memory=True)) == 1
    assert growth(HELD, later(uss=40 * MIB), memory=False) == []


def findings() -> Findings:
    found = Findings(seed=7, faults=500, workers=20, samples=[HELD, later()], runs=3, jobs=12)
    for fault, seconds in zip(schedule(7, 3, 20), (0.5, 1.5, 2.5), strict=True):
        found.add(Recovery(fault=fault, seconds=seconds))
    return found


def test_a_campaign_that_proved_it() -> None:
    text = as_text(findings())
    assert "proved (seed 7)" in text
    assert "NOT SO" not in text
    for fault in schedule(7, 3, 20):
        assert fault.kind in text


def test_a_campaign_that_failed_tells_how_to_have_it_again() -> None:
    found = findings()
    found.problems.append("a slot is lost")
    text = as_text(found)
    assert "NOT SO: a slot is lost" in text
    assert text.endswith("again: make campaign SEED=7 FAULTS=500 WORKERS=20")
    assert "proved" not in text


def test_kills_alone() -> None:
    text = as_text(Findings(seed=7, faults=0, workers=20, kills=[5.0, 6.0, 5.5]))
    assert text.startswith(
        "the quickstart's supervisor killed 3 times: nothing was left after 5.5 s (median; worst 6.0 s)"
    )
    assert text.endswith("proved (seed 7)")


def test_json() -> None:
    found = json.loads(as_json(findings()))
    assert found["seed"] == 7
    assert found["samples"][0]["descriptors"] == {"socket": 25, "pipe": 43}
    assert sum(len(seconds) for seconds in found["recoveries"].values()) == 3
