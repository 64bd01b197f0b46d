"""A worker socket that hands out no-op jobs from memory as fast as a worker takes them: the measure of every worker.

Run as a program: `python -m bench.in_memory_server --jobs N [--one-at-a-time]` prints its port as the first line, waits
for a worker, and prints one JSON line when the N-th report has arrived. It keeps no state a real control plane has; it
is here so that a worker's own cost is what is measured.
"""

import argparse
import asyncio
import json
import statistics
import time
from typing import Any, cast

import uvloop
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

JOB = (
    '{"id":"%s","kind":"action_execution","origin":"%s","executor_kind":"customer_worker","queue":"default",'
    '"action_name":"bench.noop","run_id":"run_1","step_id":"step_1","spec":{"parameters":{}},"lease_token":"lease-%s",'
    '"claim_attempt":1,"lease_duration_seconds":60,"heartbeat_cadence_seconds":20}'
)
REGISTERED = (
    '{"type":"worker.registered","message_id":%s,"worker_session_token":"session",'
    '"lease":{"lease_duration_seconds":60,"heartbeat_cadence_seconds":20}}'
)


class Load:
    """The jobs to hand out, and when each was sent and reported (seconds, monotonic)."""

    def __init__(self, jobs: int, origin: str, *, one_at_a_time: bool) -> None:
        self.jobs = jobs
        self.origin = origin
        self.one_at_a_time = one_at_a_time
        self.handed_out = 0
        self.reported = 0
        self.sent_at: dict[str, float] = {}
        self.latencies: list[float] = []
        self.started_at = 0.0
        self.finished: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def claim(self, slots: int) -> list[str]:
        now = time.perf_counter()
        if not self.handed_out:
            self.started_at = now
        limit = 1 if self.one_at_a_time else slots
        names = [f"job_{self.handed_out + i}" for i in range(min(limit, self.jobs - self.handed_out))]
        self.handed_out += len(names)
        if self.one_at_a_time:
            self.sent_at.update(dict.fromkeys(names, now))
        return names

    def report(self, job_id: str) -> None:
        now = time.perf_counter()
        if self.one_at_a_time:
            self.latencies.append(now - self.sent_at.pop(job_id))
        self.reported += 1
        if self.reported == self.jobs and not self.finished.done():
            self.finished.set_result(now - self.started_at)


class Socket(asyncio.Protocol):
    """One worker's connection."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.websocket = ServerProtocol(max_size=16 * 1024 * 1024)
        self.transport: asyncio.Transport
        self.open_claim: dict[str, Any] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, without the base class

    def data_received(self, data: bytes) -> None:
        self.websocket.receive_data(data)
        for event in self.websocket.events_received():
            if isinstance(event, Request):
                self.websocket.send_response(self.websocket.accept(event))
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self.frame_received(json.loads(event.data))
        for chunk in self.websocket.data_to_send():
            if chunk:
                self.transport.write(chunk)

    def send(self, text: str) -> None:
        self.websocket.send_text(text.encode())

    def frame_received(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "jobs.claim":
                self.claimed(frame)
            case "job.report":
                message_id = json.dumps(frame.get("message_id"))
                self.send(f'{{"type":"job.report.ack","message_id":{message_id},"job_id":"{frame["job_id"]}"}}')
                self.load.report(frame["job_id"])
            case "worker.register":
                self.send(REGISTERED % json.dumps(frame.get("message_id")))
            case "worker.draining":
                self.send('{"type":"worker.draining.ack"}')

    def claimed(self, claim: dict[str, Any]) -> None:
        names = self.load.claim(claim.get("available_slots") or 1)
        if not names:
            return  # nothing is left: a claim may stay open for a cadence, and the measurement is over before
        jobs = ",".join(JOB % (name, self.load.origin, name) for name in names)
        self.send(f'{{"type":"jobs.claimed","message_id":{json.dumps(claim.get("message_id"))},"jobs":[{jobs}]}}')


async def serve(arguments: argparse.Namespace) -> None:
    """Serve one load and print its figures: seconds, and the latencies' p50 and p99 when one at a time."""
    load = Load(arguments.jobs, arguments.origin, one_at_a_time=arguments.one_at_a_time)
    server = await asyncio.get_running_loop().create_server(lambda: Socket(load), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    seconds = await asyncio.wait_for(load.finished, arguments.limit)
    figures: dict[str, Any] = {"jobs": load.jobs, "seconds": seconds}
    if load.latencies:
        cuts = statistics.quantiles(load.latencies, n=100)
        figures |= {"p50": cuts[49], "p99": cuts[98]}
    print(json.dumps(figures), flush=True)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--one-at-a-time", action="store_true")
    parser.add_argument("--origin", default="automation_action_step")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds until it gives up")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
