"""The control plane in one process: store, services, HTTP and worker sockets, from start to a graceful end."""

import asyncio
import functools
import gc
import resource
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import structlog
import uvicorn

from control_plane.bootstrap import ensure_key
from control_plane.certificates import (
    CertificateFiles,
    Certificates,
    CertificateWatch,
    CertificateWatchConfig,
)
from control_plane.config import ServeConfig
from control_plane.domain.store import Committed, LeaseTerms, Store
from control_plane.handshakes import FailedHandshakes, TlsListener
from control_plane.hub import Hub
from control_plane.key_holders import KeyHolders
from control_plane.key_watch import KeyWatch, KeyWatchConfig
from control_plane.keys import new_lease_tokens, new_session_token
from control_plane.metrics import Live, Metrics
from control_plane.observations import Observations
from control_plane.rate_limits import Limits
from control_plane.services import (
    Pulse,
    PulseConfig,
    Reaper,
    ReaperConfig,
    Retention,
    RetentionConfig,
    Service,
    SessionSweeper,
    SessionSweeperConfig,
    Timers,
    TimersConfig,
    Wakeups,
    WakeupsConfig,
    WriteWatch,
    WriteWatchConfig,
)
from control_plane.turnstile import Turnstile
from control_plane.web.app import create_app
from control_plane.web.authentication import Authenticator
from control_plane.web.deltas import DeltaStreams
from control_plane.web.events import RunStreams
from control_plane.web.http_protocol import HttpProtocol
from control_plane.web.job_waits import JobWaits
from control_plane.web.metrics_api import serve_metrics
from control_plane.web.routes import Services
from control_plane.web.shapes import SESSION_STALE_AFTER
from control_plane.web.worker_socket import WorkerGate, WorkerSocket
from service_manager.notify import Notifier

STOP_TIMEOUT = 10
"""Seconds that open requests and sockets have to end once a stop was asked for."""

MOST_FILES = 65_536
"""Open files that we ask for where we may have more than we have."""

FILES_OF_OUR_OWN = 128
"""... of which connections do not get the last."""

SESSION_HISTORY = 30 * 86_400.0
"""Seconds for which sessions that have ended are kept."""

KEEP_ALIVE = 75
"""Seconds that an idle HTTP connection is kept."""

SWITCH_INTERVAL = 0.0001
"""Seconds after which a thread that wants the interpreter gets it."""

YOUNG_OBJECTS = 5000
"""New objects after which garbage is looked for: a batch of a few hundred jobs is not gone through in the middle."""

_log = structlog.get_logger(__name__)


class Listener:
    """The store's listener: every committed fact goes to the streams, the worker sockets and the wake-ups."""

    def __init__(self) -> None:
        self._targets: list[Callable[[Sequence[Committed]], None]] = []

    def add(self, target: Callable[[Sequence[Committed]], None]) -> None:
        """Tell `target` too."""
        self._targets.append(target)

    def __call__(self, facts: Sequence[Committed]) -> None:
        """What one commit made true."""
        for target in self._targets:
            target(facts)


class Server(uvicorn.Server):
    """uvicorn, told when to stop by us (signals and the supervisor's pipe), and telling us when it listens."""

    def __init__(
        self, config: uvicorn.Config, tls: ssl.SSLContext | None, limits: Limits, on_stopping: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._limits = limits
        self.on_listening: Callable[[], None] = lambda: None
        self._on_stopping = on_stopping

    @contextmanager
    def capture_signals(self) -> Any:
        """Ours are installed on the loop, where they only ask for the stop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await self.lifespan.startup()
        loop, tls = asyncio.get_running_loop(), self._tls
        if tls is None:
            backlog = self.config.backlog
            self.servers = [
                await loop.create_server(self._protocol, sock=each, backlog=backlog) for each in sockets or []
            ]
        else:
            failures = FailedHandshakes(time.monotonic)
            listeners: Any = [TlsListener(each, tls, self._protocol, failures) for each in sockets or []]
            self.servers = listeners
        self.started = True
        self.on_listening()

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        made: asyncio.Protocol = make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        if isinstance(made, HttpProtocol):
            made.limits = self._limits
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything that is open, gracefully."""
        self._on_stopping()
        await super().shutdown(sockets)

    def stop(self, reason: str) -> None:
        """Ask for a graceful end. A second call changes nothing: the end has a deadline of its own."""
        if not self.should_exit:
            self.should_exit = True
            _log.info("stopping", reason=reason)


class ControlPlane:
    """One server: `run` it once, `stop` it from a signal handler or the supervisor's pipe. Without a key it serves
    metrics on the bound socket `metrics_listening`, if given."""

    def __init__(
        self,
        config: ServeConfig,
        terms: LeaseTerms,
        store: Store,
        notifier: Notifier | None = None,
        metrics_listening: socket.socket | None = None,
    ) -> None:
        self._config = config
        self._metrics_listening = metrics_listening
        self._store = store
        self._listener = Listener()
        self.hub = Hub(terms, new_session_token, new_lease_tokens, replicated=store.replicated)
        self._streams = RunStreams()
        self._waits = JobWaits(store)
        holders = KeyHolders()
        limits = Limits(
            requests_per_second=config.rate_limit,
            connections_per_key=config.connections_per_key,
            trusted_proxies=config.trusted_proxies,
        )
        limits.most_connections = _most_connections()
        authenticator = Authenticator(store, holders, limits, time.monotonic, store.now)
        self._deltas = DeltaStreams(store)
        observations = Observations()
        store.observe_commits(observations.committed)
        self._metrics = Metrics(
            store, observations, self._live(), stale_after=SESSION_STALE_AFTER, clock=time.monotonic
        )
        turnstile = Turnstile()
        self._gate = WorkerGate(
            store, self.hub, authenticator, self._deltas, observations, turnstile, config.dialect, config.dialects
        )
        wakeups = Wakeups(store, self._listener, WakeupsConfig())
        timers = Timers(store, TimersConfig())
        # Whoever heartbeats twice in a lease has a quarter of it left when he was not heard for a quarter.
        overslept_after = terms.lease_duration / 4
        sweeping = SessionSweeperConfig(overslept_after=overslept_after)
        self._services: list[Service] = [
            Reaper(store, ReaperConfig(overslept_after=overslept_after), observations.reaped),
            SessionSweeper(store, self.hub.take_seen, self.hub.live_sessions, sweeping),
            wakeups,
            KeyWatch(store, holders, KeyWatchConfig()),
            Retention(store, _retention(config), observations.retired),
            timers,
        ]
        if notifier is not None and notifier.is_heard:
            self._services.append(Pulse(store, self.hub.live_sessions, notifier, PulseConfig()))
        # The wake-ups hear it first: what is not due yet when they look must not have become due when the hub does.
        hearing = (wakeups.notice, timers.notice, self._streams.committed, self._waits.committed, self._gate.committed)
        for target in hearing:
            self._listener.add(target)
        services = Services(
            store=store,
            streams=self._streams,
            deltas=self._deltas,
            waits=self._waits,
            metrics=self._metrics,
            coming=self._gate.coming,
            is_away=self._gate.hub.is_away,
            turnstile=turnstile,
            clock=time.monotonic,
            wall_clock=store.now,
        )
        tls = _certificates(config)
        if tls is not None:
            self._services.append(CertificateWatch(store, tls, CertificateWatchConfig()))
        self.scheme = "http" if tls is None else "https"
        app = create_app(services, authenticator)
        context = None if tls is None else tls.context
        self._server = Server(_uvicorn_config(app, self._gate), context, limits, self._close_streams)

    def _live(self) -> Live:
        streams, deltas = self._streams, self._deltas
        return Live(
            worker_sockets=lambda: len(self.hub.connections()),
            run_readers=lambda: streams.readers,
            generation_readers=lambda: deltas.readers,
            generations=lambda: deltas.generations,
            deltas_taken=lambda: deltas.taken,
            deltas_refused=lambda: deltas.refused,
            deltas_left_out=lambda: deltas.left_out,
            delta_chunks=lambda: deltas.chunks_written,
        )

    def _close_streams(self) -> None:
        for readers in (self._streams, self._deltas, self._waits):
            readers.close()

    def watch_writes(self) -> Callable[[], bool]:
        """Have writes tried while it runs; call it before. What it gives says whether one stands still."""
        watch = WriteWatch(self._store, WriteWatchConfig())
        self._services.append(watch)
        return watch.stands_still

    def stop(self, reason: str) -> None:
        """Ask for a graceful end."""
        self._server.stop(reason)

    async def run(self, listening: socket.socket, on_listening: Callable[[], None]) -> None:
        """Serve on the bound socket until `stop`. Raises ConfigurationError, StoreRefused, StoreUnavailable before
        anything is served."""
        async with AsyncExitStack() as stack:
            await self._store.open(self._listener)
            stack.push_async_callback(self._store.close)
            stack.push_async_callback(self._deltas.stop)
            await ensure_key(self._store, self._config.bootstrap_key_file)
            await stack.enter_async_context(_running(self._services))
            stack.push_async_callback(self._gate.finish, STOP_TIMEOUT)
            if self._metrics_listening is not None:
                stack.callback((await serve_metrics(self._metrics, self._metrics_listening)).close)
            self._server.on_listening = on_listening
            await self._server.serve(sockets=[listening])


def tune_the_interpreter() -> None:
    """Of a process that is nothing but a control plane: for a loop and a thread that writes, with a hundred jobs in
    every turn. To be called when all is loaded."""
    # The writer needs the interpreter for microseconds between two steps of SQLite. At the usual 5 ms it waits for the
    # loop's turn to end, a dozen times a transaction.
    sys.setswitchinterval(SWITCH_INTERVAL)
    # What is there by now stays. To look through it for garbage, each time that a quarter has come, took 60 ms.
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def _most_connections() -> int:
    """As many as there may be files, but for those that the store and we need. A usual soft limit is too low for a
    fleet, and may be raised by whoever meets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return (MOST_FILES if soft == resource.RLIM_INFINITY else soft) - FILES_OF_OUR_OWN


def _certificates(config: ServeConfig) -> Certificates | None:
    if config.tls_certificate_file is None:
        return None
    files = CertificateFiles(
        certificate=config.tls_certificate_file, key=config.tls_key_file, client_ca=config.tls_client_ca_file
    )
    return Certificates(files)


def _retention(config: ServeConfig) -> RetentionConfig:
    return RetentionConfig(runs=config.keep_finished, sessions=SESSION_HISTORY, deltas=config.keep_deltas)


@asynccontextmanager
async def _running(services: list[Service]) -> AsyncIterator[None]:
    try:
        for service in services:
            await service.start()
        yield
    finally:
        for service in services:
            await service.stop()


def _uvicorn_config(app: Any, gate: WorkerGate) -> uvicorn.Config:
    # uvicorn calls `ws` to make a protocol for every upgrade; that it is no class matters to its annotation alone.
    make_socket: Any = functools.partial(WorkerSocket, gate)
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=make_socket,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=STOP_TIMEOUT,
        backlog=2048,
    )
