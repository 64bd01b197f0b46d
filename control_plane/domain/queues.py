"""What holds the jobs of a queue or of an action back: a pause, and limits on how many run at once. Pure decisions.

Nothing has to be said of a queue: it is there when a job names it. Where nothing was said, nothing is asked.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct

from control_plane.domain.model import Queue
from control_plane.domain.selection import Routed

LimitScope = tuple[Literal["queue", "action"], str]
"""What a limit is on."""

CHANGEABLE = frozenset({"paused", "max_running"})

LONGEST_NAME = 256
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def is_name(text: str) -> bool:
    """Whether a queue may be called so."""
    return 0 < len(text) <= LONGEST_NAME and _CONTROLS.search(text) is None


class Rules(Struct, frozen=True, kw_only=True):
    """Of one project. `limits`: jobs that may be claimed at once."""

    paused: frozenset[str]
    limits: Mapping[LimitScope, int]

    def scopes(self, job: Routed) -> list[LimitScope]:
        """The limits that count for the job, or for those of a lane."""
        of_job: tuple[LimitScope, LimitScope] = (("queue", job.queue), ("action", job.action_name or ""))
        return [scope for scope in of_job if scope in self.limits]


class Room:
    """How many more jobs may be claimed of each scope."""

    def __init__(self, limits: Mapping[LimitScope, int], running: Mapping[LimitScope, int]) -> None:
        self._left = {scope: most - running.get(scope, 0) for scope, most in limits.items()}

    def left(self, scopes: Iterable[LimitScope]) -> bool:
        """Whether there is room for one more."""
        return all(self._left.get(scope, 1) > 0 for scope in scopes)

    def take(self, scopes: Iterable[LimitScope]) -> bool:
        """Use the room for one more; False when there is none."""
        scopes = list(scopes)
        if not self.left(scopes):
            return False
        for scope in scopes:
            if scope in self._left:
                self._left[scope] -= 1
        return True


def rules_of(rows: Iterable[tuple[str, str, bool, int | None]]) -> Rules | None:
    """`rows`: ("queue" or "action", its name, whether it is paused, its limit). None: there are none."""
    paused: set[str] = set()
    limits: dict[LimitScope, int] = {}
    for kind, name, is_paused, most in rows:
        if is_paused:
            paused.add(name)
        if most is not None:
            limits["queue" if kind == "queue" else "action", name] = most
    return Rules(paused=frozenset(paused), limits=limits) if paused or limits else None


def updated(queue: Queue, changes: dict[str, Any], now: int) -> Queue:
    """The queue with the changes, of CHANGEABLE; `max_running` None takes the limit away."""
    paused_at = queue.paused_at
    if "paused" in changes:
        paused_at = (paused_at or now) if changes["paused"] else None
    return Queue(
        project_id=queue.project_id,
        name=queue.name,
        paused_at=paused_at,
        max_running=changes.get("max_running", queue.max_running),
        updated_at=now,
    )
