"""One event of a run as one line for people. No I/O."""

from typing import Any

from mobius_cli import text

_RUN_WIDTH = 15
_STEP_WIDTH = 16
_TYPE_WIDTH = 15


def event_line(event: dict[str, Any], run: str | None = None) -> str:
    """`02:31:07.123  fetch  action.called  box-1  attempt 1 ...`; `run` names the run where several are shown."""
    parts = [text.time_of_day(event.get("created_at")) or " " * 12]
    if run is not None:
        parts.append(f"{run:<{_RUN_WIDTH}}")
    parts.append(f"{text.plain(event.get('step_key')):<{_STEP_WIDTH}}")
    parts.append(f"{text.plain(event.get('event_type')):<{_TYPE_WIDTH}}")
    parts.append(_details(event.get("payload")))
    return "  ".join(parts).rstrip()


def worker_of(event: dict[str, Any]) -> str:
    """The worker instance that the event is about, or nothing."""
    payload = event.get("payload")
    return text.plain(payload.get("worker_instance_id")) if isinstance(payload, dict) else ""


def _details(payload: Any) -> str:
    if not isinstance(payload, dict):
        return ""
    said = [text.plain(payload.get("worker_instance_id"))]
    if "attempt" in payload:
        said.append(f"attempt {text.plain(payload['attempt'])}")
    elif "action_name" in payload:
        said.append(f"{text.plain(payload['action_name'])} waits in queue {text.plain(payload.get('queue'))}")
    elif "event_type" in payload:
        said.append(f"waits for {text.plain(payload['event_type'])} until {_moment(payload.get('timeout_at'))}")
    elif "wake_at" in payload:
        said.append(f"sleeps until {_moment(payload['wake_at'])}")
    elif "condition" in payload:
        said.append(f"does not hold: {text.plain(payload['condition'])}")
    if "run_id" in payload:
        said.append(f"started {text.plain(payload['run_id'])}")
    if "delay_seconds" in payload:
        said.append(f"again in {text.plain(payload['delay_seconds'])} s ({text.plain(payload.get('reason'))})")
    elif "reason" in payload:
        said.append(text.plain(payload["reason"]))
    if isinstance(payload.get("error"), dict):
        said.append(text.fault({f"error_{key}": value for key, value in payload["error"].items()}))
    if "result" in payload:
        said.append(f"-> {_shortened(text.plain(payload['result']))}")
    return "  ".join(part for part in said if part)


def _moment(value: Any) -> str:
    return text.date_and_time(value) or "?"


def _shortened(line: str) -> str:
    return line if len(line) <= 100 else f"{line[:97]}..."
