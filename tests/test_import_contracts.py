"""Imports flow one way, and breaking any contract is noticed by the command that `make check` runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"

BREAKING = {
    "what the programs share imports nothing of ours": ("wire/codec.py", "import supervisor.config"),
    "the three programs never import each other": ("supervisor/errors.py", "import control_plane.errors"),
    "no program imports the command line": ("worker_child/errors.py", "import mobius_cli.http"),
    "the command line imports no worker and no control plane": ("mobius_cli/http.py", "import worker_child.errors"),
    "deciding modules do no I/O and have no clock": ("worker_child/session.py", "import time"),
    "imports go down inside the supervisor": ("supervisor/slots.py", "import supervisor.children"),
    "imports go down inside the worker": ("worker_child/backoff.py", "import worker_child.transport"),
    "imports go down inside the control plane": ("control_plane/domain/runs.py", "import control_plane.store.sqlite"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("tree")
    for package in SETTINGS["root_packages"]:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(LINT_IMPORTS), "--no-cache"],
        cwd=tree,
        env={"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_contract_has_a_breaking_example() -> None:
    assert {contract["name"] for contract in SETTINGS["contracts"]} == set(BREAKING)


def test_every_contract_holds(tree: Path) -> None:
    result = lint(tree)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", BREAKING)
def test_breaking_a_contract_is_noticed(tree: Path, name: str) -> None:
    path, statement = BREAKING[name]
    module = tree / path
    original = module.read_text()
    module.write_text(f"{original}\n\n{statement}\n")
    try:
        result = lint(tree)
    finally:
        module.write_text(original)
    assert result.returncode != 0
    assert f"{name} BROKEN" in " ".join(result.stdout.split())
