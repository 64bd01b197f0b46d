"""Who holds something open with which API key, and until when. No I/O, no clock: `now` is the store's, microseconds.

A key that ends takes with it what was opened by it: worker sockets and event streams. That it has ended is heard from
the store (KeyChanged), read by the poll behind that (KeyWatch), or a matter of time.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable

from control_plane.domain.api_keys import ends_at
from control_plane.domain.model import ApiKey
from control_plane.domain.store import Committed, KeyChanged

MOST_TOLD = 4096
"""Changed keys that are remembered: an answer of the store that was on its way when the key changed is corrected."""

End = Callable[[], None]


class Hold:
    """One thing that is open. `end` is called once, when the key has ended; not after `release`."""

    def __init__(self, key: ApiKey, end: End) -> None:
        self.key = key
        self.end = end


class KeyHolders:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._holds: dict[str, dict[Hold, None]] = {}
        self._told: OrderedDict[str, int] = OrderedDict()
        self._used: dict[str, int] = {}

    # --- what opens and closes things calls

    def ends_at(self, key: ApiKey) -> int | None:
        """When the key ends, for all that we know; the record may be a few seconds old."""
        ends = [at for at in (ends_at(key), self._told.get(key.id)) if at is not None]
        return min(ends, default=None)

    def has_ended(self, key: ApiKey, now: int) -> bool:
        """Whether it opens nothing any more."""
        end = self.ends_at(key)
        return end is not None and end <= now

    def hold(self, key: ApiKey, end: End) -> Hold:
        """Something is open from now on. Whoever asks has looked at `has_ended` without waiting in between."""
        held = Hold(key, end)
        self._holds.setdefault(key.id, {})[held] = None
        return held

    def release(self, held: Hold) -> None:
        """It is closed. A second call does nothing."""
        holds = self._holds.get(held.key.id, {})
        holds.pop(held, None)
        if not holds:
            self._holds.pop(held.key.id, None)

    def held_by(self, key: ApiKey) -> int:
        """How much is open with this key."""
        return len(self._holds.get(key.id, ()))

    def used(self, key: ApiKey, now: int) -> None:
        """It has opened something."""
        self._used[key.id] = now

    # --- what hears of changes calls

    def committed(self, facts: Iterable[Committed], now: int) -> list[End]:
        """What must end now, to be called. To be fed with every committed fact."""
        return [
            end
            for fact in facts
            if isinstance(fact, KeyChanged)
            for end in self._changed(fact.key_id, fact.ends_at, now)
        ]

    def read(self, keys: Iterable[ApiKey], now: int) -> list[End]:
        """The same, of keys that the store says have changed."""
        ends = [(key.id, ends_at(key)) for key in keys]
        return [end for key_id, at in ends if at is not None for end in self._changed(key_id, at, now)]

    def expired(self, now: int) -> list[End]:
        """What must end because its time has come."""
        over = [held for holds in self._holds.values() for held in holds if self.has_ended(held.key, now)]
        return [self._end(held) for held in over]

    def next_end(self) -> int | None:
        """When the next of the keys that hold something ends."""
        ends = [self.ends_at(next(iter(holds)).key) for holds in self._holds.values()]
        return min((at for at in ends if at is not None), default=None)

    def take_used(self, now: int) -> dict[str, int]:
        """When which key was used last, since the last call; what is open counts as used now."""
        used, self._used = self._used, {}
        return used | dict.fromkeys(self._holds, now)

    def _changed(self, key_id: str, at: int, now: int) -> list[End]:
        # An end never moves later, whatever order the news come in.
        self._told[key_id] = min(at, self._told.get(key_id, at))
        self._told.move_to_end(key_id)
        if len(self._told) > MOST_TOLD:
            self._told.popitem(last=False)
        if at > now:
            return []
        return [self._end(held) for held in list(self._holds.get(key_id, ()))]

    def _end(self, held: Hold) -> End:
        self.release(held)
        return held.end
