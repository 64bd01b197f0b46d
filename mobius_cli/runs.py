"""`mobius runs`: what became of a run, and what it is doing now."""

from contextlib import aclosing
from typing import Any

import click

from mobius_cli import reasons, text
from mobius_cli.documents import parse_inputs, parse_moment
from mobius_cli.errors import RunFailedError
from mobius_cli.event_stream import RUN_ENDED
from mobius_cli.event_text import event_line
from mobius_cli.http import Mobius, Record
from mobius_cli.options import asks_mobius, limit_option
from mobius_cli.output import Column, Output

RUN_STATUSES = ("queued", "running", "suspended", "completed", "failed", "cancelled")

RUN_FIELDS: list[Column] = [
    ("id", lambda run: text.plain(run.get("id"))),
    ("automation", lambda run: text.plain(run.get("automation_name") or run.get("automation_id"))),
    ("version", lambda run: text.plain(run.get("automation_version"))),
    ("status", lambda run: text.plain(run.get("status"))),
    ("error", text.fault),
    ("created", lambda run: text.date_and_time(run.get("created_at"))),
    ("started", lambda run: text.date_and_time(run.get("started_at"))),
    ("ended", lambda run: text.date_and_time(run.get("completed_at"))),
    ("took", lambda run: text.took(run.get("started_at"), run.get("completed_at"))),
    ("wakes", lambda run: text.date_and_time(run.get("wake_at"))),
    ("must be over", lambda run: text.date_and_time(run.get("wall_clock_deadline_at"))),
    ("started by run", lambda run: text.plain(run.get("parent_run_id"))),
    ("inputs", lambda run: text.plain(run.get("inputs") or None)),
    ("result", lambda run: text.plain(run.get("result"))),
]

STEP_COLUMNS: list[Column] = [
    ("STEP", lambda step: text.plain(step.get("step_key"))),
    ("KIND", lambda step: text.plain(step.get("kind"))),
    ("STATUS", lambda step: text.plain(step.get("status"))),
    ("ATTEMPT", lambda step: text.plain(step.get("attempt"))),
    ("JOB", lambda step: text.plain(step.get("job_id"))),
    ("TOOK", lambda step: text.took(step.get("started_at"), step.get("completed_at"))),
    ("ERROR", text.fault),
]


@click.group()
def runs() -> None:
    """Look at runs, follow them, signal them, cancel them."""


@runs.command("list")
@click.option("--status", type=click.Choice(RUN_STATUSES), help="Only runs that are in this state.")
@click.option("--automation", "handle", metavar="HANDLE", help="Only runs of this automation.")
@click.option("--external-id", metavar="ID", help="Only runs that were started with this id of yours.")
@click.option("--parent", metavar="RUN", help="Only runs that this run has started.")
@click.option("--created-after", metavar="TIME", help="Only runs that were created then or later.")
@click.option("--created-before", metavar="TIME", help="Only runs that were created before.")
@limit_option("runs")
@asks_mobius
async def list_runs(
    mobius: Mobius,
    output: Output,
    /,
    status: str | None,
    handle: str | None,
    external_id: str | None,
    parent: str | None,
    limit: int,
    **created: str | None,
) -> None:
    """List runs, newest first. All that is given must fit.

    TIME is a date, or a time such as 2026-01-31T12:00; without an offset from UTC (Z, +02:00) it is this machine's.
    """
    times = {name: parse_moment(text, f"--{name.replace('_', '-')}") for name, text in created.items()}
    automation_id = None if handle is None else str((await mobius.automation(handle)).get("id"))
    found, more = await mobius.runs(
        status=status,
        automation_id=automation_id,
        external_id=external_id,
        parent_run_id=parent,
        limit=limit,
        **times,
    )
    await show_runs(mobius, output, found, more=more)


@runs.command("get")
@click.argument("run_id", metavar="ID")
@asks_mobius
async def get(mobius: Mobius, output: Output, run_id: str) -> None:
    """Show one run: state, inputs, result or error."""
    output.record(RUN_FIELDS, await mobius.run(run_id))


@runs.command("list-steps")
@click.argument("run_id", metavar="ID")
@asks_mobius
async def list_steps(mobius: Mobius, output: Output, run_id: str) -> None:
    """List the steps of a run, each with its job and attempt."""
    output.records(STEP_COLUMNS, await mobius.steps(run_id), nothing="the run has no steps yet")


@runs.command("stream")
@click.argument("run_id", metavar="ID")
@click.option(
    "--since", type=click.IntRange(min=0), default=0, metavar="N", help="Only events after sequence N (default: all)."
)
@asks_mobius
async def stream(mobius: Mobius, output: Output, run_id: str, since: int) -> None:
    """Print the events of a run as they happen, until it ends.

    With --output json each event is one line. The exit code is 1 when the run ended failed or cancelled.
    """
    await follow(mobius, output, run_id, since=since)


@runs.command("why")
@click.argument("run_id", metavar="ID")
@asks_mobius
async def why(mobius: Mobius, output: Output, run_id: str) -> None:
    """Say what a run waits for: its turn, a time, a signal, or a job with what keeps that, and what would help."""
    reasons.show(output, await mobius.why_run(run_id))


@runs.command("cancel")
@click.argument("run_id", metavar="ID")
@click.option("--reason", help="Told to the handler that is running, and kept with the run.")
@asks_mobius
async def cancel(mobius: Mobius, output: Output, run_id: str, reason: str | None) -> None:
    """Cancel a run; its job in hand is asked to stop. A run that has ended stays as it is."""
    run = await mobius.cancel(run_id, reason)
    if output.is_json:
        output.json(run)
    else:
        output.line(f"{text.plain(run.get('id'))} is {text.plain(run.get('status'))}")


@runs.command("signal")
@click.argument("run_id", metavar="ID")
@click.argument("step_key", metavar="STEP")
@click.option(
    "--value",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="One value of the signal; repeatable. A value that is JSON is taken as such, any other as text.",
)
@click.option("--result", metavar="JSON", help="The whole signal as a JSON object; --value wins over it.")
@asks_mobius
async def signal(
    mobius: Mobius, output: Output, run_id: str, step_key: str, pairs: tuple[str, ...], result: str | None
) -> None:
    """End the step of a run that waits for this signal; one that comes early is kept for it."""
    values = parse_inputs(pairs, result, pair_option="--value", option="--result")
    run = await mobius.signal(run_id, step_key, values)
    if output.is_json:
        output.json(run)
    else:
        output.line(f"{text.plain(run.get('id'))} is {text.plain(run.get('status'))}")


async def show_runs(mobius: Mobius, output: Output, found: list[Record], *, more: bool) -> None:
    """A table of runs, with the workers that have their jobs in hand."""
    workers: dict[str, str] = {}
    if not output.is_json and any(run.get("status") not in RUN_ENDED.values() for run in found):
        workers = _workers_by_run(await mobius.worker_sessions())
    columns: list[Column] = [
        ("RUN", lambda run: text.plain(run.get("id"))),
        ("AUTOMATION", lambda run: text.plain(run.get("automation_name") or run.get("automation_id"))),
        ("VERSION", lambda run: text.plain(run.get("automation_version"))),
        ("STATUS", lambda run: text.plain(run.get("status"))),
        ("CREATED", lambda run: text.date_and_time(run.get("created_at"))),
        ("TOOK", lambda run: text.took(run.get("started_at"), run.get("completed_at"))),
        ("WORKER", lambda run: workers.get(str(run.get("id")), "")),
        ("ERROR", text.fault),
    ]
    output.records(columns, found, nothing="no runs")
    if more:
        output.note(f"there are more than these {len(found)}; raise --limit to see them")


async def follow(mobius: Mobius, output: Output, run_id: str, *, since: int = 0, quiet: bool = False) -> Record:
    """Print a run's events until it ended (`quiet`: only wait); the run as it is then.

    Raises RunFailedError unless it completed.
    """

    def dropped(why: str, seconds: float) -> None:
        output.note(f"the event stream dropped ({why}); going on in {seconds:.1f} s")

    async with aclosing(mobius.events(run_id, since, dropped)) as events:
        async for event in events:
            if quiet:
                continue
            if output.is_json:
                output.json(event)
            else:
                output.line(event_line(event))
    run = await mobius.run(run_id)
    if quiet:
        output.record(RUN_FIELDS, run)
    if run.get("status") != "completed":
        reason = text.fault(run)
        raise RunFailedError(f"run {run_id} ended {text.plain(run.get('status'))}{f': {reason}' if reason else ''}")
    return run


def _workers_by_run(sessions: Record) -> dict[str, str]:
    """Which worker instances have a job of which run in hand, from the presence rows."""
    found: dict[str, list[str]] = {}
    for session in sessions.get("items", []):
        jobs: list[Any] = session.get("current_jobs") or []
        for job in jobs:
            found.setdefault(str(job.get("run_id")), []).append(text.plain(session.get("worker_instance_id")))
    return {run_id: ", ".join(names) for run_id, names in found.items()}
