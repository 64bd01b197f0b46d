"""Pages of listings. A cursor is the key before which a page begins, opaque to whoever carries it."""

import base64
import binascii
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from control_plane.domain.store import Page, RunFilter
from control_plane.domain.times import to_microseconds
from control_plane.errors import Invalid
from control_plane.store.lanes import NEVER

MOST_PAGE_BYTES = 8 * 1024 * 1024
"""Of the values that clients wrote, in one page of a listing: a page of large ones is shorter, but never empty."""

MOST_LOOKED_AT = 5000
"""Jobs that one page of a listing looks at: those that it looks for may be rare."""

DISORDER = to_microseconds(5)
"""Runs are created in the order of their keys, but for what two replicas do at the same moment."""

Found = tuple[int, int] | None
Search = Generator[int, Found, int]


def first_since(lowest: int, highest: int, time: int) -> Search:
    """The smallest key from which on runs were created at `time` or later. It yields keys, and is sent the key and time
    of the newest run that has this key or a smaller one."""
    while lowest <= highest:
        middle = (lowest + highest) // 2
        found = yield middle
        if found is None or found[1] < time:
            lowest = middle + 1
        else:
            highest = found[0] - 1
    return lowest


def created_between(ends: tuple[int | None, int | None], more: RunFilter) -> Generator[int, Found, tuple[int, int]]:
    """Keys between which the runs are that were created then: the first, and the one behind the last. `ends` are the
    smallest and the largest key that there are; yields as `first_since` does."""
    lowest, highest = ends
    if lowest is None or highest is None:
        return 0, 0
    first, behind = lowest, highest + 1
    if more.created_after is not None:
        first = yield from first_since(lowest, highest, more.created_after - DISORDER)
    if more.created_before is not None:
        behind = yield from first_since(lowest, highest, more.created_before + DISORDER)
    return first, behind


def runs_statement(status: str | None, automation_id: str | None, more: RunFilter) -> str:
    """The name of the statement that lists runs by the index that leaves the fewest."""
    if more.external_id is not None:
        return "runs_of_external_id"
    if more.parent_run_id is not None:
        return "runs_of_parent"
    if automation_id is not None:
        return "runs_of_automation"
    return "runs_of_project" if status is None else "runs_by_status"


def position(cursor: str | None) -> int:
    """The key before which a page begins. Raises Invalid("invalid_cursor")."""
    if cursor is None:
        return NEVER
    try:
        found = int(base64.urlsafe_b64decode(cursor.encode() + b"==").decode())
    except (ValueError, binascii.Error, UnicodeError):
        raise Invalid("invalid_cursor", "cursor: not one that this server gave; leave it out to begin anew") from None
    return min(max(found, 0), NEVER)


def page(found: list[tuple[int, Any]], limit: int, *, more: bool = False) -> Page:
    """The page of what was found, with keys; there is a next page when `found` has one more than `limit`, or `more`."""
    shown = found[:limit]
    more = more or len(found) > limit
    return Page(items=[item for _, item in shown], next_cursor=_cursor(shown[-1][0]) if more and shown else None)


def is_cut(found: Sequence[Sequence[Any]]) -> bool:
    """Whether the database has left out rows that did not fit: the last column is how many there would be."""
    return bool(found) and found[0][-1] > len(found)


def fitting_page(found: Iterable[tuple[int, int, Any]], limit: int) -> Page:
    """As `page`, of keys, sizes and items, as many as fit into MOST_PAGE_BYTES; what is behind them is not read."""
    fitting: list[tuple[int, Any]] = []
    total = 0
    for key, size, item in found:
        total += size
        if fitting and total > MOST_PAGE_BYTES:
            return page(fitting, limit, more=True)
        fitting.append((key, item))
    return page(fitting, limit)


def page_of_looks(found: list[tuple[int, Any]], limit: int, *, looked_at: int, last: int | None) -> Page:
    """As `page`, of a listing that has looked at so many keys, down to `last`: where it found less than `limit` among
    MOST_LOOKED_AT of them, the next page begins there."""
    if len(found) > limit or looked_at < MOST_LOOKED_AT or last is None:
        return page(found, limit)
    return Page(items=[item for _, item in found], next_cursor=_cursor(last))


LAST_ID = "\x7f"
"""Behind every id: they are lower-case letters, digits and underscores."""


def text_position(cursor: str | None) -> str:
    """The id before which a page begins, of listings that are in the order of their ids. Raises
    Invalid("invalid_cursor")."""
    if cursor is None:
        return LAST_ID
    try:
        found = base64.urlsafe_b64decode(cursor.encode() + b"==").decode("ascii")
    except (ValueError, binascii.Error, UnicodeError):
        found = ""
    if not found.isprintable() or not found:
        raise Invalid("invalid_cursor", "cursor: not one that this server gave; leave it out to begin anew")
    return found


def text_page(found: list[tuple[str, Any]], limit: int) -> Page:
    """As `page`, with ids for keys."""
    shown = found[:limit]
    cursor = _cursor(shown[-1][0]) if len(found) > limit else None
    return Page(items=[item for _, item in shown], next_cursor=cursor)


def _cursor(key: int | str) -> str:
    return base64.urlsafe_b64encode(str(key).encode()).decode().rstrip("=")
