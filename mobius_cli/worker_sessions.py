"""`mobius worker-sessions`: who is online, who was, and who is to drain."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import click

from mobius_cli import text
from mobius_cli.errors import StillBusyError, UnavailableError, UsageError
from mobius_cli.http import Mobius, Record
from mobius_cli.options import asks_mobius, limit_option
from mobius_cli.output import Column, Output
from wire.duration import seconds_of

LOOK_EVERY = 1.0
"""Seconds between two looks at what a drain has left."""

QUIET_LOOKS = 2
"""So many looks in a row must find nothing: a claim that was under way may still have brought a job to the first."""


def _actions(row: Record) -> str:
    names = [text.plain(name) for name in row.get("action_names") or []]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _models(row: Record) -> str:
    return ", ".join(
        f"{text.plain(pair.get('provider'))}/{text.plain(pair.get('model'))}" for pair in row.get("models") or []
    )


def _job(job: Record) -> str:
    return f"{text.plain(job.get('action'))} ({text.plain(job.get('run_id') or job.get('id'))})"


def _end(row: Record) -> str:
    ended = row.get("ended_at")
    return f"{text.date_and_time(ended)}, {text.plain(row.get('end_reason') or 'unknown')}" if ended else ""


def _name_of(drain: Record) -> str:
    for name, words in (("worker_session_id", "session"), ("worker_instance_id", "instance"), ("version", "version")):
        if name in drain:
            return f"{words} {text.plain(drain[name])}"
    return ""


_WHO: list[Column] = [
    ("WORKER", lambda row: text.plain(row.get("worker_instance_id"))),
    ("NAME", lambda row: text.plain(row.get("name"))),
    ("STATUS", lambda row: text.plain(row.get("instance_status"))),
    ("BUSY", lambda row: f"{text.plain(row.get('busy_job_count'))}/{text.plain(row.get('concurrency_limit'))}"),
]
_COLUMNS: list[Column] = [
    *_WHO,
    ("QUEUES", lambda row: ", ".join(text.plain(queue) for queue in row.get("queues") or []) or "(all)"),
    ("ACTIONS", _actions),
    ("MODELS", _models),
    ("IN HAND", lambda row: ", ".join(_job(job) for job in row.get("current_jobs") or [])),
    ("LAST SEEN", lambda row: text.date_and_time(row.get("last_seen_at"))),
]
_HISTORY: list[Column] = [
    ("SESSION", lambda row: text.plain(row.get("id"))),
    *_WHO,
    ("VERSION", lambda row: text.plain(row.get("version"))),
    ("SINCE", lambda row: text.date_and_time(row.get("created_at"))),
    ("LAST SEEN", lambda row: text.date_and_time(row.get("last_seen_at"))),
    ("ENDED", _end),
]
_DRAINS: list[Column] = [
    ("DRAINS", _name_of),
    ("SINCE", lambda row: text.date_and_time(row.get("created_at"))),
    ("SESSIONS", lambda row: str(len(row.get("items") or []))),
    ("JOBS LEFT", lambda row: text.plain(row.get("jobs_left"))),
]


@click.group("worker-sessions")
def worker_sessions() -> None:
    """Look at the workers that are or were connected, and have them drain."""


@worker_sessions.command("list")
@click.option(
    "--state",
    type=click.Choice(["live", "stale", "draining", "ended", "all"]),
    help="Look into the history of 30 days instead; `ended` says when and why.",
)
@limit_option("rows of the history")
@asks_mobius
async def list_sessions(mobius: Mobius, output: Output, state: str | None, limit: int) -> None:
    """List the workers that are online: one row each, with the jobs that it has in hand."""
    if state is not None:
        found, more = await mobius.worker_session_history(state, limit=limit)
        output.records(_HISTORY, found, nothing=f"project {mobius.project!r} has no such worker session")
        if more:
            output.note(f"there are more than these {limit}; --limit shows more")
        return
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


@worker_sessions.command("list-drains")
@asks_mobius
async def list_drains(mobius: Mobius, output: Output) -> None:
    """List what is to drain, and the jobs that are left in hand."""
    output.records(_DRAINS, await mobius.drains(), nothing=f"nothing drains in project {mobius.project!r}")


def _target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--version", metavar="VERSION", help="All sessions of this version of the worker.")(command)
    command = click.option("--instance-id", metavar="ID", help="All sessions of this worker_instance_id.")(command)
    return click.argument("session", required=False)(command)


@worker_sessions.command("drain")
@_target_options
@click.option("--wait", is_flag=True, help="Until no job is left in hand, with progress.")
@click.option("--timeout", metavar="DURATION", help="Wait at most so long, such as 10m; the drain stands nevertheless.")
@asks_mobius
async def drain(
    mobius: Mobius,
    output: Output,
    session: str | None,
    instance_id: str | None,
    version: str | None,
    wait: bool,  # noqa: FBT001 - click's
    timeout: str | None,  # noqa: ASYNC109 - the user's
) -> None:
    """Have workers finish what they hold and claim nothing more: one session, an instance, or a version.

    The drain of an instance or a version also counts for sessions that register later, until it is undone.
    """
    target = _target(session, instance_id, version)
    seconds = _seconds(timeout, wait=wait)
    answer = await mobius.drain(target)
    if wait:
        answer = await _drained(mobius, output, target, answer, seconds)
    if output.is_json:
        output.json(answer)
    else:
        output.line(f"{_name_of(target)}: {_sessions(answer)}, {_jobs(answer)} left in hand")


@worker_sessions.command("undrain")
@_target_options
@asks_mobius
async def undrain(
    mobius: Mobius, output: Output, session: str | None, instance_id: str | None, version: str | None
) -> None:
    """Undo a drain: its workers are connected anew, and claim again."""
    target = _target(session, instance_id, version)
    answer = await mobius.undrain(target)
    if output.is_json:
        output.json(answer)
    else:
        output.line(f"{_name_of(target)}: {_sessions(answer)} may claim again")


async def _drained(mobius: Mobius, output: Output, target: Record, answer: Record, limit: float | None) -> Record:
    """The answer once nothing is left. Raises StillBusyError when the time is over."""
    give_up_at = None if limit is None else time.monotonic() + limit
    said, quiet = None, 0
    while True:
        quiet = quiet + 1 if answer.get("jobs_left") == 0 else 0
        if quiet >= QUIET_LOOKS:
            return answer
        if (left := _jobs(answer)) != said:
            output.note(f"{left} left in hand")
            said = left
        if give_up_at is not None and time.monotonic() >= give_up_at:
            raise StillBusyError(f"{_name_of(target)}: {left} still in hand; the drain goes on")
        await asyncio.sleep(LOOK_EVERY)
        standing = [drain for drain in await mobius.drains() if target.items() <= drain.items()]
        if not standing:
            raise StillBusyError(f"{_name_of(target)}: somebody has undone the drain")
        answer = standing[0]


def _target(session: str | None, instance_id: str | None, version: str | None) -> Record:
    given = {"worker_session_id": session, "worker_instance_id": instance_id, "version": version}
    target = {name: value for name, value in given.items() if value is not None}
    if len(target) != 1:
        raise UsageError(
            "say what is to drain: a SESSION (wsess_...), --instance-id ID or --version VERSION, one of them"
        )
    return target


def _seconds(timeout: str | None, *, wait: bool) -> float | None:
    if timeout is None:
        return None
    seconds = seconds_of(timeout)
    if seconds is None or not wait:
        raise UsageError(f"--timeout is {timeout!r}; expected a duration such as 30s or 10m, together with --wait")
    return seconds


def _sessions(answer: Record) -> str:
    return _counted(len(answer.get("items") or []), "session")


def _jobs(answer: Record) -> str:
    left = answer.get("jobs_left")
    return _counted(left, "job") if isinstance(left, int) else "an unknown number of jobs"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
