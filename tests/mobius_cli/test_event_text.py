from typing import Any

import pytest

from mobius_cli.event_text import event_line, worker_of


def event(**more: Any) -> dict[str, Any]:
    return {"sequence": 1, "event_type": "action.called", "step_key": "fetch", **more}


def test_a_line_says_when_where_what_and_who() -> None:
    line = event_line(event(payload={"worker_instance_id": "box-1", "attempt": 2}, created_at="2026-11-22T02:31:07Z"))
    assert line.split() == [line.split()[0], "fetch", "action.called", "box-1", "attempt", "2"]
    assert line.startswith(line.split()[0] + "  fetch")


def test_a_line_names_the_run_where_several_are_shown() -> None:
    assert event_line(event(), "child").split() == ["child", "fetch", "action.called"]


def test_a_line_shows_errors_and_results_shortened() -> None:
    assert "Hiccup: not yet" in event_line(event(payload={"error": {"type": "Hiccup", "message": "not yet"}}))
    line = event_line(event(payload={"result": {"text": "x" * 1000}}))
    assert '-> {"text":"xxx' in line
    assert len(line) < 200


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"action_name": "print", "queue": "slow", "job_id": "job_1"}, "print waits in queue slow"),
        ({"attempt": 1, "reason": "failed", "delay_seconds": 0.2}, "attempt 1  again in 0.2 s (failed)"),
        ({"status": "cancelled", "reason": "enough"}, "enough"),
        ({"run_id": "run_2"}, "started run_2"),
        ({"condition": ".inputs.n > 1"}, "does not hold: .inputs.n > 1"),
        ({"event_type": "approved", "timeout_at": None}, "waits for approved until ?"),
        ({"wake_at": None}, "sleeps until ?"),
    ],
)
def test_a_line_says_what_comes_next(payload: dict[str, Any], said: str) -> None:
    assert event_line(event(payload=payload)).endswith(f"  {said}")


@pytest.mark.parametrize("payload", [None, [], "text", {"attempt": "\x1b[2J"}])
def test_whatever_a_server_sends_is_one_harmless_line(payload: Any) -> None:
    line = event_line({"payload": payload})
    assert line.isprintable()
    assert worker_of({"payload": payload}) == ""
