"""The port to storage: what the control plane asks of a database, in the domain's words.

Every method is one transaction: when it returns, what it says is durable, and when it raises nothing has happened.
`now` is the store's clock in microseconds; callers pass None, tests pass a time. Domain errors are raised as
control_plane.errors.DomainError subclasses, a store that cannot write as StoreUnavailable.

After a commit, and before the awaiting caller goes on, the store hands the `Committed` facts to its listener (in the
event loop's thread), which wakes sessions and event streams.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct, field

from control_plane.domain.api_keys import SCOPES, Rotation
from control_plane.domain.deltas import DeltaChunk, Position
from control_plane.domain.enqueue import Enqueued, NewJob
from control_plane.domain.model import (
    ApiKey,
    Attempt,
    Automation,
    Drain,
    DrainTarget,
    Event,
    Job,
    JobStatus,
    Project,
    Queue,
    RecordedAction,
    Run,
    Scope,
    Selector,
    Session,
    SessionState,
    Step,
    Version,
)
from control_plane.domain.retention import Retired, Retirement


class Fact(Struct, frozen=True, kw_only=True):
    """Base of what a commit made true."""


class JobClaimable(Fact, frozen=True):
    """A job can be claimed from `available_at` (microseconds) on; enough of it to find the sessions able to run it.
    `count`: so many that are alike came together, of which this is one."""

    project_id: str
    job_id: str
    queue: str
    available_at: int
    action_name: str | None = None
    provider: str | None = None
    model: str | None = None
    environment_id: str | None = None
    priority: int = 0
    count: int = 1


class JobEnded(Fact, frozen=True):
    """A job of Store.watched_jobs has ended."""

    job_id: str


class CancelRequested(Fact, frozen=True):
    """A claimed job is to be cancelled by the session that holds it."""

    project_id: str
    job_id: str
    session_id: str
    reason: str | None
    requested_at: int


class RunChanged(Fact, frozen=True):
    """New events are in the run's stream, up to `last_sequence`."""

    project_id: str
    run_id: str
    last_sequence: int


class SessionDrainRequested(Fact, frozen=True):
    """An operator asked this session to drain."""

    session_id: str


class SessionDrainLifted(Fact, frozen=True):
    """No drain names this session any more: its worker is to begin anew."""

    session_id: str


class SessionTaken(Fact, frozen=True):
    """Another process that serves this store has the session's worker now, or another worker its identity: a socket
    that has carried the session here since before this time is to be closed."""

    session_id: str
    before: int


class SessionContested(Fact, frozen=True):
    """Another process that serves this store asks whether the session's socket answers: see Store.answer_contest."""

    session_id: str
    contest_id: str


class KeyChanged(Fact, frozen=True):
    """An API key opens nothing from `ends_at` on, which may be now."""

    key_id: str
    ends_at: int


class TimerArmed(Fact, frozen=True, kw_only=True):
    """Something is to happen to a run at `due_at` (microseconds)."""

    due_at: int


Committed = (
    JobClaimable
    | JobEnded
    | CancelRequested
    | RunChanged
    | TimerArmed
    | SessionDrainRequested
    | SessionDrainLifted
    | SessionTaken
    | SessionContested
    | KeyChanged
)
Listener = Callable[[Sequence[Committed]], None]


class Page(Struct, frozen=True, kw_only=True):
    """One page of a listing, newest first. `next_cursor` is opaque, None on the last page."""

    items: list[Any]
    next_cursor: str | None = None


class RunFilter(Struct, frozen=True, kw_only=True):
    """Which runs are listed, beside their status and automation. Times are microseconds: created at `created_after` or
    later, and before `created_before`."""

    external_id: str | None = None
    parent_run_id: str | None = None
    created_after: int | None = None
    created_before: int | None = None


EVERY_RUN = RunFilter()


class LeaseTerms(Struct, frozen=True, kw_only=True):
    """Seconds."""

    lease_duration: float = 60.0
    heartbeat_cadence: float = 20.0
    pending_deadline: float = 600.0


class ClaimOrder(Struct, frozen=True, kw_only=True):
    """One claim of one session: at most `limit` jobs that `selector` admits. `excluded` are job ids that this session
    handed back within the last second. `lease_tokens` are `limit` fresh random tokens; only hashes are stored."""

    project_id: str
    session_id: str
    worker_instance_id: str
    selector: Selector
    limit: int
    lease_tokens: Sequence[str]
    excluded: Sequence[str] = ()
    byte_limit: int = 900_000
    """At most so many bytes of specs (and an allowance for the rest of each job), so that one frame carries them all;
    the first job always fits."""
    with_new: bool = False
    """Jobs for it were handed to the store just before: if it gets some of these, it need not look for others."""


class Lease(Struct, frozen=True, kw_only=True):
    """A job as claimed, with the token that only its holder knows. Its spec is apart, as JSON text: it is handed on as
    it is stored, and the job's own is empty."""

    job: Job
    spec: str
    lease_token: str


class HeartbeatOutcome(Struct, frozen=True, kw_only=True):
    """`lost`: the lease is gone (or the job is unknown); `cancel_*`: the job is to be cancelled."""

    lost: bool
    cancel_requested: bool = False
    cancel_reason: str | None = None
    cancel_requested_at: int | None = None


class JobReport(Protocol):
    """What a worker says of a job. `status` is completed, failed or cancelled."""

    @property
    def job_id(self) -> str:
        """The job."""

    @property
    def lease_token(self) -> str:
        """Of the claim that is reported."""

    @property
    def status(self) -> str:
        """How it ended."""

    @property
    def result(self) -> dict[str, Any] | None:
        """Of a completed one."""

    @property
    def error_type(self) -> str | None:
        """Of a failed one."""

    @property
    def error_message(self) -> str | None:
        """Of a failed one."""


class ReportOutcome(Struct, frozen=True, kw_only=True):
    """What became of a report: "accepted", "duplicate" (this lease's report was accepted before), "superseded" (a newer
    claim or the reaper's verdict stands), "handed_back", "unknown" (no such job in the project), or "untakable" (our
    own code failed, even to end the job: the lease will lapse)."""

    verdict: str


class Reaped(Struct, frozen=True, kw_only=True):
    """What one sweep did, in numbers of jobs."""

    leases_lapsed: int = 0
    executions_timed_out: int = 0
    pending_renewed: int = 0


COUNTED_UP_TO = 10_000
"""So far the numbers of a Load are counted, so that asking for them stays cheap however much there is."""


class Load(Struct, frozen=True, kw_only=True):
    """What there is to do now, of all projects together, each number up to COUNTED_UP_TO."""

    jobs_pending: int
    jobs_claimed: int
    runs_open: int


class JobFilter(Struct, frozen=True, kw_only=True):
    """Which jobs a listing shows; None: whichever."""

    status: JobStatus | None = None
    queue: str | None = None
    action_name: str | None = None


class JobView(Struct, frozen=True, kw_only=True):
    """A job with what its failed attempts died of, the first attempt first."""

    job: Job
    attempts: list[Attempt] = field(default_factory=list)


class QueueDepth(Struct, frozen=True, kw_only=True):
    """Jobs of one queue that wait: `pending` can be claimed now, the oldest since `oldest_at`; `delayed` cannot yet;
    `paused` could be, were their queue not paused."""

    project_id: str
    queue: str
    pending: int = 0
    delayed: int = 0
    paused: int = 0
    oldest_at: int | None = None


class Census(Struct, frozen=True, kw_only=True):
    """What there is at `now`, for metrics: handles of projects by id, queues, claimed jobs by project, open sessions by
    project and state (live, stale, draining; each is in one). Jobs are counted up to CENSUS_UP_TO a lane."""

    now: int
    projects: dict[str, str] = field(default_factory=dict)
    queues: list[QueueDepth] = field(default_factory=list)
    claimed: dict[str, int] = field(default_factory=dict)
    sessions: dict[tuple[str, str], int] = field(default_factory=dict)


CENSUS_UP_TO = 100_000

CommitObserver = Callable[[int, float], None]
"""Called with the number of calls in a group commit, and the seconds from its begin to its end."""


class DeltaPage(Struct, frozen=True, kw_only=True):
    """What the store has of a generation's stream after a position: chunks as (attempt, items), in order. `newest` is
    the position of the last delta that is stored; `ended` the job once it is terminal, and nothing will follow."""

    chunks: list[tuple[int, str]]
    newest: Position | None
    ended: Job | None = None


class Fired(Struct, frozen=True, kw_only=True):
    """What became of the timers that were due: `fired` have done what they were set for, `left` have not, because
    somebody else was deciding about their runs or because they could not be decided."""

    fired: int = 0
    left: int = 0


class QueueView(Struct, frozen=True, kw_only=True):
    """A queue and what is in it: `pending` (those delayed included) and `claimed` jobs, counted up to COUNTED_UP_TO a
    lane; `oldest_available_at` of those that could be claimed now."""

    queue: Queue
    pending: int = 0
    claimed: int = 0
    oldest_available_at: int | None = None


class Running(Struct, frozen=True, kw_only=True):
    """A limit that counts for a job, and how many jobs it lets through now."""

    kind: Literal["queue", "action"]
    name: str
    most: int
    running: int


class Turn(Struct, frozen=True, kw_only=True):
    """Of a run that waits for its turn: the run that has it (None: nobody has, and it is about to be decided), and how
    many wait before it, counted up to COUNTED_UP_TO."""

    holder_id: str | None = None
    before: int = 0


class Hold(Struct, frozen=True, kw_only=True):
    """What holds a job back, if it does."""

    is_paused: bool = False
    limits: list[Running] = field(default_factory=list)


class SessionView(Struct, frozen=True, kw_only=True):
    """A presence row with the jobs it holds now and the last that it finished."""

    session: Session
    current_jobs: list[Job]
    last_job: Job | None = None
    step_names: dict[str, str] = field(default_factory=dict)
    """Step name by job id, for display."""


class Store(Protocol):
    """See the module's docstring for what every method promises."""

    replicated: bool
    """Whether other processes may serve it at the same time. Then facts come from them too, soon after they commit."""

    watched_jobs: set[str]
    """Ids of jobs whose end this process wants to hear of, as JobEnded. It may be another process that sees it."""

    async def open(self, listener: Listener) -> None:
        """Open or create the database and migrate it. Raises StoreUnavailable with a sentence."""

    async def close(self) -> None:
        """Commit what is queued and close."""

    def now(self) -> int:
        """The store's clock, microseconds: it never goes back, not even behind what is already stored."""

    async def ping(self) -> None:
        """Raises StoreUnavailable when a write would not succeed now."""

    async def load(self) -> Load:
        """What there is to do now."""

    def observe_commits(self, observer: CommitObserver) -> None:
        """Have the observer told of every group commit, in the event loop's thread."""

    async def census(self, *, stale_before: int, now: int | None = None) -> Census:
        """Counts for metrics; a session not seen since `stale_before` is stale."""

    # --- projects

    async def create_project(self, handle: str, name: str, *, now: int | None = None) -> Project:
        """Raises Conflict("handle_taken")."""

    async def projects(self) -> list[Project]:
        """All of them, oldest first."""

    async def project(self, handle: str) -> Project:
        """Raises NotFound."""

    # --- API keys

    async def create_key(
        self,
        project_handle: str,
        name: str,
        secret_hash: bytes,
        *,
        scopes: Sequence[Scope] = SCOPES,
        expires_at: int | None = None,
        now: int | None = None,
    ) -> ApiKey:
        """Store the SHA-256 of a key. Raises NotFound, Invalid, Conflict("key_exists")."""

    async def rotate_key(
        self,
        project_id: str,
        key_id: str,
        secret_hash: bytes,
        *,
        overlap: int,
        expires_at: int | None = None,
        now: int | None = None,
    ) -> Rotation:
        """See api_keys.rotated; announced as KeyChanged. Raises NotFound, Invalid, Conflict."""

    async def revoke_key(self, project_id: str, key_id: str, *, now: int | None = None) -> ApiKey:
        """From now on it opens nothing; announced as KeyChanged. Raises NotFound."""

    async def key(self, secret_hash: bytes) -> ApiKey | None:
        """The key of this hash, also when revoked or expired (the caller tells them apart)."""

    async def keys(self, project_id: str) -> list[ApiKey]:
        """All of the project, also those that have ended; newest first."""

    async def changed_keys(self, since: int) -> list[ApiKey]:
        """Of all projects, those created or changed after `since`: the poll behind KeyChanged."""

    async def keys_used(self, used: dict[str, int]) -> None:
        """last_used_at by key id, written in one go (once a minute, not per request)."""

    async def has_keys(self) -> bool:
        """Whether any API key was ever created."""

    # --- automations

    async def create_automation(
        self, project_id: str, handle: str, name: str, fields: dict[str, Any], *, now: int | None = None
    ) -> Automation:
        """`fields`: the optional fields of an Automation. Raises Conflict("handle_taken")."""

    async def automations(self, project_id: str, *, status: str | None, cursor: str | None, limit: int) -> Page:
        """Page of Automation, shorter than `limit` where their values are large; without `status`, all but the
        archived. Raises Invalid("invalid_cursor")."""

    async def automation(self, project_id: str, handle: str) -> Automation:
        """To be answered, as all that is read here: JSON that a client wrote, and may be large, is the text as it is
        stored (msgspec.Raw). Of a `validation` alone it is decoded. Raises NotFound."""

    async def update_automation(
        self, project_id: str, handle: str, changes: dict[str, Any], *, now: int | None = None
    ) -> Automation:
        """Raises NotFound."""

    async def archive_automation(self, project_id: str, handle: str, *, now: int | None = None) -> None:
        """Its runs go on; it starts no new ones and leaves the default listing. Raises NotFound."""

    async def create_version(
        self,
        project_id: str,
        handle: str,
        spec: dict[str, Any],
        compiled_plan: dict[str, Any] | None,
        *,
        now: int | None = None,
    ) -> Version:
        """Validates the spec (domain/specs.py) into `validation`; an invalid spec is stored as a draft.
        Raises NotFound."""

    async def versions(self, project_id: str, handle: str, *, cursor: str | None, limit: int) -> Page:
        """Page of Version, newest first, and shorter than `limit` where specs are large. Raises NotFound,
        Invalid("invalid_cursor")."""

    async def publish_version(
        self, project_id: str, handle: str, version: int, *, now: int | None = None
    ) -> Automation:
        """Raises NotFound, Conflict("invalid_version", first sentence | "automation_archived")."""

    # --- runs

    async def start_run(
        self,
        project_id: str,
        handle: str,
        *,
        inputs: dict[str, Any] | None = None,
        source: dict[str, Any] | None = None,
        external_id: str | None = None,
        now: int | None = None,
    ) -> Run:
        """Creates the run and starts its first step. An `external_id` of a run that has not ended gives that run.

        Raises NotFound, Invalid("invalid_inputs"), Conflict("not_published" | "automation_paused" |
        "automation_archived" | "external_id_conflict" | "run_skipped"; the last two with details run_id and status)."""

    async def run(self, project_id: str, run_id: str, *, with_result: bool = False) -> Run:
        """Whoever only wants to know how it stands asks for no result: it may be large. Its values, the inputs and the
        source are JSON text to be answered (msgspec.Raw). Raises NotFound."""

    async def runs(
        self,
        project_id: str,
        *,
        status: str | None,
        automation_id: str | None,
        cursor: str | None,
        limit: int,
        more: RunFilter = EVERY_RUN,
    ) -> Page:
        """Page of Run, without `result` (a single `run` has it), and shorter than `limit` where inputs
        are large. Raises Invalid("invalid_cursor")."""

    async def cancel_run(self, project_id: str, run_id: str, reason: str | None, *, now: int | None = None) -> Run:
        """A terminal run is returned as it is. Raises NotFound."""

    async def steps(self, project_id: str, run_id: str) -> list[Step]:
        """In order of `seq`; their inputs, parameters and results are JSON text to be answered (msgspec.Raw). Raises
        NotFound."""

    async def open_step(self, project_id: str, run_id: str) -> Step | None:
        """The one that has not ended. Raises NotFound."""

    async def events(self, project_id: str, run_id: str, *, since: int, limit: int) -> list[Event]:
        """Events with sequence > since, in order; fewer than `limit` where their payloads are large. A payload is JSON
        text to be answered (msgspec.Raw). Raises NotFound."""

    # --- runs that wait

    async def signal_run(
        self, project_id: str, run_id: str, step_key: str, result: dict[str, Any], *, now: int | None = None
    ) -> Run:
        """Ends the step that waits for it; kept when the step has not begun to wait.

        Raises NotFound("not_found" | "unknown_step"), Invalid("not_a_wait_step" | "signal_refused"),
        Conflict("run_ended" | "already_signalled")."""

    async def turn(self, project_id: str, run_id: str) -> Turn | None:
        """What the run's turn waits for; None: it waits for none."""

    async def fire_timers(self, *, limit: int, now: int | None = None) -> Fired:
        """What is due happens, the oldest first: steps wake, waits and runs reach their deadlines, queued runs start.
        Each is looked at again in the transaction in which it happens, so that any number of processes may ask."""

    async def next_timer_at(self) -> int | None:
        """When the next timer is due; None when there is none."""

    # --- sessions

    async def register_session(self, session: Session, *, now: int | None = None) -> Session:
        """Insert (an empty id: one is made) or renew (same id) a presence row; `created_at` and `last_seen_at` are the
        store's. The instance's older rows that do not drain are superseded and end; jobs keep their leases (contract,
        "Identity": a new session ends no leases)."""

    async def session_by_token(self, project_id: str, token_hash: bytes) -> Session | None:
        """A live or ended session; the caller refuses one that is `superseded`."""

    async def session_of_instance(self, project_id: str, worker_instance_id: str) -> Session | None:
        """The newest session of the id that has not ended."""

    async def sessions_seen(self, seen: dict[str, int]) -> None:
        """last_seen_at by session id, written in one go (once a few seconds, not per frame). A session that turns out
        to be carried by another process is announced as SessionTaken."""

    async def update_session(
        self,
        session_id: str,
        *,
        draining: bool | None = None,
        ended: bool | None = None,
        selector: Selector | None = None,
        now: int | None = None,
    ) -> None:
        """Change what is given; one that ends so was drained. An unknown session is no error (its row was retired)."""

    async def end_sessions(self, *, unseen_since: int, except_for: Sequence[str], now: int | None = None) -> int:
        """End the sessions last seen before `unseen_since` (microseconds), but for those ids; returns how many. No
        session ends while no lease may lapse (see reap): who lost his socket must be able to come back first."""

    async def sessions(self, project_id: str, *, now: int | None = None) -> list[SessionView]:
        """Rows not ended, or ended with jobs still in hand; newest first."""

    async def session_page(
        self, project_id: str, *, state: SessionState, stale_before: int, cursor: str | None, limit: int
    ) -> Page:
        """Page of SessionView, newest first. `live` and `stale` are those not ended that were seen since
        `stale_before`, or were not; `draining` those not ended that drain or are to. Raises
        Invalid("invalid_cursor")."""

    async def drain_sessions(self, project_id: str, target: DrainTarget, *, now: int | None = None) -> None:
        """Have the sessions that the target names drain, and those that register until it is undone. Raises NotFound
        for a session that is not open."""

    async def undrain_sessions(self, project_id: str, target: DrainTarget) -> None:
        """Undo drain_sessions; sessions that another drain names go on draining. Raises NotFound when none stands."""

    async def drains(self, project_id: str) -> list[Drain]:
        """Those that stand, newest first."""

    async def contest(self, project_id: str, worker_instance_id: str) -> bool:
        """Whether a worker that is connected to another process owns the id: that process pings its socket. False
        where no other process serves the store."""

    async def answer_contest(self, contest_id: str, *, alive: bool) -> None:
        """What a SessionContested asked."""

    # --- generations

    async def append_deltas(self, chunks: Sequence[DeltaChunk], *, now: int | None = None) -> list[bool]:
        """Write each as one row, if its lease holds its job; False where it does not, and nothing was written."""

    async def deltas(self, project_id: str, job_id: str, *, after: Position, limit: int) -> DeltaPage:
        """At most `limit` chunks that have deltas after the position. Raises NotFound."""

    # --- jobs

    async def claim(self, order: ClaimOrder, *, now: int | None = None) -> list[Lease]:
        """Oldest available first. Adds `action.called` to the run's stream for every job claimed."""

    async def heartbeat(
        self, project_id: str, job_id: str, lease_token: str, *, now: int | None = None
    ) -> HeartbeatOutcome:
        """Extends the lease, if this token still holds it (also one that is past, as long as nobody took it back)."""

    async def reports(
        self, project_id: str, reports: Sequence[JobReport], *, now: int | None = None
    ) -> list[ReportOutcome]:
        """What came together, in one call; the outcomes are in its order. Each is fenced by (job, lease token): it
        finishes, retries or puts its job back, moves the step and the run on, all in one transaction (contract, "Words
        on the wire"), and harms no other: one that our own code cannot take ends its job, or its worker would send it
        for ever. After StoreUnavailable some may have been taken: sent again, those are duplicates."""

    async def job(self, project_id: str, job_id: str) -> Job:
        """Raises NotFound."""

    # --- jobs without a run

    async def enqueue(self, project_id: str, jobs: Sequence[NewJob], *, now: int | None = None) -> Enqueued:
        """All of them or none (see domain/enqueue.py). Raises Invalid("invalid_job")."""

    async def job_view(self, project_id: str, job_id: str) -> JobView:
        """Any job, also a step's. Raises NotFound."""

    async def jobs(self, project_id: str, which: JobFilter, *, cursor: str | None, limit: int) -> Page:
        """Page of Job, without `spec` and `result`, those created last first. A page looks at a bounded number of jobs:
        it may be short, even empty, and not be the last. Raises Invalid("invalid_cursor")."""

    async def cancel_job(self, project_id: str, job_id: str, reason: str | None, *, now: int | None = None) -> Job:
        """Any job, also a step's, whose run is cancelled then: at once where it waits; a worker that holds it is asked
        to stop. One that has ended is returned as it is. Raises NotFound."""

    async def retry_job(self, project_id: str, job_id: str, *, now: int | None = None) -> Job:
        """A failed job without a run goes back to its queue with all its attempts. Raises NotFound,
        Conflict("job_not_failed" | "job_of_a_run")."""

    # --- recorded actions

    async def create_action(
        self, project_id: str, name: str, fields: dict[str, Any], *, now: int | None = None
    ) -> RecordedAction:
        """`fields` of actions.CHANGEABLE. Raises Conflict("name_taken")."""

    async def actions(self, project_id: str, *, cursor: str | None, limit: int) -> Page:
        """Page of RecordedAction, shorter than `limit` where their schemas are large. Raises
        Invalid("invalid_cursor")."""

    async def action(self, project_id: str, name: str) -> RecordedAction:
        """To be answered (see `automation`). Raises NotFound."""

    async def update_action(
        self, project_id: str, name: str, changes: dict[str, Any], *, now: int | None = None
    ) -> RecordedAction:
        """`changes` of actions.CHANGEABLE. Raises NotFound."""

    async def delete_action(self, project_id: str, name: str, *, now: int | None = None) -> None:
        """Its jobs stay as they are. Raises NotFound."""

    # --- queues

    async def queues(self, project_id: str, *, now: int | None = None) -> list[QueueView]:
        """Every queue that ever had a job or of which something was said, by name."""

    async def queue(self, project_id: str, name: str, *, now: int | None = None) -> QueueView:
        """Raises NotFound."""

    async def update_queue(
        self, project_id: str, name: str, changes: dict[str, Any], *, now: int | None = None
    ) -> Queue:
        """`changes` of queues.CHANGEABLE, also of a queue that had no job yet. Every replica follows within a second;
        jobs that are claimed stay so."""

    async def hold(self, job: Job) -> Hold:
        """What holds the job back."""

    # --- what is past

    async def retire(self, what: Retired, *, before: int, after: int, limit: int) -> Retirement:
        """Delete what ended before that time (microseconds), about `limit` rows in one transaction; runs and jobs are
        looked through from `after` (0: from the oldest). Nothing that goes on is touched. Where several processes serve
        the store, one at a time deletes, and the others are told that there is no more."""

    # --- what time does to jobs

    async def reap(self, *, limit: int, now: int | None = None) -> Reaped:
        """One sweep over the three deadlines, at most `limit` jobs of each. No lease lapses in the first lease duration
        after the store was opened or recovered from an outage (contract, "Obligations of a server"), nor after
        postpone_lapses."""

    def postpone_lapses(self) -> None:
        """Nobody could heartbeat until now: no lease lapses before one lease duration from now."""

    async def next_available_at(self, *, now: int | None = None) -> int | None:
        """When the next job that is delayed at `now` becomes claimable, to time the wake-up; None when none waits."""

    async def claimable(self, *, limit: int, since: int = 0, now: int | None = None) -> list[JobClaimable]:
        """Jobs that became claimable after `since` and until now, oldest first: the poll behind the hints. Those
        that are alike may come as one with their number; `limit` counts them all."""
