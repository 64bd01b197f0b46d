"""A run that was done exactly once, and every way in which it was not."""

from typing import Any

from tests.campaign.record import STEPS, failures, problems_of


def events() -> list[dict[str, Any]]:
    told: list[tuple[str, str | None, dict[str, Any]]] = [("run.created", None, {})]
    for key in STEPS:
        told += [
            ("action.called", key, {"attempt": 1}),
            ("action.failed", key, {"error": {"type": "WorkerCrashed"}}),
            ("action.retried", key, {}),
            ("action.called", key, {"attempt": 2}),
            ("action.result", key, {"outcome": "completed"}),
            ("step.completed", key, {}),
        ]
    told.append(("run.completed", None, {}))
    return [
        {"sequence": number, "event_type": kind, "step_key": key, "payload": payload}
        for number, (kind, key, payload) in enumerate(told, start=1)
    ]


def problems(**changed: Any) -> list[str]:
    run = {"status": "completed", "result": {key: {} for key in STEPS}}
    given: dict[str, Any] = {"run": run, "events": events()} | changed
    return problems_of(given["run"], given["events"])


def without(kind: str, key: str | None) -> list[dict[str, Any]]:
    return [event for event in events() if (event["event_type"], event["step_key"]) != (kind, key)]


def test_done_exactly_once() -> None:
    assert problems() == []
    assert failures(events()) == {"WorkerCrashed": 4}


def test_a_failed_run() -> None:
    (first, *_) = problems(run={"status": "failed", "error_type": "PoisonJob"})
    assert first == "it is failed: PoisonJob"


def test_a_step_that_is_lost() -> None:
    lost = [event for event in events() if event["step_key"] != "two"]
    assert "step two has 0 events step.completed" in problems(events=lost)


def test_a_result_that_is_lost() -> None:
    assert "step two has 0 events action.result" in problems(events=without("action.result", "two"))


def test_a_result_that_came_twice() -> None:
    twice = [copy for event in events() for copy in [event] * (1 + (event["event_type"] == "action.result"))]
    told = problems(events=twice)
    assert "step one has 2 events action.result" in told
    assert any(problem.startswith("its events have the sequences") for problem in told)


def test_a_run_that_goes_on_after_its_end() -> None:
    longer = [*events(), {"sequence": len(events()) + 1, "event_type": "action.called", "payload": {}}]
    assert problems(events=longer) == ["it ends with ['action.called'], and has 1 events run.completed"]


def test_a_job_that_was_parked() -> None:
    parked = events()
    parked[2]["payload"]["error"]["type"] = "PoisonJob"
    assert problems(events=parked) == ["a job of it was parked as poison"]
