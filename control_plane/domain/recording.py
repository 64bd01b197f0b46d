"""The records and events that a decision about runs leaves behind, and the parts that every such decision has."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from control_plane.domain.changes import (
    AnyChange,
    CancelAnnounced,
    EventAppended,
    StepUpdated,
    TimerCleared,
    TimerSet,
    TurnLeft,
)
from control_plane.domain.enqueue import DEFAULT_QUEUE
from control_plane.domain.model import Automation, Job, Run, Step, StepKind, Timer, TimerKind, Version
from control_plane.domain.specs import Plan, SleepPlan, StepPlan, WaitPlan
from control_plane.domain.transitions import RUN, STEP, follow

MAX_EVENT_RESULT_BYTES = 64 * 1024
"""A larger result is left out of its event; the step has it."""

LONGEST_LINE = 20
"""Runs that wait for their turn and are looked at together."""


class Published(Struct, frozen=True, kw_only=True):
    """An automation that may be started, with its published version and that version's plan."""

    automation: Automation
    version: Version
    plan: Plan


class Going(Struct, frozen=True, kw_only=True):
    """A run with its plan and the queue of its actions."""

    run: Run
    plan: Plan
    queue: str = DEFAULT_QUEUE


class Running(Going, frozen=True, kw_only=True):
    """A run and the step in question, as stored."""

    step: Step


class Open(Going, frozen=True, kw_only=True):
    """A run as stored, its step that is not terminal and that step's job."""

    step: Step | None = None
    job: Job | None = None


class Line(Struct, frozen=True, kw_only=True):
    """The runs of one automation of which one goes on at a time: who has the turn, and who waits, the oldest first.
    `is_longer`: more may wait behind these, which are LONGEST_LINE at the most."""

    holder: Open | None = None
    waiting: tuple[Open, ...] = ()
    is_longer: bool = False


class Facts(Protocol):
    """What a decision may ask while it is made, answered from the same transaction."""

    def published(self, handle: str) -> Published:
        """Raises NotFound, Conflict."""

    def saved(self, run_id: str, step_key: str) -> Any:
        """The result of a completed step."""

    def kept_bytes(self, run_id: str) -> int:
        """Bytes of JSON that the run's stored steps keep: parameters, inputs and results."""

    def signal(self, run_id: str, step_key: str) -> dict[str, Any] | None:
        """What is kept for a step that has not begun to wait."""

    def outcome(self, run_id: str) -> dict[str, Any]:
        """How the run ends that is being cleaned up after: the payload of its timer."""

    def line(self, automation_id: str) -> Line:
        """Who runs and who waits; nobody else changes that as long as this transaction goes on."""

    def place(self, run_id: str) -> int:
        """Where the run stands in the order in which runs were created."""


class Recorder:
    """Collects the changes of one transaction in `changes`. `new_id(prefix)` makes identifiers."""

    def __init__(self, facts: Facts, new_id: Callable[[str], str], now: int) -> None:
        self.changes: list[AnyChange] = []
        self._facts = facts
        self._new_id = new_id
        self._now = now

    # --- steps

    def _new_step(self, run: Run, planned: StepPlan, seq: int, *, cleanup: bool = False) -> Step:
        kind: StepKind = "cleanup" if cleanup else "action"
        if isinstance(planned, SleepPlan):
            kind = "sleep"
        elif isinstance(planned, WaitPlan):
            kind = "wait_for_event"
        step = Step(
            id=self._new_id("step"),
            project_id=run.project_id,
            run_id=run.id,
            step_key=planned.key,
            step_name=planned.name,
            save_as=planned.save_as,
            kind=kind,
            status=follow(STEP, "pending", "started"),
            seq=seq,
            attempt=1,
            created_at=self._now,
            updated_at=self._now,
            started_at=self._now,
        )
        self._event(run, "step.started", without_none({"kind": step.kind, "step_name": step.step_name}), step)
        return step

    def _ended(
        self,
        step: Step,
        event: Literal["completed", "failed", "cancelled"],
        *,
        result: Any = None,
        error: dict[str, str] | None = None,
    ) -> Step:
        return replace(
            step,
            status=follow(STEP, step.status, event),
            result=result,
            error_type=error["type"] if error else None,
            error_message=error["message"] if error else None,
            completed_at=self._now,
            updated_at=self._now,
        )

    def _end_step(
        self,
        step: Step,
        event: Literal["completed", "failed", "cancelled"],
        *,
        result: Any = None,
        error: dict[str, str] | None = None,
    ) -> Step:
        ended = self._ended(step, event, result=result, error=error)
        self.changes.append(StepUpdated(step=ended))
        return ended

    # --- runs

    def _ended_run(
        self, going: Going, event: Literal["completed", "failed", "cancelled"], payload: dict[str, Any]
    ) -> Run:
        """The run at its end, which the caller writes."""
        error = payload.get("error")
        run = replace(
            going.run,
            status=follow(RUN, going.run.status, event),
            error_type=error["type"] if error else None,
            error_message=error["message"] if error else payload.get("reason"),
            completed_at=self._now,
            updated_at=self._now,
        )
        self._event(run, f"run.{event}", without_none({"status": run.status, **payload}))
        if run.wall_clock_deadline_at is not None:
            self._clear_timer(run, "run")
        if going.plan.concurrency != "allow":
            self.changes.append(TurnLeft(run_id=run.id))
            self._set_timer(run, "turn", self._now)
        return run

    def _resumed(self, run: Run) -> Run:
        return replace(run, status=follow(RUN, run.status, "resumed"), updated_at=self._now)

    def _suspended(self, run: Run) -> Run:
        return replace(run, status=follow(RUN, run.status, "suspended"), updated_at=self._now)

    def _set_timer(self, run: Run, kind: TimerKind, due_at: int, payload: dict[str, Any] | None = None) -> None:
        self.changes.append(TimerSet(timer=Timer(run_id=run.id, kind=kind, due_at=due_at, payload=payload)))

    def _clear_timer(self, run: Run, kind: TimerKind) -> None:
        self.changes.append(TimerCleared(run_id=run.id, kind=kind))

    # --- events

    def _event(self, run: Run, event_type: str, payload: dict[str, Any], step: Step | None = None) -> None:
        self.changes.append(
            EventAppended(
                run_id=run.id,
                event_type=event_type,
                payload=payload,
                step_id=step.id if step is not None else None,
                step_key=step.step_key if step is not None else None,
            )
        )

    def _job_event(self, job: Job, event_type: str, payload: dict[str, Any]) -> None:
        about = {
            "job_id": job.id,
            "attempt": job.claim_attempt,
            "worker_instance_id": job.worker_instance_id,
            "action_name": job.action_name,
        }
        self.changes.append(
            EventAppended(
                run_id=job.run_id or "",
                event_type=event_type,
                payload={**without_none(about), **payload},
                step_id=job.step_id,
                step_key=job.step_key,
            )
        )

    def _announce_cancel(self, job: Job, reason: str | None) -> None:
        if job.session_id is not None:
            self.changes.append(
                CancelAnnounced(job=job, session_id=job.session_id, reason=reason, requested_at=self._now)
            )


def shown(result: Any) -> dict[str, Any]:
    """A result as an event tells it."""
    size = len(msgspec.json.encode(result))
    return {"result": result} if size <= MAX_EVENT_RESULT_BYTES else {"result_omitted_bytes": size}


def without_none(payload: dict[str, Any]) -> dict[str, Any]:
    """What is known of a payload."""
    return {key: value for key, value in payload.items() if value is not None}
