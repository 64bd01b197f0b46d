"""Commands that do as they are told, and commands that do not."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tests.support.stock import DEADLINE, Environment, environment_actions
from worker_child.stock import environment_commands as commands

BASH = "environment.bash"


@pytest.fixture
async def bash(tmp_path: Path) -> AsyncIterator[Environment]:
    (tmp_path / "root").mkdir()
    async with environment_actions(tmp_path / "root") as made:
        yield made


async def pid_in(file: Path) -> int:
    """The pid that a command has written there."""
    async with asyncio.timeout(DEADLINE):
        # A process tells by a file, which is no event.
        while not (said := await asyncio.to_thread(text_of, file)).endswith("\n"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return int(said)


def text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def gone(pid: int) -> None:
    """Waits until no such process runs; an orphan may stay as a zombie until whoever adopted it looks."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        async with asyncio.timeout(DEADLINE):
            while process.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_what_a_command_says_and_exits_with(bash: Environment) -> None:
    result = await bash.run(BASH, command="echo out; echo err >&2; exit 3")
    duration = result.pop("duration_seconds")
    assert duration >= 0
    assert result == {
        "exit_code": 3,
        "stdout": "out\n",
        "stderr": "err\n",
        "timed_out": False,
        "truncated": False,
        "omitted_bytes": 0,
    }


async def test_it_runs_in_the_workspace_or_below(bash: Environment) -> None:
    (bash.root / "dir").mkdir()
    (bash.root / "link").symlink_to("dir")
    for directory, expected in (("", ""), ("dir", "/dir"), ("link", "/dir"), (str(bash.root / "dir"), "/dir")):
        assert (await bash.run(BASH, command="pwd -P", dir=directory))["stdout"] == f"{bash.root.resolve()}{expected}\n"


@pytest.mark.parametrize("directory", ["..", "/etc", "out", "nothing", "file"])
async def test_it_runs_nowhere_else(bash: Environment, directory: str) -> None:
    (bash.root / "out").symlink_to("/etc")
    (bash.root / "file").write_text("")
    kind, message = await bash.fails(BASH, command="pwd", dir=directory)
    assert kind in ("ValidationError", "NonRetryableError")
    assert message.startswith("parameters.dir: ")


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({}, "parameters: Object missing required field `command`"),
        ({"command": ""}, "parameters.command: Expected `str` of length >= 1"),
        ({"command": "a\0b"}, "parameters.command: expected a text without a null character"),
        ({"command": "x", "timeout_seconds": 0}, "parameters.timeout_seconds: Expected `float` > 0"),
        ({"command": "x", "timeout_seconds": 1e9}, "parameters.timeout_seconds: Expected `float` <= 86400"),
        ({"command": "x", "max_output_bytes": 10**9}, "parameters.max_output_bytes: Expected `int` <= 4194304"),
        ({"command": "x", "env": ["A=1"]}, "parameters.env: Expected `object`, got `array`"),
        ({"command": "x", "env": {"A=B": "1"}}, "parameters.env: 'A=B' cannot be a variable"),
        ({"command": "x", "env": {"A": "\0"}}, "parameters.env: 'A' cannot be a variable"),
        ({"command": "x", "env": {"A": 1}}, "parameters.env[...]: Expected `str`, got `int`"),
    ],
)
async def test_what_is_wrong_names_the_parameter(
    bash: Environment, parameters: dict[str, object], sentence: str
) -> None:
    _, message = await bash.fails(BASH, **parameters)
    assert message.startswith(sentence)


async def test_nothing_secret_is_in_its_environment(bash: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOBIUS_API_KEY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "AWS_SECRET_ACCESS_KEY", "BASH_ENV"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    said = (await bash.run(BASH, command="env; echo; set", env={"MINE": "given", "PATH": os.environ["PATH"]}))["stdout"]
    assert "s3cret" not in said
    variables = dict(line.split("=", 1) for line in said.partition("\n\n")[0].splitlines())
    assert (variables["MINE"], variables["LC_TIME"], variables["TERM"]) == ("given", "C.UTF-8", "dumb")
    assert variables["HTTPS_PROXY"] == "http://proxy:1"
    own = {"_", "PWD", "OLDPWD", "SHLVL", "MINE", "TERM"}
    assert all(name in own or name in commands._HANDED_ON or name.startswith("LC_") for name in variables)


async def test_no_descriptor_of_ours_is_its_own(bash: Environment) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        said = await bash.run(BASH, command="ls /proc/self/fd")
    finally:
        os.close(reader)
        os.close(writer)
    # 3 is the directory that ls reads.
    assert set(said["stdout"].split()) <= {"0", "1", "2", "3"}


async def test_it_reads_nothing_from_us(bash: Environment) -> None:
    assert (await bash.run(BASH, command="cat; echo done"))["stdout"] == "done\n"


# --- output -----------------------------------------------------------------------------------------------------------


async def test_of_much_output_the_head_and_the_tail_are_kept(bash: Environment) -> None:
    result = await bash.run(BASH, command="seq 1 100000", max_output_bytes=1000)
    assert result["stdout"].startswith("1\n2\n3\n")
    assert result["stdout"].endswith("99999\n100000\n")
    whole = sum(len(f"{number}\n") for number in range(1, 100_001))
    assert (result["truncated"], result["omitted_bytes"]) == (True, whole - 1000)
    assert f"\n[... {whole - 1000} bytes omitted ...]\n" in result["stdout"]
    assert len(result["stdout"]) < 1100


async def test_both_outputs_are_bounded_for_themselves(bash: Environment) -> None:
    result = await bash.run(BASH, command="yes | head -c 100000000; yes err | head -c 3000 >&2", max_output_bytes=2000)
    assert len(result["stdout"]) < 2100
    assert len(result["stderr"]) < 2100
    assert result["omitted_bytes"] == 100_000_000 - 2000 + 1000


@pytest.mark.parametrize("limit", range(2, 40))
def test_where_it_is_cut_no_character_is_broken(limit: int) -> None:
    output = commands.Output(limit)
    text = "ü世👋🏽x" * 20
    for byte in text.encode():
        output.add(bytes([byte]))
    assert "\ufffd" not in output.text()
    head, _, rest = output.text().partition("\n[... ")
    omitted, _, tail = rest.partition(" bytes omitted ...]\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head.encode()) + len(tail.encode()) + int(omitted) == len(text.encode())


def test_what_is_no_text_is_shown_as_far_as_it_goes() -> None:
    output = commands.Output(100)
    output.add(b"a\xff\xfeb")
    assert output.text() == "a\ufffd\ufffdb"


# --- ends -------------------------------------------------------------------------------------------------------------


async def test_what_takes_too_long_is_ended_with_all_that_it_started(bash: Environment) -> None:
    command = "sleep 600 & echo $! > child; echo begun; wait"
    result = await bash.run(BASH, command=command, timeout_seconds=1)
    assert (result["timed_out"], result["stdout"], result["exit_code"]) == (True, "begun\n", -signal.SIGTERM)
    await gone(await pid_in(bash.root / "child"))


async def test_what_ignores_the_signal_is_killed(bash: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "TERM_GRACE", 0.2)
    child = "(trap '' TERM; echo $BASHPID > child; sleep 600)"
    command = f"trap '' TERM; echo $$ > shell; {child} & while :; do sleep 1; done"
    result = await bash.run(BASH, command=command, timeout_seconds=1)
    assert (result["timed_out"], result["exit_code"]) == (True, -signal.SIGKILL)
    for name in ("shell", "child"):
        await gone(await pid_in(bash.root / name))


async def test_a_cancel_ends_the_group(bash: Environment) -> None:
    ending = bash.start(BASH, command="sleep 600 & echo $! > child; wait")
    child = await pid_in(bash.root / "child")
    bash.cancel()
    async with asyncio.timeout(DEADLINE):
        assert (await ending).status == "cancelled"
    await gone(child)


async def test_a_stopped_command_is_ended_too(bash: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "TERM_GRACE", 0.2)
    result = await bash.run(BASH, command="echo $$ > shell; kill -STOP $$", timeout_seconds=0.5)
    assert result["timed_out"] is True
    await gone(await pid_in(bash.root / "shell"))


async def test_what_is_left_in_the_background_ends_with_the_command(bash: Environment) -> None:
    result = await bash.run(BASH, command="sleep 600 & echo $! > child; echo done")
    assert (result["stdout"], result["exit_code"]) == ("done\n", 0)
    await gone(await pid_in(bash.root / "child"))


async def test_a_process_that_has_left_the_group_holds_nobody_up(
    bash: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the pipes open. Its own end is the supervisor's business."""
    monkeypatch.setattr(commands, "OUTPUT_GRACE", 0.2)
    command = "setsid bash -c 'echo $$ > child; exec sleep 600' & while [ ! -s child ]; do sleep 0.01; done; echo done"
    result = await bash.run(BASH, command=command)
    assert (result["stdout"], result["timed_out"]) == ("done\n", False)
    os.kill(await pid_in(bash.root / "child"), signal.SIGKILL)


async def test_a_death_by_a_signal_is_told_by_its_number(bash: Environment) -> None:
    assert (await bash.run(BASH, command="kill -SEGV $$"))["exit_code"] == -signal.SIGSEGV


async def test_many_commands_at_once_and_no_descriptor_is_left(bash: Environment) -> None:
    before = descriptors()
    async with asyncio.timeout(DEADLINE):
        outcomes = await asyncio.gather(*(bash.start(BASH, command=f"echo {number}") for number in range(20)))
    assert {outcome.status for outcome in outcomes} == {"completed"}
    assert descriptors() <= before + 1  # the thread pool's own, once


async def test_without_bash_it_says_so(bash: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert await bash.fails(BASH, command="x") == ("NonRetryableError", "there is no bash on this worker's PATH")


async def test_other_jobs_go_on_beside_a_flood(bash: Environment) -> None:
    """The loop that reads the flood serves everybody: a second command is done long before the first."""
    flood = bash.start(BASH, command="yes", timeout_seconds=20)
    for _ in range(3):
        await bash.run(BASH, command="echo quick")
    assert not flood.done()
    bash._runner.cancel(1, "cancelled")
    async with asyncio.timeout(DEADLINE):
        await flood
