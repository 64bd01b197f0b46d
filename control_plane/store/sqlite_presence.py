"""Commands and queries on drains and on the history of sessions."""

from collections.abc import Callable

from control_plane.domain.model import DrainTarget, Session
from control_plane.domain.store import SessionDrainLifted, SessionDrainRequested
from control_plane.errors import NotFound
from control_plane.store.sqlite_unit import Known
from control_plane.store.sqlite_writer import Writing


def stands(known: Known, writing: Writing, session: Session) -> bool:
    """Whether a drain names the session."""
    bindings = (session.project_id, session.id, session.worker_instance_id, session.version)
    return next(iter(writing.execute(known.sql["standing_drain"], bindings)), None) is not None


def drain(known: Known, project_id: str, target: DrainTarget) -> Callable[[Writing], None]:
    """See Store.drain_sessions."""

    def command(writing: Writing) -> None:
        if target.kind == "session" and not list(
            writing.execute(known.sql["session_is_open"], (project_id, target.value))
        ):
            raise NotFound(f"no worker session {target.value} is open in this project")
        writing.execute(known.sql["insert_drain"], (project_id, target.kind, target.value, writing.now))
        for (session_id,) in list(writing.execute(known.sql["request_drains"], (project_id,))):
            writing.facts.append(SessionDrainRequested(session_id=session_id))

    return command


def undrain(known: Known, project_id: str, target: DrainTarget) -> Callable[[Writing], None]:
    """See Store.undrain_sessions."""

    def command(writing: Writing) -> None:
        writing.execute(known.sql["delete_drain"], (project_id, target.kind, target.value))
        if not writing.connection.changes():
            raise NotFound(f"no drain of {target.kind} {target.value} stands in this project")
        for (session_id,) in list(writing.execute(known.sql["lift_drains"], (project_id,))):
            writing.facts.append(SessionDrainLifted(session_id=session_id))

    return command
