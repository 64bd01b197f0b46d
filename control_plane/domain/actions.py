"""What is recorded of an action, and what that changes. Pure decisions.

An action needs no record: workers bring actions along, and any of them can be asked for. A record describes one to
people, bounds how many of its jobs run at once, and can say that it must not be run twice.
"""

from typing import Any

from msgspec.structs import replace

from control_plane.domain.field_sizes import check_sizes
from control_plane.domain.model import RecordedAction

CHANGEABLE = frozenset(
    {"title", "description", "annotations", "input_schema", "output_schema", "tags", "max_running"},
)


def created(project_id: str, name: str, fields: dict[str, Any], action_id: str, now: int) -> RecordedAction:
    """A new record; `fields` are of CHANGEABLE. Raises Invalid("invalid_field")."""
    check_sizes(fields)
    return RecordedAction(id=action_id, project_id=project_id, name=name, created_at=now, updated_at=now, **fields)


def updated(action: RecordedAction, changes: dict[str, Any], now: int) -> RecordedAction:
    """The record with the changes, of CHANGEABLE. Annotations are changed one by one; None takes them all away.
    Raises Invalid("invalid_field")."""
    annotations = changes.get("annotations")
    if annotations is not None:
        changes = {**changes, "annotations": {**(action.annotations or {}), **annotations}}
    check_sizes(changes)
    return replace(action, **changes, updated_at=now)
