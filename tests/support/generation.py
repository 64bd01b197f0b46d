"""A generation in the store of a control plane: what asks for one from outside is not a matter of automations."""

from typing import Any

from control_plane.domain.changes import JobCreated
from control_plane.domain.model import Job
from control_plane.domain.store import Store
from control_plane.store.sqlite import SqliteStore
from control_plane.store.sqlite_unit import Unit
from control_plane.store.sqlite_writer import Writing


async def enqueue_generation(
    store: Store, provider: str, model: str, request: dict[str, Any], project: str = "default"
) -> str:
    """Puts one pending `llm_generation` job into the store; returns its id."""
    assert isinstance(store, SqliteStore)
    project_id = (await store.project(project)).id

    def command(writing: Writing) -> str:
        unit = Unit(store._known, writing)
        job = Job(
            id=unit.new_id("job"),
            project_id=project_id,
            kind="llm_generation",
            origin="agent_llm_call",
            queue="default",
            status="pending",
            spec={"request": request},
            created_at=writing.now,
            updated_at=writing.now,
            available_at=writing.now,
            provider=provider,
            model=model,
            pending_deadline_at=writing.now + 600_000_000,
        )
        unit.apply([JobCreated(job=job)])
        return job.id

    return await store._write(command, None)
