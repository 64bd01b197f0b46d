"""docs/automations.md: every snippet runs, and every table is what the code has."""

import json
import re
import subprocess
from pathlib import Path
from typing import get_args

from control_plane.domain import conditions, retries, runs, specs
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.mobius_command import MOBIUS, MobiusCommand

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "automations.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- test: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
DOMAIN = "".join(
    (ROOT / "control_plane" / "domain" / name).read_text() for name in ("runs.py", "recording.py", "retries.py")
)


def first_cells(begins: str) -> set[str]:
    """The names in the first cells of the table under the heading that begins so."""
    table = PAGE[PAGE.index(begins) :].split("\n\n")[0]
    cells = (line.split("|")[1] for line in table.splitlines()[2:])
    return {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}


def test_every_block_is_a_snippet_that_is_tested() -> None:
    assert set(SNIPPETS) == {"notify.toml", "release.toml", "commands"}
    assert len(re.findall(r"^```\w+$", PAGE, re.MULTILINE)) == len(SNIPPETS)


def test_the_commands_do_what_the_page_says(tmp_path: Path) -> None:
    for name in ("notify.toml", "release.toml"):
        (tmp_path / name).write_text(SNIPPETS[name])
    with ControlPlaneProcess(tmp_path / "plane") as plane:
        command = MobiusCommand(plane.url, plane.key, tmp_path / "home")
        path = f"{Path(MOBIUS).parent}:{command.environment['PATH']}"
        with command.start("worker", "--instance-id", "helper"):
            done = subprocess.run(
                ["sh", "-e", "-c", SNIPPETS["commands"]],
                cwd=tmp_path,
                env={**command.environment, "PATH": path},
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            (run,) = command.json("runs", "list", "--automation", "release")
            ended = command.json("runs", "get", run["id"])
            assert ended["status"] == "completed"
            assert ended["result"]["approval"] == {"by": "ada"}
            kinds = [step["kind"] for step in command.json("runs", "list-steps", run["id"])]
            assert kinds == ["action", "sleep", "wait_for_event", "action", "cleanup"]
            (child,) = command.json("runs", "list", "--parent", run["id"])
            assert child["inputs"] == {"who": "ada"}
            assert run["id"] in done.stdout


def test_the_tables_are_what_the_code_has() -> None:
    assert first_cells("| kind | config") == set(specs._STEP_KINDS)
    assert first_cells("| | |\n|---|---|\n| `allow`") == set(get_args(specs.Concurrency))
    named = set(re.findall(r'_StepFailed\(\s*"(\w+)"', DOMAIN)) | set(re.findall(r'"type": "(\w+)"', DOMAIN))
    named |= {runs.RUN_DEADLINE_EXCEEDED, runs.WAIT_DEADLINE_EXCEEDED, retries.EXECUTION_DEADLINE_EXCEEDED}
    assert first_cells("| error type | of") == named
    events = set(re.findall(r'"((?:run|step|signal)\.\w+)"', DOMAIN))
    assert first_cells("| event | when") == events - {"run.started"}


def test_codes_and_limits_are_those_of_the_code() -> None:
    codes = set(re.findall(r"`(\w+)`", "".join(re.findall(r"(?:400|404|409) `\w+`", PAGE))))
    raised = {"signal_refused", "not_a_wait_step", "unknown_step", "already_signalled", "run_ended", "run_skipped"}
    raised |= {"external_id_conflict"}
    assert codes == raised == {code for code in raised if f'"{code}"' in DOMAIN}
    assert f"At most {conditions.LONGEST} characters and {conditions.DEEPEST} levels" in PAGE
    assert f"at most {specs.MAX_CLEANUP_STEPS} actions" in PAGE
    assert f"All of them together have {runs.CLEANUP_TIMEOUT / 60:g} minutes" in PAGE
    assert f"(default {specs.DEFAULT_WAIT_TIMEOUT / 86_400:g} days)" in PAGE
    assert f"at most {specs.LONGEST_DURATION // 86_400} days" in PAGE


def test_the_commands_are_shown_with_data_that_is_json() -> None:
    release = SNIPPETS["release.toml"]
    (data,) = re.findall(r"data = '(.*?)'", release)
    assert json.loads(data) == {"size": 12}
