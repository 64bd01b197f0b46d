"""Pages of listings. A cursor is the key before which a page begins, opaque to whoever carries it."""

import base64
import binascii
from typing import Any

from control_plane.domain.store import Page
from control_plane.errors import Invalid
from control_plane.store.lanes import NEVER

MOST_EVENT_BYTES = 8 * 1024 * 1024
"""Of payloads in one answer of `events`."""


MOST_LOOKED_AT = 5000
"""Jobs that one page of a listing looks at: those that it looks for may be rare."""


def position(cursor: str | None) -> int:
    """The key before which a page begins. Raises Invalid("invalid_cursor")."""
    if cursor is None:
        return NEVER
    try:
        found = int(base64.urlsafe_b64decode(cursor.encode() + b"==").decode())
    except (ValueError, binascii.Error, UnicodeError):
        raise Invalid("invalid_cursor", "cursor: not one that this server gave; leave it out to begin anew") from None
    return min(max(found, 0), NEVER)


def page(found: list[tuple[int, Any]], limit: int) -> Page:
    """The page of what was found, with keys; `found` has one more than `limit` when there is a next page."""
    shown = found[:limit]
    more = len(found) > limit
    return Page(items=[item for _, item in shown], next_cursor=_cursor(shown[-1][0]) if more and shown else None)


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
