"""Status as a table that stays where it is, for `top`. Apart, since to import rich takes longer than a command does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from supervisor.control_messages import FleetStatus
from supervisor.view import headline, plain, rows, warnings

_COLOURS = {"ready": "green", "backoff": "red", "stuck": "red", "killed": "red", "draining": "yellow"}


@contextmanager
def screen() -> Iterator[Callable[[FleetStatus], None]]:
    """The whole terminal; call what it gives with what is to be seen."""
    with Live(console=Console(), auto_refresh=False, screen=True) as live:
        yield lambda status: live.update(table(status), refresh=True)


def table(status: FleetStatus) -> Table:
    """What it shows."""
    above = Text("\n".join([plain(headline(status)), *warnings(status)]))
    made = Table(title=above, title_justify="left", box=None, pad_edge=False)
    titles, *slots = rows(status)
    for title in titles:
        made.add_column(title)
    for slot, row in zip(status.slots, slots, strict=True):
        cells = [Text(cell) for cell in row]
        cells[1].stylize(_COLOURS.get(slot.state, ""))
        made.add_row(*cells)
    return made
