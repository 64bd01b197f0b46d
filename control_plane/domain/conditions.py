"""Conditions: comparisons of paths and values, joined by `&&`, `||`, `!` and parentheses. Nothing else is one.

    .inputs.amount > 100 && (.context.check.ok || .inputs.country != "CH")

    condition  := all ("||" all)*
    all        := negated ("&&" negated)*
    negated    := "!" negated | comparison
    comparison := operand (("==" | "!=" | "<" | "<=" | ">" | ">=") operand)?
    operand    := path | text | number | "true" | "false" | "null" | "(" condition ")"

A path is that of a template (templates.py) and null where it leads nowhere. Texts are JSON strings, or stand between
single quotes without escapes. `==` and `!=` compare any two JSON values; the others two numbers or two texts. What
stands alone must be true or false; null counts as false.
"""

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from control_plane.domain import templates

LONGEST = 1024
"""Characters of a condition."""

DEEPEST = 16
"""Levels of parentheses and negations."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<path>\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)"""
    r"""|(?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)(?![A-Za-z0-9_.])"""
    r"""|(?P<text>"(?:[^"\\]|\\.)*"|'[^']*')"""
    r"""|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"""
    r"""|(?P<sign>&&|\|\||==|!=|<=|>=|[<>!()]))"""
)
_WORDS = {"true": True, "false": False, "null": None}
_HINTS = {"and": "&&", "or": "||", "not": "!", "None": "null", "True": "true", "False": "false"}
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SHOWN = 40


class ConditionError(ValueError):
    """A text that is no condition, or a condition that cannot be decided: a sentence."""


class Node(Struct, frozen=True):
    """Base of what a condition is made of."""


class Value(Node, frozen=True):
    """A literal."""

    value: Any


class Read(Node, frozen=True):
    """What is at a path."""

    path: templates.Path


class Not(Node, frozen=True):
    """The opposite."""

    inner: Node


class Join(Node, frozen=True):
    """`&&` of all parts, or `||`; what need not be looked at is not."""

    every: bool
    parts: tuple[Node, ...]


class Comparison(Node, frozen=True):
    """`sign` is one of == != < <= > >=."""

    left: Node
    sign: str
    right: Node


class Condition(Struct, frozen=True):
    """`text` as it was written, `root` as it was understood."""

    text: str
    root: Node

    def paths(self) -> Iterator[templates.Path]:
        """Every path that it reads."""
        yield from _paths(self.root)

    def holds(self, lookup: templates.Lookup) -> bool:
        """Whether it is true. Raises ConditionError."""
        return _truth(self.root, lookup)


def parse(text: str) -> Condition:
    """The condition. Raises ConditionError, saying where what was expected is not."""
    if len(text) > LONGEST:
        raise ConditionError(f"a condition has at most {LONGEST} characters, this one has {len(text)}")
    return Condition(text, _Parser(text).condition())


class _Parser:
    """`_kind` and `_token` are the next token; at the end both are empty."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0
        self._kind = self._token = ""
        self._advance()

    def condition(self) -> Node:
        found = self._any()
        if self._kind:
            raise self._fault("an operator (== != < <= > >= && ||) or the end")
        return found

    def _advance(self) -> None:
        rest = self._text[self._position :]
        if not rest.strip():
            self._kind = self._token = ""
            return
        match = _TOKEN.match(self._text, self._position)
        if match is None:
            raise ConditionError(
                f"{rest.strip()[:_SHOWN]!r} is not understood: a condition compares paths such as .inputs.a with values"
            )
        self._kind = match.lastgroup or ""
        self._token = match.group(self._kind)
        self._position = match.end()

    def _take(self, *signs: str) -> str:
        """The sign, if the next token is one of these; else nothing."""
        if self._kind != "sign" or self._token not in signs:
            return ""
        token = self._token
        self._advance()
        return token

    def _fault(self, expected: str) -> ConditionError:
        if self._token in _HINTS:
            return ConditionError(f"write {_HINTS[self._token]} instead of {self._token}")
        found = repr(self._token[:_SHOWN]) if self._kind else "the end"
        return ConditionError(f"expected {expected}, found {found}")

    def _any(self) -> Node:
        parts = [self._all()]
        while self._take("||"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Join(every=False, parts=tuple(parts))

    def _all(self) -> Node:
        parts = [self._negated()]
        while self._take("&&"):
            parts.append(self._negated())
        return parts[0] if len(parts) == 1 else Join(every=True, parts=tuple(parts))

    def _negated(self) -> Node:
        if not self._take("!"):
            return self._comparison()
        self._descend()
        inner = self._negated()
        self._depth -= 1
        return Not(inner)

    def _comparison(self) -> Node:
        left = self._operand()
        sign = self._take("==", "!=", *_ORDER)
        return Comparison(left, sign, self._operand()) if sign else left

    def _operand(self) -> Node:
        if self._take("("):
            self._descend()
            inner = self._any()
            self._depth -= 1
            if not self._take(")"):
                raise self._fault('")"')
            return inner
        if self._kind in ("", "sign") or (self._kind == "word" and self._token not in _WORDS):
            raise self._fault('a path such as .inputs.a, a value or "("')
        node = self._leaf()
        self._advance()
        return node

    def _leaf(self) -> Node:
        if self._kind == "path":
            try:
                return Read(templates.parse_path(self._token))
            except templates.TemplateError as error:
                raise ConditionError(str(error)) from error
        if self._kind == "word":
            return Value(_WORDS[self._token])
        if self._kind == "text" and self._token.startswith("'"):
            return Value(self._token[1:-1])
        try:
            return Value(msgspec.json.decode(self._token))
        except msgspec.DecodeError as error:
            raise ConditionError(f"{self._token[:_SHOWN]!r} is no JSON value: {error}") from error

    def _descend(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise ConditionError(f"a condition is nested at most {DEEPEST} levels deep")


def _paths(node: Node) -> Iterator[templates.Path]:
    match node:
        case Read(path):
            yield path
        case Not(inner):
            yield from _paths(inner)
        case Join(_, parts):
            for part in parts:
                yield from _paths(part)
        case Comparison(left, _, right):
            yield from _paths(left)
            yield from _paths(right)


def _truth(node: Node, lookup: templates.Lookup) -> bool:
    value = _value(node, lookup)
    if value is None:
        return False
    if not isinstance(value, bool):
        what = f"{node.path} is" if isinstance(node, Read) else "it has"
        raise ConditionError(f"{what} {_kind(value)} where true or false is needed: compare it with something")
    return value


def _value(node: Node, lookup: templates.Lookup) -> Any:
    match node:
        case Value(value):
            return value
        case Read(path):
            try:
                return lookup(path)
            except templates.TemplateError:
                return None
        case Not(inner):
            return not _truth(inner, lookup)
        case Join(every, parts):
            verdicts = (_truth(part, lookup) for part in parts)
            return all(verdicts) if every else any(verdicts)
        case Comparison(left, sign, right):
            return _compared(_value(left, lookup), sign, _value(right, lookup))
    raise AssertionError(node)


def _compared(left: Any, sign: str, right: Any) -> bool:
    if sign in ("==", "!="):
        return equal(left, right) == (sign == "==")
    kinds = {_kind(left), _kind(right)}
    if kinds not in ({"a number"}, {"a text"}):
        raise ConditionError(f"{sign} compares two numbers or two texts, not {_kind(left)} with {_kind(right)}")
    return _ORDER[sign](left, right)


def equal(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same: 1 is 1.0, and true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "an object" if isinstance(value, dict) else "an array"
