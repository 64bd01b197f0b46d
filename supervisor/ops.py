"""/metrics, /healthz, /readyz and /status over HTTP. Counts and states only: no output, no stack, no identity.

uvicorn's protocol is used without its server, which would install signal handlers and wake up ten times a second.
"""

import asyncio
import socket
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from supervisor.errors import CannotListenError
from supervisor.facts import REPLACED
from supervisor.fleet import Fleet
from supervisor.metrics import CONTENT_TYPE, Metrics
from supervisor.slots import Slot

CONNECTION_LIFE = 30.0
"""Seconds after which a connection is closed whatever it does."""

MAX_CONNECTIONS = 64
MAX_REQUEST_HEAD = 16 * 1024
"""Bytes."""


class BoundedProtocol(H11Protocol):
    """One HTTP connection that cannot last: a client that sends its request byte by byte holds nothing for long."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound it from the first moment on."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()  # type: ignore[attr-defined]
            return
        self._life = self.loop.call_later(CONNECTION_LIFE, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """The bound goes with it."""
        super().connection_lost(exc)
        if hasattr(self, "_life"):
            self._life.cancel()


class Ops:
    """The endpoints. `start` and `close` are called once each."""

    def __init__(self, fleet: Fleet, metrics: Metrics) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._server: asyncio.Server | None = None

    async def start(self, listen: str) -> str:
        """Serve on `host:port`; the address that was really bound. Raises CannotListenError."""
        routes = [
            Route("/metrics", self._metrics_page),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/status", self._status),
        ]
        settings = Config(
            Starlette(routes=routes),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=5,
            h11_max_incomplete_event_size=MAX_REQUEST_HEAD,
        )
        state = ServerState()
        loop = asyncio.get_running_loop()
        host, _, port = listen.rpartition(":")
        try:
            self._server = await loop.create_server(
                lambda: BoundedProtocol(config=settings, server_state=state, app_state={}),
                host=host.strip("[]"),
                port=int(port),
                reuse_address=True,
            )
        except (OSError, socket.gaierror) as error:
            raise CannotListenError(
                f"supervisor.listen: cannot listen on {listen} ({error.strerror or error}); free the port or choose "
                'another, or write listen = "" to serve nothing'
            ) from error
        bound = self._server.sockets[0].getsockname()
        return f"{bound[0]}:{bound[1]}"

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _metrics_page(self, _request: Request) -> Response:
        return Response(self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, _request: Request) -> Response:
        """That this is answered at all says that the loop runs."""
        return Response("ok\n", media_type="text/plain")

    async def _readyz(self, _request: Request) -> Response:
        if self._fleet.is_ready:
            return Response("ready\n", media_type="text/plain")
        return Response(f"not ready: {_why_not(self._fleet)}\n", status_code=503, media_type="text/plain")

    async def _status(self, _request: Request) -> Response:
        return Response(msgspec.json.encode(status(self._fleet)), media_type="application/json")


def status(fleet: Fleet) -> dict[str, Any]:
    """Counts and states of everything."""
    control_plane = fleet.control_plane
    return {
        "phase": fleet.phase.value,
        "ready": fleet.is_ready,
        "build": fleet.build,
        "restart_needed": fleet.build_skew,
        "control_plane": None if control_plane is None else _slot_status(control_plane),
        "pools": [
            {
                "name": pool.name,
                "workers": pool.settings.workers,
                "working": sum(child.is_working for child in pool.children),
                "mold": _slot_status(pool.mold),
                "slots": [
                    {**_slot_status(child), "session": child.session, "jobs_in_hand": child.jobs_in_hand}
                    for child in pool.children
                ],
            }
            for pool in fleet.pools
        ],
    }


def _slot_status(slot: Slot) -> dict[str, Any]:
    return {
        "slot": slot.name,
        "state": slot.state.value,
        "incarnation": slot.incarnation,
        "failures": slot.failures,
        "crash_loop": slot.crash_loop is not None,
    }


def _why_not(fleet: Fleet) -> str:
    if fleet.phase.value != "running":
        return fleet.phase.value
    if fleet.control_plane is not None and not fleet.control_plane.is_working:
        return f"the control plane is {fleet.control_plane.state.value}"
    return f"no child claims work, and {REPLACED}" if fleet.build_skew else "no child claims work"
