from hypothesis import given
from hypothesis import strategies as st

from wire.lines import MAX_LINE, LineCutter


@given(st.lists(st.binary(max_size=20).map(lambda piece: piece.replace(b"o", b"\n")), max_size=20))
def test_however_output_arrives_its_lines_are_the_same(pieces: list[bytes]) -> None:
    cutter = LineCutter()
    lines = [line for piece in pieces for line in cutter.cut(piece)] + cutter.rest()
    whole = b"".join(pieces)
    assert lines == whole.removesuffix(b"\n").split(b"\n") if whole else not lines


def test_a_long_line_is_cut_whether_it_has_ended_or_not() -> None:
    cutter = LineCutter()
    assert [len(line) for line in cutter.cut(b"x" * (2 * MAX_LINE + 1))] == [MAX_LINE, MAX_LINE]
    assert cutter.cut(b"\n") == [b"x"]
    assert [len(line) for line in cutter.cut(b"x" * (MAX_LINE + 1) + b"\n")] == [MAX_LINE, 1]
    assert cutter.rest() == []
