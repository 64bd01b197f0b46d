"""What README.md lists is what the code has: nothing missing, nothing invented. Its snippets run."""

import os
import re
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import click
import msgspec
import tomli

import control_plane.__main__
import supervisor.__main__
from mobius_cli.__main__ import mobius
from mobius_cli.errors import INTERRUPTED, OUTPUT_CLOSED, CommandError
from supervisor import config as pool_file
from supervisor.errors import SupervisorError
from supervisor.fleet import CUT_OFF_EXIT, Fleet
from supervisor.metrics import Metrics
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.mobius_command import MobiusCommand

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
PROGRAMS = ("wire", "service_manager", "supervisor", "worker_child", "control_plane", "mobius_cli")


def section(begins: str) -> str:
    """From the line that begins so to the next title (bold line or heading)."""
    start = README.index(begins)
    rest = README[start + len(begins) :]
    end = re.search(r"^(\*\*|#)", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def first_cells(text: str) -> list[str]:
    """The first cell of every row of the table in `text`."""
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def snippet(name: str) -> str:
    match = re.search(rf"<!-- test: {re.escape(name)} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert match is not None, name
    return match[1]


def sources() -> dict[Path, str]:
    return {path: path.read_text() for program in PROGRAMS for path in (ROOT / program).rglob("*.py")}


def leaf_commands(command: click.Command, path: str) -> set[str]:
    if isinstance(command, click.Group):
        return {leaf for name, one in command.commands.items() for leaf in leaf_commands(one, f"{path} {name}")}
    return {path}


def test_commands() -> None:
    listed = [cell.strip("`") for cell in first_cells(section("<!-- commands of mobius -->"))]
    assert sorted(listed) == sorted(leaf_commands(mobius, "mobius"))


def test_commands_of_the_supervisor() -> None:
    listed = [cell.strip("`") for cell in first_cells(section("<!-- commands of mobius-supervisor -->"))]
    assert sorted(listed) == sorted(leaf_commands(supervisor.__main__.cli, "mobius-supervisor"))


def options(command: click.Command) -> set[str]:
    names = (option for one in command.params for option in (*one.opts, *one.secondary_opts))
    own = {option for option in names if option.startswith("--")}
    if isinstance(command, click.Group):
        own = own.union(*(options(one) for one in command.commands.values()))
    return own


def test_every_option_that_the_readme_names_exists() -> None:
    known = options(mobius) | options(control_plane.__main__.cli) | options(supervisor.__main__.cli)
    named = set(re.findall(r"--[a-z][a-z-]+", README))
    assert {"--queues", "--bootstrap-key-file"} <= named
    assert named - known == set()


def test_exit_codes() -> None:
    def codes(base: type[Exception]) -> set[int]:
        own = {base.exit_code} if hasattr(base, "exit_code") else set()
        return own.union(*(codes(one) for one in base.__subclasses__()))

    known = (
        {0, INTERRUPTED, OUTPUT_CLOSED, CUT_OFF_EXIT, supervisor.__main__.USAGE}
        | codes(CommandError)
        | codes(SupervisorError)
    )
    known |= {value for name, value in vars(control_plane.__main__).items() if name.startswith("EX_")}
    assert [int(cell) for cell in first_cells(section("**Exit codes**"))] == sorted(known)


def test_environment_variables() -> None:
    listed = re.findall(r"`([A-Z_]+)`", "\n".join(first_cells(section("**Environment variables**"))))
    pattern = re.compile(
        r"\"(MOBIUS_[A-Z_]+|(?:STATE|RUNTIME|CREDENTIALS)_DIRECTORY|XDG_[A-Z]+_[A-Z]+|NOTIFY_SOCKET|JOURNAL_STREAM|WATCHDOG_[A-Z]+"
        r"|HOSTNAME|K_REVISION|[A-Z]+_MACHINE_ID|[A-Z]+_REPLICA_ID|[A-Z]+_INSTANCE_ID)\""
    )
    read = {name for text in sources().values() for name in pattern.findall(text)}
    assert sorted(listed) == sorted(read)


def test_metrics() -> None:
    """Every family of our own that a scrape shows."""
    fleet = Fleet(pool_file.load(ROOT / "configs" / "quickstart.toml", {}), "build")
    scrape = (
        Metrics(fleet, build="build", clock=time.monotonic, dropped_lines=lambda: 0, round_lag=lambda: 0.0)
        .render()
        .decode()
    )
    shown = re.findall(r"^# TYPE (mobius_\w+) ", scrape, re.MULTILINE)
    assert sorted(cell.strip("`") for cell in first_cells(section("**Metrics.**"))) == sorted(shown)


def test_endpoints() -> None:
    text = (ROOT / "supervisor" / "ops.py").read_text()
    listed = [cell.strip("`") for cell in first_cells(section("**Endpoints of the supervisor**"))]
    assert sorted(listed) == sorted(re.findall(r"Route\(\"(/\w+)\"", text))


def test_signals() -> None:
    listed = set(re.findall(r"SIG[A-Z]+", "\n".join(first_cells(section("**Signals of `mobius-supervisor`")))))
    text = (ROOT / "supervisor" / "loop.py").read_text()
    handled = set(re.findall(r"signal\.(SIG[A-Z]+)\b", text))
    # Nobody can handle a kill: the name stands there for how children died.
    assert listed == {name for name in handled if hasattr(signal, name)} - {"SIGKILL"}


def test_make_has_the_targets_that_are_named() -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"run", "test", "check"} <= named <= targets


def test_every_file_that_the_readme_names_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_pool_file_of_the_readme_loads(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(snippet("pool.toml"))
    (tmp_path / "api-key").write_text("mbx_" + "k" * 32)
    loaded = pool_file.load(tmp_path / "pool.toml", {"HOME": str(tmp_path)})
    assert (loaded.pool[0].workers, loaded.pool[0].concurrency, loaded.pool[0].modules) == (2, 4, ["my_handlers"])


def test_the_example_has_every_key() -> None:
    # What is commented out has no space behind its sign.
    example = (ROOT / "configs" / "pool.example.toml").read_text()
    document = tomli.loads(re.sub(r"^#(?! )", "", example, flags=re.MULTILINE))
    pools = document["pool"]
    for struct, tables in (
        (pool_file.ControlPlane, [document["control_plane"]]),
        (pool_file.Supervisor, [document["supervisor"]]),
        (pool_file.Pool, pools),
        (pool_file.ModelServer, [server for pool in pools for server in pool["providers"].values()]),
        (pool_file.Limits, [pool.get("limits", {}) for pool in pools]),
        (pool_file.Restart, [pool.get("restart", {}) for pool in pools]),
    ):
        missing = {field.name for field in msgspec.structs.fields(struct)} - {key for table in tables for key in table}
        assert missing == set(), typing.cast("type", struct).__name__


def test_the_first_handler_runs_with_the_commands_beside_it(tmp_path: Path) -> None:
    for name in ("my_handlers.py", "greet.toml"):
        (tmp_path / name).write_text(snippet(name))
    with ControlPlaneProcess(tmp_path) as plane:
        # The address and the place of the key differ here; every other character is the README's.
        commands = snippet("commands").replace("http://127.0.0.1:8780", plane.url)
        commands = commands.replace(".quickstart/api-key", str(plane.key_file))
        assert plane.url in commands
        assert str(plane.key_file) in commands
        command = MobiusCommand(plane.url, "", tmp_path)
        environment = command.environment | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        # The shell waits for the worker that it was told to end, so that nothing is left behind.
        done = subprocess.run(
            ["bash", "-m", "-e", "-c", commands + "\nwait %1 || true"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "run.completed" in done.stdout
    assert "Hello, Ada! Hello, Ada!" in done.stdout
