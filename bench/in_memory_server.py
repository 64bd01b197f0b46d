"""A worker socket that hands out no-op jobs from memory as fast as workers take them: the measure of every worker.

Run as a program: `python -m bench.in_memory_server --jobs N [--workers W] [--one-at-a-time]`. It prints its port;
`ready` when W workers have claimed; waits for a line on its standard input, so that start-up is not measured; answers
the claims; and prints one line of JSON when the N-th report has arrived.

It keeps no state that a real control plane has, and does as little as it can for a frame (no protocol library after the
upgrade, jobs encoded beforehand, one write for all that one read leads to), so that the worker is what is measured. It
is the same for every worker, and `cpu_seconds` of its figures says how near it was to being the bottleneck.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import Any, cast

import msgspec
import uvloop
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask

JOB = (
    '{"id":"%s","kind":"action_execution","origin":"automation_action_step","executor_kind":"customer_worker",'
    '"queue":"default","action_name":"bench.noop","run_id":"run_1","step_id":"step_1","spec":{"parameters":{}},'
    '"lease_token":"lease-%s","claim_attempt":1,"lease_duration_seconds":60,"heartbeat_cadence_seconds":20}'
)
REGISTERED = (
    b'{"type":"worker.registered","message_id":%b,"worker_session_token":"session",'
    b'"lease":{"lease_duration_seconds":60,"heartbeat_cadence_seconds":20}}'
)
CLAIMED = b'{"type":"jobs.claimed","message_id":%b,"jobs":[%b]}'
ACKNOWLEDGED = b'{"type":"job.report.ack","message_id":%b,"job_id":"%b"}'
TEXT, PING, PONG = 0x81, 0x89, 0x8A


class Incoming(msgspec.Struct, gc=False):
    """What the server looks at in a worker's frame; an id goes back as the bytes that it came as."""

    type: str
    message_id: msgspec.Raw = msgspec.Raw(b"null")
    job_id: str = ""
    available_slots: int = 1


decode = msgspec.json.Decoder(Incoming).decode


class Load:
    """The jobs to hand out, and when each was sent and reported (seconds, monotonic)."""

    def __init__(self, jobs: int, workers: int, *, one_at_a_time: bool) -> None:
        names = [f"job_{number:07}" for number in range(jobs)]
        self.jobs = [(JOB % (name, name)).encode() for name in names]
        self.unreported = set(names)
        self.workers = workers
        self.one_at_a_time = one_at_a_time
        self.handed_out = 0
        self.started = False
        self.waiting: list[tuple[Socket, Incoming]] = []
        self.sent_at = 0.0
        self.latencies: list[float] = []
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[None] = loop.create_future()

    def claim(self, socket: "Socket", claim: Incoming) -> None:
        if not self.started:
            self.waiting.append((socket, claim))
            if len(self.waiting) == self.workers:
                self.ready.set_result(None)
            return
        first = self.handed_out
        self.handed_out += 1 if self.one_at_a_time else claim.available_slots
        if jobs := self.jobs[first : self.handed_out]:
            # With nothing left, a claim may stay open for a cadence, and the measurement is over before.
            socket.send(CLAIMED % (claim.message_id, b",".join(jobs)))
            self.sent_at = time.perf_counter()

    def start(self) -> None:
        self.started = True
        for socket, claim in self.waiting:
            self.claim(socket, claim)
            socket.flush()

    def report(self, job_id: str) -> None:
        if self.one_at_a_time:
            self.latencies.append(time.perf_counter() - self.sent_at)
        self.unreported.discard(job_id)
        if not self.unreported and not self.finished.done():
            self.finished.set_result(None)


class Socket(asyncio.Protocol):
    """One worker's connection."""

    decode = staticmethod(decode)

    def __init__(self, load: Any) -> None:
        self.load = load
        self.upgrade: ServerProtocol | None = ServerProtocol()
        self.transport: asyncio.Transport
        self.partial = b""
        self.outgoing: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, without the base class

    def data_received(self, data: bytes) -> None:
        if self.upgrade is not None:
            self.upgrade.receive_data(data)
            for event in self.upgrade.events_received():
                assert isinstance(event, Request)
                self.upgrade.send_response(self.upgrade.accept(event))
                self.outgoing += self.upgrade.data_to_send()
                self.upgrade = None
        else:
            self.frames(self.partial + data)
        self.flush()

    def frames(self, data: bytes) -> None:
        """Whole frames are answered, what is left waits for the rest of it. No worker here sends fragments."""
        position, end = 0, len(data)
        while position + 2 <= end:
            size, start = data[position + 1] & 127, position + 6
            if size == 126:
                start += 2
                size = int.from_bytes(data[position + 2 : position + 4])
            elif size == 127:
                start += 8
                size = int.from_bytes(data[position + 2 : position + 10])
            if start + size > end:
                break
            payload = apply_mask(data[start : start + size], data[start - 4 : start])
            if data[position] == TEXT:
                self.frame_received(self.decode(payload))
            elif data[position] == PING:
                self.send(payload, PONG)
            else:
                self.transport.close()
            position = start + size
        self.partial = data[position:]

    def send(self, payload: bytes, first: int = TEXT) -> None:
        size = len(payload)
        if size < 126:
            self.outgoing.append(bytes((first, size)))
        elif size < 1 << 16:
            self.outgoing.append(bytes((first, 126)) + size.to_bytes(2))
        else:
            self.outgoing.append(bytes((first, 127)) + size.to_bytes(8))
        self.outgoing.append(payload)

    def flush(self) -> None:
        if self.outgoing:
            self.transport.write(b"".join(self.outgoing))
            self.outgoing.clear()

    def frame_received(self, frame: Incoming) -> None:
        match frame.type:
            case "job.report":
                self.send(ACKNOWLEDGED % (frame.message_id, frame.job_id.encode()))
                self.load.report(frame.job_id)
            case "jobs.claim":
                self.load.claim(self, frame)
            case "worker.register":
                self.send(REGISTERED % frame.message_id)
            case "worker.draining":
                self.send(b'{"type":"worker.draining.ack"}')


async def serve(arguments: argparse.Namespace) -> None:
    """Serve one load and print its figures: seconds, and the latencies' p50 and p99 when one at a time."""
    load = Load(arguments.jobs, arguments.workers, one_at_a_time=arguments.one_at_a_time)
    server = await asyncio.get_running_loop().create_server(lambda: Socket(load), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with asyncio.timeout(arguments.limit):
        await load.ready
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        began, cpu = time.perf_counter(), time.process_time()
        load.start()
        await load.finished
    seconds = time.perf_counter() - began
    figures: dict[str, Any] = {"seconds": seconds, "cpu_seconds": time.process_time() - cpu}
    if load.latencies:
        cuts = statistics.quantiles(load.latencies, n=100)
        figures |= {"p50": cuts[49], "p99": cuts[98]}
    print(json.dumps(figures), flush=True)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one-at-a-time", action="store_true")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds until it gives up")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
