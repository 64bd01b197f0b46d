"""Whose bytes are read when the sockets of a key hold more than is held."""

import pytest

from control_plane.web import inbound_bytes
from control_plane.web.inbound_bytes import UNCOUNTED, InboundBytes


class Socket:
    def __init__(self) -> None:
        self.looks = 0

    def look_again(self) -> None:
        self.looks += 1


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(inbound_bytes, "MOST_HELD", 10 * UNCOUNTED)
    return 10 * UNCOUNTED


def test_everybody_sends_while_there_is_room(most: int) -> None:
    inbound, sockets = InboundBytes(), [Socket() for _ in range(5)]
    for socket in sockets:
        inbound.hold(socket, most // 5)
    assert all(inbound.may_send(socket) for socket in sockets)


def test_beyond_it_the_first_goes_on_and_whoever_holds_little(most: int) -> None:
    inbound, first, second, little, new = InboundBytes(), Socket(), Socket(), Socket(), Socket()
    inbound.hold(first, most // 2)
    inbound.hold(second, most)
    inbound.hold(little, UNCOUNTED - 1)
    assert [inbound.may_send(socket) for socket in (first, second, little, new)] == [True, False, True, True]
    inbound.hold(first, 2 * most)
    assert (inbound.may_send(first), second.looks) == (True, 0)


def test_the_next_is_woken_when_the_first_is_done(most: int) -> None:
    inbound, first, second, third = InboundBytes(), Socket(), Socket(), Socket()
    for socket in (first, second, third):
        inbound.hold(socket, most)
    assert not inbound.may_send(second)
    assert not inbound.may_send(third)
    inbound.hold(first, 0)
    assert (second.looks, third.looks) == (1, 0)
    assert inbound.may_send(second)
    inbound.hold(second, 0)
    assert third.looks == 1
    assert inbound.may_send(third)


def test_all_are_woken_when_there_is_room_again(most: int) -> None:
    inbound, first, second, third = InboundBytes(), Socket(), Socket(), Socket()
    for socket in (first, second, third):
        inbound.hold(socket, most // 2)
    assert not inbound.may_send(second)
    assert not inbound.may_send(third)
    inbound.hold(first, 0)
    assert (second.looks, third.looks) == (1, 1)


def test_one_that_is_gone_is_not_woken(most: int) -> None:
    inbound, first, second, third = InboundBytes(), Socket(), Socket(), Socket()
    for socket in (first, second, third):
        inbound.hold(socket, most)
    assert not inbound.may_send(second)
    assert not inbound.may_send(third)
    inbound.hold(second, 0)
    inbound.hold(first, 0)
    assert (second.looks, third.looks) == (0, 1)
