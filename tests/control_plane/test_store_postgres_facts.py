"""What decisions need is loaded with few questions: everybody's writes wait for each."""

import pytest

from control_plane.store import postgres_facts
from control_plane.store.postgres_facts import Facts
from tests.support.store_scenario import action, scenario

STEPS = 50


@pytest.fixture
async def s(postgres_place):
    async with scenario(postgres_place) as made:
        yield made


@pytest.fixture
def questions(monkeypatch):
    """The kinds of facts that were missed, a list for each question."""
    asked = []
    load = Facts.load

    async def counted(self, connection, missing):
        asked.append([kind for kind, *_ in missing])
        await load(self, connection, missing)

    monkeypatch.setattr(Facts, "load", counted)
    return asked


def waits(number):
    return [{"key": f"w{n}", "kind": "wait_for_event", "config": {"event_type": "e"}} for n in range(number)]


async def early(s, size):
    """A run whose signals have all come, but for the first one's."""
    await s.publish("a", waits(STEPS))
    run = await s.start("a")
    for number in range(1, STEPS):
        await s.signal(run, f"w{number}", {"x": "y" * size})
    return run


async def test_signals_that_came_early_are_read_together(s, questions):
    run = await early(s, 10)
    questions.clear()
    await s.signal(run, "w0")
    assert (await s.run(run)).status == "completed"
    assert questions.count(["signal"]) == 2
    assert [step.result for step in await s.steps(run)][1:] == [{"x": "y" * 10}] * (STEPS - 1)


async def test_large_ones_come_in_parts(s, questions, monkeypatch):
    monkeypatch.setattr(postgres_facts, "AHEAD_BYTES", (0, 30_000, 100_000))
    run = await early(s, 10_000)
    questions.clear()
    await s.signal(run, "w0")
    assert (await s.run(run)).status == "completed"
    assert questions.count(["signal"]) == 7
    assert [step.result for step in await s.steps(run)][1:] == [{"x": "y" * 10_000}] * (STEPS - 1)


async def test_results_that_a_step_names_are_read_together(s, questions):
    names = {f"n{number}": f"{{{{ .context.s{number}.n }}}}" for number in range(STEPS)}
    last = {"key": "last", "kind": "action", "config": {"action_name": "print", "parameters": names}}
    await s.publish("a", [*(action(f"s{number}") for number in range(STEPS)), action("between"), last])
    run = await s.start("a")
    for number in range(STEPS):
        await s.report(await s.claim_one(), result={"n": number})
    between = await s.claim_one()
    questions.clear()
    await s.report(between)
    assert questions.count(["saved"]) == 2
    (*_, shown) = await s.steps(run)
    assert shown.parameters == {f"n{number}": number for number in range(STEPS)}
