from control_plane.domain.retention import Past, going


def past(seq, ended=10, events=0, created=1):
    return Past(seq=seq, created_at=created, ended_at=ended, events=events)


def test_what_ended_before_goes_and_the_look_goes_on():
    found = going([past(1), past(2), past(3)], before=11, limit=100, looks=3)
    assert (found.seqs, found.position, found.kept) == ([1, 2, 3], 3, False)


def test_what_goes_on_or_ended_later_stays():
    found = going([past(1, ended=None), past(2), past(3, ended=11)], before=11, limit=100, looks=3)
    assert (found.seqs, found.position, found.kept) == ([2], 3, True)


def test_the_look_ends_where_nothing_can_be_past():
    found = going([past(1), past(2, created=11), past(3)], before=11, limit=100, looks=3)
    assert (found.seqs, found.position) == ([1], None)
    assert going([past(1)], before=11, limit=100, looks=3).position is None
    assert not going([], before=11, limit=100, looks=3)


def test_a_transaction_has_about_so_many_rows():
    found = going([past(seq, events=20) for seq in range(1, 9)], before=11, limit=50, looks=8)
    assert (found.seqs, found.position) == ([1, 2], 2)


def test_a_run_with_more_events_than_that_goes_by_itself_from_its_end():
    many = [past(1), past(2, events=1000), past(3)]
    first = going(many, before=11, limit=50, looks=3)
    assert (first.seqs, first.position, first.cut) == ([1], 1, None)
    second = going(many[1:], before=11, limit=50, looks=3)
    assert (second.seqs, second.position, second.cut) == ([], 1, 2)
    assert second
