"""What the requests of each key hold in memory: bodies until they are answered, and answers until they are read."""

from types import TracebackType
from typing import Self

from control_plane.web.error_status import HttpError

MOST_HELD = 128 * 1024 * 1024
"""Bytes of all requests of one key together."""

UNCOUNTED = 64 * 1024
"""A request that holds less is not counted: how many there may be at once is bounded elsewhere."""

RETRY_AFTER = 1
"""Seconds."""


class HeldBytes:
    """Of all keys, in this process."""

    def __init__(self) -> None:
        self.by_key: dict[str, int] = {}


class Holding:
    """One request's part, which is given back at the end. `key_id` is known once the request is admitted."""

    def __init__(self, held: HeldBytes) -> None:
        self.key_id: str | None = None
        self._by_key = held.by_key
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.hold(0)

    def hold(self, size: int, *, refused: bool = True) -> None:
        """From now on it holds so many bytes. Raises HttpError 429, unless it is not to be `refused` any more because
        it has been done."""
        if self.key_id is None:
            return
        size = size if size >= UNCOUNTED else 0
        if size == self._size:
            return
        total = self._by_key.get(self.key_id, 0) - self._size + size
        if refused and size > self._size and total > MOST_HELD:
            message = (
                f"this API key's requests would hold more than {MOST_HELD} bytes: read answers, ask for less at once"
            )
            headers = {"retry-after": str(RETRY_AFTER), "x-ratelimit-scope": "bytes"}
            raise HttpError(429, "too_much_at_once", message, headers=headers)
        self._size = size
        if total:
            self._by_key[self.key_id] = total
        else:
            self._by_key.pop(self.key_id, None)
