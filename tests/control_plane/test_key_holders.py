"""What a key has opened ends with it, whichever way its end becomes known."""

from msgspec.structs import replace

from control_plane import key_holders
from control_plane.domain.model import ApiKey
from control_plane.domain.store import KeyChanged, RunChanged
from control_plane.key_holders import KeyHolders


def key(number=1, **fields):
    return ApiKey(id=f"key_{number}", project_id="p", project_handle="default", name="n", created_at=0, **fields)


class Opened:
    def __init__(self, holders, of):
        self.ends = 0
        self.held = holders.hold(of, self.end)

    def end(self):
        self.ends += 1


def call(ends):
    for end in ends:
        end()


def test_a_revocation_ends_what_that_key_holds_and_nothing_else():
    holders = KeyHolders()
    mine, also_mine, others = Opened(holders, key(1)), Opened(holders, key(1)), Opened(holders, key(2))
    facts = [RunChanged(project_id="p", run_id="r", last_sequence=1), KeyChanged(key_id="key_1", ends_at=10)]
    call(holders.committed(facts, 10))
    assert (mine.ends, also_mine.ends, others.ends) == (1, 1, 0)
    call(holders.committed(facts, 11))
    assert mine.ends == 1
    assert (holders.held_by(key(1)), holders.held_by(key(2))) == (0, 1)


def test_an_end_that_is_to_come_is_kept_and_never_moves_later():
    holders = KeyHolders()
    opened = Opened(holders, key())
    assert holders.next_end() is None
    assert holders.committed([KeyChanged(key_id="key_1", ends_at=50)], 10) == []
    assert holders.committed([KeyChanged(key_id="key_1", ends_at=90)], 10) == []
    assert holders.next_end() == 50
    assert holders.expired(49) == []
    call(holders.expired(50))
    assert opened.ends == 1
    assert holders.next_end() is None


def test_a_key_that_expires_by_itself():
    holders = KeyHolders()
    opened = Opened(holders, key(expires_at=20))
    assert holders.next_end() == 20
    call(holders.expired(20))
    assert opened.ends == 1


def test_what_is_told_corrects_a_record_that_was_read_before():
    holders = KeyHolders()
    old_record = key()
    holders.committed([KeyChanged(key_id="key_1", ends_at=10)], 10)
    assert holders.has_ended(old_record, 10)
    assert not holders.has_ended(key(2), 10)


def test_the_poll_finds_what_no_fact_told():
    holders = KeyHolders()
    opened = Opened(holders, key())
    call(holders.read([replace(key(), revoked_at=5), key(2)], 6))
    assert opened.ends == 1


def test_what_is_released_is_not_ended():
    holders = KeyHolders()
    opened = Opened(holders, key())
    holders.release(opened.held)
    holders.release(opened.held)
    call(holders.committed([KeyChanged(key_id="key_1", ends_at=1)], 1))
    assert opened.ends == 0


def test_use_is_taken_once_and_what_is_open_counts_as_used():
    holders = KeyHolders()
    holders.used(key(1), 5)
    holders.used(key(1), 6)
    opened = Opened(holders, key(2))
    assert holders.take_used(9) == {"key_1": 6, "key_2": 9}
    holders.release(opened.held)
    assert holders.take_used(10) == {}


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(key_holders, "MOST_TOLD", 3)
    holders = KeyHolders()
    holders.committed([KeyChanged(key_id=f"key_{number}", ends_at=1) for number in range(10)], 1)
    assert len(holders._told) == 3
