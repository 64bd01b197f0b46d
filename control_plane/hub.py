"""The live connections of this process, and which of them a committed fact concerns. No I/O, no clock."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from control_plane.domain.selection import Kind, Routed, kind_of
from control_plane.domain.store import (
    CancelRequested,
    Committed,
    JobClaimable,
    LeaseTerms,
    SessionContested,
    SessionDrainLifted,
    SessionDrainRequested,
    SessionTaken,
)
from control_plane.session import Action, Connection, Memory, Peer

MOST_MEMORIES = 10_000
"""Sessions without a connection whose memory is kept."""

MOST_MEMORY = 64 * 1024 * 1024
"""Bytes of jobs in these memories."""

MOST_EARLY = 256
"""Jobs handed in together for which claims are asked while they are stored; the others wake claims when they are."""

_OfSession = CancelRequested | SessionDrainRequested | SessionDrainLifted | SessionTaken | SessionContested
Performed = list[tuple[Connection, list[Action]]]


class Hub:
    """Knows every connection; the transport performs what comes back, on the connection that it comes with.

    `replicated`: other processes serve the same store and have workers of their own.
    """

    def __init__(
        self,
        terms: LeaseTerms,
        new_session_token: Callable[[], str],
        new_lease_tokens: Callable[[int], list[str]],
        *,
        replicated: bool = False,
    ) -> None:
        self.terms = terms
        self.replicated = replicated
        self.new_session_token = new_session_token
        self.new_lease_tokens = new_lease_tokens
        self._connections: dict[str, dict[Connection, None]] = {}
        self._owners: dict[tuple[str, str], Connection] = {}
        self._identities: dict[Connection, tuple[str, str]] = {}
        self._carriers: dict[str, Connection] = {}
        self._memories: dict[str, Memory] = {}
        """Of the sessions that have a connection."""
        self._left: OrderedDict[str, tuple[Memory, int]] = OrderedDict()
        """Those of sessions without one, with their bytes when it went; the oldest first."""
        self._left_bytes = 0
        self._seen_until = float("-inf")
        self._seen_before_leaving: set[str] = set()

    # --- what a transport calls

    def connect(self, peer: Peer, now: float) -> Connection:
        """A worker socket was accepted."""
        connection = Connection(self, peer, now)
        self._connections.setdefault(peer.project_id, {})[connection] = None
        return connection

    def committed(self, facts: Sequence[Committed], now: float, store_now: int) -> Performed:
        """What the store has made true (to be called from its listener). `store_now`: store.now(), microseconds."""
        performed: Performed = []
        kinds: dict[tuple[object, ...], tuple[JobClaimable, int]] = {}
        for fact in facts:
            if isinstance(fact, JobClaimable):
                if fact.available_at <= store_now:
                    kind = (fact.project_id, *kind_of(fact))
                    kinds[kind] = (fact, fact.count + (kinds[kind][1] if kind in kinds else 0))
            elif isinstance(fact, _OfSession):
                carrier = self._carriers.get(fact.session_id)
                if carrier is not None:
                    performed.append((carrier, _told(carrier, fact, now)))
        for job, count in kinds.values():
            performed += self._offer(job, count, now)
        return performed

    def coming(self, project_id: str, jobs: Iterable[Routed], now: float) -> Performed:
        """Jobs that can be claimed at once are being stored, and what is asked of the store now is answered with them:
        ask for open claims that could take them. What is announced when they are stored wakes the others."""
        project = self._connections.get(project_id, {})
        if not any(connection.waits for connection in project):
            return []
        kinds: dict[Kind, tuple[Routed, int]] = {}
        for job in islice(jobs, MOST_EARLY):
            kind = kind_of(job)
            kinds[kind] = (job, kinds[kind][1] + 1 if kind in kinds else 1)
        performed: Performed = []
        for job, count in kinds.values():
            for connection, promised in _share(project, job, count):
                performed.append((connection, connection.wake_early(job, promised, now)))
        return [(connection, actions) for connection, actions in performed if actions]

    def connections(self) -> list[Connection]:
        """All that are open, registered or not."""
        return [connection for project in self._connections.values() for connection in project]

    # --- what the session sweeper calls

    def take_seen(self) -> list[str]:
        """The ids of the sessions that gave a sign of life since the last call."""
        seen, self._seen_before_leaving = self._seen_before_leaving, set()
        latest = self._seen_until
        for session_id, connection in self._carriers.items():
            if connection.last_seen > self._seen_until:
                seen.add(session_id)
                latest = max(latest, connection.last_seen)
        self._seen_until = latest
        return sorted(seen)

    def carries(self, session_id: str) -> bool:
        """Whether the session has a connection here."""
        return session_id in self._carriers

    def is_away(self, session_id: str) -> bool:
        """Whether the session surely has no connection; where there are other processes, they may have it."""
        return not self.replicated and not self.carries(session_id)

    def live_sessions(self) -> list[str]:
        """The ids of the sessions that have a connection."""
        return list(self._carriers)

    # --- what connections call (session.Registry)

    def owner(self, project_id: str, worker_instance_id: str) -> Connection | None:
        """The connection that owns the identity now."""
        return self._owners.get((project_id, worker_instance_id))

    def take(self, connection: Connection, worker_instance_id: str) -> None:
        """Make the connection the identity's owner."""
        identity = (connection.peer.project_id, worker_instance_id)
        predecessor = self._owners.get(identity)
        if predecessor is not None:
            self._identities.pop(predecessor, None)
        self._owners[identity] = connection
        self._identities[connection] = identity

    def release(self, connection: Connection) -> None:
        """The connection owns no identity any more."""
        identity = self._identities.pop(connection, None)
        if identity is not None:
            del self._owners[identity]

    def adopt(self, connection: Connection, session_id: str) -> tuple[Memory, Connection | None]:
        """The connection carries the session from now on: the session's memory, and the connection that carried it."""
        predecessor = self._carriers.get(session_id)
        self._carriers[session_id] = connection
        memory = self._memories.get(session_id)
        if memory is None:
            memory, freed = self._left.pop(session_id, (Memory(), 0))
            self._left_bytes -= freed
            self._memories[session_id] = memory
        return memory, predecessor

    def disconnected(self, connection: Connection) -> bool:
        """The connection is gone; True if its session is without a connection now."""
        self.release(connection)
        project = self._connections[connection.peer.project_id]
        project.pop(connection, None)
        if not project:
            del self._connections[connection.peer.project_id]
        session = connection.session
        if session is None or self._carriers.get(session.id) is not connection:
            return False
        del self._carriers[session.id]
        self._seen_before_leaving.add(session.id)
        self._leave(session.id, self._memories.pop(session.id))
        return True

    def _leave(self, session_id: str, memory: Memory) -> None:
        self._left[session_id] = (memory, memory.bytes)
        self._left_bytes += memory.bytes
        while len(self._left) > MOST_MEMORIES or (self._left_bytes > MOST_MEMORY and len(self._left) > 1):
            _, (_, freed) = self._left.popitem(last=False)
            self._left_bytes -= freed

    # --- offering jobs

    def _offer(self, job: JobClaimable, count: int, now: float) -> Performed:
        """Wake as many open claims as the jobs need, the longest unwoken first, and hint every idle worker."""
        project = self._connections.get(job.project_id, {})
        for connection in project:
            count -= connection.came(job, count)
        performed = [
            (connection, connection.wake(promised, now)) for connection, promised in _share(project, job, count)
        ]
        performed += [(connection, connection.hint(job, now)) for connection in project]
        return [(connection, actions) for connection, actions in performed if actions]


def _share(project: dict[Connection, None], job: Routed, count: int) -> list[tuple[Connection, int]]:
    """The connections whose open claims take so many jobs like this, and how many each."""
    shares: list[tuple[Connection, int]] = []
    for connection in project:
        if count <= 0:
            break
        promised = min(connection.room_for(job), count)
        if promised:
            count -= promised
            shares.append((connection, promised))
    for connection, _ in shares:
        # To the end of the order, so that the next job goes to another.
        del project[connection]
        project[connection] = None
    return shares


def _told(carrier: Connection, fact: _OfSession, now: float) -> list[Action]:
    match fact:
        case CancelRequested():
            return carrier.cancel(fact)
        case SessionDrainRequested():
            return carrier.drain(now)
        case SessionDrainLifted():
            return carrier.drain_lifted()
        case SessionTaken():
            return carrier.taken(fact)
        case SessionContested():
            return carrier.contested(fact)
