import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.domain.conditions import DEEPEST, LONGEST, ConditionError, equal, parse
from control_plane.domain.templates import descend

VALUES = {
    "inputs": {"n": 5, "t": "abc", "yes": True, "no": False, "none": None, "o": {"a": [1, 2]}, "list": []},
    "context": {"check": {"ok": True}},
}


def look_up(path):
    return descend(VALUES[path.root], path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".inputs.yes", True),
        (".inputs.none", False),
        (".inputs.missing", False),
        (".inputs.missing.deeper == null", True),
        ("!.inputs.missing", True),
        ("!!.inputs.yes", True),
        (".inputs.n == 5.0", True),
        (".inputs.n != 5", False),
        (".inputs.n > 4 && .inputs.n <= 5", True),
        (".inputs.n<-1.5e1", False),
        (".inputs.t >= 'abc'", True),
        ('.inputs.t == "\\u0061bc"', True),
        (".inputs.yes == 1", False),
        (".inputs.yes == true", True),
        (".inputs.o.a.1 == 2", True),
        (".inputs.o == .inputs.o", True),
        (".inputs.list == .inputs.o.a", False),
        (".context.check.ok || .inputs.t", True),
        (".inputs.no && .inputs.t", False),
        ("true || false && false", True),
        ("(true || false) && false", False),
        ("(.inputs.n > 1) == true", True),
        (" .inputs.n\n== 5 ", True),
    ],
)
def test_what_holds(text, expected):
    assert parse(text).holds(look_up) is expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", 'expected a path such as .inputs.a, a value or "(", found the end'),
        (".inputs.n ==", "found the end"),
        (".inputs.n = 5", "'= 5' is not understood"),
        (".inputs.n == 5 6", "expected an operator"),
        (".inputs.n and true", "write && instead of and"),
        ("not .inputs.n", "write ! instead of not"),
        (".inputs.n == None", "write null instead of None"),
        ("(.inputs.n", 'expected ")", found the end'),
        (".env.x", "unknown root .env"),
        ("inputs.n == 1", "found 'inputs'"),
        (".inputs.n + 1 > 2", "'+ 1 > 2' is not understood"),
        ("len(.inputs.list)", "found 'len'"),
        (".inputs.n == '", "is not understood"),
        ('"\\x"', "is no JSON value"),
        ("1e999 > 1", "is no JSON value"),
        ("!" * (DEEPEST + 1) + "true", "at most 16 levels deep"),
        ("(" * (DEEPEST + 1) + "true" + ")" * (DEEPEST + 1), "at most 16 levels deep"),
        ("true ||" * LONGEST, "at most 1024 characters"),
    ],
)
def test_what_is_no_condition(text, sentence):
    with pytest.raises(ConditionError) as caught:
        parse(text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (".inputs.t", ".inputs.t is a text where true or false is needed"),
        ("5 && true", "it has a number where true or false is needed"),
        (".inputs.n < 'a'", "< compares two numbers or two texts, not a number with a text"),
        (".inputs.missing > 1", "> compares two numbers or two texts, not null with a number"),
        (".inputs.yes < 2", "not true with a number"),
    ],
)
def test_what_cannot_be_decided(text, sentence):
    with pytest.raises(ConditionError) as caught:
        parse(text).holds(look_up)
    assert sentence in str(caught.value)


def test_what_need_not_be_looked_at_is_not():
    assert parse("true || .inputs.t").holds(look_up)
    assert not parse("false && .inputs.t").holds(look_up)


def test_paths_are_all_that_it_reads():
    condition = parse("!(.inputs.a == .context.b.c) || .event.d && 'x' < 'y'")
    assert [str(path) for path in condition.paths()] == [".inputs.a", ".context.b.c", ".event.d"]


@settings(max_examples=300)
@given(st.text(alphabet=" .inputsn(){}&|!=<>'\"0159-e\\\n", max_size=60))
def test_any_text_is_a_condition_or_a_sentence(text):
    with suppress(ConditionError):
        parse(text).holds(look_up)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
def test_equality_is_that_of_json(left, right):
    assert equal(left, json.loads(json.dumps(left)))
    assert equal(left, right) == equal(right, left)
