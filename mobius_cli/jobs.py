"""`mobius jobs`: hand jobs in without a run, look at them, cancel them, put them back."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from typing import Any

import click

from mobius_cli import reasons, text
from mobius_cli.documents import JobLine, parse_inputs, parse_moment, read_jobs
from mobius_cli.errors import CommandError, RunFailedError, UnavailableError, UsageError
from mobius_cli.http import Mobius, Record
from mobius_cli.options import asks_mobius, limit_option
from mobius_cli.output import Column, Output
from wire.duration import seconds_of

JOB_STATUSES = ("pending", "claimed", "completed", "failed", "cancelled")
JOB_ENDED = frozenset({"completed", "failed", "cancelled"})

BATCH = 1000
"""Jobs that a server takes at once."""

BATCH_BYTES = 3 * 1024 * 1024
"""Of these jobs: a server takes 4 MiB."""

_PLACE = re.compile(r"\$\.jobs\[(\d+)\]")
"""How a server names a job of what it was sent."""

LOOK_EVERY = (0.1, 2.0)
"""Seconds between two looks at a job that is waited for: the first pause, and the longest."""


def _work(job: Record) -> str:
    if job.get("action_name"):
        return text.plain(job["action_name"])
    return f"{text.plain(job.get('provider'))}/{text.plain(job.get('model'))}"


def _attempts(job: Record) -> str:
    retry = job.get("retry") or {}
    return f"{text.plain(job.get('attempts_charged'))} of {text.plain(retry.get('max_attempts'))} failed"


def _number(job: Record, name: str) -> str:
    return text.plain(job.get(name) or None)


_COLUMNS: list[Column] = [
    ("JOB", lambda job: text.plain(job.get("id"))),
    ("STATUS", lambda job: text.plain(job.get("status"))),
    ("WORK", _work),
    ("QUEUE", lambda job: text.plain(job.get("queue"))),
    ("PRIORITY", lambda job: _number(job, "priority")),
    ("CLAIMS", lambda job: _number(job, "claim_attempt")),
    ("WORKER", lambda job: text.plain(job.get("worker_instance_id"))),
    ("CREATED", lambda job: text.date_and_time(job.get("created_at"))),
    ("ERROR", lambda job: text.plain(job.get("error_type"))),
]
_FIELDS: list[Column] = [
    ("job", lambda job: text.plain(job.get("id"))),
    ("status", lambda job: text.plain(job.get("status"))),
    ("work", _work),
    ("queue", lambda job: text.plain(job.get("queue"))),
    ("priority", lambda job: _number(job, "priority")),
    ("run", lambda job: text.plain(job.get("run_id"))),
    ("step", lambda job: text.plain(job.get("step_key"))),
    ("environment", lambda job: text.plain(job.get("environment_id"))),
    ("external id", lambda job: text.plain(job.get("external_id"))),
    ("worker", lambda job: text.plain(job.get("worker_instance_id"))),
    ("claims", lambda job: _number(job, "claim_attempt")),
    ("attempts", _attempts),
    ("created", lambda job: text.date_and_time(job.get("created_at"))),
    ("available", lambda job: text.date_and_time(job.get("available_at"))),
    ("claimed", lambda job: text.date_and_time(job.get("claimed_at"))),
    ("lease until", lambda job: text.date_and_time(job.get("lease_expires_at"))),
    ("ended", lambda job: text.date_and_time(job.get("completed_at"))),
    ("cancel asked", lambda job: text.date_and_time(job.get("cancel_requested_at"))),
    ("error", text.fault),
    ("spec", lambda job: text.plain(job.get("spec") or None)),
    ("result", lambda job: text.plain(job.get("result"))),
]


@click.group()
def jobs() -> None:
    """Hand jobs in without a run, look at any job, cancel it, put it back."""


@jobs.command("enqueue")
@click.argument("action", required=False)
@click.option("--file", metavar="FILE", help="Instead of one ACTION: a JSON object of a job on each line; - is stdin.")
@click.option("--param", "pairs", multiple=True, metavar="NAME=VALUE", help="One parameter; repeatable.")
@click.option("--params", metavar="JSON", help="All parameters as a JSON object; --param wins over it.")
@click.option("--queue", metavar="NAME", help="Queue (default: default).")
@click.option("--priority", type=int, metavar="N", help="-100 to 100; the highest are claimed first (default: 0).")
@click.option("--delay", metavar="DURATION", help="Not before so long from now, such as 30s or 2h.")
@click.option("--run-at", metavar="TIME", help="Not before then.")
@click.option("--max-attempts", type=int, metavar="N", help="Failures and lost workers together (default: 1).")
@click.option("--retry-delay", metavar="DURATION", help="Before the second attempt.")
@click.option("--backoff", type=float, metavar="FACTOR", help="Each delay is so many times the one before.")
@click.option("--max-delay", metavar="DURATION", help="However long the backoff makes it.")
@click.option("--timeout", metavar="DURATION", help="For all attempts together, from the first claim on (default: 1d).")
@click.option("--external-id", metavar="ID", help="Your own id: handed in again, it is the same job.")
@click.option("--wait", is_flag=True, help="Wait for the end; exit code 1 unless the job completes.")
@asks_mobius
async def enqueue(
    mobius: Mobius, output: Output, /, action: str | None, file: str | None, *, wait: bool, **asked: Any
) -> None:
    """Enqueue a job of ACTION, or every job of a file.

    A line of the file is what the API takes: {"action_name": "print", "parameters": {}, "queue": "default", ...}. Lines
    are sent a thousand at a time, or 3 MiB; each of these batches is taken as a whole or not at all. A file whose jobs
    all have an external_id can be sent again.
    """
    if (action is None) == (file is None):
        raise UsageError("say either which ACTION, or --file FILE")
    if file is not None:
        if wait or any(value not in (None, ()) for value in asked.values()):
            raise UsageError("--file says everything of its jobs: leave the other options out")
        await _enqueue_file(mobius, output, file)
        return
    (job_id,) = (await mobius.enqueue([_job(action or "", asked)]))["ids"]
    if wait:
        job = await _ended(mobius, job_id)
        _show(output, job)
        if job.get("status") != "completed":
            raise RunFailedError(f"job {job_id} is {text.plain(job.get('status'))}")
    elif output.is_json:
        output.json({"id": job_id})
    else:
        output.line(f"job {job_id} is enqueued; look at it with: mobius jobs get {job_id}")


async def _enqueue_file(mobius: Mobius, output: Output, file: str) -> None:
    ids: list[str] = []
    existing = 0
    for lines in _batches(read_jobs(file)):
        try:
            answer = await mobius.enqueue([line.job for line in lines])
        except CommandError as error:
            if output.is_json and ids:
                output.json({"ids": ids})
            error.args = (_of_lines(error, lines, len(ids)),)
            raise
        ids += answer.get("ids") or []
        existing += len(answer.get("existing") or [])
    if output.is_json:
        output.json({"ids": ids})
    else:
        known = f", {existing} of which were there already" if existing else ""
        output.line(f"{len(ids)} jobs are enqueued{known}")


def _batches(lines: Sequence[JobLine]) -> Iterator[list[JobLine]]:
    batch: list[JobLine] = []
    size = 0
    for line in lines:
        if batch and (len(batch) == BATCH or size + line.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += line.size
    yield batch


def _of_lines(error: CommandError, lines: Sequence[JobLine], enqueued: int) -> str:
    """What went wrong, with the file's lines for the server's places, and with what was done before."""
    told = _PLACE.sub(lambda place: f"line {lines[int(place.group(1))].number}", str(error))
    first, last = lines[0].number, lines[-1].number
    doubt = "; whether these are enqueued is not known" if isinstance(error, UnavailableError) else ""
    before = f"; the {enqueued} jobs of the lines before {first} are enqueued" if enqueued else ""
    return f"lines {first} to {last}: {told}{doubt}{before}"


def _job(action: str, asked: Record) -> Record:
    parameters = parse_inputs(asked["pairs"], asked["params"], pair_option="--param", option="--params")
    job: Record = {"action_name": action, "parameters": parameters}
    retry = {
        "max_attempts": asked["max_attempts"],
        "delay": asked["retry_delay"],
        "backoff": asked["backoff"],
        "max_delay": asked["max_delay"],
    }
    named = {
        "queue": asked["queue"],
        "priority": asked["priority"],
        "delay_seconds": _seconds(asked["delay"], "--delay"),
        "run_at": parse_moment(asked["run_at"], "--run-at"),
        "timeout_seconds": _seconds(asked["timeout"], "--timeout"),
        "external_id": asked["external_id"],
        "retry": {name: value for name, value in retry.items() if value is not None} or None,
    }
    return job | {name: value for name, value in named.items() if value is not None}


def _seconds(duration: str | None, option: str) -> float | None:
    if duration is None:
        return None
    seconds = seconds_of(duration)
    if seconds is None:
        raise UsageError(f"{option}: expected a duration such as 30s, 5m or 2h, got {duration!r}")
    return seconds


async def _ended(mobius: Mobius, job_id: str) -> Record:
    pause, longest = LOOK_EVERY
    while (job := await mobius.job(job_id)).get("status") not in JOB_ENDED:
        await asyncio.sleep(pause)
        pause = min(longest, 1.5 * pause)
    return job


@jobs.command("list")
@click.option("--status", type=click.Choice(JOB_STATUSES), help="Only jobs in this state; failed ones can be put back.")
@click.option("--queue", metavar="NAME", help="Only jobs of this queue.")
@click.option("--action", metavar="NAME", help="Only jobs of this action.")
@limit_option("jobs")
@asks_mobius
async def list_jobs(
    mobius: Mobius, output: Output, status: str | None, queue: str | None, action: str | None, limit: int
) -> None:
    """List jobs, those created last first."""
    found, more = await mobius.jobs(status=status, queue=queue, action_name=action, limit=limit)
    output.records(_COLUMNS, found, nothing=f"no such jobs in project {mobius.project!r}")
    if more:
        output.note(f"there are more than these {len(found)}; raise --limit to see them")


@jobs.command("get")
@click.argument("job")
@asks_mobius
async def get(mobius: Mobius, output: Output, job: str) -> None:
    """Show one job, and what its failed attempts died of."""
    _show(output, await mobius.job(job))


def _show(output: Output, job: Record) -> None:
    output.record(_FIELDS, job)
    attempts = job.get("attempts")
    if attempts and not output.is_json:
        output.records(reasons.ATTEMPTS, attempts, nothing="")


@jobs.command("why")
@click.argument("job")
@asks_mobius
async def why(mobius: Mobius, output: Output, job: str) -> None:
    """Say why a job is not running: what keeps it, in order, and what would help."""
    answer = await mobius.why(job)
    reasons.show(output, answer)


@jobs.command("cancel")
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB...")
@click.option("--reason", help="Reaches the handler that runs.")
@asks_mobius
async def cancel(mobius: Mobius, output: Output, job_ids: tuple[str, ...], reason: str | None) -> None:
    """Cancel jobs: at once where they wait; a worker that holds one is asked to stop. A step's run is cancelled too."""
    changed = [await mobius.cancel_job(job_id, reason) for job_id in job_ids]
    _say(output, changed, lambda job: "will stop" if job.get("status") == "claimed" else text.plain(job.get("status")))


@jobs.command("retry")
@click.argument("job_ids", nargs=-1, metavar="JOB...")
@click.option("--all-failed", is_flag=True, help="Every failed job without a run, by --queue and --action.")
@click.option("--queue", metavar="NAME", help="With --all-failed: only of this queue.")
@click.option("--action", metavar="NAME", help="With --all-failed: only of this action.")
@asks_mobius
async def retry(
    mobius: Mobius,
    output: Output,
    job_ids: tuple[str, ...],
    all_failed: bool,  # noqa: FBT001 - click passes flags by name
    queue: str | None,
    action: str | None,
) -> None:
    """Put failed jobs back into their queues, with all their attempts."""
    if bool(job_ids) == all_failed or (job_ids and (queue or action)):
        raise UsageError("say either which JOBs, or --all-failed with --queue or --action if need be")
    wanted = list(job_ids)
    if all_failed:
        found, _ = await mobius.jobs(status="failed", queue=queue, action_name=action, limit=100_000)
        wanted = [job["id"] for job in found if not job.get("run_id")]
    changed = [await mobius.retry_job(job_id) for job_id in wanted]
    _say(output, changed, lambda _: "waits again")


def _say(output: Output, changed: list[Record], what: Any) -> None:
    if output.is_json:
        output.json(changed)
        return
    for job in changed:
        output.line(f"job {text.plain(job.get('id'))} {what(job)}")
    if not changed:
        output.note("there is no such job")
