from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.domain.templates import TemplateError, descend, paths_in, render

VALUES = {"inputs": {"a": {"b": 5}, "list": [{"x": "y"}], "text": "hi", "none": None}, "context": {"one": {"ok": True}}}


@contextmanager
def suppress_missing_keys():
    try:
        yield
    except TemplateError as error:
        if "has no" not in str(error):
            raise


def look_up(path):
    return descend(VALUES[path.root], path)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ .inputs.a.b }}", 5),
        ("{{.inputs.a}}", {"b": 5}),
        ("{{ .inputs.list.0.x }}", "y"),
        ("{{ .context.one.ok }}", True),
        ("got {{ .inputs.a.b }} and {{ .inputs.text }}", "got 5 and hi"),
        ("{{ .inputs.a }}!", '{"b":5}!'),
        (" {{ .inputs.none }}", " null"),
        ("{{ .inputs.text }}{{ .inputs.text }}", "hihi"),
        ("plain { } }}", "plain { } }}"),
        ({"k": ["{{ .inputs.a.b }}", 1]}, {"k": [5, 1]}),
        ({"{{ .inputs.a }}": 1}, {"{{ .inputs.a }}": 1}),
    ],
)
def test_rendering(template, expected):
    assert render(template, look_up) == expected


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ .inputs.a.c }}", ".inputs.a has no 'c'"),
        ("{{ .inputs.list.1 }}", ".inputs.list has no '1'"),
        (f"{{{{ .inputs.list.{'9' * 5000} }}}}", ".inputs.list has no '9999"),
        ("{{ .inputs.text.0 }}", ".inputs.text has no '0'"),
        ("{{ inputs.a }}", "only a path"),
        ("{{ .inputs.a | json }}", "only a path"),
        ("{{ }}", "only a path"),
        ("{{ .secrets.a }}", "unknown root .secrets"),
    ],
)
def test_what_cannot_be_rendered(template, sentence):
    with pytest.raises(TemplateError, match=sentence):
        render(template, look_up)


def test_templates_that_name_much_many_times_insert_a_bounded_amount():
    large = {"x": "y" * 300_000}
    assert render("{{ .inputs.x }}", lambda _: large) is large
    with pytest.raises(TemplateError, match="more than 1048576 bytes"):
        render(["{{ .inputs.x }}"] * 4, lambda _: large)
    with pytest.raises(TemplateError, match="more than 1048576 bytes"):
        render("{{ .inputs.x }}" * 1000, lambda _: large)


def test_what_is_inserted_does_not_nest_without_end():
    deep = [[]]
    for _ in range(150):
        deep = [deep]
    assert render(["{{ .inputs.x }}"], lambda _: deep) == [deep]
    value = "{{ .inputs.x }}"
    for _ in range(60):
        value = [value]
    with pytest.raises(TemplateError, match="200 levels"):
        render(value, lambda _: deep)


def test_braces_that_are_never_closed_are_looked_for_once():
    """Quadratic, this would go on for a day."""
    ((place, error),) = paths_in("{{" * 500_000, "x")
    assert (place, str(error)) == ("x", '"{{" without "}}"')
    ((_, error),) = paths_in("{{" * 500_000 + "}}", "x")
    assert len(str(error)) < 300


def test_braces_behind_a_template_are_text():
    assert render("{{ .inputs.x }}}}", lambda _: 5) == "5}}"


PIECES = st.sampled_from(["{{", "}}", " ", ".inputs", ".context", ".a", ".b", ".", "x", "|", "{", "}"])
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@settings(max_examples=100)
@given(st.one_of(TEXTS, st.lists(TEXTS, max_size=2), st.dictionaries(TEXTS, TEXTS, max_size=2)))
def test_what_the_check_passes_renders_or_names_a_missing_key(value):
    if any(isinstance(path, TemplateError) for _, path in paths_in(value, "x")):
        return
    with suppress_missing_keys():
        render(value, look_up)
