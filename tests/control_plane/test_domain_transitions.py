"""Every cell of the three tables, so that a change of one is a change of this file."""

import itertools
from typing import get_args

import pytest

from control_plane.domain import transitions
from control_plane.domain.model import TERMINAL_JOB, TERMINAL_RUN, TERMINAL_STEP, JobStatus, RunStatus, StepStatus
from control_plane.domain.transitions import JOB, RUN, STEP, TransitionRefusedError, follow

JOB_CELLS = {
    ("pending", "claimed"): "claimed",
    ("pending", "completed"): "completed",
    ("pending", "failed"): "failed",
    ("pending", "cancelled"): "cancelled",
    ("pending", "renewed"): "pending",
    ("claimed", "completed"): "completed",
    ("claimed", "failed"): "failed",
    ("claimed", "cancelled"): "cancelled",
    ("claimed", "retried"): "pending",
    ("claimed", "handed_back"): "pending",
    ("claimed", "cancel_requested"): "claimed",
    ("failed", "put_back"): "pending",
}
RUN_CELLS = {
    ("queued", "started"): "running",
    ("queued", "failed"): "failed",
    ("queued", "cancelled"): "cancelled",
    ("running", "suspended"): "suspended",
    ("running", "completed"): "completed",
    ("running", "failed"): "failed",
    ("running", "cancelled"): "cancelled",
    ("suspended", "resumed"): "running",
    ("suspended", "failed"): "failed",
    ("suspended", "cancelled"): "cancelled",
}
STEP_CELLS = {
    ("pending", "started"): "running",
    ("pending", "skipped"): "skipped",
    ("pending", "cancelled"): "cancelled",
    ("running", "suspended"): "suspended",
    ("running", "completed"): "completed",
    ("running", "failed"): "failed",
    ("running", "cancelled"): "cancelled",
    ("suspended", "completed"): "completed",
    ("suspended", "failed"): "failed",
    ("suspended", "cancelled"): "cancelled",
}


def cells(name, table, statuses, events, expected):
    for status, event in itertools.product(get_args(statuses), get_args(events)):
        yield pytest.param(table, status, event, expected.get((status, event)), id=f"{name}-{status}-{event}")


@pytest.mark.parametrize(
    ("table", "status", "event", "expected"),
    [
        *cells("job", JOB, JobStatus, transitions.JobEvent, JOB_CELLS),
        *cells("run", RUN, RunStatus, transitions.RunEvent, RUN_CELLS),
        *cells("step", STEP, StepStatus, transitions.StepEvent, STEP_CELLS),
    ],
)
def test_cell(table, status, event, expected):
    if expected is None:
        with pytest.raises(TransitionRefusedError, match=f"{event}.*{status}"):
            follow(table, status, event)
    else:
        assert follow(table, status, event) == expected


@pytest.mark.parametrize(
    ("table", "statuses", "terminal"),
    [(JOB, JobStatus, TERMINAL_JOB), (RUN, RunStatus, TERMINAL_RUN), (STEP, StepStatus, TERMINAL_STEP)],
)
def test_from_exactly_the_terminal_statuses_nothing_goes_on_by_itself(table, statuses, terminal):
    assert set(table) == set(get_args(statuses))
    by_itself = {status: row.keys() - {"put_back"} for status, row in table.items()}
    assert {status for status, events in by_itself.items() if not events} == terminal
