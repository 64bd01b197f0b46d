"""A worker socket over real WebSockets that keeps its few jobs in memory, in a thread of the test's process.

    with WorkerSocketServer(tmp_path) as server:
        server.offer("print", {"message": "hello"})
        report = server.wait_for_report()

It knows register, claim, report and draining, which is what a supervisor's children need to be ready, to work and to
drain. Everything that a control plane decides is tested against the real one.
"""

import contextlib
import json
import queue
import threading
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

DEADLINE = 30.0
CLAIM_HELD = 20.0
_LEASE = {"lease_duration_seconds": 60, "heartbeat_cadence_seconds": 20}


class WorkerSocketServer:
    """`refuse_with` is the HTTP status of every upgrade while it is set. `registered` are the frames that came."""

    def __init__(self, directory: Path) -> None:
        self.refuse_with: int | None = None
        self.registered: list[dict[str, Any]] = []
        self.reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self._jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self._offered = 0
        self._connections: list[ServerConnection] = []
        self._server = serve(self._serve_one, "127.0.0.1", 0, process_request=self._judge)
        self.port: int = self._server.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.key_file = directory / "api-key"
        self.key_file.write_text("mbx_0123456789abcdef0123456789abcdef\n")
        self.key_file.chmod(0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def offer(self, action: str, parameters: dict[str, Any]) -> str:
        """One more job; whoever claims next gets it."""
        self._offered += 1
        job_id = f"job_{self._offered}"
        self._jobs.put(
            {
                "id": job_id,
                "kind": "action_execution",
                "origin": "automation_action_step",
                "executor_kind": "customer_worker",
                "queue": "default",
                "action_name": action,
                "run_id": "run_1",
                "step_id": f"step_{self._offered}",
                "spec": {"parameters": parameters},
                "lease_token": f"lease_{self._offered}",
                "claim_attempt": 1,
                **_LEASE,
            }
        )
        return job_id

    def cancel(self, job_id: str) -> None:
        """Ask whoever is connected to stop a job."""
        for connection in list(self._connections):
            with contextlib.suppress(ConnectionClosed):
                connection.send(json.dumps({"type": "job.cancel", "job_id": job_id, "reason": "the test asks"}))

    def lose_lease(self, job_id: str) -> None:
        """Say to whoever is connected that a job's lease is gone."""
        cancel = {"job_id": job_id, "reason": "lease_lost"}
        for connection in list(self._connections):
            with contextlib.suppress(ConnectionClosed):
                connection.send(json.dumps({"type": "job.heartbeat.ack", "job_id": job_id, "cancel": cancel}))

    def wait_for_report(self) -> dict[str, Any]:
        """The next report that came."""
        return self.reports.get(timeout=DEADLINE)

    def _judge(self, _connection: ServerConnection, _request: Request) -> Response | None:
        if self.refuse_with is None:
            return None
        return _connection.respond(HTTPStatus(self.refuse_with), "refused by the test\n")

    def _serve_one(self, connection: ServerConnection) -> None:
        self._connections.append(connection)
        try:
            for text in connection:
                self._answer(connection, json.loads(text))
        except ConnectionClosed:
            return
        finally:
            self._connections.remove(connection)

    def _answer(self, connection: ServerConnection, frame: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"message_id": frame["message_id"]} if "message_id" in frame else {}
        match frame["type"]:
            case "worker.register":
                self.registered.append(frame)
                answer |= {"type": "worker.registered", "worker_session_token": "session", "lease": _LEASE}
            case "jobs.claim":
                # A claim is held open; its thread must not keep other frames of this connection waiting.
                threading.Thread(target=self._claim, args=(connection, answer), daemon=True).start()
                return
            case "job.report":
                self.reports.put(frame)
                answer |= {"type": "job.report.ack", "job_id": frame["job_id"]}
            case "job.heartbeat":
                answer |= {"type": "job.heartbeat.ack", "job_id": frame["job_id"]}
            case "worker.draining":
                answer |= {"type": "worker.draining.ack"}
            case _:
                return
        connection.send(json.dumps(answer))

    def _claim(self, connection: ServerConnection, answer: dict[str, Any]) -> None:
        try:
            jobs = [self._jobs.get(timeout=CLAIM_HELD)]
        except queue.Empty:
            jobs = []
        try:
            connection.send(json.dumps(answer | {"type": "jobs.claimed", "jobs": jobs}))
        except ConnectionClosed:
            for job in jobs:
                self._jobs.put(job)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(DEADLINE)
