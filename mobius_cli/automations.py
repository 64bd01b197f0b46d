"""`mobius automations`: make them, publish them, start them."""

import click

from mobius_cli import text
from mobius_cli.documents import parse_inputs, read_automation
from mobius_cli.errors import CannotCreateError, InputError, NotFoundError, UsageError
from mobius_cli.http import Mobius, Record
from mobius_cli.options import asks_mobius, limit_option
from mobius_cli.output import Column, Output
from mobius_cli.runs import RUN_STATUSES, follow, show_runs

_FIELDS: list[Column] = [
    ("handle", lambda automation: text.plain(automation.get("handle"))),
    ("name", lambda automation: text.plain(automation.get("name"))),
    ("status", lambda automation: text.plain(automation.get("status"))),
    ("published", lambda automation: text.plain(automation.get("published_version"))),
    ("latest", lambda automation: text.plain(automation.get("latest_version"))),
    ("last run", lambda automation: text.date_and_time(automation.get("last_run_at"))),
    ("created", lambda automation: text.date_and_time(automation.get("created_at"))),
    ("description", lambda automation: text.plain(automation.get("description"))),
    ("inputs", lambda automation: text.plain(automation.get("default_inputs") or None)),
    ("id", lambda automation: text.plain(automation.get("id"))),
]
_COLUMNS: list[Column] = [(title.upper(), cell) for title, cell in _FIELDS[:6]]


@click.group()
def automations() -> None:
    """Make automations, publish them, start runs of them."""


@automations.command("create")
@click.argument("file", required=False)
@click.option("--handle", help="The automation's handle; wins over the file's.")
@click.option("--name", help="Its name for people; wins over the file's.")
@click.option("--publish", "publish_it", is_flag=True, help="Publish the version that the file's spec becomes.")
@click.option("--exist-ok", is_flag=True, help="If the automation exists already, only add the version.")
@asks_mobius
async def create(
    mobius: Mobius,
    output: Output,
    file: str | None,
    handle: str | None,
    name: str | None,
    publish_it: bool,  # noqa: FBT001 - click passes flags by name
    exist_ok: bool,  # noqa: FBT001
) -> None:
    """Create an automation, and a version of it from the spec in FILE.

    FILE is JSON or TOML with the keys handle, name, spec and, optionally, description, default_inputs, settings, tags,
    default_agent_id; - reads standard input. Without FILE the automation is created without a version.
    """
    fields = read_automation(file) if file is not None else {}
    fields |= {key: value for key, value in (("handle", handle), ("name", name)) if value is not None}
    spec: Record | None = fields.pop("spec", None)
    if not fields.get("handle"):
        raise UsageError("no handle: give --handle, or a FILE with the key 'handle'")
    fields.setdefault("name", fields["handle"])
    if publish_it and spec is None:
        raise UsageError("--publish needs a version: give a FILE with the key 'spec'")
    automation = await _made(mobius, fields, exist_ok=exist_ok)
    if spec is not None:
        try:
            version = await add_version(mobius, fields["handle"], spec)
        except InputError as error:
            raise InputError(f"{error}; the automation itself is there: correct FILE and give --exist-ok") from error
        if publish_it:
            await mobius.publish(fields["handle"], version)
        automation = await mobius.automation(fields["handle"])
    output.record(_FIELDS, automation)


@automations.command("list")
@click.option(
    "--status",
    type=click.Choice(["draft", "active", "paused", "archived", "all"]),
    help="Only automations in this state (default: all but archived).",
)
@limit_option("automations")
@asks_mobius
async def list_automations(mobius: Mobius, output: Output, status: str | None, limit: int) -> None:
    """List automations."""
    found, more = await mobius.automations(status=status, limit=limit)
    output.records(_COLUMNS, found, nothing=f"no automations in project {mobius.project!r}")
    if more:
        output.note(f"there are more than these {len(found)}; raise --limit to see them")


@automations.command("get")
@click.argument("handle")
@asks_mobius
async def get(mobius: Mobius, output: Output, handle: str) -> None:
    """Show one automation."""
    output.record(_FIELDS, await mobius.automation(handle))


@automations.command("publish")
@click.argument("handle")
@click.option("--version", type=click.IntRange(min=1), help="Version to publish (default: the latest).")
@asks_mobius
async def publish(mobius: Mobius, output: Output, handle: str, version: int | None) -> None:
    """Publish a version: runs that start from now on execute it."""
    if version is None:
        latest = (await mobius.automation(handle)).get("latest_version")
        if not isinstance(latest, int) or latest < 1:
            raise NotFoundError(
                f"automation {handle!r} has no version yet; add one with: mobius automations create FILE --exist-ok"
            )
        version = latest
    output.record(_FIELDS, await mobius.publish(handle, version))


@automations.command("start")
@click.argument("handle")
@click.option(
    "--input",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="One input; repeatable. A value that is JSON is taken as such, any other as text.",
)
@click.option("--inputs", metavar="JSON", help="All inputs as a JSON object; --input wins over it.")
@click.option("--external-id", metavar="ID", help="Your own id: while its run is live, the same run is returned.")
@click.option("--wait", is_flag=True, help="Wait for the end; exit code 1 unless the run completes.")
@click.option("--stream", is_flag=True, help="Like --wait, printing the events as they happen.")
@asks_mobius
async def start(
    mobius: Mobius,
    output: Output,
    handle: str,
    pairs: tuple[str, ...],
    inputs: str | None,
    external_id: str | None,
    wait: bool,  # noqa: FBT001 - click passes flags by name
    stream: bool,  # noqa: FBT001
) -> None:
    """Start a run of the published version."""
    if wait and stream:
        raise UsageError("--wait and --stream exclude each other: --stream waits too, and prints the events")
    run = await mobius.start_run(handle, inputs=parse_inputs(pairs, inputs), external_id=external_id)
    run_id = text.plain(run.get("id"))
    if wait or stream:
        output.note(f"run {run_id}")
        await follow(mobius, output, run_id, quiet=wait)
    elif output.is_json:
        output.json(run)
    else:
        output.line(f"run {run_id} is {text.plain(run.get('status'))}; follow it with: mobius runs stream {run_id}")


@automations.command("list-runs")
@click.argument("handle", required=False)
@click.option("--status", type=click.Choice(RUN_STATUSES), help="Only runs that are in this state.")
@limit_option("runs")
@asks_mobius
async def list_runs(mobius: Mobius, output: Output, handle: str | None, status: str | None, limit: int) -> None:
    """List the runs of one automation, or of all, with the worker that has each one's job."""
    automation_id = None if handle is None else str((await mobius.automation(handle)).get("id"))
    found, more = await mobius.runs(status=status, automation_id=automation_id, limit=limit)
    await show_runs(mobius, output, found, more=more)


async def add_version(mobius: Mobius, handle: str, spec: Record) -> int:
    """The number of the new version. Raises InputError with what is wrong, when the server finds the spec invalid."""
    version = await mobius.create_version(handle, spec)
    validation = version.get("validation")
    if isinstance(validation, dict) and validation.get("valid") is False:
        errors = [text.plain(error) for error in validation.get("errors") or ["no reason given"]]
        raise InputError(f"version {version.get('version')} of {handle!r} is invalid: {'; '.join(errors)}")
    return int(version.get("version") or 0)


async def _made(mobius: Mobius, fields: Record, *, exist_ok: bool) -> Record:
    try:
        return await mobius.create_automation(fields)
    except CannotCreateError as error:
        if exist_ok:
            return await mobius.automation(fields["handle"])
        raise CannotCreateError(f"{error}; to add a version to the automation that exists, give --exist-ok") from error
