from typing import Any

import msgspec
import pytest

from control_plane.domain.model import Job, Selector, Session
from control_plane.domain.store import SessionView
from control_plane.web import shapes

NOW = 1_700_000_000_000_000
SECOND = 1_000_000


def view(*, seen: int = NOW, jobs: int = 0, **fields: Any) -> SessionView:
    session = Session(
        id="wsess_1",
        project_id="proj_1",
        worker_instance_id="rig-1",
        token_hash=b"secret hash",
        concurrency_limit=2,
        selector=Selector(queues=("default",), models=(("ollama", "llama3"),)),
        created_at=NOW,
        last_seen_at=seen,
        **fields,
    )
    job = Job(
        id="job_1",
        project_id="proj_1",
        kind="action_execution",
        origin="action_step",
        queue="default",
        status="claimed",
        spec={"parameters": {"password": "p"}},
        created_at=NOW,
        updated_at=NOW,
        available_at=NOW,
        lease_token_hash=b"secret hash",
    )
    return SessionView(session=session, current_jobs=[job] * jobs, step_names={"job_1": "Resize"})


@pytest.mark.parametrize(
    ("row", "status"),
    [
        (view(), "active"),
        (view(seen=NOW - 90 * SECOND), "active"),
        (view(seen=NOW - 91 * SECOND), "stale"),
        (view(draining=True), "draining"),
        (view(drain_requested=True), "draining"),
        (view(draining=True, seen=0), "stale"),
    ],
)
def test_the_status_of_a_presence_row(row: SessionView, status: str) -> None:
    shape = shapes.worker_session_shape(row, now=NOW)
    assert (shape.instance_status, shape.stale) == (status, status == "stale")


def test_presence_rows_with_their_totals_and_without_secrets() -> None:
    rows = [view(jobs=2), view(jobs=1, draining=True), view(seen=0, jobs=1)]
    listing = shapes.worker_session_list(rows, now=NOW)
    assert listing.totals == shapes.WorkerSessionTotals(active_instances=2, slots=4, busy=3, stale=1)
    body = msgspec.json.encode(listing)
    assert b"secret" not in body
    assert b"password" not in body
    row: Any = msgspec.json.decode(body)["items"][0]
    assert row["models"] == [{"provider": "ollama", "model": "llama3"}]
    assert row["current_jobs"][0]["step_name"] == "Resize"
    assert "name" not in row


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (NOW, "2023-11-14T22:13:20Z"),
        (NOW + 1, "2023-11-14T22:13:20.000001Z"),
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc(microseconds: int, text: str) -> None:
    assert msgspec.json.decode(msgspec.json.encode(shapes.moment(microseconds))) == text


@pytest.mark.parametrize("handle", ["a", "a-b", "a1.b_c", "0"])
def test_handles(handle: str) -> None:
    request = shapes.CreateAutomationRequest(handle=handle, name="n")
    assert msgspec.convert(msgspec.to_builtins(request), shapes.CreateAutomationRequest) == request


@pytest.mark.parametrize("handle", ["", "-a", "a-", "A", "a b", "a/b", "..", "é", "a" * 129, "a\n"])
def test_what_is_no_handle(handle: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.handle"):
        msgspec.convert({"handle": handle, "name": "n"}, shapes.CreateAutomationRequest)
