"""What becomes of a presence row when its worker registers. Pure decisions."""

from collections.abc import Callable

from msgspec.structs import replace

from control_plane.domain.model import Session
from control_plane.errors import Conflict


def registered(session: Session, earlier: Session | None, new_id: Callable[[str], str], now: int) -> Session:
    """The row as it shall be, but for the drains that stand; `earlier` is the one with its id. Raises
    Conflict("session_superseded")."""
    if earlier is not None and earlier.superseded:
        raise Conflict("session_superseded", f"another process has taken over {session.worker_instance_id}")
    return replace(
        session,
        id=session.id or new_id("wsess"),
        created_at=earlier.created_at if earlier is not None else now,
        last_seen_at=now,
        ended_at=None,
        end_reason=None,
    )
