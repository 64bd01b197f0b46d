"""The commands on jobs and runs, many in one transaction: lock, load, decide, write.

The lock order is what keeps transactions of all replicas from waiting for each other in a circle: external ids, turns
of automations, then runs, then claimed and pending jobs, each in the order of its keys. Claims come last and wait for
nobody.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from msgspec import Struct

from control_plane.domain import jobs
from control_plane.domain.enqueue import Enqueued, NewJob, external_ids
from control_plane.domain.model import Job, Run
from control_plane.domain.runs import Engine, already_started
from control_plane.domain.store import (
    ClaimOrder,
    Committed,
    HeartbeatOutcome,
    JobClaimable,
    JobEnded,
    Lease,
    ReportOutcome,
)
from control_plane.domain.times import to_microseconds
from control_plane.errors import DomainError, NotFound
from control_plane.keys import hash_secret
from control_plane.store import postgres_queues, rows
from control_plane.store.lanes import Lane
from control_plane.store.postgres_changes import as_bytea, as_json, columns
from control_plane.store.postgres_connections import LOST, Connection
from control_plane.store.postgres_decisions import Decision, Decisions, Known
from control_plane.store.postgres_facts import LoadedJob, Missing, lock_key, turn_key
from control_plane.store.postgres_held import Finishing, HeldReport

CLAIM_AGAIN = 0.003
"""Seconds after which a claim asks again that found nothing but jobs which others were just moving."""

MOST_CLAIM_TRIES = 5

MOST_TRIES_KEPT_OUT = 50
"""Of a claim that found nothing because other replicas claim under its limits."""


JOBS_A_COMMAND = 8
"""So many jobs that are handed in count as one command in a transaction."""


class Command(Struct, frozen=True, kw_only=True):
    """Base of what a batch does."""

    @property
    def weight(self) -> int:
        """How many small ones it is worth in a transaction."""
        return 1


class Ping(Command, frozen=True):
    """Write something."""


class Claim(Command, frozen=True):
    """See Store.claim."""

    order: ClaimOrder


class Heartbeat(Command, frozen=True):
    """See Store.heartbeat."""

    project_id: str
    job_id: str
    token_hash: bytes


class Report(Command, frozen=True):
    """See Store.report."""

    project_id: str
    job_id: str
    reported: jobs.Reported


class Finish(Command, frozen=True):
    """Reports of held jobs that complete them; the result says of each whether it did."""

    reports: Sequence[HeldReport]

    @property
    def weight(self) -> int:
        """See Command."""
        return 1 + len(self.reports) // JOBS_A_COMMAND


class StartRun(Command, frozen=True):
    """See Store.start_run."""

    project_id: str
    handle: str
    inputs: dict[str, Any] | None = None
    source: dict[str, Any] | None = None
    external_id: str | None = None


class CancelJob(Command, frozen=True):
    """See Store.cancel_job."""

    project_id: str
    job_id: str
    reason: str | None = None


class RetryJob(Command, frozen=True):
    """See Store.retry_job."""

    project_id: str
    job_id: str


class Enqueue(Command, frozen=True):
    """See Store.enqueue."""

    project_id: str
    jobs: Sequence[NewJob]

    @property
    def weight(self) -> int:
        """See Command."""
        return 1 + len(self.jobs) // JOBS_A_COMMAND


class CancelRun(Command, frozen=True):
    """See Store.cancel_run."""

    project_id: str
    run_id: str
    reason: str | None = None


class Signal(Command, frozen=True):
    """See Store.signal_run."""

    project_id: str
    run_id: str
    step_key: str
    result: dict[str, Any]


class Asked:
    """A command and what becomes of it. `now` is None for the store's clock, `tries` counts how often it was put off.

    Afterwards one of these is so: `put_off` is the number of seconds after which it is to be asked again; `error` is
    what its caller is to be told; `result` and `facts` are true once the transaction has committed.
    """

    def __init__(self, command: Command, now: int | None) -> None:
        self.command = command
        self.now = now
        self.tries = 0
        self.forget()

    def forget(self) -> None:
        """Nothing has become of it yet."""
        self.put_off: float | None = None
        self.error: Exception | None = None
        self.result: Any = None
        self.facts: list[Committed] = []

    def again(self, delay: float) -> None:
        """It could not be done beside the others."""
        self.tries += 1
        self.put_off = delay


class _Claiming:
    """One claim and the keys of the jobs that it may get, the oldest first."""

    def __init__(self, asked: Asked, order: ClaimOrder, lanes: list[Lane], now: int, *, waits_for_new: bool) -> None:
        self.asked = asked
        self.order = order
        self.lanes = lanes
        self.now = now
        self.seqs: list[int] = []
        self.allowed: postgres_queues.Allowed | None = None
        self.kept_out = False
        """Whether another transaction keeps a limit that counts for it."""
        self.served = False
        """Whether it gets new jobs of this transaction."""
        self.waits_for_new = waits_for_new
        """Whether it has not looked for others yet."""

    @property
    def looks_in(self) -> Sequence[Lane]:
        """The lanes of which it may get jobs that are stored already."""
        return () if self.waits_for_new else self.lanes

    @property
    def wanted(self) -> int:
        """Jobs to look at: a few more than it can take."""
        return self.order.limit + len(self.order.excluded)


class Batch:
    """One transaction. `elsewhere(work)` lends another connection, `clock` gives the store's microseconds, `steady`
    monotonic seconds."""

    def __init__(
        self,
        known: Known,
        connection: Connection,
        elsewhere: Callable[..., Any],
        clock: Callable[[], int],
        steady: Callable[[], float],
    ) -> None:
        self._known = known
        self._sql = known.sql
        self._connection = connection
        self._elsewhere = elsewhere
        self._clock = clock
        self._steady = steady
        self._decisions = Decisions(known)
        self._facts = self._decisions.facts
        self._finishing = Finishing(known.sql["finish_held"], known.terms.pending_deadline)
        self._for_new: set[Asked] = set()
        """Claims that came with jobs of this very transaction, and look for others only if they get none of these."""
        self._busy: set[str] = set()
        self._turns: set[str] = set()
        self._in_line: set[tuple[str, str]] = set()
        self._made: list[tuple[Asked, Decision]] = []
        self._leased: list[Job] = []
        self._new: set[int] = set()
        """Keys of the jobs that a claim has locked and that nobody has claimed before."""
        self.begun = False
        """Whether there is a transaction to commit."""
        self.unanswered: Exception | None = None
        """The connection broke under the one statement that was a transaction by itself."""
        self.finished: dict[str, str] = {}
        """The last job that each session has finished, by session id; true once committed."""

    async def run(self, batch: Sequence[Asked]) -> str | None:
        """Do everything but the commit; returns the transaction's id, None when it has written nothing."""
        await self._alone(batch)
        works = [asked for asked in batch if not isinstance(asked.command, Ping | Heartbeat)]
        if not works:
            return None
        await self._read_lanes(works)
        self._for_new = self._claims_for_new(works)
        names = self._external_ids(works)
        if not names and self._is_one_statement(works):
            await self._ask_for_keys(works)
        else:
            await self._connection.execute("BEGIN")
            self.begun = True
        if names:
            await self._connection.execute(self._sql["lock_keys"], sorted(names))
        await self._load_published(works)
        await self._lock_turns(works)
        await self._lock_and_load(works)
        claims = await self._finish_and_find(works)
        for asked in works:
            if asked.put_off is None:
                self._prepare(asked)
        await self._decisions.make(self._connection, [decision for _, decision in self._made])
        await self._claim(claims)
        xid = await self._write()
        for job in self._leased:
            seq = self._facts.job_keys[job.id][0]
            self._known.held.leased(seq, job)
            self._known.waiting.forget(seq)
        await self._put_off(claims)
        handed_out = {job.id for job in self._leased} if any(claim.served for claim in claims) else None
        for asked, decision in self._made:
            asked.result, asked.error, asked.facts = decision.result, decision.error, decision.facts
            if handed_out:
                asked.facts = [fact for fact in asked.facts if not _is_of(fact, handed_out)]
        await self._announce_ends(works)
        self.finished = self._finishing.finished | self._decisions.writing.finished
        return xid or self._finishing.xid

    def _is_one_statement(self, works: Sequence[Asked]) -> bool:
        """Whether nothing is locked or read before the one statement that writes: it is a transaction by itself then.
        Answers of the database are what small transactions wait for, and BEGIN and COMMIT are two.

        Held jobs are finished so: where the answer is lost it is made again, finds nothing, and the long way tells what
        is recorded. And new jobs are stored so, also for claims that came with them; see `new_job`.
        """
        if all(isinstance(asked.command, Finish) for asked in works):
            return True
        return all(isinstance(asked.command, Enqueue) or asked in self._for_new for asked in works)

    async def _ask_for_keys(self, works: Sequence[Asked]) -> None:
        new = sum(len(asked.command.jobs) for asked in works if isinstance(asked.command, Enqueue))
        if new:
            await self._decisions.writing.ask_for_keys(self._connection, new)

    async def end(self) -> None:
        """To be called whatever has become of it: afterwards the connection is asked for nothing."""
        await self._decisions.writing.keys_are_given()

    async def _write(self) -> str | None:
        try:
            return await self._decisions.write(self._connection, self._elsewhere, self._steady())
        except LOST as error:
            if self.begun or not self._decisions.writing.is_sent:
                raise
            self.unanswered = error
            return None

    @property
    def new_job(self) -> str | None:
        """The id of a job that this stores: where it is, all of this has happened."""
        return self._decisions.writing.new_job

    def committed(self) -> None:
        """What it has stored may be remembered now. No sooner: a server that crashes forgets the keys which it gave to
        what was never flushed, and gives them again."""
        for alike, seqs in self._decisions.writing.handed_in_keys:
            self._known.waiting.add(alike, seqs)

    # --- what needs no transaction of several statements

    async def _alone(self, batch: Sequence[Asked]) -> None:
        if any(isinstance(asked.command, Ping) for asked in batch):
            await self._connection.execute(self._sql["touch"], self._clock())
        beats = [(asked, asked.command) for asked in batch if isinstance(asked.command, Heartbeat)]
        if not beats:
            return
        duration = to_microseconds(self._known.terms.lease_duration)
        rows = []
        for asked, beat in beats:
            now = self._now(asked, None)
            rows.append((beat.project_id, beat.job_id, as_bytea(beat.token_hash), now, now + duration))
        held = {
            (job_id, token_hash): (requested_at, reason)
            for job_id, token_hash, requested_at, reason in await self._connection.fetch(
                self._sql["extend_leases"], as_json(rows)
            )
        }
        for asked, beat in beats:
            found = held.get((beat.job_id, beat.token_hash))
            if found is None:
                asked.result = HeartbeatOutcome(lost=True)
            else:
                asked.result = HeartbeatOutcome(
                    lost=False,
                    cancel_requested=found[0] is not None,
                    cancel_reason=found[1],
                    cancel_requested_at=found[0],
                )

    # --- locks, and what is read under them

    async def _read_lanes(self, works: Sequence[Asked]) -> None:
        projects = {project_id for asked in works if (project_id := _project_of(asked.command)) is not None}
        await self._known.lanes.refresh(self._connection, projects, self._steady())

    def _external_ids(self, works: Sequence[Asked]) -> set[int]:
        """The keys of their locks."""
        keys: set[int] = set()
        for asked in works:
            named = {lock_key(*name) for name in _names(asked.command)}
            if named & keys:
                asked.again(0.0)
            keys |= named
        return keys

    async def _lock_and_load(self, works: Sequence[Asked]) -> None:
        job_ids = [asked.command.job_id for asked in works if isinstance(asked.command, Report | CancelJob | RetryJob)]
        named = self._in_line | {
            (asked.command.project_id, asked.command.run_id)
            for asked in works
            if isinstance(asked.command, CancelRun | Signal)
        }
        if job_ids or named:
            await self._lock_runs_and_jobs(job_ids, named)
            reports = (asked.command for asked in works if isinstance(asked.command, Report))
            lost = {report.job_id for report in reports if jobs.tells_of_loss(report.reported)}
            if lost:
                loaded = (item.job for item in self._facts.jobs.values() if item.job.id in lost)
                await self._facts.load_only_once(self._connection, loaded)
        await self._facts.load_lines(self._connection, sorted(self._turns))

    async def _lock_runs_and_jobs(self, job_ids: Sequence[str], named: Iterable[tuple[str, str]]) -> None:
        run_ids = [run_id for _, run_id in named]
        found = await self._connection.fetch(self._sql["lock_jobs"], job_ids, run_ids)
        seqs = {row[2] for row in found}
        if named:
            await self._facts.load_runs(self._connection, named)
            seqs |= {loaded.job_seq for loaded in self._facts.runs.values() if loaded.job_seq is not None}
        await self._facts.load_jobs(self._connection, sorted(seqs))

    async def _finish_and_find(self, works: Sequence[Asked]) -> list[_Claiming]:
        """What held jobs become; and the claims, with the keys of locked jobs distributed among them in order."""
        finishing = [(asked, asked.command) for asked in works if isinstance(asked.command, Finish)]
        for asked, finish in finishing:
            self._finishing.add(finish.reports, self._now(asked, None))
        claims = await self._find_candidates(works)
        if self._finishing.wait:
            await self._finishing.write(self._connection)
        for asked, finish in finishing:
            asked.result = [report.seq in self._finishing.left for report in finish.reports]
        return claims

    async def _lock_turns(self, works: Sequence[Asked]) -> None:
        """Starts of automations of which one run goes on at a time: one start of each a transaction."""
        for asked in works:
            if isinstance(asked.command, StartRun) and asked.put_off is None:
                automation_id = await self._limited(asked.command)
                if automation_id is not None:
                    if automation_id in self._turns:
                        asked.again(0.0)
                    self._turns.add(automation_id)
        if self._turns:
            await self._connection.execute(self._sql["lock_keys"], sorted(turn_key(each) for each in self._turns))
            lines = await self._facts.find_lines(self._connection, sorted(self._turns))
            self._in_line = {(project_id, run_id) for _, _, run_id, project_id, _ in lines}

    async def _limited(self, start: StartRun) -> str | None:
        """The automation, if its published version takes turns."""
        for _ in range(2):
            try:
                target = self._facts.published(start.project_id, start.handle)
            except Missing as missing:
                await self._facts.load(self._connection, [missing.key])
            except DomainError:
                return None  # which is for the decision to say
            else:
                return target.automation.id if target.plan.concurrency != "allow" else None
        return None

    async def _announce_ends(self, works: Sequence[Asked]) -> None:
        """What follows from the jobs that are not claimed any more, beside what was decided."""
        ended = self._finishing.ended
        facts: list[Committed] = [JobEnded(job_id=job.id) for job in ended if job.id in self._known.watched]
        freed = postgres_queues.freed(self._known.lanes, (*ended, *self._decisions.writing.left_claimed))
        if freed:
            lanes = self._known.lanes
            facts += await postgres_queues.announce(self._connection, self._sql, lanes, freed, self._clock())
        told = next((asked for asked in works if asked.put_off is None and asked.error is None), None)
        if facts and told is not None:
            told.facts = [*told.facts, *facts]

    async def _load_published(self, works: Sequence[Asked]) -> None:
        """What starts and jobs handed in ask for: loaded before, so that they are decided once."""
        starts = (asked.command for asked in works if isinstance(asked.command, StartRun))
        keys: dict[tuple[str, ...], None] = {("published", start.project_id, start.handle): None for start in starts}
        for asked in works:
            if isinstance(asked.command, Enqueue):
                for external_id in external_ids(asked.command.jobs):
                    keys["job", asked.command.project_id, external_id] = None
        if keys:
            await self._facts.load(self._connection, keys)

    def _reserve(self, run_or_job_id: str) -> bool:
        """One decision about a run in a transaction: the next one needs to see what the first has changed."""
        if run_or_job_id in self._busy:
            return False
        self._busy.add(run_or_job_id)
        return True

    # --- reports, starts and cancellations

    def _prepare(self, asked: Asked) -> None:
        command = asked.command
        if isinstance(command, Report | CancelJob | RetryJob):
            self._prepare_job(asked, command)
        elif isinstance(command, StartRun):
            self._prepare_start(asked, command)
        elif isinstance(command, Enqueue):
            self._decide(asked, command.project_id, self._now(asked, None), partial(self._enqueue, command))
        elif isinstance(command, CancelRun | Signal):
            if self._reserve(command.run_id):
                now = self._now(asked, command.run_id)
                self._decide(asked, command.project_id, now, partial(self._end_or_signal, command))
            else:
                asked.again(0.0)

    def _prepare_start(self, asked: Asked, command: StartRun) -> None:
        now = self._now(asked, None)
        if self._turns:
            automation_id = self._automation_of(command)
            others = self._facts.runs_in_line(automation_id) if automation_id in self._turns else set()
            if not all(self._reserve(run_id) for run_id in others):
                asked.again(0.0)
                return
            now = max([now, *(self._now(asked, run_id) for run_id in others)])
        self._decide(asked, command.project_id, now, partial(self._start, command))

    def _automation_of(self, command: StartRun) -> str:
        try:
            return self._facts.automation(command.project_id, command.handle).id
        except NotFound:
            return ""

    def _prepare_job(self, asked: Asked, command: Report | CancelJob | RetryJob) -> None:
        keys = self._facts.job_keys.get(command.job_id)
        loaded = self._facts.jobs[keys[0]] if keys is not None else None
        if loaded is None or loaded.job.project_id != command.project_id:
            if isinstance(command, Report):
                asked.result = ReportOutcome(verdict="unknown")
            else:
                asked.error = NotFound(f"no job {command.job_id} in this project")
        elif command.job_id in self._finishing.job_ids:
            asked.again(0.0)
        elif self._reserve(loaded.job.run_id or loaded.job.id):
            now = self._now(asked, loaded.job.run_id)
            decide: Callable[[Engine], Any]
            if isinstance(command, Report):
                decide = partial(self._report, loaded, command.reported, now)
            elif isinstance(command, CancelJob):
                decide = partial(self._cancel_job, loaded, command.reason)
            else:
                decide = partial(_put_back, loaded.job)
            self._decide(asked, command.project_id, now, decide)
        else:
            asked.again(0.0)

    def _decide(self, asked: Asked, project_id: str, now: int, decide: Callable[[Engine], Any]) -> None:
        self._made.append((asked, Decision(project_id, now, decide)))

    def _now(self, asked: Asked, run_id: str | None) -> int:
        """The replicas' clocks differ by what a message takes; a run's events never go back in time."""
        return asked.now if asked.now is not None else max(self._clock(), self._facts.last_event_at(run_id))

    def _report(self, loaded: LoadedJob, reported: jobs.Reported, now: int, engine: Engine) -> ReportOutcome:
        only_once = self._facts.only_once(loaded.job)
        outcome = jobs.reported(loaded.job, reported, self._known.terms.pending_deadline, now, only_once=only_once)
        if outcome.after is not None:
            engine.job_moved(loaded.job, outcome, self._facts.running(loaded))
        return ReportOutcome(verdict=outcome.verdict)

    def _start(self, command: StartRun, engine: Engine) -> Run:
        if command.external_id is not None:
            automation = self._facts.automation(command.project_id, command.handle)
            earlier = self._facts.run_of_external_id(automation.id, command.external_id)
            if earlier is not None:
                return already_started(earlier)
        target = self._facts.published(command.project_id, command.handle)
        return engine.start(target, command.inputs, source=command.source, external_id=command.external_id)

    def _cancel_job(self, loaded: LoadedJob, reason: str | None, engine: Engine) -> Job:
        return engine.cancel_job(loaded.job, self._facts.running(loaded), reason)

    def _enqueue(self, command: Enqueue, engine: Engine) -> Enqueued:
        earlier = {}
        for external_id in external_ids(command.jobs):
            job_id = self._facts.job_of_external_id(command.project_id, external_id)
            if job_id is not None:
                earlier[external_id] = job_id
        return engine.enqueue(command.project_id, command.jobs, earlier)

    def _end_or_signal(self, command: CancelRun | Signal, engine: Engine) -> Run:
        loaded = self._facts.runs.get(command.run_id)
        if loaded is None or loaded.run.project_id != command.project_id:
            raise NotFound(f"no run {command.run_id} in this project")
        opened = self._facts.opened(command.run_id)
        if isinstance(command, CancelRun):
            return engine.cancel(opened, command.reason)
        return engine.signal(opened, command.step_key, command.result)

    # --- claims

    async def _find_candidates(self, works: Sequence[Asked]) -> list[_Claiming]:
        lanes = self._known.lanes
        claims = []
        wanted: dict[int, tuple[int, int]] = {}
        for asked in works:
            if isinstance(asked.command, Claim):
                order = asked.command.order
                now = self._now(asked, None)
                admitted = lanes.admitted(order.project_id, order.selector)
                claims.append(_Claiming(asked, order, admitted, now, waits_for_new=asked in self._for_new))
        await self._keep_rules([claim for claim in claims if not claim.waits_for_new])
        for claim in claims:
            for lane in claim.looks_in:
                number, until = wanted.get(lane.id, (0, 0))
                wanted[lane.id] = (number + claim.wanted, max(until, claim.now))
        if not wanted:
            return claims
        steady = self._steady()
        asked_for = [(lane, lanes.begin(lane, steady), until, number) for lane, (number, until) in wanted.items()]
        heads: dict[int, list[tuple[int, int]]] = {lane_id: [] for lane_id in wanted}
        touched = {keys[0] for keys in self._facts.job_keys.values()}
        touched_runs = set(self._facts.run_seqs.values())
        looking = columns(asked_for)
        found: Sequence[Any]
        if self._finishing.wait:
            found = await self._finishing.write(self._connection, looking)
        else:
            found = await self._connection.fetch(self._sql["claim_candidates"], *looking)
        for lane_id, available_at, seq, run_seq, place, is_new in found:
            heads[lane_id].append((available_at, seq))
            self._facts.places[seq] = place
            if is_new:
                self._new.add(seq)
            if seq in touched or run_seq in touched_runs:
                heads[lane_id].pop()  # our own transaction is deciding about it
        for lane_id, head in heads.items():
            lanes.found(lane_id, [available_at for available_at, _ in head])
        _distribute(claims, heads)
        return claims

    def _claims_for_new(self, works: Sequence[Asked]) -> set[Asked]:
        enqueuing = {asked.command.project_id for asked in works if isinstance(asked.command, Enqueue)}
        return {
            asked
            for asked in works
            if isinstance(asked.command, Claim)
            and asked.command.order.with_new
            and asked.tries == 0
            and asked.command.order.project_id in enqueuing
            and self._known.lanes.rules(asked.command.order.project_id) is None
        }

    async def _keep_rules(self, claims: Sequence[_Claiming]) -> None:
        """Leave out the lanes that are paused, full, or under a limit that another transaction keeps."""
        for project_id in sorted({claim.order.project_id for claim in claims}):
            rules = self._known.lanes.rules(project_id)
            if rules is None:
                continue
            ours = [claim for claim in claims if claim.order.project_id == project_id]
            if self._finishing.wait:
                await self._finishing.write(self._connection)  # which may free places under a limit
            allowed = postgres_queues.Allowed(rules)
            lanes = {lane.id: lane for claim in ours for lane in claim.lanes}
            await allowed.lock(self._connection, self._sql, project_id, lanes.values())
            for claim in ours:
                claim.allowed = allowed
                claim.lanes, claim.kept_out = allowed.lanes(claim.lanes)

    async def _claim(self, claims: Sequence[_Claiming]) -> None:
        if not claims:
            return
        seqs = [seq for claim in claims for seq in claim.seqs]
        candidates = self._remembered(seqs)
        unknown = [seq for seq in seqs if seq not in candidates]
        if unknown:
            candidates |= await self._facts.load_candidates(self._connection, unknown)
        decisions = []
        new = self._new_jobs(claims)
        for claim in claims:
            found = [candidates[seq] for seq in claim.seqs if seq in candidates]
            last = max((self._facts.last_event_at(job.run_id) for job, _ in found), default=0)
            if not claim.seqs and new:
                found = self._take_new(claim, new)
                last = max((job.available_at for job, _ in found), default=0)
            now = claim.asked.now if claim.asked.now is not None else max(claim.now, last)
            decisions.append(Decision(claim.order.project_id, now, partial(self._lease, claim.order, found, now)))
        await self._decisions.make(self._connection, decisions)
        for claim, decision in zip(claims, decisions, strict=True):
            self._made.append((claim.asked, decision))

    def _remembered(self, seqs: Sequence[int]) -> dict[int, tuple[Job, str]]:
        """Those that are as they were handed in here."""
        found = {}
        for seq in seqs:
            waiting = self._known.waiting.get(seq) if seq in self._new else None
            if waiting is not None:
                found[seq] = waiting
                self._facts.job_keys[waiting[0].id] = (seq, None, None)
        return found

    def _new_jobs(self, claims: Sequence[_Claiming]) -> dict[int, list[Job]]:
        """By their lanes: jobs that this very transaction stores, where a claim has found no other."""
        if all(claim.seqs for claim in claims):
            return {}
        lanes = self._known.lanes
        new: dict[int, list[Job]] = {}
        for job in self._decisions.writing.take_apart():
            lane_id = lanes.id_of(job.project_id, job)
            if lane_id is not None and lanes.rules(job.project_id) is None:
                new.setdefault(lane_id, []).append(job)
        return new

    def _take_new(self, claim: _Claiming, new: dict[int, list[Job]]) -> list[tuple[Job, str]]:
        """What the claim gets of them, who need not wait for the commit to be claimed: they are stored as claimed."""
        until = self._now(claim.asked, None)
        taken: list[Job] = []
        for lane in sorted(claim.lanes, key=lambda lane: -lane.priority):
            waiting = new.get(lane.id, ())
            due = [job for job in waiting if job.available_at <= until][: claim.order.limit - len(taken)]
            if due:
                taken += due
                kept = {job.id for job in due}
                new[lane.id] = [job for job in waiting if job.id not in kept]
        claim.served = bool(taken)
        return [(job, rows.to_json(job.spec) or "{}") for job in taken]

    def _lease(self, order: ClaimOrder, found: Sequence[tuple[Job, str]], now: int, engine: Engine) -> list[Lease]:
        leases: list[Lease] = []
        size = 0
        for before, text in found:
            if before.id in order.excluded:
                continue
            size += jobs.frame_size(before, text)
            if leases and size > order.byte_limit:
                break
            token = order.lease_tokens[len(leases)]
            claimant = jobs.Claimant(
                session_id=order.session_id,
                worker_instance_id=order.worker_instance_id,
                token_hash=hash_secret(token),
            )
            after = jobs.claimed(before, claimant, self._known.terms.lease_duration, now)
            if after is None:
                continue
            engine.claimed(before, after)
            self._leased.append(after)
            leases.append(Lease(job=after, spec=text, lease_token=token))
            if len(leases) == order.limit:
                break
        return leases

    async def _put_off(self, claims: Sequence[_Claiming]) -> None:
        """A claim that found nothing although there is something was too early or too late: others were moving it."""
        for claim in claims:
            if claim.waits_for_new and not claim.served:
                claim.asked.again(0.0)
            if claim.kept_out and not claim.seqs and not claim.served and claim.asked.tries < MOST_TRIES_KEPT_OUT:
                self._known.lanes.forget(claim.order.project_id)  # perhaps there is no such limit any more
                claim.asked.again(CLAIM_AGAIN)
        empty = [
            claim
            for claim in claims
            if not claim.seqs
            and not claim.served
            and claim.asked.put_off is None
            and claim.asked.tries < MOST_CLAIM_TRIES
        ]
        lanes = sorted({lane.id for claim in empty for lane in claim.lanes})
        if not lanes:
            return
        now = max(claim.now for claim in empty)
        waiting = {row[0] for row in await self._connection.fetch(self._sql["lanes_with_jobs"], lanes, now)}
        for claim in empty:
            if any(lane.id in waiting for lane in claim.lanes):
                claim.asked.again(CLAIM_AGAIN)


def _is_of(fact: Committed, job_ids: set[str]) -> bool:
    return isinstance(fact, JobClaimable) and fact.job_id in job_ids


def _put_back(job: Job, engine: Engine) -> Job:
    return engine.put_back(job)


def _distribute(claims: Sequence[_Claiming], heads: dict[int, list[tuple[int, int]]]) -> None:
    """Every claim takes of its lanes what no claim before it has taken: the highest priority first, then the oldest."""
    taken: set[int] = set()
    for claim in claims:
        eligible = sorted(
            (-lane.priority, *entry) for lane in claim.looks_in for entry in heads[lane.id] if entry[1] not in taken
        )
        if claim.allowed is None:
            claim.seqs = [seq for _, _, seq in eligible[: claim.wanted]]
        else:
            lane_of = {entry[1]: lane for lane in claim.lanes for entry in heads[lane.id]}
            allowed = (seq for _, _, seq in eligible if claim.allowed.take(lane_of[seq]))
            claim.seqs = list(islice(allowed, claim.wanted))
        taken.update(claim.seqs)


def _project_of(command: Command) -> str | None:
    """Whose lanes and rules the command may need."""
    if isinstance(command, Claim):
        return command.order.project_id
    if isinstance(command, Finish):
        return next((report.job.project_id for report in command.reports), None)
    return command.project_id if isinstance(command, Report | CancelJob | CancelRun) else None


def _names(command: Command) -> Iterator[tuple[str, str, str]]:
    """The external ids that a command gives, and where they are names."""
    if isinstance(command, StartRun) and command.external_id is not None:
        yield command.project_id, command.handle, command.external_id
    elif isinstance(command, Enqueue):
        for external_id in external_ids(command.jobs):
            yield command.project_id, "", external_id
