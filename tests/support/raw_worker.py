"""A worker written out by hand, frame by frame: what a zombie or a hostile peer sends."""

import json
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import connect

from tests.support.control_plane_process import ControlPlaneProcess

ANSWER_TIMEOUT = 20.0


class RawWorker:
    """One connection. `send` says anything at all, `receive` waits for a frame of a type."""

    def __init__(self, plane: ControlPlaneProcess, *, key: str | None = None, project: str = "default") -> None:
        url = f"{plane.url.replace('http', 'ws', 1)}/v1/projects/{project}/workers/socket"
        headers = {"Authorization": f"Bearer {key or plane.key}"}
        self._context = ExitStack()
        self.socket = self._context.enter_context(connect(url, additional_headers=headers, max_size=None))

    def send(self, frame: dict[str, Any] | str | bytes) -> None:
        """Send a frame, or text or bytes that are none."""
        self.socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    def receive(self, kind: str, timeout: float = ANSWER_TIMEOUT) -> dict[str, Any]:
        """The next frame of this type; others are passed over."""
        while True:
            frame: dict[str, Any] = json.loads(self.socket.recv(timeout))
            if frame["type"] == kind:
                return frame

    def ask(self, frame: dict[str, Any], kind: str) -> dict[str, Any]:
        """Send, and wait for the answer of this type."""
        self.send(frame)
        return self.receive(kind)

    def register(self, instance: str, **fields: Any) -> str:
        """Register; returns the session token."""
        frame = {"type": "worker.register", "worker_instance_id": instance, "concurrency_limit": 1} | fields
        return str(self.ask(frame, "worker.registered")["worker_session_token"])

    def claim(self, *actions: str) -> dict[str, Any]:
        """Claim until there is a job; returns it."""
        while True:
            claim = {"type": "jobs.claim", "available_slots": 1, "action_names": list(actions)}
            jobs = self.ask(claim, "jobs.claimed")["jobs"]
            if jobs:
                return dict(jobs[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context.close()
