"""docs/failure-modes.md: every row is proved by tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "failure-modes.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| what can go wrong")
]


def names_of_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:60] for row in ROWS])
def test_every_row_names_tests_that_exist(row: list[str]) -> None:
    problem, done, proof = row
    assert problem
    assert done
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof)
    assert named, "a row without a test is a wish"
    assert re.sub(r"`[^`]+`|, ", "", proof) == ""
    for file, test in named:
        assert test in names_of_tests(ROOT / file), f"{file}::{test}"


def test_every_misbehaving_child_has_a_row() -> None:
    """And every child program a test that uses it."""
    suite = ROOT / "tests" / "integration" / "test_misbehaving_children.py"
    programs = {path.stem for path in (ROOT / "tests" / "integration" / "children").glob("*.py")} - {"__init__"}
    text = "".join(path.read_text() for path in suite.parent.glob("test_*.py"))
    assert {name for name in programs if re.search(rf'["./]{name}"', text)} == programs
    told = {test for test in names_of_tests(suite) if f"test_misbehaving_children.py::{test}" in PAGE}
    assert told == names_of_tests(suite)
