"""docs/handlers.md: every snippet runs, and every table is what the code has."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

from supervisor import config as pool_file
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.mobius_command import MobiusCommand
from wire import verdicts
from wire.pipe import ENTRY_POINT_GROUP
from worker_child import isolation, runner, testing
from worker_child.actions import Context, Registry

PAGE = (Path(__file__).parents[2] / "docs" / "handlers.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- test: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))


def rows(begins: str) -> list[str]:
    """The first cell of every row of the table under the heading that begins so."""
    table = PAGE[PAGE.index(begins) :].split("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def names(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`(\w+)(?:\(\))?`", cell)}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, text in SNIPPETS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def pytest_of_a_user(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_every_block_is_a_snippet_that_is_tested() -> None:
    used = {"thumbs.py", "test_thumbs.py", "thumbs.toml", "commands", "shapes.py", "failing.py", "stopping.py"}
    used |= {"isolated.py", "pool.toml", "pyproject.toml", "test_more.py"}
    assert set(SNIPPETS) == used
    assert len(re.findall(r"^```\w+$", PAGE, re.MULTILINE)) == len(SNIPPETS)


def test_the_tests_pass(directory: Path) -> None:
    done = pytest_of_a_user(directory, "test_thumbs.py", "test_more.py")
    assert done.returncode == 0, done.stdout
    assert "10 passed" in done.stdout


def test_the_handlers_of_every_snippet_run(directory: Path) -> None:
    (directory / "test_rest.py").write_text(
        "import asyncio, isolated, shapes, test_more\n"
        "from worker_child.testing import run_job\n"
        "def test_shapes():\n"
        "    assert run_job('shapes.name', {'name': 'Ada'}).completed() == {'output': 'Ada'}\n"
        "    assert run_job('shapes.sum', [1, 2]).completed() == {'output': 3}\n"
        "    assert run_job('shapes.anything', {'a': 1}).completed() == {'a': 1}\n"
        "    assert run_job('shapes.point', {'x': 1, 'z': 2}).error_type == 'ValidationError'\n"
        "    said = run_job('shapes.point', {'x': -1}).error_message\n"
        "    assert said == 'parameters.x: Expected `float` >= 0.0'\n"
        "def test_isolated():\n"
        "    assert run_job('native.render', {'seconds': 0}).completed() == {'rendered': 0}\n"
        "def test_in_a_loop():\n"
        "    asyncio.run(test_more.use_the_loop_of_the_test())\n"
    )
    done = pytest_of_a_user(directory, "test_rest.py")
    assert done.returncode == 0, done.stdout


def test_the_commands_do_what_they_say(directory: Path) -> None:
    with ControlPlaneProcess(directory) as plane:
        # The address and the place of the key differ here; every other character is the page's.
        commands = SNIPPETS["commands"].replace("http://127.0.0.1:8780", plane.url)
        commands = commands.replace(".quickstart/api-key", str(plane.key_file))
        assert plane.url in commands
        assert str(plane.key_file) in commands
        environment = MobiusCommand(plane.url, "", directory).environment | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(directory / "state"),
        }
        # The shell waits for the worker that it was told to end, so that nothing is left behind.
        done = subprocess.run(
            ["bash", "-m", "-e", "-c", commands + "\nwait %1 || true"],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert "run.completed" in done.stdout


def test_the_pool_file_loads_and_the_entry_point_is_of_our_group(directory: Path) -> None:
    (directory / "api-key").write_text("mbx_" + "k" * 32)
    pool = pool_file.load(directory / "pool.toml", {"HOME": str(directory)}).pool[0]
    assert pool.modules == ["shapes", str(directory / "thumbs.py")]
    project = tomli.loads(SNIPPETS["pyproject.toml"])["project"]
    assert set(project["entry-points"]) == {ENTRY_POINT_GROUP}
    assert set(project["entry-points"][ENTRY_POINT_GROUP]) == set(pool.entry_points)


def test_the_context_has_what_the_table_has() -> None:
    public = {name for name in dir(Context) if not name.startswith("_")}
    assert names(rows("| `ctx.` |")) == public


def test_the_options_are_those_of_the_decorator_and_of_run_job() -> None:
    options = set(inspect.signature(Registry().action).parameters) - {"name"}
    assert names(rows("| `@action(name, ...)`")) == options
    of_run_job = set(inspect.signature(testing.run_job).parameters) - {"handler", "parameters", "fields"}
    assert names(rows("| `run_job(handler, parameters, ...)`")) == of_run_job
    here = set(inspect.signature(testing.run_job_here).parameters) - {"handler", "parameters", "fields"}
    assert here == of_run_job


def test_the_words_of_errors_are_those_that_decide() -> None:
    table = {}
    for line in PAGE[PAGE.index("| `error_type` |") :].split("\n\n")[0].splitlines()[2:]:
        words, _, then = (cell.strip() for cell in line.strip("|").split("|"))
        table |= dict.fromkeys(re.findall(r"`(\w+)`", words), then)
    final = {word for word, then in table.items() if then == "no"}
    # A job is poison by what it did to workers, not by what a handler says.
    assert final == verdicts.NON_RETRYABLE - {"PoisonJob"}
    assert {word for word, then in table.items() if "without its delay" in then} == verdicts.LOST
    assert table[verdicts.OVER_CAPACITY] == "yes"
    assert {isolation.CRASHED, isolation.OUT_OF_MEMORY, TimeoutError.__name__} <= set(table)


def test_what_the_page_says_of_grace_is_so() -> None:
    assert (runner.STOP_GRACE, runner.OVERDUE_AFTER) == (10.0, 30.0)
    assert "has ten seconds" in PAGE
    assert "half a minute later" in PAGE
