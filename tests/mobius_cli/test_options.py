from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mobius_cli.errors import SettingError
from mobius_cli.http import Mobius
from mobius_cli.options import asks_mobius, connect, limit_option, read_key
from mobius_cli.output import Output

KEY = "mbx_" + "k" * 32


def test_a_key_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert read_key(tmp_path / "key", "--api-key-file") == KEY
    connection = connect(api_url="https://a.example", api_key_file=tmp_path / "key", project=None)
    assert connection.api_key == KEY


def test_a_file_that_is_no_key_file_is_not_read_to_its_end() -> None:
    assert len(read_key(Path("/dev/zero"), "x")) == 4096


@pytest.mark.parametrize(("content", "says"), [(None, "cannot read"), (" \n", "is empty")])
def test_a_wrong_key_file_is_named_with_what_named_it(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(SettingError, match=f"^control_plane.api_key_file: .*{says}"):
        read_key(tmp_path / "key", "control_plane.api_key_file")


def test_a_command_gets_an_open_client_and_its_own_options(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    seen = {}

    @click.command()
    @limit_option("things")
    @asks_mobius
    async def things(mobius: Mobius, output: Output, limit: int) -> None:
        """List things."""
        seen.update(project=mobius.project, url=mobius.api_url, format=output.format, limit=limit)

    arguments = ["--api-url", "https://a.example", "--api-key-file", str(tmp_path / "key"), "--project", "lab"]
    result = CliRunner().invoke(things, [*arguments, "--output", "json", "--limit", "7"], catch_exceptions=False)
    assert result.exit_code == 0
    assert seen == {"project": "lab", "url": "https://a.example", "format": "json", "limit": 7}
    assert "List things." in CliRunner().invoke(things, ["--help"]).output
