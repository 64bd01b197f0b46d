"""Rounds that come far too late: whoever was to be heard in between could not be. No I/O, no clock."""


class Rounds:
    """Of a service that has one every `interval` seconds; one that comes `slack` seconds late or more was missed by a
    process that stood still, or whose machine slept."""

    def __init__(self, interval: float, slack: float) -> None:
        self._interval = interval
        self._slack = slack
        self._last: float | None = None

    def begin(self, now: float) -> float:
        """A round begins; by how many seconds it was overslept, 0.0 when it was not. `now` is of a clock that goes on
        while the machine sleeps."""
        last, self._last = self._last, now
        late = 0.0 if last is None else now - last - self._interval
        return late if late >= self._slack else 0.0
