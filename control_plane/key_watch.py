"""Ends what was opened with a key that has ended, and records when keys were used last."""

import structlog
from msgspec import Struct

from control_plane.domain.store import Store
from control_plane.domain.times import MICROSECONDS, to_microseconds
from control_plane.key_holders import End, KeyHolders
from control_plane.services import Service

LATE_COMMIT = 10.0
"""Seconds that may pass between a change's time and the moment in which everybody can read it."""

_log = structlog.get_logger("control_plane.services")


class KeyWatchConfig(Struct, frozen=True, kw_only=True):
    """Seconds. Whoever revokes a key beside this process (a command, a replica whose hint is lost) is noticed within
    `interval`; use is recorded every `record_after`."""

    interval: float = 2.0
    record_after: float = 60.0


class KeyWatch(Service):
    """The poll behind KeyChanged, and the clock of keys that expire."""

    def __init__(self, store: Store, holders: KeyHolders, config: KeyWatchConfig) -> None:
        super().__init__(store, config.interval)
        self._holders = holders
        self._record_after = to_microseconds(config.record_after)
        self._since: int | None = None
        self._recorded_at: int | None = None

    def pause(self) -> float:
        """Until the next key expires, at most the interval."""
        end = self._holders.next_end()
        if end is None:
            return self.interval
        return min(self.interval, max(0.0, (end - self.store.now()) / MICROSECONDS))

    async def run_once(self, now: int) -> None:
        """End what must end, then look for what nobody told us, then record."""
        end_all(self._holders.expired(now))
        since = self._since if self._since is not None else now
        changed = await self.store.changed_keys(since - to_microseconds(LATE_COMMIT))
        self._since = now
        end_all(self._holders.read(changed, self.store.now()))
        if self._recorded_at is None:
            self._recorded_at = now
        if now - self._recorded_at >= self._record_after:
            used = self._holders.take_used(now)
            if used:
                await self.store.keys_used(used)
            self._recorded_at = now


def end_all(ends: list[End]) -> None:
    """Call them; one that fails ends no other's work."""
    for end in ends:
        try:
            end()
        except Exception:  # noqa: BLE001 - the last resort: the next one must still end
            _log.exception("what a key had opened could not be ended")
