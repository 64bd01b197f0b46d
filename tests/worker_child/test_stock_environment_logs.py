import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.stock import Environment, environment_actions

TAIL = "environment.logs.tail"


@pytest.fixture
async def logs(tmp_path: Path) -> AsyncIterator[Environment]:
    (tmp_path / "root").mkdir()
    async with environment_actions(tmp_path / "root") as made:
        yield made


async def test_the_last_lines_of_a_file(logs: Environment) -> None:
    (logs.root / "app.log").write_text("".join(f"line {number}\n" for number in range(1000)))
    result = await logs.run(TAIL, path="app.log", tail=2)
    assert result == {"log_path": "app.log", "content": "line 998\nline 999\n", "lines": 2, "truncated": True}
    result = await logs.run(TAIL, path="app.log", tail=1000)
    assert (result["lines"], result["truncated"]) == (1000, False)


async def test_a_line_that_is_not_complete_is_one_too(logs: Environment) -> None:
    (logs.root / "app.log").write_text("one\ntwo\nthr")
    assert (await logs.run(TAIL, path="app.log", tail=2))["content"] == "two\nthr"
    (logs.root / "empty").write_text("")
    assert (await logs.run(TAIL, path="empty"))["content"] == ""


async def test_only_so_many_bytes_and_no_part_of_a_line(logs: Environment) -> None:
    (logs.root / "app.log").write_text("".join(f"grüße {number:04}\n" for number in range(1000)))
    result = await logs.run(TAIL, path="app.log", max_bytes=30)
    assert result["content"] == "grüße 0998\ngrüße 0999\n"
    assert result["truncated"] is True


async def test_a_line_without_end_is_shown_from_its_end(logs: Environment) -> None:
    (logs.root / "app.log").write_text("x" * 1000 + "END")
    assert (await logs.run(TAIL, path="app.log", max_bytes=10))["content"] == "xxxxxxxEND"


@pytest.mark.parametrize("size", range(1, 40))
async def test_no_choice_of_a_size_cuts_a_key_so_that_it_is_shown(logs: Environment, size: int) -> None:
    (logs.root / "app.log").write_text("the key is mbx_s3cretk3yOfThisWorker ok")
    content = (await logs.run(TAIL, path="app.log", max_bytes=size))["content"]
    assert content.endswith(" ok"[-size:])
    assert "k3y" not in content
    assert "W" not in content


async def test_the_workers_own_logs_are_where_whoever_runs_it_says(
    logs: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, message = await logs.fails(TAIL)
    assert (kind, message) == (
        "ValidationError",
        "parameters.log_name: this worker keeps no logs in files (MOBIUS_WORKER_LOG_DIR is not set); give a path",
    )
    directory = tmp_path / "logs"
    directory.mkdir()
    monkeypatch.setenv("MOBIUS_WORKER_LOG_DIR", str(directory))
    (directory / "worker.stdout.log").write_text("key mbx_0123456789abcdef.project, token mbc_0123456789, mbx_x\n")
    result = await logs.run(TAIL, log_name="stdout")
    assert result["content"] == "key mbx_[redacted], token mbc_[redacted], mbx_x\n"
    (directory / "worker.log").symlink_to("/etc/passwd")
    _, message = await logs.fails(TAIL)
    assert message.startswith("parameters.log_name: ")


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"path": "../x"}, "parameters.path: leads out of the workspace"),
        ({"path": "/etc/passwd"}, "parameters.path: "),
        ({"path": "nothing"}, "parameters.path: 'nothing': no such file or directory"),
        ({"path": "pipe"}, "parameters.path: 'pipe' is no regular file"),
        ({"path": "."}, "parameters.path: '.' is no regular file"),
        ({"log_name": "../../etc/passwd"}, "parameters.log_name: Invalid enum value"),
        ({"path": "x", "tail": 0}, "parameters.tail: Expected `int` >= 1"),
        ({"path": "x", "max_bytes": 10**9}, "parameters.max_bytes: Expected `int` <= 4194304"),
    ],
)
async def test_what_is_wrong_names_the_parameter(
    logs: Environment, parameters: dict[str, object], sentence: str
) -> None:
    os.mkfifo(logs.root / "pipe")
    _, message = await logs.fails(TAIL, **parameters)
    assert message.startswith(sentence)
