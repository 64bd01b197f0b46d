"""The state machines of jobs, runs and steps, as tables: state x event -> next state. A missing cell is refused.

Nothing but `follow` gives a record a new status.
"""

from collections.abc import Mapping
from typing import Literal, TypeVar

from control_plane.domain.model import JobStatus, RunStatus, StepStatus

JobEvent = Literal[
    "claimed", "completed", "failed", "cancelled", "retried", "handed_back", "cancel_requested", "renewed", "put_back"
]
RunEvent = Literal["started", "suspended", "resumed", "completed", "failed", "cancelled"]
StepEvent = Literal["started", "suspended", "completed", "failed", "skipped", "cancelled"]

StatusT = TypeVar("StatusT", bound=str)
EventT = TypeVar("EventT", bound=str)

JOB: Mapping[JobStatus, Mapping[JobEvent, JobStatus]] = {
    # Ended while pending: by the late report of a lapsed lease, or by a deadline that passed between two attempts.
    "pending": {
        "claimed": "claimed",
        "completed": "completed",
        "failed": "failed",
        "cancelled": "cancelled",
        "renewed": "pending",
    },
    "claimed": {
        "completed": "completed",
        "failed": "failed",
        "cancelled": "cancelled",
        "retried": "pending",
        "handed_back": "pending",
        "cancel_requested": "claimed",
    },
    "completed": {},
    # By an operator.
    "failed": {"put_back": "pending"},
    "cancelled": {},
}

RUN: Mapping[RunStatus, Mapping[RunEvent, RunStatus]] = {
    "queued": {"started": "running", "failed": "failed", "cancelled": "cancelled"},
    "running": {"suspended": "suspended", "completed": "completed", "failed": "failed", "cancelled": "cancelled"},
    "suspended": {"resumed": "running", "failed": "failed", "cancelled": "cancelled"},
    "completed": {},
    "failed": {},
    "cancelled": {},
}

STEP: Mapping[StepStatus, Mapping[StepEvent, StepStatus]] = {
    "pending": {"started": "running", "skipped": "skipped", "cancelled": "cancelled"},
    "running": {"suspended": "suspended", "completed": "completed", "failed": "failed", "cancelled": "cancelled"},
    "suspended": {"completed": "completed", "failed": "failed", "cancelled": "cancelled"},
    "completed": {},
    "failed": {},
    "skipped": {},
    "cancelled": {},
}


class TransitionRefusedError(AssertionError):
    """The table has no such cell: a bug of the deciding code, never of a user."""


def follow(table: Mapping[StatusT, Mapping[EventT, StatusT]], status: StatusT, event: EventT) -> StatusT:
    """The next status. Raises TransitionRefusedError."""
    try:
        return table[status][event]
    except KeyError:
        raise TransitionRefusedError(f"{event!r} is refused in status {status!r}") from None
