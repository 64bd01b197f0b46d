"""`mobius actions`: what is recorded of actions, and running one now."""

import click

from mobius_cli import text
from mobius_cli.documents import parse_inputs
from mobius_cli.errors import RunFailedError, UsageError
from mobius_cli.http import Mobius, Record
from mobius_cli.options import asks_mobius, limit_option
from mobius_cli.output import Column, Output

UNLIMITED = "none"


def _annotations(action: Record) -> str:
    flags = action.get("annotations") or {}
    return ", ".join(f"{text.plain(name)}={str(value).lower()}" for name, value in sorted(flags.items()))


_FIELDS: list[Column] = [
    ("action", lambda action: text.plain(action.get("name"))),
    ("title", lambda action: text.plain(action.get("title"))),
    ("annotations", _annotations),
    ("limit", lambda action: text.plain(action.get("max_running"))),
    ("updated", lambda action: text.date_and_time(action.get("updated_at"))),
    ("description", lambda action: text.plain(action.get("description"))),
    ("id", lambda action: text.plain(action.get("id"))),
]
_COLUMNS: list[Column] = [(title.upper(), cell) for title, cell in _FIELDS[:5]]


@click.group()
def actions() -> None:
    """Record what is true of actions, and run one now. An action needs no record to be run."""


@actions.command("list")
@limit_option("actions")
@asks_mobius
async def list_actions(mobius: Mobius, output: Output, limit: int) -> None:
    """List the recorded actions."""
    found, more = await mobius.actions(limit=limit)
    output.records(_COLUMNS, found, nothing=f"no action is recorded in project {mobius.project!r}")
    if more:
        output.note(f"there are more than these {len(found)}; raise --limit to see them")


@actions.command("get")
@click.argument("action")
@asks_mobius
async def get(mobius: Mobius, output: Output, action: str) -> None:
    """Show what is recorded of ACTION."""
    output.record(_FIELDS, await mobius.action(action))


@actions.command("record")
@click.argument("action")
@click.option("--title", help="Its name for people.")
@click.option("--description", help="What it does.")
@click.option(
    "--idempotent/--not-idempotent",
    default=None,
    help="Whether a job whose worker was lost may be run again (default: yes, as long as it has attempts).",
)
@click.option("--limit", "most", metavar="N|none", help="At most so many of its jobs run at once.")
@asks_mobius
async def record(
    mobius: Mobius,
    output: Output,
    action: str,
    title: str | None,
    description: str | None,
    idempotent: bool | None,  # noqa: FBT001 - click passes flags by name
    most: str | None,
) -> None:
    """Record something of ACTION, or change what is recorded."""
    fields: Record = {name: value for name, value in (("title", title), ("description", description)) if value}
    if idempotent is not None:
        fields["annotations"] = {"idempotent": idempotent}
    if most is not None:
        if most != UNLIMITED and not (most.isascii() and most.isdigit() and int(most) > 0):
            raise UsageError(f"--limit: {most!r} is no limit; expected a number from 1 on, or {UNLIMITED}")
        fields["max_running"] = None if most == UNLIMITED else int(most)
    output.record(_FIELDS, await mobius.record_action(action, fields))


@actions.command("forget")
@click.argument("action")
@asks_mobius
async def forget(mobius: Mobius, output: Output, action: str) -> None:
    """Forget what is recorded of ACTION; its jobs stay as they are."""
    await mobius.forget_action(action)
    if output.is_json:
        output.json({"name": action})
    else:
        output.line(f"nothing is recorded of {text.plain(action)} any more")


@actions.command("invoke")
@click.argument("action")
@click.option("--param", "pairs", multiple=True, metavar="NAME=VALUE", help="One parameter; repeatable.")
@click.option("--params", metavar="JSON", help="All parameters as a JSON object; --param wins over it.")
@click.option("--timeout", type=click.IntRange(1, 50), default=30, show_default=True, help="Seconds to wait.")
@asks_mobius
async def invoke(
    mobius: Mobius,
    output: Output,
    action: str,
    pairs: tuple[str, ...],
    params: str | None,
    timeout: int,  # noqa: ASYNC109 - the server's
) -> None:
    """Run ACTION now and print its result; exit code 1 when it failed. One that takes longer goes on as a job."""
    parameters = parse_inputs(pairs, params, pair_option="--param", option="--params")
    answer = await mobius.invoke_action(action, {"input": parameters, "timeout_seconds": timeout})
    if answer.get("status") == "failed":
        raise RunFailedError(text.plain(answer.get("error")))
    if output.is_json:
        output.json(answer)
    elif answer.get("status") == "active":
        job_id = text.plain(answer.get("job_id"))
        output.line(f"job {job_id} goes on; look at it with: mobius jobs get {job_id}")
    else:
        output.line(text.plain(answer.get("output")))
