"""The file of `serve --config`: the options, by their names."""

from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest

from control_plane.__main__ import cli
from control_plane.config import ConfigurationError
from control_plane.serve_file import ServeFile, read

EXAMPLE = Path(__file__).parents[2] / "configs" / "control_plane.cluster.toml"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "serve.toml"
    path.write_text(text)
    return path


def test_every_option_of_serve_is_a_key() -> None:
    serve = cli.commands["serve"]
    options = {parameter.name for parameter in serve.params if isinstance(parameter, click.Option)}
    assert options - {"config", "help"} == set(ServeFile.__struct_fields__)


def test_a_key_takes_what_its_option_takes() -> None:
    for parameter in cli.commands["serve"].params:
        if isinstance(parameter.type, click.Choice):
            kinds = get_args(get_type_hints(ServeFile)[str(parameter.name)])
            assert get_args(kinds[0]) == tuple(parameter.type.choices)


def test_the_example_says_what_a_cluster_needs() -> None:
    options = read(EXAMPLE)
    assert options["store"].startswith("postgresql://")
    assert options["insecure_listen"] is True
    assert options["store_password_file"] == str(EXAMPLE.parent / "store-password")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = "store = 'sqlite:x.db'\nbootstrap_key_file = 'key'\n[project_dialect]\nold = 'loops'\n"
    assert read(written(tmp_path, text)) == {
        "store": f"sqlite:{tmp_path}/x.db",
        "bootstrap_key_file": f"{tmp_path}/key",
        "project_dialect": ["old=loops"],
    }
    assert read(written(tmp_path, "store = 'sqlite:///var/x.db'"))["store"] == "sqlite:///var/x.db"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stor = 'x'", "stor: no such key; did you mean store?"),
        ("stor = 'x'\nrate_limit = 'many'", "did you mean store?; Expected `int`, got `str` - at `$.rate_limit`"),
        ("xyz = 'red'", "xyz: no such key; expected one of listen, store"),
        ("listen = 8780", "Expected `str"),
        ("listen = ", "is no TOML"),
        ("dialect = 'x'", "Invalid enum value 'x' - at `$.dialect`; expected one of automations, loops"),
        ("[project_dialect]\nold = 'x'", "at `$.project_dialect[...]`; expected one of automations, loops"),
        ("log_level = 'loud'", "'loud' - at `$.log_level`; expected one of debug, info, warning, error"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=r"serve\.toml") as caught:
        read(written(tmp_path, text))
    assert sentence in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read(tmp_path / "nowhere.toml")
