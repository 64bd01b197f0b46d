from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.mobius_command import MobiusCommand


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlaneProcess]:
    with ControlPlaneProcess(tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest.fixture(scope="module")
def command(plane: ControlPlaneProcess, tmp_path_factory: pytest.TempPathFactory) -> MobiusCommand:
    return MobiusCommand(plane.url, plane.key, tmp_path_factory.mktemp("home"))


@pytest.fixture
def automation_file(tmp_path: Path) -> Path:
    """An automation of one step that prints its input."""
    path = tmp_path / "automation.toml"
    path.write_text(
        """
handle = "echo"
name = "Echo"
default_inputs = { text = "hello" }
[spec.inputs.text]
type = "string"
[[spec.steps]]
key = "say"
kind = "action"
config = { action_name = "print", parameters = { message = "{{ .inputs.text }}" } }
"""
    )
    return path
