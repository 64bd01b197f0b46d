"""What a route is, and what its handler is called with."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from msgspec import Struct
from starlette.types import ASGIApp

from control_plane.domain.enqueue import Enqueued, NewJob
from control_plane.domain.model import ApiKey, Scope
from control_plane.domain.store import Store
from control_plane.metrics import Metrics
from control_plane.turnstile import Turnstile
from control_plane.web import shapes
from control_plane.web.deltas import DeltaStreams
from control_plane.web.events import RunStreams
from control_plane.web.job_waits import JobWaits

BodyT = TypeVar("BodyT")
QueryT = TypeVar("QueryT")


class Services(Struct, frozen=True, kw_only=True):
    """What the routes work on. `clock` gives monotonic seconds, `wall_clock` microseconds since the epoch. `coming` is
    told which jobs of a project are handed to the store next (WorkerGate.coming). Large bodies are read in the
    `turnstile`. `is_away` says of a session's id
    whether it surely has no connection."""

    store: Store
    streams: RunStreams
    deltas: DeltaStreams
    waits: JobWaits
    metrics: Metrics
    coming: Callable[[str, Sequence[NewJob]], None]
    is_away: Callable[[str], bool]
    turnstile: Turnstile
    clock: Callable[[], float]
    wall_clock: Callable[[], int]


class Call(Struct, Generic[QueryT, BodyT], frozen=True, kw_only=True):
    """One request, decoded and admitted. `key` opens the project of the path; None where no key is needed."""

    services: Services
    path: dict[str, str]
    query: QueryT
    body: BodyT
    key: Any
    last_event_id: str | None = None

    @property
    def store(self) -> Store:
        """The store."""
        return self.services.store

    async def enqueue(self, jobs: Sequence[NewJob]) -> Enqueued:
        """See Store.enqueue."""
        self.services.coming(self.project_id, jobs)
        return await self.store.enqueue(self.project_id, jobs)

    @property
    def project_id(self) -> str:
        """The project that the key opens."""
        key: ApiKey = self.key
        return key.project_id


class Accepted(Struct, frozen=True, kw_only=True):
    """An answer with status 202 where the route has another: what was asked for goes on."""

    body: Struct


Answer = Struct | ASGIApp | None


class Route(Struct, frozen=True, kw_only=True):
    """One method on one path. A request body is optional where every field of its Struct is; the `response` of a path
    that ends in `.stream` is the data of one event."""

    method: str
    path: str
    handler: Callable[[Any], Awaitable[Answer]]
    status: int = 200
    query: type[shapes.Request] = shapes.NoQuery
    body: type[shapes.Request] | None = None
    response: type[shapes.Response] | None = None
    key_needed: bool = True
    timeout: float | None = None
    """Seconds that the handler may take; None: as all do."""
    may_go_on: bool = False
    """Whether it may answer Accepted."""
    media_type: str | None = None
    """What a handler answers that answers no Struct."""
    scope: Scope | None = None
    """What the key must open; None: `reader` for what reads, `operator` for what changes."""

    @property
    def scope_needed(self) -> Scope:
        """What the key must open."""
        return self.scope or ("reader" if self.method == "GET" else "operator")
