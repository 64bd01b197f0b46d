"""What the decisions of one transaction know, loaded for many of them at once.

A decision is pure, so one that asks for a fact that is not there is simply made again when it is: `Missing` names it,
and what all decisions of a transaction miss is loaded by one statement a kind.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from control_plane.domain import automations, specs
from control_plane.domain.automations import check_startable
from control_plane.domain.model import TERMINAL_RUN, Automation, Job, Run, Step, Version
from control_plane.domain.recording import LONGEST_LINE, Line, Open, Published, Running
from control_plane.domain.runs import queue_of
from control_plane.errors import Conflict, NotFound
from control_plane.store import rows
from control_plane.store.postgres_connections import Connection

AHEAD_BYTES = (0, 64 * 1024, 512 * 1024, 4 * 1024 * 1024)
"""Of results and signals that come along with one that is needed: the first time, the second, and so on."""

_MOST_VERSIONS = 2000
_JOB_COLUMNS = rows.JOB_KEYS + len(rows.JOB)
_RUN_COLUMNS = 1 + len(rows.RUN)
_STEP_COLUMNS = len(rows.STEP)


class Missing(Exception):  # noqa: N818 - raised and caught here, as control flow
    """A decision needs a fact that is not loaded. `key` says which: ("published", project_id, handle),
    ("external", automation_id, external_id), ("job", project_id, external_id), ("version", version_id),
    ("saved", run_id, step_key), ("kept", run_id), ("signal", run_id, step_key) or ("outcome", run_id)."""

    def __init__(self, *key: str) -> None:
        super().__init__(key)
        self.key = key


class LoadedJob(Struct, kw_only=True):
    """A job as stored, and the run and step that wait for it, if there are any."""

    job: Job
    run: Run | None = None
    step: Step | None = None
    queue: str = ""


class LoadedRun(Struct, kw_only=True):
    """A run as stored, its step that is not terminal, the key of that step's job, and the queue of its actions."""

    run: Run
    step: Step | None = None
    job_seq: int | None = None
    queue: str = ""


class Versions:
    """Versions by id, with their plans: what is published never changes, so that they are kept."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Version, specs.Plan | None, list[str]]] = {}

    def get(self, version_id: str) -> tuple[Version, specs.Plan]:
        """Raises Missing, Conflict("invalid_version")."""
        found = self._known.get(version_id)
        if found is None:
            raise Missing("version", version_id)
        version, plan, errors = found
        if plan is None:
            raise automations.not_valid_here(errors)
        return version, plan

    def plan_or_less(self, version_id: str) -> specs.Plan:
        """Also of a version that is not valid here. Raises Missing."""
        try:
            return self.get(version_id)[1]
        except Conflict:
            return specs.unreadable(self._known[version_id][0].spec)

    def add(self, version: Version) -> None:
        """Remember it."""
        if len(self._known) >= _MOST_VERSIONS:
            del self._known[next(iter(self._known))]
        self._known[version.id] = (version, *specs.read(version.spec))


class Facts:
    """Of one transaction, by the ids of the domain."""

    def __init__(self, statements: dict[str, str], versions: Versions) -> None:
        self._sql = statements
        self._versions = versions
        self.jobs: dict[int, LoadedJob] = {}
        self.runs: dict[str, LoadedRun] = {}
        self.job_keys: dict[str, tuple[int, int | None, int | None]] = {}
        """A job's seq, run_seq and step_seq."""
        self.places: dict[int, tuple[int, int]] = {}
        """Where the rows of pending jobs lie that this transaction has locked for a claim."""
        self.run_seqs: dict[str, int] = {}
        self.project_of_run: dict[str, str] = {}
        self._last: dict[str, tuple[int, int]] = {}
        self._published: dict[tuple[str, str], tuple[Automation, str | None] | None] = {}
        self._external: dict[tuple[str, ...], Run | None] = {}
        self._jobs_by_external_id: dict[tuple[str, ...], str | None] = {}
        self._only_once: set[tuple[str, str | None]] = set()
        self._saved: dict[tuple[str, str], Any] = {}
        self._kept: dict[str, int] = {}
        self._times_asked = 0
        self._signals: dict[tuple[str, str], dict[str, Any] | None] = {}
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._lines: dict[str, list[tuple[bool, str]]] = {}
        self._longer: set[str] = set()

    # --- asked by decisions

    def running(self, loaded: LoadedJob) -> Running | None:
        """See domain.recording.Running. Raises Missing."""
        if loaded.run is None:
            if loaded.job.run_id is not None:
                raise RuntimeError(f"the run of {loaded.job.id} is not there")
            return None
        if loaded.step is None:
            raise RuntimeError(f"the step of {loaded.job.id} is not there")
        if loaded.run.status in TERMINAL_RUN:
            return Running(run=loaded.run, step=loaded.step, plan=specs.Plan(steps=(), inputs={}))
        _, plan = self._versions.get(loaded.run.version_id)
        return Running(run=loaded.run, step=loaded.step, plan=plan, queue=loaded.queue)

    def automation(self, project_id: str, handle: str) -> Automation:
        """Raises Missing, NotFound."""
        return self._startable(project_id, handle)[0]

    def run_of_external_id(self, automation_id: str, external_id: str) -> Run | None:
        """The run that was started with it, ended or not. Raises Missing."""
        key = (automation_id, external_id)
        if key not in self._external:
            raise Missing("external", *key)
        return self._external[key]

    def job_of_external_id(self, project_id: str, external_id: str) -> str | None:
        """The id of the job that was handed in with it. Raises Missing."""
        key = (project_id, external_id)
        if key not in self._jobs_by_external_id:
            raise Missing("job", *key)
        return self._jobs_by_external_id[key]

    def only_once(self, job: Job) -> bool:
        """Whether the job's action is recorded as one that must not be run twice; only of what load_only_once asked."""
        return (job.project_id, job.action_name) in self._only_once

    def published(self, project_id: str, handle: str) -> Published:
        """See domain.recording.Facts. Raises Missing, NotFound, Conflict."""
        automation, version_id = self._startable(project_id, handle)
        number = check_startable(automation)
        if version_id is None:
            raise RuntimeError(f"version {number} of {automation.id} is not there")
        version, plan = self._versions.get(version_id)
        return Published(automation=automation, version=version, plan=plan)

    def saved(self, run_id: str, step_key: str) -> Any:
        """See domain.recording.Facts. Raises Missing."""
        if run_id not in self.run_seqs:
            return None  # it is being created: nothing of it is stored
        key = (run_id, step_key)
        if key not in self._saved:
            raise Missing("saved", run_id, step_key)
        return self._saved[key]

    def kept_bytes(self, run_id: str) -> int:
        """See domain.recording.Facts. Raises Missing."""
        if run_id not in self.run_seqs:
            return 0
        if run_id not in self._kept:
            raise Missing("kept", run_id)
        return self._kept[run_id]

    def signal(self, run_id: str, step_key: str) -> dict[str, Any] | None:
        """See domain.recording.Facts. Raises Missing."""
        if run_id not in self.run_seqs:
            return None
        key = (run_id, step_key)
        if key not in self._signals:
            raise Missing("signal", run_id, step_key)
        return self._signals[key]

    def outcome(self, run_id: str) -> dict[str, Any]:
        """See domain.recording.Facts. Raises Missing."""
        if run_id not in self._outcomes:
            raise Missing("outcome", run_id)
        return self._outcomes[run_id]

    def opened(self, run_id: str) -> Open:
        """The run, with what it waits for. Raises Missing."""
        loaded = self.runs[run_id]
        job = self.jobs[loaded.job_seq].job if loaded.job_seq is not None else None
        plan = self._versions.plan_or_less(loaded.run.version_id)
        return Open(run=loaded.run, plan=plan, queue=loaded.queue, step=loaded.step, job=job)

    def line(self, automation_id: str) -> Line:
        """See domain.recording.Facts. Raises Missing."""
        holder, waiting = None, []
        for holds, run_id in self._lines[automation_id]:
            opened = self.opened(run_id)
            if holds:
                holder = opened
            else:
                waiting.append(opened)
        return Line(holder=holder, waiting=tuple(waiting), is_longer=automation_id in self._longer)

    def runs_in_line(self, automation_id: str) -> set[str]:
        """The ids of those whom `line` tells of."""
        return {run_id for _, run_id in self._lines.get(automation_id, ())}

    def _startable(self, project_id: str, handle: str) -> tuple[Automation, str | None]:
        key = (project_id, handle)
        if key not in self._published:
            raise Missing("published", project_id, handle)
        found = self._published[key]
        if found is None:
            raise NotFound(f"no automation {handle} in this project")
        return found

    def last_event_at(self, run_id: str | None) -> int:
        """When the run's newest event was written; 0 where none is known."""
        return self._last.get(run_id or "", (0, 0))[1]

    def next_sequence(self, run_id: str) -> int:
        """The place of the next event in the run's stream."""
        last, at = self._last.get(run_id, (0, 0))
        self._last[run_id] = (last + 1, at)
        return last + 1

    # --- loaded from the database

    async def load_jobs(self, connection: Connection, seqs: Sequence[int]) -> None:
        """The jobs of these keys with all that a decision on them needs."""
        for row in await connection.fetch(self._sql["load_jobs"], seqs):
            self._take_job(tuple(row))

    async def load_candidates(self, connection: Connection, seqs: Sequence[int]) -> dict[int, tuple[Job, str]]:
        """Pending jobs with their specs as text, by key; the claim has locked them."""
        found: dict[int, tuple[Job, str]] = {}
        places = [self.places[seq] for seq in seqs]
        for record in await connection.fetch(self._sql["load_candidates"], places):
            row = tuple(record)
            text = row[_JOB_COLUMNS]
            job = rows.job(row[:_JOB_COLUMNS], {})
            self._take_keys(job, row)
            if job.run_id is not None and row[1] is not None:
                self._take_last(job.run_id, *row[_JOB_COLUMNS + 1 :])
            found[row[0]] = (job, text)
        return found

    async def load_runs(self, connection: Connection, asked: Iterable[tuple[str, str]]) -> None:
        """The runs of these projects and ids."""
        projects, ids = zip(*asked, strict=True)
        for record in await connection.fetch(self._sql["load_runs"], projects, ids):
            row = tuple(record)
            run = self._take_run(row[:_RUN_COLUMNS])
            step_row = row[_RUN_COLUMNS : _RUN_COLUMNS + _STEP_COLUMNS]
            last_sequence, last_at, job_seq, settings = row[_RUN_COLUMNS + _STEP_COLUMNS :]
            self._take_last(run.id, last_sequence, last_at)
            step = rows.step(step_row) if step_row[0] is not None else None
            queue = queue_of(rows.from_json(settings))
            self.runs[run.id] = LoadedRun(run=run, step=step, job_seq=job_seq, queue=queue)

    async def load_open_runs(self, connection: Connection, asked: Iterable[tuple[str, str]]) -> None:
        """The runs of these projects and ids with the jobs that they wait for."""
        await self.load_runs(connection, asked)
        seqs = sorted({loaded.job_seq for loaded in self.runs.values() if loaded.job_seq is not None})
        if seqs:
            await self.load_jobs(connection, seqs)

    async def find_lines(
        self, connection: Connection, automation_ids: Sequence[str]
    ) -> list[tuple[str, bool, str, str, int]]:
        """Who stands in line for these: automation, whether it has the turn, run, project and key of the run."""
        found = await connection.fetch(self._sql["lines"], automation_ids, LONGEST_LINE)
        return [tuple(row) for row in found]

    async def load_lines(self, connection: Connection, automation_ids: Sequence[str]) -> None:
        """The lines of these, as far as their runs are loaded, which means locked. Whoever has come since will ask."""
        if automation_ids:
            self._lines.update({automation_id: [] for automation_id in automation_ids})
            found = await self.find_lines(connection, automation_ids)
            waiting = Counter(automation_id for automation_id, holds, *_ in found if not holds)
            self._longer |= {automation_id for automation_id, number in waiting.items() if number == LONGEST_LINE}
            for automation_id, holds, run_id, _, _ in found:
                if run_id in self.runs:
                    self._lines[automation_id].append((holds, run_id))
                else:
                    self._longer.add(automation_id)

    async def load_only_once(self, connection: Connection, jobs: Iterable[Job]) -> None:
        """What is recorded of the actions of these jobs, where it counts."""
        asked = sorted({(job.project_id, job.action_name) for job in jobs if job.action_name is not None})
        if asked:
            projects, names = zip(*asked, strict=True)
            self._only_once |= {tuple(row) for row in await connection.fetch(self._sql["only_once"], projects, names)}

    async def load(self, connection: Connection, missing: Iterable[tuple[str, ...]]) -> None:
        """What decisions missed."""
        kinds: dict[str, list[tuple[str, ...]]] = {}
        for kind, *key in dict.fromkeys(missing):
            kinds.setdefault(kind, []).append(tuple(key))
        loading = {
            "published": self._load_published,
            "external": self._load_external,
            "job": self._load_jobs_by_external_id,
            "version": self._load_versions,
            "saved": self._load_saved,
            "kept": self._load_kept,
            "signal": self._load_signals,
            "outcome": self._load_outcomes,
        }
        for kind, keys in kinds.items():
            await loading[kind](connection, keys)

    async def _load_published(self, connection: Connection, keys: list[tuple[str, ...]]) -> None:
        projects, handles = zip(*keys, strict=True)
        for project_id, handle in keys:
            self._published[project_id, handle] = None
        for record in await connection.fetch(self._sql["published_versions"], projects, handles):
            project_id, handle, *columns, version_id = tuple(record)
            self._published[project_id, handle] = (rows.automation(columns), version_id)

    async def _load_external(self, connection: Connection, keys: list[tuple[str, ...]]) -> None:
        automations, external_ids = zip(*keys, strict=True)
        self._external.update(dict.fromkeys(keys))
        for row in await connection.fetch(self._sql["runs_by_external_id"], automations, external_ids):
            run = rows.run(tuple(row))
            self._external[run.automation_id, run.external_id or ""] = run

    async def _load_jobs_by_external_id(self, connection: Connection, keys: list[tuple[str, ...]]) -> None:
        projects, external_ids = zip(*keys, strict=True)
        self._jobs_by_external_id.update(dict.fromkeys(keys))
        for project_id, external_id, job_id in await connection.fetch(
            self._sql["jobs_by_external_id"], projects, external_ids
        ):
            self._jobs_by_external_id[project_id, external_id] = job_id

    async def _load_saved(self, connection: Connection, keys: list[tuple[str, ...]]) -> None:
        await self._load_kept_values(connection, "step_results", self._saved, keys)

    async def _load_versions(self, connection: Connection, keys: list[tuple[str, ...]]) -> None:
        for row in await connection.fetch(self._sql["versions_by_id"], [key[0] for key in keys]):
            self._versions.add(rows.version(tuple(row)))

    async def _load_kept(self, connection: Connection, keys: list[tuple[str, ...]]) -> None:
        ids = {self.run_seqs[key[0]]: key[0] for key in keys}
        self._kept |= dict.fromkeys(ids.values(), 0)
        for run_seq, size in await connection.fetch(self._sql["kept_bytes"], sorted(ids)):
            self._kept[ids[run_seq]] = size

    async def _load_outcomes(self, connection: Connection, keys: list[tuple[str, ...]]) -> None:
        ids = {self.run_seqs[key[0]]: key[0] for key in keys}
        for run_seq, text in await connection.fetch(self._sql["outcomes"], sorted(ids)):
            self._outcomes[ids[run_seq]] = rows.from_json(text)

    async def _load_signals(self, connection: Connection, keys: list[tuple[str, ...]]) -> None:
        await self._load_kept_values(connection, "kept_signals", self._signals, keys)

    async def _load_kept_values(
        self, connection: Connection, statement: str, found: dict[tuple[str, str], Any], keys: list[tuple[str, ...]]
    ) -> None:
        run_ids = {self.run_seqs[run_id]: run_id for run_id, _ in keys}
        asked = list(zip(*((self.run_seqs[run_id], step_key) for run_id, step_key in keys), strict=True))
        known = [(self.run_seqs[run_id], step_key) for run_id, step_key in found if run_id in run_ids.values()]
        columns = zip(*known, strict=True) if known else ([], [])
        ahead = AHEAD_BYTES[min(self._times_asked, len(AHEAD_BYTES) - 1)]
        self._times_asked += 1
        found |= {(run_id, step_key): None for run_id, step_key in keys}  # noqa: C420 - pairs, for mypy
        rows_found = await connection.fetch(self._sql[statement], *asked, *columns, ahead)
        for run_seq, step_key, text in rows_found:
            found[run_ids[run_seq], step_key] = rows.from_json(text)

    def _take_job(self, row: rows.Row) -> None:
        job = rows.job(row[:_JOB_COLUMNS], {})
        self._take_keys(job, row)
        run_row = row[_JOB_COLUMNS : _JOB_COLUMNS + _RUN_COLUMNS]
        step_row = row[_JOB_COLUMNS + _RUN_COLUMNS : _JOB_COLUMNS + _RUN_COLUMNS + _STEP_COLUMNS]
        settings, last_sequence, last_at = row[_JOB_COLUMNS + _RUN_COLUMNS + _STEP_COLUMNS :]
        loaded = LoadedJob(job=job)
        if run_row[0] is not None:
            loaded.run = self._take_run(run_row)
            loaded.step = rows.step(step_row) if step_row[0] is not None else None
            loaded.queue = queue_of(rows.from_json(settings))
            self._take_last(loaded.run.id, last_sequence, last_at)
        self.jobs[row[0]] = loaded

    def _take_keys(self, job: Job, row: rows.Row) -> None:
        self.job_keys[job.id] = (row[0], row[1], row[2])
        if job.run_id is not None and row[1] is not None:
            self.run_seqs[job.run_id] = row[1]
            self.project_of_run[job.run_id] = job.project_id

    def _take_run(self, row: rows.Row) -> Run:
        run = rows.run(row)
        self.run_seqs[run.id] = row[0]
        self.project_of_run[run.id] = run.project_id
        return run

    def _take_last(self, run_id: str, sequence: int | None, at: int | None) -> None:
        self._last[run_id] = (sequence or 0, at or 0)


def turn_key(automation_id: str) -> int:
    """The lock of those who take turns in an automation."""
    return lock_key("turn", automation_id)


def lock_key(*names: str | None) -> int:
    """The key of an advisory lock for what these name."""
    text = "\0".join(name or "" for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
