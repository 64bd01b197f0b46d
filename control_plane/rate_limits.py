"""Who asks too much: token buckets, and connections that have shown no key. No I/O, no clock: `now` is in seconds.

What is remembered of a name (a key's id, an address) is bounded: the one that was silent longest is forgotten, which
is to say that its bucket is full again.
"""

import functools
import ipaddress
import math
from collections import OrderedDict

from msgspec import Struct

from wire.address import is_loopback

MOST_NAMES = 10_000
"""Names of which a bucket is remembered."""

FAILURES_PER_SECOND = 1.0
MOST_FAILURES = 60
"""Refused credentials of one address: so many at once, then one a second."""

ARRIVALS_PER_ADDRESS = 128
"""Connections of one address that have shown no valid key yet. This machine's own are not counted: that is where a
proxy may be."""


class Rate(Struct, frozen=True, kw_only=True):
    """So many a second, and `burst` at once after a pause."""

    per_second: float
    burst: int


class Verdict(Struct, frozen=True, kw_only=True):
    """What one call of `take` came to. `reset_after`: seconds until the bucket is full again; `retry_after`: seconds
    until there is one more, 0 where it was allowed."""

    allowed: bool
    limit: int
    remaining: int
    reset_after: int
    retry_after: int = 0


class Buckets:
    """One bucket for each name, all of one rate."""

    def __init__(self, rate: Rate, most: int = MOST_NAMES) -> None:
        self.rate = rate
        self._most = most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    @property
    def policy(self) -> str:
        """As the header says it: so many in a window of one second, and the burst."""
        return f"{self.rate.per_second:g};w=1;burst={self.rate.burst}"

    def left(self, name: str, now: float) -> float:
        """How many may still be taken."""
        tokens, at = self._left.get(name, (float(self.rate.burst), now))
        return min(float(self.rate.burst), tokens + max(0.0, now - at) * self.rate.per_second)

    def take(self, name: str, now: float) -> Verdict:
        """One, if there is one."""
        left = self.left(name, now)
        allowed = left >= 1.0
        if allowed:
            left -= 1.0
        self._left[name] = (left, now)
        self._left.move_to_end(name)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return Verdict(
            allowed=allowed,
            limit=self.rate.burst,
            remaining=int(left),
            reset_after=math.ceil((self.rate.burst - left) / self.rate.per_second),
            retry_after=0 if allowed else max(1, math.ceil((1.0 - left) / self.rate.per_second)),
        )


class Arrivals:
    """Connections that have shown no valid key yet, by address."""

    def __init__(self, most: int = ARRIVALS_PER_ADDRESS) -> None:
        self._most = most
        self._here: dict[str, int] = {}

    def arrive(self, address: str) -> "Arrival | None":
        """One more; None if there are too many."""
        here = self._here.get(address, 0)
        if here >= self._most and not is_loopback(address):
            return None
        self._here[address] = here + 1
        return Arrival(self, address)

    def left(self, address: str) -> None:
        """Called by an Arrival."""
        here = self._here[address] - 1
        if here:
            self._here[address] = here
        else:
            del self._here[address]

    def __len__(self) -> int:
        return len(self._here)


class Arrival:
    """One connection among the Arrivals, until it has shown a valid key or is gone."""

    def __init__(self, arrivals: Arrivals, address: str) -> None:
        self._arrivals = arrivals
        self._address = address
        self._here = True

    def leave(self) -> None:
        """It has, or it is. A second call does nothing."""
        if self._here:
            self._here = False
            self._arrivals.left(self._address)


class Limits:
    """All of one server. `requests_per_second` of one key (0: no limit), twice as many at once; `connections_per_key`:
    worker sockets and event streams together; `trusted_proxies`: whose X-Forwarded-For is believed."""

    def __init__(
        self,
        *,
        requests_per_second: int = 0,
        connections_per_key: int = 2000,
        trusted_proxies: frozenset[str] = frozenset(),
    ) -> None:
        self.requests: Buckets | None = None
        if requests_per_second:
            self.requests = Buckets(Rate(per_second=requests_per_second, burst=2 * requests_per_second))
        self.failures = Buckets(Rate(per_second=FAILURES_PER_SECOND, burst=MOST_FAILURES))
        self.arrivals = Arrivals()
        self.connections_per_key = connections_per_key
        self.trusted_proxies = trusted_proxies
        self.most_connections: int | None = None
        """Of everybody together; None: no limit."""

    def address_of(self, peer: str, forwarded: str | None) -> str:
        """Whom to hold to account: the peer, or for whom a trusted proxy says that it asks. A network of IPv6 counts as
        one, since whoever has an address there has all of them."""
        hops = [] if forwarded is None or peer not in self.trusted_proxies else forwarded.split(",")
        for hop in reversed(hops):
            address = hop.strip()
            if _is_address(address):
                peer = address
            if peer not in self.trusted_proxies:
                break
        return _account(peer)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=1024)
def _account(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
