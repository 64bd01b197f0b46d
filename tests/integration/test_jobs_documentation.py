"""docs/jobs.md: every snippet runs, and every table is what the code has."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.web.job_shapes import JobRetryRequest, NewJobRequest
from tests.support.control_plane_process import ControlPlaneProcess
from tests.support.mobius_command import MOBIUS, MobiusCommand
from wire import verdicts

PAGE = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- test: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
JOBS = "/v1/projects/default/jobs"


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    with ControlPlaneProcess(tmp_path / "plane") as running:
        yield running


def names(begins: str) -> set[str]:
    """What the first cells of the table behind this line name."""
    table = PAGE[PAGE.index(begins) :].split("\n\n")[0]
    return {name for line in table.splitlines()[3:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_every_block_is_a_snippet_that_is_tested() -> None:
    assert set(SNIPPETS) == {"commands", "jobs.jsonl", "request.json"}
    assert len(re.findall(r"^```\w+$", PAGE, re.MULTILINE)) == len(SNIPPETS)


def test_the_fields_are_those_of_a_job() -> None:
    assert names("<!-- fields of a job -->") == set(NewJobRequest.__struct_fields__)
    (retry,) = re.findall(r"^\| `retry` \|(.*)\|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", retry)) == set(JobRetryRequest.__struct_fields__)


def test_the_error_types_are_those_that_end_a_job() -> None:
    assert names("<!-- error types that end a job -->") == verdicts.NON_RETRYABLE


def test_the_request_is_taken(plane: ControlPlaneProcess) -> None:
    with plane.http() as http:
        answer = http.post(JOBS, json=json.loads(SNIPPETS["request.json"]))
        assert answer.status_code == 201, answer.text
        assert len(answer.json()["ids"]) == 3


def test_the_commands_run(plane: ControlPlaneProcess, tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(SNIPPETS["jobs.jsonl"])
    command = MobiusCommand(plane.url, plane.key, tmp_path / "home")
    with command.start("worker", "--queues", "default"):
        done = subprocess.run(
            ["bash", "-e"],
            input=SNIPPETS["commands"],
            cwd=tmp_path,
            env={**command.environment, "PATH": f"{Path(MOBIUS).parent}:{command.environment['PATH']}"},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout
    assert re.search(r"^job_\w+ +failed +fail ", done.stdout, re.MULTILINE), done.stdout
    assert "2 jobs are enqueued\n" in done.stdout
    assert '"[1,2]"' in done.stdout.replace(" ", "").replace("\\", ""), done.stdout
    assert re.search(r"^default +open ", done.stdout, re.MULTILINE)
    with plane.http() as http:
        (waiting,) = http.get(JOBS, params={"status": "pending"}).json()["items"]
        assert (waiting["priority"], waiting["action_name"]) == (5, "print")
