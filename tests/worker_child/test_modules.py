import json
import sys
from pathlib import Path

import pytest

from worker_child.errors import ModuleImportError
from worker_child.modules import expanded, import_source

CASES = [
    ("import a_package_that_is_not_installed", r"needs the module 'a_package_that_is_not_installed'.*line 1\)"),
    ("\n1 / 0", r"raised ZeroDivisionError: division by zero \(.*\.py, line 2\)"),
    ("import sys\nsys.exit('no licence')", r"raised SystemExit: no licence \(.*\.py, line 2\)"),
    ("def broken(:", r"raised SyntaxError.*\.py, line 1\)"),
    ("from json import nothing", r"raised ImportError: cannot import name 'nothing'.*\.py, line 1\)"),
    (
        "from worker_child import action\n@action('x', concurrency=0)\ndef f(): ...",
        r"of .*\.f \(.*\.py, line 2\): concurrency is a number",
    ),
]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def package(directory: Path, name: str, entry_points: str) -> None:
    """What an installer leaves of a distribution."""
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mobius.actions]\n{entry_points}\n")


@pytest.mark.parametrize(("source", "sentence"), CASES)
@pytest.mark.parametrize("as_file", [False, True], ids=["module", "file"])
def test_what_cannot_be_imported_is_named_with_what_it_raised(
    directory: Path, source: str, sentence: str, as_file: bool
) -> None:
    name = f"broken_{abs(hash((source, as_file)))}"
    file = directory / f"{name}.py"
    file.write_text(source)
    shown = str(file) if as_file else name
    with pytest.raises(ModuleImportError, match=rf"^modules: .*'{shown}'.*{sentence}") as caught:
        import_source(shown)
    assert "Traceback" in caught.value.detail
    assert name not in sys.modules


def test_a_module_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(ModuleImportError, match=r"there is no module 'nowhere.handlers': put its directory into"):
        import_source("nowhere.handlers")


def test_a_sound_module_is_imported(directory: Path) -> None:
    (directory / "sound_handlers.py").write_text("READY = True")
    import_source("sound_handlers")
    assert sys.modules["sound_handlers"].READY


def test_a_file_is_imported_once_as_the_module_that_its_name_says(tmp_path: Path, directory: Path) -> None:
    place = tmp_path / "some" / "place"
    place.mkdir(parents=True)
    (place / "filed.py").write_text("import beside\nTIMES = beside.count()")
    (place / "beside.py").write_text("times = []\ndef count():\n    times.append(1)\n    return len(times)")
    import_source(str(place / "filed.py"))
    import_source(str(place / ".." / "place" / "filed.py"))
    assert (sys.modules["filed"].TIMES, sys.modules["filed"].__name__) == (1, "filed")
    assert sys.path[-1] == str(place)


def test_a_file_whose_name_is_taken_keeps_to_itself(tmp_path: Path, directory: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "json.py").write_text(f"NAME = {name!r}")
        import_source(str(tmp_path / name / "json.py"))
        import_source(str(tmp_path / name / "json.py"))
    assert sys.modules["json"] is json
    made = [module.NAME for name, module in sys.modules.items() if name.startswith("json_")]
    assert sorted(made) == ["one", "other"]


def test_entry_points_are_imported_by_name_or_all(directory: Path) -> None:
    for module in ("acme_images", "acme_sounds", "acme_secret"):
        (directory / f"{module}.py").write_text("def handler(): ...")
    package(directory, "acme", "images = acme_images\nsounds = acme_sounds:handler")
    import_source("mobius.actions:sounds")
    assert "acme_sounds" in sys.modules
    assert "acme_images" not in sys.modules
    assert expanded(["mine", "mobius.actions:*"]) == ["mine", "mobius.actions:images", "mobius.actions:sounds"]
    assert expanded(["mine", "mobius.actions:images"]) == ["mine", "mobius.actions:images"]


def test_an_entry_point_that_is_not_there_names_those_that_are(directory: Path) -> None:
    package(directory, "acme", "images = acme_images")
    with pytest.raises(ModuleImportError, match=r"^entry_points: .*'nope' in the group mobius.actions .*: images\)"):
        import_source("mobius.actions:nope")
    with pytest.raises(ModuleImportError, match=r"^entry_points: 'images' needs the module 'acme_images'"):
        import_source("mobius.actions:images")


def test_without_any_entry_point_all_of_them_is_a_mistake(directory: Path) -> None:
    with pytest.raises(ModuleImportError, match=r"^entry_points: no installed package has one"):
        expanded(["mobius.actions:*"])


def test_an_entry_point_of_two_packages_is_refused_with_both(directory: Path) -> None:
    package(directory, "acme", "images = acme_images")
    package(directory, "umbrella", "images = umbrella_images")
    with pytest.raises(ModuleImportError, match=r"claimed by (acme|umbrella) \(\1_images\) and .*: uninstall one"):
        import_source("mobius.actions:images")
