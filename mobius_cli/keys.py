"""`mobius keys`: who may do what in a project, and until when."""

from datetime import UTC, datetime, timedelta

import click

from mobius_cli import text
from mobius_cli.errors import UsageError
from mobius_cli.http import Mobius, Record
from mobius_cli.options import asks_mobius
from mobius_cli.output import Column, Output
from wire.duration import seconds_of

LONGEST_LIFETIME = 36_500 * 86_400.0
SCOPES = ("operator", "reader", "worker")

_COLUMNS: list[Column] = [
    ("ID", lambda key: text.plain(key.get("id"))),
    ("NAME", lambda key: text.plain(key.get("name"))),
    ("SCOPES", lambda key: ", ".join(text.plain(scope) for scope in key.get("scopes") or [])),
    ("STATUS", lambda key: text.plain(key.get("status"))),
    ("EXPIRES", lambda key: text.date_and_time(key.get("expires_at"))),
    ("LAST USED", lambda key: text.date_and_time(key.get("last_used_at"))),
    ("REPLACED BY", lambda key: text.plain(key.get("replaced_by"))),
]

_expires_in_option = click.option("--expires-in", metavar="DURATION", help="Such as 12h or 90d (default: never).")
_new_expiry_option = click.option(
    "--expires-in", metavar="DURATION", help="Such as 12h or 90d (default: as long as the old key was made for)."
)


@click.group()
def keys() -> None:
    """Make, exchange and revoke API keys. Needs a key with scope operator."""


@keys.command("list")
@asks_mobius
async def list_keys(mobius: Mobius, output: Output) -> None:
    """List the project's keys, without their secrets."""
    output.records(_COLUMNS, await mobius.keys(), nothing="the project has no API keys")


@keys.command("create")
@click.option("--name", required=True, help="To tell keys apart.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(SCOPES),
    help="worker: connect workers. reader: read. operator: read and change. Repeatable.",
)
@_expires_in_option
@asks_mobius
async def create(mobius: Mobius, output: Output, name: str, scopes: tuple[str, ...], expires_in: str | None) -> None:
    """Create a key and print it: it is shown this once."""
    answer = await mobius.create_key({"name": name, "scopes": list(scopes), **_expiry(expires_in)})
    _show_secret(output, answer)


@keys.command("rotate")
@click.argument("key_id", metavar="ID")
@click.option("--overlap", default="24h", show_default=True, help="For how long the old key stays valid.")
@_new_expiry_option
@asks_mobius
async def rotate(mobius: Mobius, output: Output, key_id: str, overlap: str, expires_in: str | None) -> None:
    """Exchange a key: print a new one like it; the old one ends after the overlap."""
    fields = {"overlap_seconds": round(_seconds(overlap, "--overlap")), **_expiry(expires_in)}
    answer = await mobius.rotate_key(key_id, fields)
    _show_secret(output, answer)
    if not output.is_json:
        end = text.date_and_time((answer.get("replaced") or {}).get("expires_at"))
        output.note(f"{text.plain(key_id)} is valid until {end}")


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@asks_mobius
async def revoke(mobius: Mobius, output: Output, key_id: str) -> None:
    """End a key now: its workers and event streams are disconnected."""
    answer = await mobius.revoke_key(key_id)
    if output.is_json:
        output.json(answer)
    else:
        output.line(f"{text.plain(answer.get('id'))} is {text.plain(answer.get('status'))}")


def _show_secret(output: Output, answer: Record) -> None:
    if output.is_json:
        output.json(answer)
        return
    output.line(text.plain(answer.get("secret")))
    output.note(f"this is {text.plain((answer.get('key') or {}).get('id'))}; it is not shown again")


def _expiry(expires_in: str | None) -> Record:
    if expires_in is None:
        return {}
    end = datetime.now(UTC) + timedelta(seconds=_seconds(expires_in, "--expires-in"))
    return {"expires_at": end.isoformat().replace("+00:00", "Z")}


def _seconds(value: str, option: str) -> float:
    seconds = seconds_of(value)
    if seconds is None or seconds > LONGEST_LIFETIME:
        raise UsageError(f"{option} is {value!r}; expected a duration such as 30m, 12h or 90d, 36500d at the most")
    return seconds
