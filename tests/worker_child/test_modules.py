from pathlib import Path

import pytest

from worker_child.errors import ModuleImportError
from worker_child.modules import import_module

CASES = [
    ("import a_package_that_is_not_installed", r"needs the module 'a_package_that_is_not_installed'.*line 1\)"),
    ("\n1 / 0", r"raised ZeroDivisionError: division by zero \(.*\.py, line 2\)"),
    ("import sys\nsys.exit('no licence')", r"raised SystemExit: no licence"),
    ("def broken(:", r"raised SyntaxError"),
    (
        "from worker_child import action\n@action('x', concurrency=0)\ndef f(): ...",
        r"of .*\.f \(.*\.py, line 2\): concurrency is a number",
    ),
]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("source", "sentence"), CASES)
def test_a_module_that_cannot_be_imported_is_named_with_what_it_raised(
    directory: Path, source: str, sentence: str
) -> None:
    name = f"broken_{abs(hash(source))}"
    (directory / f"{name}.py").write_text(source)
    with pytest.raises(ModuleImportError, match=rf"^modules: .*'{name}'.*{sentence}") as caught:
        import_module(name)
    assert "Traceback" in caught.value.detail


def test_a_module_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(ModuleImportError, match=r"there is no module 'nowhere.handlers': put its directory into"):
        import_module("nowhere.handlers")


def test_a_sound_module_is_imported(directory: Path) -> None:
    (directory / "sound_handlers.py").write_text("READY = True")
    import_module("sound_handlers")
