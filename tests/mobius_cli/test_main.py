import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from mobius_cli.__main__ import mobius, run
from tests.support.mobius_command import MOBIUS, MobiusCommand

NOWHERE = "http://127.0.0.1:9"
KEY = "mbx_" + "k" * 32


@pytest.fixture
def nowhere(tmp_path: Path) -> MobiusCommand:
    """A command whose control plane does not exist."""
    return MobiusCommand(NOWHERE, KEY, tmp_path)


def test_every_command_has_help() -> None:
    pending: list[list[str]] = [[]]
    seen = 0
    while pending:
        path = pending.pop()
        result = CliRunner().invoke(mobius, [*path, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith("Usage: ")
        seen += 1
        command = mobius
        for name in path:
            command = command.commands[name]  # type: ignore[assignment]
        pending += [[*path, name] for name in getattr(command, "commands", {})]
    assert seen >= 18


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Usage: mobius"),
        (["runs"], "Usage: mobius runs"),
        (["nonsense"], "No such command 'nonsense'"),
        (["runs", "list", "--status", "odd"], "'odd' is not one of"),
        (["runs", "list", "--limit", "0"], "--limit"),
        (["runs", "get"], "Missing argument 'ID'"),
        (["runs", "stream", "run_1", "--since", "-1"], "--since"),
        (["automations", "start", "h", "--wait", "--stream"], "--wait and --stream exclude each other"),
        (["automations", "start", "h", "--input", "novalue"], "--input: 'novalue' has no name"),
        (["automations", "start", "h", "--inputs", "[]"], "--inputs: expected a JSON object"),
        (["automations", "create"], "no handle"),
        (["automations", "create", "--handle", "h", "--publish"], "--publish needs a version"),
        (["automations", "publish", "h", "--version", "0"], "--version"),
        (["runs", "list", "--api-url", "nonsense"], "--api-url: 'nonsense' is no HTTP address"),
        (["runs", "list", "--output", "xml"], "--output"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOBIUS_API_URL", NOWHERE)
    monkeypatch.setenv("MOBIUS_API_KEY", KEY)
    assert run(arguments) == 64
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("env", "arguments", "code", "says"),
    [
        ({}, [], 69, f"cannot reach {NOWHERE}"),
        ({"MOBIUS_API_URL": "ftp://host"}, [], 78, "MOBIUS_API_URL: 'ftp://host'"),
        ({"MOBIUS_API_KEY": ""}, [], 78, "no API key"),
        ({"MOBIUS_API_KEY": "mbx_a\nb"}, [], 77, "not one line of printable ASCII"),
        ({"MOBIUS_API_KEY": f"{KEY}.lab", "MOBIUS_PROJECT": "home"}, [], 78, "belongs to project 'lab'"),
        ({"MOBIUS_API_KEY": f"{KEY}.lab"}, ["--project", "home"], 64, "belongs to project 'lab'"),
        ({}, ["--api-key-file", "/nonexistent/key"], 78, "--api-key-file: cannot read '/nonexistent/key'"),
        ({}, ["--api-key-file", "/dev/null"], 78, "'/dev/null' is empty"),
    ],
)
def test_each_fault_is_one_sentence_and_its_exit_code(
    nowhere: MobiusCommand, env: dict[str, str], arguments: list[str], code: int, says: str
) -> None:
    done = nowhere.run("runs", "list", *arguments, env=env)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert KEY not in done.stderr


def test_a_file_that_is_not_there_is_no_input(nowhere: MobiusCommand) -> None:
    done = nowhere.run("automations", "create", "/nonexistent.toml")
    assert (done.returncode, done.stdout) == (66, "")
    assert "there is no file '/nonexistent.toml'" in done.stderr


def test_version(nowhere: MobiusCommand) -> None:
    assert nowhere.run("--version").stdout.startswith("mobius, version ")


def test_a_reader_that_goes_away_is_no_error_to_speak_of(nowhere: MobiusCommand) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [MOBIUS, "--help"], stdout=writer, stderr=subprocess.PIPE, env=nowhere.environment, check=False, timeout=30
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_said_once(nowhere: MobiusCommand) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [MOBIUS, "--version"], stdout=full, stderr=subprocess.PIPE, env=nowhere.environment, check=False, timeout=30
        )
    assert (done.returncode, done.stderr.splitlines()) == (70, [b"mobius: [Errno 28] No space left on device"])
