"""Status as text for people. No I/O. What a child wrote cannot steer a terminal: it is shown, not obeyed."""

from typing import Any

import msgspec

from supervisor.control_messages import CrashLoopStatus, FleetStatus, SlotDetail, SlotStatus
from supervisor.facts import REPLACED

_COLUMNS = (
    "SLOT",
    "STATE",
    "HEALTH",
    "SESSION",
    "INC",
    "PID",
    "JOBS",
    "DONE",
    "FAILED",
    "BEAT",
    "LAG",
    "READY FOR",
    "PLAN",
)


def headline(status: FleetStatus) -> str:
    """One line about the whole."""
    pools = ", ".join(
        f"{pool.pool} {pool.working} of {pool.workers}{' (rolling)' if pool.rolling else ''}" for pool in status.pools
    )
    why = f" ({status.reload_problem})" if status.reload_problem else ""
    notes = [f"last reload {status.reload}{why}"] if status.reload else []
    notes += [REPLACED] if status.restart_needed else []
    return "; ".join([f"{status.phase}, {'ready' if status.ready else 'not ready'}: {pools}", *notes])


def rows(status: FleetStatus) -> list[tuple[str, ...]]:
    """The titles, then a row for each slot."""
    return [_COLUMNS, *(_row(slot) for slot in status.slots)]


def warnings(status: FleetStatus) -> list[str]:
    """What an operator should know and would not find in a table, a line each."""
    return [plain(f"{slot.slot}: {_crash_loop(slot.crash_loop)}") for slot in status.slots if slot.crash_loop]


def aligned(table: list[tuple[str, ...]]) -> list[str]:
    """Columns of equal width, two spaces apart."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def detail_lines(detail: SlotDetail) -> list[str]:
    """One slot: its state, how the process before it ended, and what this one wrote last."""
    shown = msgspec.structs.asdict(detail.status)
    if detail.status.crash_loop is not None:
        shown["crash_loop"] = _crash_loop(detail.status.crash_loop)
    fields = {name: value for name, value in shown.items() if value not in (None, "")}
    width = max(len(name) for name in fields)
    told = [f"{name.ljust(width)}  {_value(value)}" for name, value in fields.items()]
    for process in detail.job_processes:
        pid = "" if process.pid is None else f", pid {process.pid}"
        what = f"{plain(process.job_id)}  {plain(process.action)}"
        told.append(f"process of {what}: {process.state}{pid}, {_seconds(process.age)}")
    if detail.silence is not None:
        told += ["", "its event loop is silent:", *_nested(detail.silence, "  ")]
    if detail.last_exit is not None:
        told += ["", "last exit:", *_nested(detail.last_exit, "  ")]
    if detail.output:
        told += ["", "last output:", *(f"  {plain(line)}" for line in detail.output)]
    return told


def plain(text: str) -> str:
    """One line without control characters."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _crash_loop(loop: CrashLoopStatus) -> str:
    what = f"; it says: {loop.says}" if loop.says not in ("", loop.how) else ""
    return f"crash loop, {loop.times} times in a row the same: {loop.how}{what}"


def _row(slot: SlotStatus) -> tuple[str, ...]:
    retry = f", again in {_seconds(slot.retry_in)}" if slot.retry_in else ""
    return (
        slot.slot,
        slot.state + retry,
        slot.health or "-",
        slot.session,
        str(slot.incarnation),
        _value(slot.pid),
        str(slot.jobs_in_hand),
        str(slot.completed),
        str(slot.failed),
        _seconds(slot.beat_age),
        _seconds(slot.loop_lag),
        _seconds(slot.ready_for),
        slot.plan,
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    for limit, unit, size in ((1, "ms", 0.001), (120, "s", 1), (7200, "m", 60), (172800, "h", 3600)):
        if value < limit:
            return f"{value / size:.0f}{unit}"
    return f"{value / 86400:.0f}d"


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return plain(f"{value:.3f}" if isinstance(value, float) else str(value))


def _nested(record: dict[str, Any], indent: str) -> list[str]:
    """Keys and values, a list or a text of several lines one line each."""
    told: list[str] = []
    for key, value in record.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, dict):
            told += [f"{indent}{plain(str(key))}:", *_nested(value, f"{indent}  ")]
        elif isinstance(value, list) or (isinstance(value, str) and "\n" in value):
            lines = value.splitlines() if isinstance(value, str) else [str(line) for line in value]
            told += [f"{indent}{plain(str(key))}:", *(f"{indent}  {plain(line)}" for line in lines)]
        else:
            told.append(f"{indent}{plain(str(key))}: {_value(value)}")
    return told
