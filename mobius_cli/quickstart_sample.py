"""The sample automations of the quickstart: published, run, and shown as they run."""

import asyncio
import shlex
import shutil
import sys
from contextlib import aclosing
from pathlib import Path

import click
from msgspec import Struct

from mobius_cli import text
from mobius_cli.automations import add_version
from mobius_cli.documents import read_automation
from mobius_cli.errors import CommandError, NotFoundError
from mobius_cli.event_text import event_line, worker_of
from mobius_cli.http import Mobius, Record
from mobius_cli.output import Output

PARENT = "quickstart"
PART = "quickstart-part"


class Shown(Struct, kw_only=True):
    """What happened, as far as it was shown: events by run label, in their order, and the runs themselves."""

    runs: dict[str, Record]
    events: list[tuple[str, Record]]


async def publish_samples(mobius: Mobius, directory: Path) -> None:
    """Create and publish both automations from their files in `directory`; reuse what is published already."""
    # The part first: its parent is refused while what it starts does not exist.
    for handle in (PART, PARENT):
        document = read_automation(str(directory / f"{handle}.automation.toml"))
        spec = document.pop("spec")
        try:
            automation = await mobius.automation(handle)
        except NotFoundError:
            automation = await mobius.create_automation(document)
        current = [
            version
            for version in await mobius.versions(handle)
            if version.get("version") == automation.get("published_version") and version.get("spec") == spec
        ]
        if current:
            click.echo(f"automation {handle}: version {automation.get('published_version')} is published already")
        else:
            version = await add_version(mobius, handle, spec)
            await mobius.publish(handle, version)
            click.echo(f"automation {handle}: version {version} created and published")


async def run_sample(mobius: Mobius) -> Shown:
    """Start the parent and print the events of both runs as they happen, until both have ended."""
    run = await mobius.start_run(PARENT, inputs={}, external_id=None)
    click.echo(f"run {run['id']} started\n")
    shown = Shown(runs={PARENT: run}, events=[])
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_follow(mobius, shown, PARENT, group))
    except BaseExceptionGroup as errors:
        fault, _ = errors.split(CommandError)
        if fault is None:
            raise
        raise fault.exceptions[0] from errors
    return shown


async def _follow(mobius: Mobius, shown: Shown, label: str, group: asyncio.TaskGroup) -> None:
    run_id = str(shown.runs[label]["id"])
    async with aclosing(mobius.events(run_id)) as events:
        async for event in events:
            shown.events.append((label, event))
            click.echo(event_line(event, label))
            part = (event.get("payload") or {}).get("run_id")
            if part is not None:
                shown.runs[PART] = {"id": part}
                group.create_task(_follow(mobius, shown, PART, group))
    shown.runs[label] = await mobius.run(run_id)


async def show_summary(mobius: Mobius, shown: Shown) -> None:
    """The steps of both runs, which worker did what, and how it ended."""
    rows, done = [], dict[str, list[str]]()
    for label, run in shown.runs.items():
        for step in await mobius.steps(str(run["id"])):
            key = text.plain(step.get("step_key"))
            calls = [
                worker_of(event)
                for of, event in shown.events
                if of == label and event.get("step_key") == key and event.get("event_type") == "action.called"
            ]
            for attempt, worker in enumerate(calls, 1):
                done.setdefault(worker, []).append(key + (f" (attempt {attempt})" if len(calls) > 1 else ""))
            rows.append(
                [
                    *(label, key, text.plain(step.get("status")), text.plain(step.get("attempt"))),
                    " then ".join(dict.fromkeys(calls)),
                    text.took(step.get("started_at"), step.get("completed_at")),
                ]
            )
    output = Output("table")
    click.echo()
    output.table(["RUN", "STEP", "STATUS", "ATTEMPT", "WORKER", "TOOK"], rows)
    click.echo()
    for worker, steps in sorted(done.items()):
        click.echo(f"{worker} executed: {', '.join(steps)}")
    for label, run in shown.runs.items():
        fault = text.fault(run)
        click.echo(f"run {label} {text.plain(run.get('status'))}{f': {fault}' if fault else ''}")


def show_where_to_look(*, api_url: str, key_file: Path, operations_url: str, log: Path, shown: Shown) -> None:
    """Commands to type in another terminal while everything keeps running."""
    run_id = shown.runs[PARENT]["id"]
    key = shlex.quote(str(key_file))
    mobius = shlex.quote(_program())
    click.echo(
        f"""
In another terminal:
  export MOBIUS_API_URL={api_url} MOBIUS_API_KEY="$(cat {key})"
  {mobius} worker-sessions list
  {mobius} runs list-steps {run_id}
  {mobius} automations start {PARENT} --stream --input text="three little words"
  curl {operations_url}/metrics

The supervisor's log: {log}
"""
    )


def _program() -> str:
    """What to type for `mobius` in another terminal of the same directory."""
    script = Path(sys.executable).with_name("mobius")
    if shutil.which("mobius") == str(script) or not script.exists():
        return "mobius"
    return str(script.relative_to(Path.cwd())) if script.is_relative_to(Path.cwd()) else str(script)
