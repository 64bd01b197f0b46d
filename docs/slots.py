"""Writes docs/slots.md from the table in supervisor/slots.py: `make docs`."""

from pathlib import Path

from supervisor.slots import DEADLINES, EVENTS, TABLE, Deadline, Event, State

PAGE = Path(__file__).with_suffix(".md")

INTRODUCTION = """\
# What a slot does

Made by `make docs` from the table in `supervisor/slots.py`, which is what runs; a test fails when the two differ.

A slot is the place of one process: a worker, a pool's mold, or the embedded control plane. Nothing but an event changes
its state, an event of another incarnation than the present one changes nothing, and what has no cell is refused: it is
logged (at level debug) and changes nothing either. A mold does not beat, so it has no `silence`.
"""

MEANINGS = {
    State.EMPTY: "no process; filled when the pool wants it",
    State.SPAWNING: "the process is ordered and not announced yet",
    State.BOOTING: "the process exists and has not spoken",
    State.CONNECTING: "it beats, and does not work yet",
    State.CONNECTING_SILENT: "the same, and its event loop is silent",
    State.READY: "it works: a worker claims, a mold forks, a control plane listens",
    State.READY_SILENT: "it worked, and its event loop is silent",
    State.LEAVING: "it said its last words by itself",
    State.DRAINING: "it was asked to finish and go",
    State.CONDEMNED: "it will be killed and replaced; evidence is gathered first",
    State.OVERDUE: "its grace is over: it will be killed; evidence is gathered first",
    State.KILLED: "SIGKILL is sent; it will be replaced",
    State.ENDING: "SIGKILL is sent; the slot stays empty",
    State.STUCK: "it survived SIGKILL; nobody waits for it any more",
    State.BACKOFF: "no process; filled again after a pause",
}

MOMENTS = {
    "asked_at": "after the order to fill the slot",
    "entered_at": "after entering the state",
    "loop_beat_at": "after the last beat of the event loop",
    "drain_by": "at the end of the grace that the order to drain gave, and 2 s",
    "retry_at": "at the end of the pause",
}


def page() -> str:
    """The whole file."""
    parts = [
        INTRODUCTION,
        "## States and their deadlines\n",
        *_states(),
        "\n## Next states\n",
        "Rows are states, columns events; `=` stays, an empty cell is refused.\n",
        *_matrix(),
        "\n## What is done\n",
        "The effects are methods of `Slot`, in this order.\n",
        *_effects(),
        "\n## What is refused\n",
        *_refused(),
    ]
    return "\n".join(parts) + "\n"


def _states() -> list[str]:
    rows = [f"| `{state}` | {MEANINGS[state]} | {_deadline(DEADLINES[state])} |" for state in State]
    return ["| state | meaning | deadline |", "|---|---|---|", *rows]


def _deadline(deadline: Deadline | None) -> str:
    if deadline is None:
        return "none"
    moment = MOMENTS[deadline.since]
    if isinstance(deadline.limit, str):
        return f"`{deadline.limit}` {moment}"
    return f"{deadline.limit:g} s {moment}" if deadline.limit else moment


def _matrix() -> list[str]:
    titles = " | ".join(event.__name__ for event in EVENTS)
    rows = [f"| `{state}` | {' | '.join(_next(state, event) for event in EVENTS)} |" for state in State]
    return [f"| | {titles} |", "|---|" + "---|" * len(EVENTS), *rows]


def _next(state: State, event: type[Event]) -> str:
    cell = TABLE.get((state, event))
    if cell is None:
        return ""
    return "=" if cell.next_state is state else f"`{cell.next_state}`"


def _effects() -> list[str]:
    rows = [
        f"| `{state}` | {event.__name__} | {_next(state, event)} | "
        + ", ".join(f"`{effect.__name__}`" for effect in TABLE[state, event].effects)
        + " |"
        for state in State
        for event in EVENTS
        if (state, event) in TABLE
    ]
    return ["| state | event | next | effects |", "|---|---|---|---|", *rows]


def _refused() -> list[str]:
    rows = []
    for state in State:
        names = [event.__name__ for event in EVENTS if (state, event) not in TABLE]
        rows.append(f"| `{state}` | {', '.join(names)} |")
    return ["| state | events |", "|---|---|", *rows]


if __name__ == "__main__":
    PAGE.write_text(page())
