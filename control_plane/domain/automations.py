"""What may be changed of an automation, and how publication moves it. Pure decisions."""

from typing import Any

from msgspec.structs import replace

from control_plane.domain import queues
from control_plane.domain.field_sizes import check_sizes
from control_plane.domain.model import Automation, Version
from control_plane.errors import Conflict, Invalid

CHANGEABLE = frozenset(
    {"name", "description", "default_agent_id", "default_inputs", "settings", "tags", "status"},
)
OPTIONAL = CHANGEABLE - {"name", "status"}
_STATUSES = ("draft", "active", "paused", "archived")


def check_fields(fields: dict[str, Any], known: frozenset[str]) -> None:
    """Raises Invalid("invalid_field")."""
    for name in fields:
        if name not in known:
            raise Invalid("invalid_field", f"{name}: expected one of {', '.join(sorted(known))}")
    check_sizes(fields)
    queue = (fields.get("settings") or {}).get("queue")
    if queue is not None and not (isinstance(queue, str) and queues.is_name(queue)):
        sentence = f"settings.queue: expected a text of 1 to {queues.LONGEST_NAME} characters, none of them a control"
        raise Invalid("invalid_field", sentence)


def check_startable(automation: Automation) -> int:
    """The number of the version that a new run executes. Raises Conflict("automation_archived" | "automation_paused" |
    "not_published")."""
    handle = automation.handle
    if automation.status == "archived":
        raise Conflict("automation_archived", f"automation {handle} is archived; it starts no new runs")
    if automation.status == "paused":
        raise Conflict("automation_paused", f'automation {handle} is paused; set its status to "active" first')
    if automation.published_version is None:
        raise Conflict("not_published", f"automation {handle} has no published version; publish one first")
    return automation.published_version


def updated(automation: Automation, changes: dict[str, Any], now: int) -> Automation:
    """The automation with the changes. Raises Invalid("invalid_field"), Conflict("not_published")."""
    check_fields(changes, CHANGEABLE)
    status = changes.get("status", automation.status)
    if status not in _STATUSES:
        raise Invalid("invalid_field", f"status: expected one of {', '.join(_STATUSES)}")
    if status == "active" and automation.published_version is None:
        raise Conflict("not_published", f"automation {automation.handle} has no published version; publish one first")
    archived_at = (automation.archived_at or now) if status == "archived" else None
    return replace(automation, **{**changes, "archived_at": archived_at, "updated_at": now})


def draft(
    automation: Automation,
    version_id: str,
    spec: dict[str, Any],
    errors: list[str],
    compiled_plan: dict[str, Any] | None,
    now: int,
) -> Version:
    """The automation's next version; `errors` are what is wrong with its spec."""
    return Version(
        id=version_id,
        project_id=automation.project_id,
        automation_id=automation.id,
        version=automation.latest_version + 1,
        status="draft",
        spec=spec,
        validation={"valid": not errors, "errors": errors},
        compiled_plan=compiled_plan,
        created_at=now,
    )


def not_valid_here(errors: list[str]) -> Conflict:
    """Of a version that was published: this server may be newer and stricter than the one that did."""
    return Conflict("invalid_version", f"the published version is not valid here: {errors[0]}")


def published(automation: Automation, version: Version, now: int) -> Automation:
    """The automation whose runs execute this version from now on. Raises Conflict("invalid_version" |
    "automation_archived")."""
    if automation.status == "archived":
        raise Conflict("automation_archived", f"automation {automation.handle} is archived; nothing of it is published")
    if not version.validation["valid"]:
        errors = version.validation["errors"]
        raise Conflict("invalid_version", f"version {version.version}: {errors[0]}", {"errors": errors})
    status = "active" if automation.status == "draft" else automation.status
    return replace(automation, status=status, published_version=version.version, updated_at=now)
