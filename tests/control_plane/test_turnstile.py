"""Large pieces of work: one at a time, keys in turns, and the loop free in between."""

import asyncio

import pytest

from control_plane.turnstile import Turnstile


async def test_keys_take_turns_and_each_keeps_its_order() -> None:
    turnstile = Turnstile()
    done: list[str] = []
    for number in range(3):
        turnstile.add("a", lambda number=number: done.append(f"a{number}"))
    turnstile.add("b", lambda: done.append("b0"))
    assert done == []
    await turnstile.do("b", lambda: done.append("b1"))
    await turnstile.do("a", lambda: None)
    assert done == ["a0", "b0", "a1", "b1", "a2"]


async def test_what_fails_is_told_to_the_one_who_asked_and_stops_nobody() -> None:
    turnstile = Turnstile()

    def fail() -> None:
        raise ValueError("no JSON")

    turnstile.add("a", fail)
    with pytest.raises(ValueError, match="no JSON"):
        await turnstile.do("a", fail)
    assert await turnstile.do("a", lambda: 7) == 7


async def test_work_of_someone_who_has_gone_is_left_out() -> None:
    turnstile = Turnstile()
    done: list[str] = []
    asked = asyncio.create_task(turnstile.do("a", lambda: done.append("gone")))
    await asyncio.sleep(0)
    asked.cancel()
    await turnstile.do("a", lambda: done.append("here"))
    assert done == ["here"]


async def test_the_loop_is_free_between_two_pieces() -> None:
    loop = asyncio.get_running_loop()
    turnstile = Turnstile()
    ends: list[float] = []
    begins: list[float] = []

    def piece() -> None:
        begins.append(loop.time())
        until = loop.time() + 0.02
        while loop.time() < until:
            pass
        ends.append(loop.time())

    for _ in range(3):
        turnstile.add("a", piece)
    await turnstile.do("a", lambda: None)
    assert all(begin - end >= 0.02 for end, begin in zip(ends, begins[1:], strict=False))
