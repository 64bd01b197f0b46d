"""When a sleeping step wakes, and what a waiting step takes for its signal. Pure decisions."""

from typing import Any

import msgspec

from control_plane.domain import templates
from control_plane.domain.conditions import ConditionError, equal
from control_plane.domain.specs import LONGEST_DURATION, SleepPlan, WaitPlan
from control_plane.domain.times import parse_duration, parse_time, to_microseconds

_SHOWN = 200


class SignalRefused(Exception):  # noqa: N818 - named as its callers say it
    """The signal is not the one that the step waits for: a sentence."""


def wakes_at(duration: Any, until: Any, now: int) -> int:
    """Store time at which a step wakes that sleeps for the rendered `duration`, or `until` then. Raises ValueError."""
    for name, value in (("duration", duration), ("until", until)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name}: expected a text, got {_shown(value)}")
    due = parse_time(until) if duration is None else now + to_microseconds(parse_duration(duration))
    if due - now > to_microseconds(LONGEST_DURATION):
        raise ValueError(f"a step sleeps at most {LONGEST_DURATION // 3600}h")
    return due


def rendered_sleep(planned: SleepPlan, lookup: templates.Lookup) -> dict[str, Any]:
    """Its duration or its time, with templates replaced. Raises TemplateError."""
    asked = {"duration": planned.duration, "until": planned.until}
    return {name: templates.render(value, lookup) for name, value in asked.items() if value is not None}


def accepted(
    planned: WaitPlan, match: dict[str, Any] | None, signal: dict[str, Any], lookup: templates.Lookup
) -> dict[str, Any]:
    """The step's result, of this signal. `match` is the rendered one. Raises SignalRefused."""

    def look_up(path: templates.Path) -> Any:
        return templates.descend(signal, path) if path.root == "event" else lookup(path)

    for name, expected in (match or {}).items():
        _check(name, expected, signal)
    try:
        if planned.condition is not None and not planned.condition.holds(look_up):
            raise SignalRefused(f"the step's condition does not hold: {planned.condition.text}")
        mapping = planned.payload_mapping
        return signal if mapping is None else dict(templates.render(mapping, look_up))
    except ConditionError as error:
        raise SignalRefused(f"the step's condition cannot be decided: {error}") from error
    except templates.TemplateError as error:
        raise SignalRefused(f"the step's payload_mapping does not fit: {error}") from error


def _check(name: str, expected: Any, signal: dict[str, Any]) -> None:
    try:
        found = templates.descend(signal, templates.Path("event", tuple(name.split("."))))
    except templates.TemplateError:
        raise SignalRefused(f"the step waits for a signal with {name} {_shown(expected)}; this one has none") from None
    if not equal(found, expected):
        raise SignalRefused(f"the step waits for a signal with {name} {_shown(expected)}, not {_shown(found)}")


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
