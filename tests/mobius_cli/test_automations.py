import json
from pathlib import Path

from tests.support.mobius_command import MobiusCommand


def created(command: MobiusCommand, path: Path, handle: str) -> None:
    done = command.run("automations", "create", str(path), "--handle", handle, "--publish")
    assert done.returncode == 0, done.stderr


def test_create_from_a_file_and_publish(command: MobiusCommand, automation_file: Path) -> None:
    done = command.run("automations", "create", str(automation_file), "--publish")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (lines["handle"], lines["name"], lines["published"]) == ("echo", "Echo", "1")
    automation = command.json("automations", "get", "echo")
    assert automation["default_inputs"] == {"text": "hello"}
    assert automation["published_version"] == 1


def test_create_from_standard_input_with_another_handle(command: MobiusCommand) -> None:
    document = json.dumps({"handle": "of-file", "name": "Of file"})
    done = command.run("automations", "create", "-", "--handle", "of-option", stdin=document)
    assert done.returncode == 0, done.stderr
    assert command.json("automations", "get", "of-option")["name"] == "Of file"
    assert command.run("automations", "get", "of-file").returncode == 66


def test_create_from_options_alone(command: MobiusCommand) -> None:
    assert command.run("automations", "create", "--handle", "bare", "--name", "Bare").returncode == 0
    done = command.run("automations", "publish", "bare")
    assert done.returncode == 66
    assert "'bare' has no version yet" in done.stderr


def test_a_handle_that_is_taken_says_how_to_go_on(command: MobiusCommand, automation_file: Path) -> None:
    created(command, automation_file, "taken")
    done = command.run("automations", "create", str(automation_file), "--handle", "taken")
    assert done.returncode == 73
    assert "--exist-ok" in done.stderr
    done = command.run("automations", "create", str(automation_file), "--handle", "taken", "--exist-ok")
    assert done.returncode == 0, done.stderr
    automation = command.json("automations", "get", "taken")
    assert (automation["latest_version"], automation["published_version"]) == (2, 1)
    assert command.run("automations", "publish", "taken").returncode == 0
    assert command.json("automations", "get", "taken")["published_version"] == 2
    assert command.run("automations", "publish", "taken", "--version", "1").returncode == 0
    assert command.json("automations", "get", "taken")["published_version"] == 1
    assert command.run("automations", "publish", "taken", "--version", "9").returncode == 66


def test_an_invalid_spec_is_named(command: MobiusCommand) -> None:
    document = json.dumps({"handle": "wrong", "spec": {"steps": [{"key": "a", "kind": "action", "config": {}}]}})
    done = command.run("automations", "create", "-", "--publish", stdin=document)
    assert done.returncode == 65
    assert "steps[0].config.action_name" in done.stderr
    assert "the automation itself is there: correct FILE and give --exist-ok" in done.stderr
    assert "published_version" not in command.json("automations", "get", "wrong")


def test_list_and_its_limit(command: MobiusCommand, automation_file: Path) -> None:
    for handle in ("list-a", "list-b", "list-c"):
        created(command, automation_file, handle)
    done = command.run("automations", "list", "--limit", "2")
    titles, *rows = done.stdout.splitlines()
    assert titles.split() == ["HANDLE", "NAME", "STATUS", "PUBLISHED", "LATEST", "LAST", "RUN"]
    assert [row.split()[0] for row in rows] == ["list-c", "list-b"]
    assert "raise --limit" in done.stderr
    assert {one["handle"] for one in command.json("automations", "list")} >= {"list-a", "list-b", "list-c"}
    assert command.json("automations", "list", "--status", "archived") == []
    assert "no automations" in command.run("automations", "list", "--status", "archived").stderr


def test_start_says_how_to_follow_the_run(command: MobiusCommand, automation_file: Path) -> None:
    created(command, automation_file, "started")
    done = command.run("automations", "start", "started", "--input", "text=3")
    assert done.returncode == 65, "3 is a number, and the input is declared a string"
    done = command.run("automations", "start", "started", "--input", 'text="3"')
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split()[1]
    assert f"mobius runs stream {run_id}" in done.stdout
    run = command.json("runs", "get", run_id)
    assert run["inputs"] == {"text": "3"}
    again = command.json("automations", "start", "started", "--external-id", "x", "--inputs", '{"text": "a"}')
    assert command.json("automations", "start", "started", "--external-id", "x")["id"] == again["id"]


def test_start_what_does_not_exist(command: MobiusCommand) -> None:
    done = command.run("automations", "start", "nobody")
    assert done.returncode == 66
    assert "nobody" in done.stderr


def test_list_runs_of_one_automation(command: MobiusCommand, automation_file: Path) -> None:
    created(command, automation_file, "listed")
    run = command.json("automations", "start", "listed")
    assert [one["id"] for one in command.json("automations", "list-runs", "listed")] == [run["id"]]
    assert command.json("automations", "list-runs", "listed", "--status", "completed") == []
    titles, row = command.run("automations", "list-runs", "listed").stdout.splitlines()
    assert titles.startswith("RUN")
    assert row.startswith(run["id"])
    assert run["id"] in {one["id"] for one in command.json("automations", "list-runs", "--status", "suspended")}
    assert command.run("automations", "list-runs", "nobody").returncode == 66
