"""Records on standard output: tables for people on a terminal, aligned text in a pipe, JSON for programs."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mobius_cli.http import Record

Format = Literal["table", "json"]
Cell = Callable[[Record], str]
Column = tuple[str, Cell]

_COLOURS = {
    "completed": "green",
    "active": "green",
    "published": "green",
    "failed": "red",
    "cancelled": "red",
    "stale": "red",
    "suspended": "yellow",
    "running": "cyan",
    "queued": "cyan",
    "draining": "yellow",
}


class Output:
    """Where a command's answer goes. `format` is what --output said."""

    def __init__(self, output_format: Format) -> None:
        self.format = output_format

    @property
    def is_json(self) -> bool:
        """Whether a program reads this."""
        return self.format == "json"

    def json(self, value: Any) -> None:
        """`value` on one line."""
        click.echo(msgspec.json.encode(value).decode())

    def records(self, columns: Sequence[Column], records: list[Record], *, nothing: str) -> None:
        """A table, or a JSON array of the records as they came. `nothing` is said where there are none."""
        if self.is_json:
            self.json(records)
        elif records:
            rows = [[cell(record) for _, cell in columns] for record in records]
            self.table([title for title, _ in columns], rows)
        else:
            self.note(nothing)

    def record(self, fields: Sequence[Column], record: Record) -> None:
        """One field a line, leaving out what is empty; or the JSON object as it came."""
        if self.is_json:
            self.json(record)
            return
        lines = [(title, text) for title, cell in fields if (text := cell(record))]
        width = max((len(title) for title, _ in lines), default=0)
        for title, text in lines:
            click.echo(f"{title.lower():<{width}}  {text}")

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows of text under titles."""
        if sys.stdout.isatty():
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            for title in titles:
                table.add_column(title, overflow="fold")
            for row in rows:
                table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
            Console(highlight=False).print(table)
            return
        widths = [max(len(line[index]) for line in (titles, *rows)) for index in range(len(titles))]
        for line in (titles, *rows):
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def line(self, text: str) -> None:
        """One line for people."""
        click.echo(text)

    def note(self, text: str) -> None:
        """What is about the answer, and no part of it: on standard error."""
        click.echo(text, err=True)
