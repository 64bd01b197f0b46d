"""`mobius worker-sessions`: who is online."""

import click

from mobius_cli import text
from mobius_cli.errors import UnavailableError
from mobius_cli.http import Mobius, Record
from mobius_cli.options import asks_mobius
from mobius_cli.output import Column, Output


def _actions(row: Record) -> str:
    names = [text.plain(name) for name in row.get("action_names") or []]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _models(row: Record) -> str:
    return ", ".join(
        f"{text.plain(pair.get('provider'))}/{text.plain(pair.get('model'))}" for pair in row.get("models") or []
    )


def _job(job: Record) -> str:
    return f"{text.plain(job.get('action'))} ({text.plain(job.get('run_id'))})"


_COLUMNS: list[Column] = [
    ("WORKER", lambda row: text.plain(row.get("worker_instance_id"))),
    ("NAME", lambda row: text.plain(row.get("name"))),
    ("STATUS", lambda row: text.plain(row.get("instance_status"))),
    ("BUSY", lambda row: f"{text.plain(row.get('busy_job_count'))}/{text.plain(row.get('concurrency_limit'))}"),
    ("QUEUES", lambda row: ", ".join(text.plain(queue) for queue in row.get("queues") or []) or "(all)"),
    ("ACTIONS", _actions),
    ("MODELS", _models),
    ("IN HAND", lambda row: ", ".join(_job(job) for job in row.get("current_jobs") or [])),
    ("LAST SEEN", lambda row: text.date_and_time(row.get("last_seen_at"))),
]


@click.group("worker-sessions")
def worker_sessions() -> None:
    """Look at the workers that are connected."""


@worker_sessions.command("list")
@asks_mobius
async def list_sessions(mobius: Mobius, output: Output) -> None:
    """List the workers that are online: one row each, with the jobs that it has in hand."""
    answer = await mobius.worker_sessions()
    if output.is_json:
        output.json(answer)
        return
    rows = answer.get("items")
    if not isinstance(rows, list):
        raise UnavailableError("the answer has no list of items; is the address of the API right?")
    output.records(_COLUMNS, rows, nothing=f"no worker is connected to project {mobius.project!r}")
    totals = answer.get("totals")
    if rows and isinstance(totals, dict):
        output.note(
            f"{text.plain(totals.get('active_instances'))} active, {text.plain(totals.get('busy'))} of "
            f"{text.plain(totals.get('slots'))} slots busy, {text.plain(totals.get('stale'))} stale"
        )
