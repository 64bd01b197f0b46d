"""One child's life, from the settings that its supervisor hands it to its exit code."""

import wire.structlog_alone  # noqa: F401 - before anything else imports structlog

# isort: split
import asyncio
import math
import random
import secrets
import signal
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import structlog
import uvloop

from wire import frames, pipe
from worker_child import log
from worker_child.actions import Registry, registry
from worker_child.backoff import Backoff
from worker_child.catalogue import Catalogue
from worker_child.endpoint import Endpoint, endpoint
from worker_child.errors import ConfigurationError, CredentialError, JournalError, sayable, text_of
from worker_child.generators import generators
from worker_child.isolation import JobProcesses
from worker_child.journal import Journal
from worker_child.modules import import_source
from worker_child.parent import Parent
from worker_child.session import ActionTerms, Session, SessionSettings
from worker_child.suspects import Suspects
from worker_child.transport import ApiKey
from worker_child.worker import Worker

DRAINED = 0
INTERNAL = 70
REFUSED = 77
CONFIGURATION = 78

ResultT = TypeVar("ResultT")


def run(
    spawn: pipe.Spawn, channel: socket.socket, jobs: socket.socket, *, build_id: str, late_modules: list[str]
) -> int:
    """Runs one worker until it is drained or refused. Returns the exit code of its process.

    `jobs` is the pipe for processes of jobs; `build_id` is the mold's, whose code this process runs; `late_modules` are
    those that the mold could not import.
    """
    settings = spawn.settings
    log.configure(level=settings.log_level, log_format=settings.log_format, mark=settings.log_mark)
    child = _Child(spawn, channel, jobs)
    try:
        actions, catalogue = _work(spawn.settings, late_modules)
        key = ApiKey(spawn.settings.api_key, spawn.settings.api_key_file)
        where = endpoint(settings.api_url, settings.project, key.project, settings.tls)
    except (ConfigurationError, CredentialError) as error:
        return child.fail(str(error), CONFIGURATION)
    # Only now: until its modules are imported, a process has the time that it has to boot.
    child.parent.hello(build_id)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(child.live(actions, catalogue, key, where))
    except JournalError as error:
        return child.fail(str(error), INTERNAL)
    except Exception as error:  # noqa: BLE001 - the last resort of a process: its supervisor learns why it ended
        structlog.get_logger().exception("child.internal_error")
        return child.fail(f"internal error: {type(error).__name__}: {text_of(error)}", INTERNAL)


class _Child:
    """What a child's supervisor, signals and beats talk to, before there is a worker and while there is one."""

    def __init__(self, spawn: pipe.Spawn, channel: socket.socket, jobs: socket.socket) -> None:
        self.parent = Parent(spawn, channel, self._beat)
        self._jobs = jobs
        self._settings = spawn.settings
        self._slot = spawn.slot
        self._worker: Worker | None = None
        self._stop_asked: asyncio.Future[None]
        self._recover_by = math.inf

    async def live(self, actions: Registry, catalogue: Catalogue, key: ApiKey, where: Endpoint) -> int:
        """Takes the journal, looks for models, works, says goodbye."""
        loop = asyncio.get_running_loop()
        self._stop_asked = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, f"{number.name} was received")
        self.parent.attach(loop, self)
        path = Path(self._settings.journal_path)
        journal = Journal(path, self._settings.journal)
        suspects = Suspects(path if self._settings.journal != "off" else None, self._slot)
        leftover = await self._unless_stopped(self._recover(journal, suspects))
        await self._unless_stopped(catalogue.first_look())
        if leftover is None or self._stop_asked.done():
            self.parent.bye("asked to stop before it started to work")
            return DRAINED
        settings = self._session_settings(actions, catalogue, where)
        backoff = Backoff(random.random)
        session = Session(settings, backoff, time.monotonic(), leftover)
        self._worker = Worker(session, journal, actions, key, where, self.parent, catalogue, suspects)
        processes = JobProcesses(self._jobs)
        self._worker.isolate(processes)
        end = await self._worker.run()
        processes.close()
        self.parent.detach(loop)
        counts = session.counts_of_drain
        self.parent.bye(
            end.reason,
            refused=end.refused,
            finished=counts["completed"] + counts["failed"] + counts["cancelled"],
            handed_back=counts["handed_back"],
            cut_off=counts["cut_off"],
        )
        structlog.get_logger().info("worker.ended", reason=end.reason, refused=end.refused)
        return REFUSED if end.refused else DRAINED

    def drain(self, grace: float, reason: str) -> None:
        """An order of the supervisor: its grace counts."""
        self._drain(grace, reason, ordered=True)

    def stop(self, reason: str) -> None:
        """A signal: the grace of the settings counts, unless an order gave another."""
        self._drain(self._settings.drain_grace, reason, ordered=False)

    def _drain(self, grace: float, reason: str, *, ordered: bool) -> None:
        if self._worker is not None:
            self._worker.drain(grace, reason, ordered=ordered)
        elif not self._stop_asked.done():
            self._stop_asked.set_result(None)

    def fail(self, reason: str, code: int) -> int:
        """Last words of a child that cannot work."""
        structlog.get_logger().error("child.cannot_work", reason=reason)
        self.parent.bye(sayable(reason))
        return code

    async def _recover(self, journal: Journal, suspects: Suspects) -> list[frames.Report]:
        """What is owed for the predecessor's jobs, once it has let go of the journal.

        A predecessor whose interpreter is stuck ends itself after `hang_limit` plus the grace; so long we wait.
        """
        settings = self._settings
        deadline = settings.hang_limit + settings.drain_grace + 10.0
        self._recover_by = time.monotonic() + deadline
        owed = await asyncio.to_thread(self._take_over, journal, suspects, deadline)
        self._recover_by = math.inf
        return owed

    def _take_over(self, journal: Journal, suspects: Suspects, deadline: float) -> list[frames.Report]:
        """How the predecessor ended is known to us alone: what that says of its jobs is written down before anything
        else can happen. Blocks."""
        recovered = journal.recover(deadline)
        crashed = suspects.accuse(recovered.claimed, self._settings.previous_end)
        for report in crashed:
            journal.reported(report)
        journal.flush()
        if crashed and journal.must_sync:
            journal.sync()
        return [*recovered.reported, *crashed]

    async def _unless_stopped(self, work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
        """What the work results in; None when asked to stop meanwhile."""
        working = asyncio.ensure_future(work)
        both: list[asyncio.Future[Any]] = [working, self._stop_asked]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        # Both may have happened: then there is no worker yet that the request could reach.
        return None if self._stop_asked.done() else working.result()

    def _session_settings(self, actions: Registry, catalogue: Catalogue, where: Endpoint) -> SessionSettings:
        terms = {
            name: ActionTerms(concurrency=actions.get(name).concurrency, idempotent=actions.get(name).idempotent)
            for name in actions.names()
        }
        settings = self._settings
        return SessionSettings(
            worker_instance_id=settings.worker_instance_id,
            concurrency=settings.concurrency,
            queues=settings.queues,
            actions=terms,
            models=catalogue.models,
            id_prefix=secrets.token_hex(6),
            name=settings.name,
            version=settings.version,
            environment_id=settings.environment_id,
            identity_conflict=settings.identity_conflict,
            address=where.url,
            key_file=settings.api_key_file is not None,
        )

    def _beat(self, now: float) -> pipe.Beat:
        if self._worker is None:
            stalled_for = max(0.0, now - self._recover_by)
            return pipe.Beat(slot="", incarnation=0, source="loop", stalled_for=stalled_for)
        return self._worker.beat(now)


def _work(settings: pipe.ChildSettings, late_modules: list[str]) -> tuple[Registry, Catalogue]:
    """The actions and the models that this worker offers. Raises ConfigurationError, CredentialError."""
    for name in dict.fromkeys([*late_modules, *settings.modules]):
        import_source(name)
    if not settings.queues:
        raise ConfigurationError('queues: name at least one queue, such as "default"')
    if settings.journal != "off" and not settings.journal_path:
        raise ConfigurationError('journal_path: is empty; set journal = "off" to work without a journal')
    actions = registry.restricted(settings.actions or registry.names())
    made = []
    if settings.providers:
        # Only now: a worker without models does not pay for an HTTP client.
        from worker_child.providers import provider  # noqa: PLC0415

        made = [provider(one) for one in settings.providers]
    catalogue = Catalogue(settings.models, generators, made)
    if not actions.names() and catalogue.is_empty:
        raise ConfigurationError(
            "modules: they register no action, stock_actions is off, and there are no models: nothing to work on"
        )
    return actions, catalogue
