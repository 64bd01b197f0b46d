"""`mobius queues`: what waits, what runs, and what holds it back."""

import click

from mobius_cli import text
from mobius_cli.errors import UsageError
from mobius_cli.http import Mobius, Record
from mobius_cli.options import asks_mobius
from mobius_cli.output import Column, Output

UNLIMITED = "none"


def _pending(queue: Record) -> str:
    return text.plain(queue.get("pending")) + ("+" if queue.get("pending_is_more") else "")


def _age(queue: Record) -> str:
    age = queue.get("oldest_age_seconds")
    return f"{age:.0f} s" if isinstance(age, int | float) else ""


_COLUMNS: list[Column] = [
    ("QUEUE", lambda queue: text.plain(queue.get("name"))),
    ("STATE", lambda queue: "paused" if queue.get("paused") else "open"),
    ("PENDING", _pending),
    ("OLDEST", _age),
    ("RUNNING", lambda queue: text.plain(queue.get("claimed"))),
    ("LIMIT", lambda queue: text.plain(queue.get("max_running"))),
]


@click.group()
def queues() -> None:
    """Look at the queues, pause and resume them, limit what runs at once."""


@queues.command("list")
@asks_mobius
async def list_queues(mobius: Mobius, output: Output) -> None:
    """List every queue that ever had a job: what waits, for how long, and what runs."""
    output.records(_COLUMNS, await mobius.queues(), nothing=f"no job was ever queued in project {mobius.project!r}")


@queues.command("pause")
@click.argument("queue")
@asks_mobius
async def pause(mobius: Mobius, output: Output, queue: str) -> None:
    """Give out no more jobs of QUEUE; those that run go on."""
    _say(output, await mobius.update_queue(queue, {"paused": True}))


@queues.command("resume")
@click.argument("queue")
@asks_mobius
async def resume(mobius: Mobius, output: Output, queue: str) -> None:
    """Give out the jobs of QUEUE again."""
    _say(output, await mobius.update_queue(queue, {"paused": False}))


@queues.command("limit")
@click.argument("queue")
@click.argument("most", metavar="N|none")
@asks_mobius
async def limit(mobius: Mobius, output: Output, queue: str, most: str) -> None:
    """Let at most N jobs of QUEUE run at once; none takes the limit away."""
    if most != UNLIMITED and not (most.isascii() and most.isdigit() and int(most) > 0):
        raise UsageError(f"{most!r} is no limit; expected a number from 1 on, or {UNLIMITED}")
    _say(output, await mobius.update_queue(queue, {"max_running": None if most == UNLIMITED else int(most)}))


def _say(output: Output, queue: Record) -> None:
    output.records(_COLUMNS, [queue], nothing="") if not output.is_json else output.json(queue)
