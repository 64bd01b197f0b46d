"""How runs and their steps move on. Pure decisions: facts in, changes out.

Steps run in order. A run is `suspended` while all it does is wait for a worker, and so is the step whose job is out.
When a step fails the run fails, and the steps behind it are never created: a stream shows what happened, not what did
not. An `automation` step starts an independent child run in the same transaction and goes on with `{"run_id": ...}`; it
shows among run steps as kind `action`, since the public API has no kind of its own for it.

Events: every attempt that a worker starts is one `action.called`; every attempt that fails is one `action.failed`,
followed by `action.retried` if another comes; the step's outcome is exactly one `action.result`, whose `outcome` is
"completed" (with `result`, unless it is large) or "failed" (with `error`). Nothing follows the run's last event, so
that a job cancelled with its run ends without one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from control_plane.domain import jobs, templates
from control_plane.domain.changes import (
    AnyChange,
    AttemptFailed,
    CancelAnnounced,
    EventAppended,
    JobChanged,
    JobCreated,
    RunCreated,
    RunUpdated,
    StepAttempted,
    StepCreated,
    StepUpdated,
)
from control_plane.domain.enqueue import DEFAULT_QUEUE, MAX_SPEC_BYTES, Enqueued, NewJob, accept
from control_plane.domain.model import TERMINAL_RUN, TERMINAL_STEP, Automation, Job, Run, Step, Version
from control_plane.domain.specs import ActionPlan, ChildPlan, Plan, StepPlan, merge_inputs
from control_plane.domain.times import to_microseconds
from control_plane.domain.transitions import RUN, STEP, follow
from control_plane.errors import Conflict, DomainError, Invalid

MAX_EVENT_RESULT_BYTES = 64 * 1024
"""A larger result is left out of its event; the step has it."""

MAX_DEPTH = 8
"""Of child runs below a run that somebody started."""

MAX_RUNS_AT_ONCE = 100
"""Runs that one transaction may start, so that automations that start each other end quickly."""

STEP_ORIGIN = "automation_action_step"


class Published(Struct, frozen=True, kw_only=True):
    """An automation that may be started, with its published version and that version's plan."""

    automation: Automation
    version: Version
    plan: Plan


class Parent(Struct, frozen=True, kw_only=True):
    """The step that starts a child run."""

    run: Run
    step_key: str


class Running(Struct, frozen=True, kw_only=True):
    """A run and the step in question, as stored, with the run's plan and the queue of its actions."""

    run: Run
    step: Step
    plan: Plan
    queue: str = DEFAULT_QUEUE


class Facts(Protocol):
    """What a decision may ask while it is made, answered from the same transaction."""

    def published(self, handle: str) -> Published:
        """Raises NotFound, Conflict."""

    def saved(self, run_id: str, step_key: str) -> Any:
        """The result of a completed step."""


def queue_of(settings: dict[str, Any] | None) -> str:
    """Where the jobs of an automation's action steps go: `settings.queue`."""
    queue = (settings or {}).get("queue")
    return queue if isinstance(queue, str) and queue else DEFAULT_QUEUE


def already_started(earlier: Run) -> Run:
    """The run that has the external id of another start. Raises Conflict("external_id_conflict") when it has ended."""
    if earlier.status not in TERMINAL_RUN:
        return earlier
    sentence = f"external_id {earlier.external_id} belongs to run {earlier.id}, which is {earlier.status}"
    raise Conflict("external_id_conflict", sentence, {"run_id": earlier.id, "status": earlier.status})


class Engine:
    """Collects the changes of one transaction in `changes`. `new_id(prefix)` makes identifiers."""

    def __init__(self, facts: Facts, new_id: Callable[[str], str], now: int, pending_deadline: float) -> None:
        self.changes: list[AnyChange] = []
        self._facts = facts
        self._new_id = new_id
        self._now = now
        self._pending_deadline = pending_deadline
        self._runs_started = 0

    # --- what happens to a run

    def start(
        self,
        target: Published,
        inputs: dict[str, Any] | None,
        *,
        source: dict[str, Any] | None = None,
        external_id: str | None = None,
        parent: Parent | None = None,
    ) -> Run:
        """A new run, started. Raises Invalid("invalid_inputs")."""
        automation, version = target.automation, target.version
        merged, errors = merge_inputs(target.plan, automation.default_inputs, inputs)
        if errors:
            raise Invalid("invalid_inputs", errors[0], {"errors": errors})
        self._runs_started += 1
        run = Run(
            id=self._new_id("run"),
            project_id=automation.project_id,
            automation_id=automation.id,
            automation_name=automation.name,
            version_id=version.id,
            version=version.version,
            status=follow(RUN, "queued", "started"),
            created_at=self._now,
            updated_at=self._now,
            started_at=self._now,
            inputs=merged,
            source=source,
            external_id=external_id,
            parent_run_id=parent.run.id if parent else None,
            parent_automation_id=parent.run.automation_id if parent else None,
            parent_step_key=parent.step_key if parent else None,
            depth=parent.run.depth + 1 if parent else 0,
        )
        place = len(self.changes)
        self._event(run, "run.started", {"status": run.status})
        run = self._advance(run, target.plan, queue_of(automation.settings), 0, {})
        self.changes.insert(place, RunCreated(run=run))
        return run

    def cancel(self, run: Run, step: Step | None, job: Job | None, reason: str | None) -> Run:
        """End a run at once. `step` is the one that is not terminal, `job` its job; a worker that holds it is told."""
        if run.status in TERMINAL_RUN:
            return run
        if job is not None:
            outcome = jobs.cancelled(job, reason, self._now)
            if outcome.after is not None:
                self.changes.append(JobChanged(before=job, after=outcome.after))
            if outcome.event == "cancel_requested":
                self._announce_cancel(job, reason)
        if step is not None and step.status not in TERMINAL_STEP:
            self._end_step(step, "cancelled")
            self._event(run, "step.cancelled", _without_none({"job_id": step.job_id, "reason": reason}), step)
        return self._end_run(run, "cancelled", {"reason": reason})

    # --- jobs without a run

    def enqueue(self, project_id: str, handed_in: Sequence[NewJob], earlier: Mapping[str, str]) -> Enqueued:
        """See enqueue.accept."""
        enqueued, accepted = accept(
            handed_in,
            project_id=project_id,
            earlier=earlier,
            new_id=self._new_id,
            now=self._now,
            pending_deadline=self._pending_deadline,
        )
        self.changes += [JobCreated(job=job) for job in accepted]
        return enqueued

    def put_back(self, job: Job) -> Job:
        """A failed job is to be tried again. Raises Conflict."""
        after = jobs.put_back(job, self._pending_deadline, self._now)
        self.changes.append(JobChanged(before=job, after=after))
        return after

    # --- what happens to a job

    def cancel_job(self, job: Job, running: Running | None, reason: str | None) -> Job:
        """An operator does not want the job any more: its run, if it has one, is cancelled with it. One that has ended
        stays as it is."""
        outcome = jobs.cancelled(job, reason, self._now)
        self.job_moved(job, outcome, running)
        if outcome.event == "cancel_requested":
            self._announce_cancel(job, reason)
        return outcome.after if outcome.after is not None else job

    def claimed(self, before: Job, after: Job) -> None:
        """A worker holds the job."""
        self.changes.append(JobChanged(before=before, after=after))
        if after.run_id is None:
            return
        self._job_event(after, "action.called", {})
        if after.claim_attempt > 1:
            self.changes.append(StepAttempted(job=after))

    def job_moved(self, before: Job, outcome: jobs.Outcome, running: Running | None) -> None:
        """The job has finished or waits for another attempt; its step and run follow. `running` None: no step's job."""
        after = outcome.after
        if after is None:
            return
        self.changes.append(JobChanged(before=before, after=after))
        attempt = jobs.failed_attempt(before, outcome, self._now)
        if attempt is not None:
            self.changes.append(AttemptFailed(job=before, attempt=attempt))
        if running is None or running.run.status in TERMINAL_RUN or running.step.status in TERMINAL_STEP:
            return
        if outcome.event == "completed":
            self._step_completed(after, running)
        elif outcome.event == "failed":
            self._step_failed(after, running)
        elif outcome.event == "cancelled":
            self.cancel(running.run, running.step, None, after.error_message)
        elif outcome.event == "retried":
            self._job_event(before, "action.failed", {"error": _error(after)})
            self._job_event(after, "action.retried", {"reason": "failed", "delay_seconds": _delay(after)})
        elif outcome.event == "handed_back":
            self._job_event(after, "action.retried", {"reason": "handed_back", "delay_seconds": 0.0})

    def renewed(self, job: Job) -> None:
        """Nobody claimed the job within its pending deadline."""
        self.changes.append(JobChanged(before=job, after=jobs.renewed(job, self._pending_deadline, self._now)))

    def timed_out(self, job: Job, running: Running | None) -> None:
        """The job's execution deadline has passed; whoever holds it is told to stop."""
        self.job_moved(job, jobs.timed_out(job, self._now), running)
        if job.status == "claimed":
            self._announce_cancel(job, "execution_deadline")

    # --- how it goes on

    def _step_completed(self, job: Job, running: Running) -> None:
        result = job.result if job.result is not None else {}
        step = self._end_step(running.step, "completed", result=result)
        self._job_event(job, "action.result", {"outcome": "completed", **_shown(result)})
        self._event(running.run, "step.completed", {"job_id": job.id}, step)
        run = replace(running.run, status=follow(RUN, running.run.status, "resumed"), updated_at=self._now)
        saved = {running.plan.steps[step.seq - 1].save_as: result}
        run = self._advance(run, running.plan, running.queue, step.seq, saved)
        self.changes.append(RunUpdated(run=run))

    def _step_failed(self, job: Job, running: Running) -> None:
        error = _error(job)
        self._job_event(job, "action.failed", {"error": error})
        self._job_event(job, "action.result", {"outcome": "failed", "error": error})
        step = self._end_step(running.step, "failed", error=error)
        self._event(running.run, "step.failed", {"job_id": job.id, "error": error}, step)
        self._end_run(running.run, "failed", {"error": {**error, "step_key": step.step_key}})

    def _advance(self, run: Run, plan: Plan, queue: str, index: int, saved: dict[str, Any]) -> Run:
        """Begin the steps from `index` on until one waits for a worker or the run ends; `saved` are results that this
        transaction has made. Returns the run as it stands, which the caller writes."""
        lookup = self._lookup(run, plan, saved)
        for seq, planned in enumerate(plan.steps[index:], index + 1):
            step = self._new_step(run, planned, seq)
            try:
                if isinstance(planned, ActionPlan):
                    self._send_out(run, step, planned, queue, lookup)
                    return replace(run, status=follow(RUN, run.status, "suspended"), updated_at=self._now)
                saved[planned.save_as] = self._start_child(run, step, planned, lookup)
            except _StepFailed as failed:
                error = {"type": failed.error_type, "message": str(failed)}
                self.changes.append(StepCreated(step=self._ended(step, "failed", error=error)))
                self._event(run, "step.failed", {"error": error}, step)
                return self._ended_run(run, "failed", {"error": {**error, "step_key": step.step_key}})
        return self._ended_run(run, "completed", {})

    def _new_step(self, run: Run, planned: StepPlan, seq: int) -> Step:
        step = Step(
            id=self._new_id("step"),
            project_id=run.project_id,
            run_id=run.id,
            step_key=planned.key,
            step_name=planned.name,
            save_as=planned.save_as,
            kind="action",
            status=follow(STEP, "pending", "started"),
            seq=seq,
            attempt=1,
            created_at=self._now,
            updated_at=self._now,
            started_at=self._now,
        )
        self._event(run, "step.started", _without_none({"kind": step.kind, "step_name": step.step_name}), step)
        return step

    def _send_out(self, run: Run, step: Step, planned: ActionPlan, queue: str, lookup: templates.Lookup) -> None:
        parameters = _rendered(planned.parameters or {}, lookup)
        inputs = _rendered(planned.inputs, lookup)
        spec = {"parameters": parameters} if inputs is None else {"parameters": parameters, "inputs": inputs}
        size = len(msgspec.json.encode(spec))
        if size > MAX_SPEC_BYTES:
            sentence = f"the rendered parameters are {size} bytes of JSON; a job carries at most {MAX_SPEC_BYTES}"
            raise _StepFailed("SpecTooLarge", sentence)
        job = Job(
            id=self._new_id("job"),
            project_id=run.project_id,
            kind="action_execution",
            origin=STEP_ORIGIN,
            queue=queue,
            status="pending",
            spec=spec,
            created_at=self._now,
            updated_at=self._now,
            available_at=self._now,
            action_name=planned.action_name,
            environment_id=planned.environment_id,
            run_id=run.id,
            step_id=step.id,
            step_key=step.step_key,
            max_attempts=planned.max_attempts,
            retry_delay=planned.delay,
            non_retryable=list(planned.non_retryable),
            execution_timeout=planned.timeout,
            pending_deadline_at=self._now + to_microseconds(self._pending_deadline),
        )
        status = follow(STEP, step.status, "suspended")
        step = replace(step, status=status, job_id=job.id, parameters=parameters, inputs=inputs)
        self.changes += [StepCreated(step=step), JobCreated(job=job)]
        self._event(run, "step.suspended", {"job_id": job.id, "action_name": job.action_name, "queue": job.queue}, step)

    def _start_child(self, run: Run, step: Step, planned: ChildPlan, lookup: templates.Lookup) -> dict[str, Any]:
        inputs = _rendered(planned.inputs, lookup)
        if run.depth >= MAX_DEPTH:
            raise _StepFailed(
                "AutomationNotStarted", f"runs may start runs {MAX_DEPTH} levels deep, and this is the last"
            )
        if self._runs_started >= MAX_RUNS_AT_ONCE:
            raise _StepFailed("AutomationNotStarted", f"this run has set off {MAX_RUNS_AT_ONCE} runs at once: no more")
        try:
            target = self._facts.published(planned.automation_handle)
            child = self.start(target, inputs, parent=Parent(run=run, step_key=step.step_key))
        except DomainError as error:
            raise _StepFailed("AutomationNotStarted", f"{planned.automation_handle}: {error.message}") from error
        result = {"run_id": child.id}
        self.changes.append(StepCreated(step=replace(self._ended(step, "completed", result=result), inputs=inputs)))
        self._event(run, "step.completed", dict(result), step)
        return result

    def _lookup(self, run: Run, plan: Plan, saved: dict[str, Any]) -> templates.Lookup:
        keys = {planned.save_as: planned.key for planned in plan.steps}

        def look_up(path: templates.Path) -> Any:
            if path.root == "inputs":
                return templates.descend(run.inputs, path)
            if not path.keys or path.keys[0] not in keys:
                raise templates.TemplateError(f"{path} names no step")
            save_as = path.keys[0]
            if save_as not in saved:
                saved[save_as] = self._facts.saved(run.id, keys[save_as])
            return templates.descend(saved, path)

        return look_up

    # --- records and events

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

    def _ended_run(self, run: Run, event: Literal["completed", "failed", "cancelled"], payload: dict[str, Any]) -> Run:
        error = payload.get("error")
        run = replace(
            run,
            status=follow(RUN, run.status, event),
            error_type=error["type"] if error else None,
            error_message=error["message"] if error else payload.get("reason"),
            completed_at=self._now,
            updated_at=self._now,
        )
        self._event(run, f"run.{event}", _without_none({"status": run.status, **payload}))
        return run

    def _end_run(self, run: Run, event: Literal["failed", "cancelled"], payload: dict[str, Any]) -> Run:
        run = self._ended_run(run, event, payload)
        self.changes.append(RunUpdated(run=run))
        return run

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
                payload={**_without_none(about), **payload},
                step_id=job.step_id,
                step_key=job.step_key,
            )
        )

    def _announce_cancel(self, job: Job, reason: str | None) -> None:
        if job.session_id is not None:
            self.changes.append(
                CancelAnnounced(job=job, session_id=job.session_id, reason=reason, requested_at=self._now)
            )


class _StepFailed(Exception):  # noqa: N818 - raised and caught here, as control flow
    """A step fails before it has a job."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


def _rendered(value: dict[str, Any] | None, lookup: templates.Lookup) -> Any:
    if value is None:
        return None
    try:
        return templates.render(value, lookup)
    except templates.TemplateError as error:
        raise _StepFailed("TemplateError", str(error)) from error


def _error(job: Job) -> dict[str, str]:
    return {"type": job.error_type or "Error", "message": job.error_message or ""}


def _delay(job: Job) -> float:
    return (job.available_at - job.updated_at) / 1_000_000


def _shown(result: Any) -> dict[str, Any]:
    size = len(msgspec.json.encode(result))
    return {"result": result} if size <= MAX_EVENT_RESULT_BYTES else {"result_omitted_bytes": size}


def _without_none(payload: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if value is not None}
