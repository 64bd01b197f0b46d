"""Waiting with a deadline."""

import asyncio

import pytest

from tests.campaign.changes import CampaignError, Changes


async def test_what_holds_already_is_not_waited_for() -> None:
    await Changes().until(lambda: True, 0.0, "nothing")


async def test_a_change_wakes_whoever_waits_for_it() -> None:
    changes, seen = Changes(), [0]
    waiting = asyncio.ensure_future(changes.until(lambda: seen[0] == 2, 30.0, "two"))
    await asyncio.sleep(0)
    for number in (1, 2):
        seen[0] = number
        changes.told()
        assert waiting.done() is False
    await waiting


async def test_a_deadline_says_what_did_not_come_about() -> None:
    with pytest.raises(CampaignError, match=r"after 0.01 s still not so: the sky falls"):
        await Changes().until(lambda: False, 0.01, "the sky falls")
