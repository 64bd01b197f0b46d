"""`{{ .inputs.a.b }}` and `{{ .context.<save_as>.c }}` in the strings of a JSON value: paths, and nothing else."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from wire.depth import MAX_DEPTH, is_deeper

ROOTS = ("inputs", "context", "event")
"""`event` is the signal of a step that waits for one; specs.py says where it may stand."""

MAX_INSERTED_BYTES = 1024 * 1024
"""More than a job's spec may have (768 KiB), so that a spec that is too large is named as such."""

_PATH = re.compile(r"\s*((?:\.[A-Za-z0-9_-]+)+)\s*")
_SHOWN = 80
_MOST_DIGITS = 20


class TemplateError(ValueError):
    """A template that is no path, or a path that leads nowhere."""


class Path(Struct, frozen=True):
    """`root` is one of ROOTS; `keys` lead on from it (an index, where the value is an array)."""

    root: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return "." + ".".join((self.root, *self.keys))


Lookup = Callable[[Path], Any]
"""The value at a path; raises TemplateError."""


def paths_in(value: Any, where: str) -> Iterator[tuple[str, Path | TemplateError]]:
    """Every template below `value` with the place where it stands: its path, or what is wrong with it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if "{{" in key:
                yield f"{where}.{key}", TemplateError("the name of a value cannot be a template")
            yield from paths_in(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths_in(inner, f"{where}[{index}]")
    elif isinstance(value, str) and "{{" in value:
        found, rest = _split(value)
        for _, inside in found:
            try:
                yield where, _parse(inside)
            except TemplateError as error:
                yield where, error
        if "{{" in rest:
            yield where, TemplateError('"{{" without "}}"')


def render(value: Any, lookup: Lookup) -> Any:
    """The value with every template replaced. A string that is one template alone keeps the type of what it names;
    inside longer text strings are inserted as they are and everything else as JSON.

    Raises TemplateError, also when more than MAX_INSERTED_BYTES would be inserted or the outcome is nested too deeply:
    a few templates can name one large value many times.
    """
    if not any(True for _ in paths_in(value, "")):
        return value
    rendered = _Rendering(lookup).render(value)
    if is_deeper(msgspec.json.encode(rendered), MAX_DEPTH):
        raise TemplateError(f"with what the templates name it would be nested more than {MAX_DEPTH} levels deep")
    return rendered


class _Rendering:
    """One value's templates, and how many bytes they may still insert."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._found: dict[str, tuple[Any, str]] = {}
        self._left = MAX_INSERTED_BYTES

    def render(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.render(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.render(inner) for inner in value]
        if not isinstance(value, str) or "{{" not in value:
            return value
        found, rest = _split(value)
        if len(found) == 1 and found[0][0] == rest == "":
            return self._insert(found[0][1])[0]
        return "".join([*(before + self._insert(inside)[1] for before, inside in found), rest])

    def _insert(self, inside: str) -> tuple[Any, str]:
        """The value that the path names, and its text."""
        if inside not in self._found:
            value = self._lookup(_parse(inside))
            self._found[inside] = (value, _text(value))
        found = self._found[inside]
        self._left -= len(found[1])
        if self._left < 0:
            raise TemplateError(f"the templates would insert more than {MAX_INSERTED_BYTES} bytes")
        return found


def _split(text: str) -> tuple[list[tuple[str, str]], str]:
    """What is inside every pair of braces, each with the text before it; and the text behind the last. In one pass: a
    regular expression would look for the end of every "{{" that has none as far as the text goes."""
    found = []
    end = 0
    while (begin := text.find("{{", end)) >= 0 and (close := text.find("}}", begin + 2)) >= 0:
        found.append((text[end:begin], text[begin + 2 : close]))
        end = close + 2
    return found, text[end:]


def descend(value: Any, path: Path) -> Any:
    """Follow the keys of `path` from the value of its root. Raises TemplateError naming the key that is missing."""
    for position, key in enumerate(path.keys):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and len(key) < _MOST_DIGITS and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            so_far = Path(path.root, path.keys[:position])
            raise TemplateError(f"{path}: {so_far} has no {key!r}")
    return value


def parse_path(text: str) -> Path:
    """The path. Raises TemplateError."""
    return _parse(text)


def _parse(inside: str) -> Path:
    match = _PATH.fullmatch(inside)
    if match is None:
        shown = inside.strip()[:_SHOWN]
        raise TemplateError(
            f"only a path such as .inputs.a.b or .context.<save_as>.c may stand in {{{{ }}}}, not {shown!r}"
        )
    root, *keys = match.group(1)[1:].split(".")
    if root not in ROOTS:
        raise TemplateError(f"unknown root .{root}; a path begins with .inputs or .context")
    return Path(root, tuple(keys))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
