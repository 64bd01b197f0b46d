"""How runs and their steps move on. Pure decisions: facts in, changes out.

Steps run in order. A run is `suspended` while all it does is wait for a worker, a time or a signal, and so is the step
that does. When a step fails the run fails, and the steps behind it are never created: a stream shows what happened, not
what did not. An `automation` step starts an independent child run in the same transaction and goes on with
`{"run_id": ...}`; it shows among run steps as kind `action`, since the public API has no kind of its own for it.

How a run ends is decided once: by its last step, by one that failed, by whoever cancels it or by its deadline. What it
has to clean up is done then, in steps of kind `cleanup` that change nothing of that; only afterwards the run has ended
and says so.

Events: every attempt that a worker starts is one `action.called`; every attempt that fails is one `action.failed`,
followed by `action.retried` if another comes; the step's outcome is exactly one `action.result`, whose `outcome` is
"completed" (with `result`, unless it is large) or "failed" (with `error`). Nothing follows the run's last event, so
that a job cancelled with its run ends without one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from control_plane.domain import jobs, templates, waits
from control_plane.domain.changes import (
    AttemptFailed,
    JobChanged,
    JobCreated,
    JobsCreated,
    RunBegun,
    RunCreated,
    RunUpdated,
    SignalKept,
    SignalTaken,
    StepAttempted,
    StepCreated,
    TurnAwaited,
    TurnTaken,
)
from control_plane.domain.conditions import ConditionError
from control_plane.domain.enqueue import DEFAULT_QUEUE, MAX_SPEC_BYTES, Enqueued, NewJob, accept
from control_plane.domain.model import TERMINAL_RUN, TERMINAL_STEP, Job, Run, Step, TimerKind
from control_plane.domain.recording import (
    Facts,
    Going,
    Open,
    Published,
    Recorder,
    Running,
    shown,
    without_none,
)
from control_plane.domain.specs import ActionPlan, ChildPlan, SleepPlan, StepPlan, WaitPlan, merge_inputs
from control_plane.domain.times import rfc3339, to_microseconds
from control_plane.domain.transitions import RUN, STEP, follow
from control_plane.errors import Conflict, DomainError, Invalid, NotFound

MAX_DEPTH = 8
"""Of child runs below a run that somebody started."""

MAX_RUNS_AT_ONCE = 100
"""Runs that one transaction may start, so that automations that start each other end quickly."""

CLEANUP_TIMEOUT = 600.0
"""Seconds that all of a run's cleanup steps may take together."""

STEP_ORIGIN = "automation_action_step"

MAX_KEPT_BYTES = 32 * 1024 * 1024
"""Of what the steps of a run keep, as JSON: it is read and answered in one piece."""

UNCOUNTED_BYTES = 16 * 1024
"""What is kept in pieces smaller than this is counted only when a larger one comes: specs.MAX_STEPS bounds it."""

RUN_DEADLINE_EXCEEDED = "RunDeadlineExceeded"
WAIT_DEADLINE_EXCEEDED = "WaitDeadlineExceeded"


_UNREADABLE = {
    "type": "InvalidVersion",
    "message": "the run's version is not valid on this server, which is newer than the one that took it",
}
"""Of such a version no plan is left but how its runs take turns (specs.unreadable)."""


class Parent(Struct, frozen=True, kw_only=True):
    """The step that starts a child run."""

    run: Run
    step_key: str


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


class Engine(Recorder):
    """Decides; see Recorder for what becomes of it."""

    def __init__(self, facts: Facts, new_id: Callable[[str], str], now: int, pending_deadline: float) -> None:
        super().__init__(facts, new_id, now)
        self._pending_deadline = pending_deadline
        self._runs_started = 0
        self._kept: dict[str, int] = {}
        """Bytes by run that this transaction adds to what its steps keep."""

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
        """A new run, started, or queued where another one of the automation goes on that it is to wait for.

        Raises Invalid("invalid_inputs"), Conflict("run_skipped")."""
        automation, version, plan = target.automation, target.version, target.plan
        merged, errors = merge_inputs(plan, automation.default_inputs, inputs)
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
            status="queued",
            created_at=self._now,
            updated_at=self._now,
            inputs=merged,
            source=source,
            external_id=external_id,
            parent_run_id=parent.run.id if parent else None,
            parent_automation_id=parent.run.automation_id if parent else None,
            parent_step_key=parent.step_key if parent else None,
            depth=parent.run.depth + 1 if parent else 0,
        )
        place = len(self.changes)
        if plan.concurrency == "allow" or self._takes_turn(run, target, parent):
            run = self._begin(Going(run=run, plan=plan, queue=queue_of(automation.settings)))
        else:
            self._event(run, "run.queued", {"status": run.status})
        self.changes.insert(place, RunCreated(run=run))
        return run

    def cancel(self, opened: Open, reason: str | None) -> Run:
        """End a run. A worker that holds its job is told. One that has ended, or is being cleaned up after, is left as
        it is: how it ends is decided."""
        if opened.run.status in TERMINAL_RUN or _is_cleaned(opened):
            return opened.run
        return self._stop(opened, "cancelled", {"reason": reason}, reason)

    def signal(self, opened: Open, step_key: str, result: dict[str, Any]) -> Run:
        """End the step that waits for a signal, or keep it for the step that will.

        Raises NotFound("unknown_step"), Invalid("not_a_wait_step" | "signal_refused"), Conflict("run_ended" |
        "already_signalled")."""
        run, plan, step = opened.run, opened.plan, opened.step
        if run.status in TERMINAL_RUN or _is_cleaned(opened):
            what = run.status if run.status in TERMINAL_RUN else "being cleaned up after"
            raise Conflict("run_ended", f"run {run.id} is {what}: it takes no signals", {"run_id": run.id})
        seqs = {planned.key: seq for seq, planned in enumerate(plan.steps, 1)}
        if step_key not in seqs:
            raise NotFound(f"run {run.id} has no step {step_key[:256]!r}", code="unknown_step")
        planned = plan.at(seqs[step_key])
        if not isinstance(planned, WaitPlan):
            sentence = f"step {step_key!r} takes no signal: only a wait_for_event step does"
            raise Invalid("not_a_wait_step", sentence)
        reached = step.seq if step is not None else 0
        if seqs[step_key] < reached or self._facts.signal(run.id, step_key) is not None:
            raise Conflict("already_signalled", f"step {step_key!r} of run {run.id} has had its signal")
        if step is None or seqs[step_key] > reached:
            self.changes.append(SignalKept(run_id=run.id, step_key=step_key, result=result))
            self._event(run, "signal.kept", {"step_key": step_key})
            return run
        return self._take_signal(opened, step, planned, result)

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
        self.changes += [JobsCreated(alike=alike) for alike in accepted]
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
            self._job_completed(after, running)
        elif outcome.event == "failed":
            self._job_failed(after, running)
        elif outcome.event == "cancelled":
            self._job_cancelled(after, running)
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

    # --- what happens when a timer is due

    def due(self, kind: TimerKind, opened: Open) -> None:
        """A timer of the run has fired; what it was set for may be over."""
        if kind == "turn":
            self._pass_turn(opened)
            return
        self._clear_timer(opened.run, kind)
        step = opened.step
        if opened.run.status in TERMINAL_RUN or step is None:
            return
        if kind == "cleanup" and step.kind == "cleanup":
            self._halt(opened, "cleanup_deadline")
            outcome = self._facts.outcome(opened.run.id)
            going = Going(run=self._resumed(opened.run), plan=opened.plan, queue=opened.queue)
            self.changes.append(RunUpdated(run=self._ended_run(going, outcome["event"], outcome["payload"])))
        elif kind == "run" and step.kind != "cleanup":
            message = f"not over within its wall_clock_timeout of {opened.plan.wall_clock_timeout or 0:g} s"
            self._stop(opened, "failed", {"error": _named(RUN_DEADLINE_EXCEEDED, message)}, "run_deadline")
        elif kind == "step" and not opened.plan.steps:
            self._step_failed(opened, step, _UNREADABLE)
        elif kind == "step" and step.kind == "sleep":
            self._step_completed(opened, step, {})
        elif kind == "step" and step.kind == "wait_for_event":
            planned = opened.plan.at(step.seq)
            timeout = planned.timeout if isinstance(planned, WaitPlan) else 0
            error = _named(WAIT_DEADLINE_EXCEEDED, f"no signal came for step {step.step_key!r} within {timeout:g} s")
            self._step_failed(opened, step, error)

    # --- of one automation one run at a time

    def _takes_turn(self, run: Run, target: Published, parent: Parent | None) -> bool:
        """Whether the new run may begin. If not it stands in line now. Raises Conflict("run_skipped")."""
        if parent is not None:
            # Decided by its timer, in a transaction that can look at the line before it has locked any run.
            self.changes.append(TurnAwaited(run_id=run.id, automation_id=run.automation_id))
            self._set_timer(run, "turn", self._now)
            return False
        line = self._facts.line(run.automation_id)
        others = [*([line.holder] if line.holder else ()), *line.waiting]
        if others and target.plan.concurrency == "skip":
            goes_on = others[0].run
            sentence = f"run {goes_on.id} of automation {target.automation.handle} goes on, and its concurrency is skip"
            raise Conflict("run_skipped", sentence, {"run_id": goes_on.id, "status": goes_on.status})
        if others and target.plan.concurrency == "replace" and line.is_longer:
            self._set_timer(run, "turn", self._now)
        if others and (target.plan.concurrency == "queue" or not self._replace(others, run)):
            self.changes.append(TurnAwaited(run_id=run.id, automation_id=run.automation_id))
            return False
        self.changes.append(TurnTaken(run_id=run.id, automation_id=run.automation_id))
        return True

    def _replace(self, others: list[Open], run: Run) -> bool:
        """Cancel the others; whether all of them have ended, which takes longer where they have to clean up."""
        ended = [self.cancel(other, f"replaced by run {run.id}") for other in others]
        over = [each for each in ended if each.status in TERMINAL_RUN]
        for each in over:
            # Whose turn it is then is for the new one: their ends must not let one begin that is still to be replaced.
            self._clear_timer(each, "turn")
        return len(over) == len(ended)

    def _pass_turn(self, asking: Open) -> None:
        """See who of the automation may run: `asking` has ended, wants to begin, or has more to replace."""
        self._clear_timer(asking.run, "turn")
        line = self._facts.line(asking.run.automation_id)
        free, waiting = line.holder is None, list(line.waiting)
        place = self._facts.place(asking.run.id)
        before = [each for each in waiting if self._facts.place(each.run.id) < place]
        others = [*([line.holder] if line.holder else ()), *before]
        if asking.plan.concurrency == "replace":
            if asking.run.status == "queued":
                free = self._replace(others, asking.run)
            else:
                # Those whom it began or ended without having looked at them.
                self._replace(before, asking.run)
            del waiting[: len(before)]
            if line.is_longer and not waiting:
                self._set_timer(asking.run, "turn", self._now)
        elif asking.plan.concurrency == "skip" and asking.run.status == "queued" and others:
            sentence = f"skipped: run {others[0].run.id} of the automation goes on, and its concurrency is skip"
            self.cancel(asking, sentence)
            waiting = [each for each in waiting if each.run.id != asking.run.id]
        if free and waiting:
            begun = waiting[0]
            if not begun.plan.steps:
                self.changes.append(RunUpdated(run=self._ended_run(begun, "failed", {"error": _UNREADABLE})))
                return
            self.changes.append(TurnTaken(run_id=begun.run.id, automation_id=begun.run.automation_id))
            self.changes.append(RunBegun(run=self._begin(begun)))

    # --- how it goes on

    def _begin(self, going: Going) -> Run:
        """A queued run starts, and goes as far as it can. Returns the run as it stands, which the caller writes."""
        timeout = going.plan.wall_clock_timeout
        run = replace(
            going.run,
            status=follow(RUN, going.run.status, "started"),
            started_at=self._now,
            updated_at=self._now,
            wall_clock_deadline_at=self._now + to_microseconds(timeout) if timeout is not None else None,
        )
        if run.wall_clock_deadline_at is not None:
            self._set_timer(run, "run", run.wall_clock_deadline_at)
        self._event(run, "run.started", {"status": run.status})
        return self._advance(replace(going, run=run), 0, {})

    def _advance(self, going: Going, index: int, saved: dict[str, Any]) -> Run:
        """Begin the steps from `index` on until one waits or the run ends; `saved` are results that this transaction
        has made. Returns the run as it stands, which the caller writes."""
        lookup = self._lookup(going, saved)
        for seq, planned in enumerate(going.plan.steps[index:], index + 1):
            try:
                if self._is_skipped(going.run, planned, seq, lookup):
                    continue
            except _StepFailed as failed:
                return self._failed_at_once(going, self._new_step(going.run, planned, seq), failed, saved)
            step = self._new_step(going.run, planned, seq)
            try:
                result = self._begin_step(going, step, planned, lookup)
            except _StepFailed as failed:
                return self._failed_at_once(going, step, failed, saved)
            if result is None:
                return self._suspended(going.run)
            saved[planned.save_as] = result
        return self._conclude(going, "completed", {}, saved)

    def _begin_step(
        self, going: Going, step: Step, planned: StepPlan, lookup: templates.Lookup
    ) -> dict[str, Any] | None:
        """The step's result, None when it waits. Raises _StepFailed."""
        match planned:
            case ActionPlan():
                self._send_out(going, step, planned, lookup)
                return None
            case ChildPlan():
                return self._start_child(going.run, step, planned, lookup)
            case SleepPlan():
                return self._sleep(going.run, step, planned, lookup)
            case WaitPlan():
                return self._wait(going.run, step, planned, lookup)

    def _failed_at_once(self, going: Going, step: Step, failed: "_StepFailed", saved: dict[str, Any]) -> Run:
        error = _named(failed.error_type, str(failed))
        self.changes.append(StepCreated(step=self._ended(step, "failed", error=error)))
        self._event(going.run, "step.failed", {"error": error}, step)
        return self._conclude(going, "failed", {"error": {**error, "step_key": step.step_key}}, saved)

    def _step_completed(
        self, going: Going, step: Step, result: dict[str, Any], payload: dict[str, Any] | None = None
    ) -> Run:
        """A step that waited has its result, and the run goes on."""
        try:
            self._keep(going.run, _size(result))
        except _StepFailed as failed:
            return self._step_failed(going, step, _named(failed.error_type, str(failed)), payload)
        ended = self._end_step(step, "completed", result=result)
        self._event(going.run, "step.completed", payload or {}, ended)
        going = Going(run=self._resumed(going.run), plan=going.plan, queue=going.queue)
        if step.kind == "cleanup":
            run = self._go_on_cleaning(going, step.seq)
        else:
            run = self._advance(going, step.seq, {going.plan.at(step.seq).save_as: result})
        self.changes.append(RunUpdated(run=run))
        return run

    def _step_failed(
        self, going: Going, step: Step, error: dict[str, str], payload: dict[str, Any] | None = None
    ) -> Run:
        """A step that waited has failed, and so has the run, unless the step was part of its cleanup."""
        ended = self._end_step(step, "failed", error=error)
        self._event(going.run, "step.failed", {**(payload or {}), "error": error}, ended)
        if step.kind == "cleanup":
            going = Going(run=self._resumed(going.run), plan=going.plan, queue=going.queue)
            run = self._go_on_cleaning(going, step.seq)
        else:
            run = self._conclude(going, "failed", {"error": {**error, "step_key": step.step_key}}, {})
        self.changes.append(RunUpdated(run=run))
        return run

    def _job_completed(self, job: Job, running: Running) -> None:
        result = job.result if job.result is not None else {}
        self._job_event(job, "action.result", {"outcome": "completed", **shown(result)})
        self._step_completed(running, running.step, result, {"job_id": job.id})

    def _job_failed(self, job: Job, running: Running) -> None:
        error = _error(job)
        self._job_event(job, "action.failed", {"error": error})
        self._job_event(job, "action.result", {"outcome": "failed", "error": error})
        self._step_failed(running, running.step, error, {"job_id": job.id})

    def _job_cancelled(self, job: Job, running: Running) -> None:
        opened = Open(run=running.run, plan=running.plan, queue=running.queue, step=running.step)
        if running.step.kind != "cleanup":
            self._stop(opened, "cancelled", {"reason": job.error_message}, None)
            return
        self._halt(opened, job.error_message)
        going = Going(run=self._resumed(running.run), plan=running.plan, queue=running.queue)
        self.changes.append(RunUpdated(run=self._go_on_cleaning(going, running.step.seq)))

    # --- how it ends

    def _stop(
        self, opened: Open, event: Literal["failed", "cancelled"], payload: dict[str, Any], reason: str | None
    ) -> Run:
        """End the run from outside: what it waits for is given up."""
        self._halt(opened, reason)
        run = self._conclude(opened, event, payload, {})
        self.changes.append(RunUpdated(run=run))
        return run

    def _halt(self, opened: Open, reason: str | None) -> None:
        """The open step is cancelled; a worker that holds its job is told."""
        step, job = opened.step, opened.job
        if job is not None:
            outcome = jobs.cancelled(job, reason, self._now)
            if outcome.after is not None:
                self.changes.append(JobChanged(before=job, after=outcome.after))
            if outcome.event == "cancel_requested":
                self._announce_cancel(job, reason)
        if step is not None and step.status not in TERMINAL_STEP:
            self._end_step(step, "cancelled")
            self._event(opened.run, "step.cancelled", without_none({"job_id": step.job_id, "reason": reason}), step)
            if step.kind in ("sleep", "wait_for_event"):
                self._clear_timer(opened.run, "step")

    def _conclude(
        self,
        going: Going,
        event: Literal["completed", "failed", "cancelled"],
        payload: dict[str, Any],
        saved: dict[str, Any],
    ) -> Run:
        """It is decided how the run ends. Returns the run as it stands, which the caller writes."""
        run = going.run
        if not going.plan.cleanup or run.status == "queued":
            return self._ended_run(going, event, payload)
        outcome = {"event": event, "payload": payload}
        if run.wall_clock_deadline_at is not None:
            self._clear_timer(run, "run")
        self._set_timer(run, "cleanup", self._now + to_microseconds(CLEANUP_TIMEOUT), outcome)
        self._event(run, "run.cleanup_started", {"outcome": event, **without_none(payload)})
        if run.status == "suspended":
            run = self._resumed(run)
        return self._clean(Going(run=run, plan=going.plan, queue=going.queue), 0, outcome, saved)

    def _go_on_cleaning(self, going: Going, seq: int) -> Run:
        """The cleanup step `seq` is over; what comes next."""
        return self._clean(going, seq - len(going.plan.steps), self._facts.outcome(going.run.id), {})

    def _clean(self, going: Going, index: int, outcome: dict[str, Any], saved: dict[str, Any]) -> Run:
        """Begin the cleanup's steps from `index` on until one waits or the run ends as its `outcome` says."""
        lookup = self._lookup(going, saved)
        for seq, planned in enumerate(going.plan.cleanup[index:], len(going.plan.steps) + index + 1):
            step = self._new_step(going.run, planned, seq, cleanup=True)
            try:
                self._send_out(going, step, planned, lookup)
            except _StepFailed as failed:
                error = _named(failed.error_type, str(failed))
                self.changes.append(StepCreated(step=self._ended(step, "failed", error=error)))
                self._event(going.run, "step.failed", {"error": error}, step)
            else:
                return self._suspended(going.run)
        self._clear_timer(going.run, "cleanup")
        return self._ended_run(going, outcome["event"], outcome["payload"])

    # --- how steps begin

    def _is_skipped(self, run: Run, planned: StepPlan, seq: int, lookup: templates.Lookup) -> bool:
        """Raises _StepFailed."""
        if not isinstance(planned, ChildPlan) or planned.condition is None:
            return False
        try:
            if planned.condition.holds(lookup):
                return False
        except ConditionError as error:
            raise _StepFailed("ConditionError", f"{planned.condition.text}: {error}") from error
        step = Step(
            id=self._new_id("step"),
            project_id=run.project_id,
            run_id=run.id,
            step_key=planned.key,
            step_name=planned.name,
            save_as=planned.save_as,
            kind="action",
            status=follow(STEP, "pending", "skipped"),
            seq=seq,
            attempt=0,
            created_at=self._now,
            updated_at=self._now,
            completed_at=self._now,
        )
        self.changes.append(StepCreated(step=step))
        self._event(run, "step.skipped", {"condition": planned.condition.text}, step)
        return True

    def _send_out(self, going: Going, step: Step, planned: ActionPlan, lookup: templates.Lookup) -> None:
        parameters = _rendered(planned.parameters or {}, lookup)
        inputs = _rendered(planned.inputs, lookup)
        spec = {"parameters": parameters} if inputs is None else {"parameters": parameters, "inputs": inputs}
        size = _size(spec)
        if size > MAX_SPEC_BYTES:
            sentence = f"the rendered parameters are {size} bytes of JSON; a job carries at most {MAX_SPEC_BYTES}"
            raise _StepFailed("SpecTooLarge", sentence)
        run = going.run
        self._keep(run, size)
        job = Job(
            id=self._new_id("job"),
            project_id=run.project_id,
            kind="action_execution",
            origin=STEP_ORIGIN,
            queue=going.queue,
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
            retry_backoff=planned.backoff,
            retry_max_delay=planned.max_delay,
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
        self._keep(run, _size(inputs))
        try:
            target = self._facts.published(planned.automation_handle)
            child = self.start(target, inputs, parent=Parent(run=run, step_key=step.step_key))
        except DomainError as error:
            raise _StepFailed("AutomationNotStarted", f"{planned.automation_handle}: {error.message}") from error
        result = {"run_id": child.id}
        self.changes.append(StepCreated(step=replace(self._ended(step, "completed", result=result), inputs=inputs)))
        self._event(run, "step.completed", dict(result), step)
        return result

    def _sleep(self, run: Run, step: Step, planned: SleepPlan, lookup: templates.Lookup) -> dict[str, Any] | None:
        try:
            parameters = waits.rendered_sleep(planned, lookup)
        except templates.TemplateError as error:
            raise _StepFailed("TemplateError", str(error)) from error
        try:
            due = waits.wakes_at(parameters.get("duration"), parameters.get("until"), self._now)
        except ValueError as error:
            raise _StepFailed("InvalidSleep", str(error)) from error
        step = replace(step, parameters=parameters)
        if due <= self._now:
            return self._completed_at_once(run, step, {}, {})
        self._suspend(run, step, due, {"wake_at": rfc3339(due)})
        return None

    def _wait(self, run: Run, step: Step, planned: WaitPlan, lookup: templates.Lookup) -> dict[str, Any] | None:
        match = _rendered(planned.match, lookup)
        self._keep(run, _size(match))
        step = replace(step, parameters=without_none({"event_type": planned.event_type, "match": match}))
        kept = self._facts.signal(run.id, planned.key)
        if kept is not None:
            self.changes.append(SignalTaken(run_id=run.id, step_key=planned.key))
            try:
                result = waits.accepted(planned, match, kept, lookup)
            except waits.SignalRefused as refused:
                self._event(run, "signal.refused", {"reason": str(refused)}, step)
            else:
                return self._completed_at_once(run, step, result, shown(result))
        due = self._now + to_microseconds(planned.timeout)
        self._suspend(run, step, due, {"event_type": planned.event_type, "timeout_at": rfc3339(due)})
        return None

    def _take_signal(self, opened: Open, step: Step, planned: WaitPlan, signal: dict[str, Any]) -> Run:
        match = (step.parameters or {}).get("match")
        try:
            result = waits.accepted(planned, match, signal, self._lookup(opened, {}))
        except waits.SignalRefused as refused:
            raise Invalid("signal_refused", str(refused)) from refused
        self._clear_timer(opened.run, "step")
        return self._step_completed(opened, step, result, shown(result))

    def _completed_at_once(
        self, run: Run, step: Step, result: dict[str, Any], payload: dict[str, Any]
    ) -> dict[str, Any]:
        """Raises _StepFailed."""
        self._keep(run, _size(result))
        self.changes.append(StepCreated(step=self._ended(step, "completed", result=result)))
        self._event(run, "step.completed", payload, step)
        return result

    def _keep(self, run: Run, size: int) -> None:
        """One of its steps is to keep so many bytes. Raises _StepFailed."""
        kept = self._kept[run.id] = self._kept.get(run.id, 0) + size
        if size >= UNCOUNTED_BYTES and self._facts.kept_bytes(run.id) + kept > MAX_KEPT_BYTES:
            sentence = f"with these {size} bytes the run's steps would keep more than {MAX_KEPT_BYTES}: let actions "
            raise _StepFailed("RunTooLarge", sentence + "answer with where large results are, not with the results")

    def _suspend(self, run: Run, step: Step, due: int, payload: dict[str, Any]) -> None:
        step = replace(step, status=follow(STEP, step.status, "suspended"))
        self.changes.append(StepCreated(step=step))
        self._set_timer(run, "step", due)
        self._event(run, "step.suspended", payload, step)

    def _lookup(self, going: Going, saved: dict[str, Any]) -> templates.Lookup:
        run = going.run
        keys = {planned.save_as: planned.key for planned in going.plan.steps}

        def look_up(path: templates.Path) -> Any:
            if path.root == "inputs":
                return templates.descend(run.inputs, path)
            if path.root != "context" or not path.keys or path.keys[0] not in keys:
                raise templates.TemplateError(f"{path} names no step")
            save_as = path.keys[0]
            if save_as not in saved:
                saved[save_as] = self._facts.saved(run.id, keys[save_as])
            elif isinstance(saved[save_as], msgspec.Raw):
                saved[save_as] = msgspec.json.decode(saved[save_as])
            return templates.descend(saved, path)

        return look_up


class _StepFailed(Exception):  # noqa: N818 - raised and caught here, as control flow
    """A step fails before it has a job."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


def _is_cleaned(opened: Open) -> bool:
    """Whether the run's end is decided and its cleanup goes on."""
    return opened.step is not None and opened.step.kind == "cleanup"


def _rendered(value: dict[str, Any] | None, lookup: templates.Lookup) -> Any:
    if value is None:
        return None
    try:
        return templates.render(value, lookup)
    except templates.TemplateError as error:
        raise _StepFailed("TemplateError", str(error)) from error


def _size(value: Any) -> int:
    return len(msgspec.json.encode(value))


def _error(job: Job) -> dict[str, str]:
    return _named(job.error_type or "Error", job.error_message or "")


def _named(error_type: str, message: str) -> dict[str, str]:
    return {"type": error_type, "message": message}


def _delay(job: Job) -> float:
    return (job.available_at - job.updated_at) / 1_000_000
