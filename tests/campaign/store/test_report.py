"""Findings in, text and JSON out."""

import json

from tests.campaign.store.report import Findings, as_json, as_text, late, not_judged
from tests.campaign.store.throughput import Moment


def findings(stolen: float = 0.0) -> Findings:
    found = Findings(store="postgresql", seed=5, kills=2, restarts=1)
    steady = [number / 10 for number in range(1000) if not 200 <= number < 350]
    kill = Moment(kind="kill a control plane", at=10.0)
    found.measure(steady, [kill, Moment(kind="crash postgresql", at=20.0, stolen=stolen)])
    return found


def test_the_text_has_a_line_for_each_kind_and_says_what_was_late() -> None:
    text = as_text(findings())
    assert "kill a control plane" in text
    assert "LATE: fault 2 (crash postgresql): 15.0 s until the throughput was back" in text
    assert "make campaign-store STORE=postgresql SEED=5 KILLS=2 RESTARTS=1 CUTS=0" in text
    assert len(late(findings())) == 1


def test_a_fault_without_a_machine_to_be_back_on_is_told_and_not_judged() -> None:
    told = "fault 2 (crash postgresql): 15.0 s until the throughput was back, while others had 60% of the processors"
    assert (late(findings(0.6)), not_judged(findings(0.6))) == ([], [told])
    assert f"NOT JUDGED: {told}" in as_text(findings(0.6))
    assert not_judged(findings(0.2)) == []


def test_problems_come_instead_of_the_proof() -> None:
    found = findings()
    assert "nothing acknowledged was lost" in as_text(found)
    found.problems.append("a run was lost")
    assert "NOT SO: a run was lost" in as_text(found)
    assert "nothing acknowledged was lost" not in as_text(found)


def test_json_has_everything() -> None:
    told = json.loads(as_json(findings()))
    assert (told["store"], len(told["costs"]), told["usual"]) == ("postgresql", 2, 10.0)
