import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.depth import has_more_elements, is_deeper


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


json_values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\\\a\\n'),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(alphabet='[{"\\\\'), children, max_size=4)
    ),
    max_leaves=30,
)


@given(json_values, st.integers(0, 6))
def test_it_is_the_depth_that_walking_the_value_gives(value: Any, limit: int) -> None:
    text = json.dumps(value, indent=1)
    assert is_deeper(text, limit) == is_deeper(text.encode(), limit) == (depth(value) > limit)


@pytest.mark.parametrize(("levels", "deeper"), [(200, False), (201, True), (100_000, True)])
def test_the_limit_itself_is_allowed(levels: int, deeper: bool) -> None:
    assert is_deeper(b"[" * levels + b"]" * levels, 200) == deeper


def test_wide_is_not_deep() -> None:
    assert not is_deeper(json.dumps([{"a": ["[[["]}] * 1000), 3)


def elements(value: Any) -> int:
    """Strings, commas and openings."""
    if isinstance(value, dict):
        return 1 + max(0, len(value) - 1) + len(value) + sum(map(elements, value.values()))
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(elements, value))
    return 1 if isinstance(value, str) else 0


@given(json_values, st.integers(0, 40))
def test_they_are_the_elements_that_walking_the_value_gives(value: Any, limit: int) -> None:
    text = json.dumps(value)
    assert has_more_elements(text, limit) == has_more_elements(text.encode(), limit) == (elements(value) > limit)


def test_text_is_no_element_whatever_it_holds() -> None:
    table = json.dumps({"csv": 'a,"b",[c]\n' * 100_000})
    assert not has_more_elements(table, 10)
    assert has_more_elements(b"[" + b"[]," * 1000 + b"0]", 1000)
    assert has_more_elements(b'["' + b'","' * 1000 + b'"]', 1000)
    # Cut off in the middle of a text, and no JSON at all.
    assert has_more_elements(b"[" + b"[]," * 1000 + b'"', 1000)
    assert not has_more_elements(b"x" * 5000, 1000)
