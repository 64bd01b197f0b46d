"""Both ends of a token stream in one process, hence with one clock: a model server, and the control plane's socket.

Run as a program: `python -m bench.token_server --tokens N --interval SECONDS [--acknowledge]`. It prints the ports of
the worker socket and of the model server; gives the first worker that claims one generation; streams the tokens to it,
one event and one write each; cuts the worker's connection once, in the middle; and prints one line of JSON when the
report has arrived: how long each token took from the model server's write to its arrival in a delta.
"""

import argparse
import asyncio
import json
import statistics
import time
from bisect import bisect_right
from itertools import accumulate
from typing import Any, cast

import msgspec
import uvloop

from bench.in_memory_server import CLAIMED, REGISTERED, Socket

JOB = (
    b'{"id":"job_1","kind":"llm_generation","origin":"agent_llm_call","executor_kind":"customer_worker",'
    b'"queue":"default","provider":"lab","model":"m","lease_token":"lease","claim_attempt":1,'
    b'"spec":{"request":{"messages":[{"role":"user","content":"x"}]}},'
    b'"lease_duration_seconds":60,"heartbeat_cadence_seconds":20}'
)
DELTA_ACK = b'{"type":"generation.delta.ack","job_id":"job_1","received_sequence":%d}'
REPORT_ACK = b'{"type":"job.report.ack","message_id":%b,"job_id":"job_1"}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"
SETTLING = 0.25
"""Share of the tokens behind the cut that may be late for it: they do not count in the figures `undisturbed`."""


class Incoming(msgspec.Struct, gc=False):
    """What is looked at in a worker's frame."""

    type: str
    message_id: msgspec.Raw = msgspec.Raw(b"null")
    sequence: int = -1
    delta: dict[str, str] = {}
    result: dict[str, Any] | None = None


class Stream:
    """The tokens, when each was written and when it arrived (seconds)."""

    def __init__(self, tokens: int, interval: float, *, acknowledge: bool) -> None:
        self.tokens = [f"t{number} " for number in range(tokens)]
        self.ends = list(accumulate(len(token) for token in self.tokens))
        self.interval = interval
        self.acknowledge = acknowledge
        self.written = [0.0] * tokens
        self.arrived = [0.0] * tokens
        self.deltas: dict[int, str] = {}
        self.length = 0
        self.cut_at: float | None = None
        self.claimed = False
        self.whole = False
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def delta(self, sequence: int, text: str) -> None:
        """A delta that was here before is passed over, as the protocol's sequences are meant."""
        if sequence in self.deltas:
            return
        now = time.perf_counter()
        first = bisect_right(self.ends, self.length)
        self.deltas[sequence] = text
        self.length += len(text)
        for number in range(first, bisect_right(self.ends, self.length)):
            self.arrived[number] = now

    def report(self, result: dict[str, Any] | None) -> None:
        text = "".join(self.tokens)
        in_order = [self.deltas[sequence] for sequence in sorted(self.deltas)]
        said = result["llm_response"]["content"][0]["text"] if result is not None else None
        self.whole = "".join(in_order) == text == said and sorted(self.deltas) == list(range(len(self.deltas)))
        self.finished.set_result(None)

    def figures(self) -> dict[str, Any]:
        latencies = [1e3 * (arrived - written) for arrived, written in zip(self.arrived, self.written, strict=True)]
        cut = len(latencies) // 2
        undisturbed = latencies[: cut - 1] + latencies[cut + int(len(latencies) * SETTLING) :]
        cuts = statistics.quantiles(undisturbed, n=100)
        return {
            "whole and in order": self.whole,
            "p50 ms": statistics.median(latencies),
            "p50 ms undisturbed": cuts[49],
            "p99 ms undisturbed": cuts[98],
            "longest ms": max(latencies),
            "deltas": len(self.deltas),
        }


class WorkerSocket(Socket):
    """The worker's connection; cut once, when half of the tokens are here."""

    decode = staticmethod(msgspec.json.Decoder(Incoming).decode)
    load: Stream

    def frame_received(self, frame: Any) -> None:
        stream = self.load
        match frame.type:
            case "generation.delta":
                stream.delta(frame.sequence, frame.delta["text"])
                if stream.cut_at is None and stream.length >= stream.ends[-1] / 2:
                    stream.cut_at = time.perf_counter()
                    self.transport.abort()
                elif stream.acknowledge:
                    self.send(DELTA_ACK % frame.sequence)
            case "worker.register":
                self.send(REGISTERED % frame.message_id)
            case "jobs.claim" if not stream.claimed:
                stream.claimed = True
                self.send(CLAIMED % (frame.message_id, JOB))
            case "job.report":
                self.send(REPORT_ACK % frame.message_id)
                stream.report(frame.result)
            case "worker.draining":
                self.send(b'{"type":"worker.draining.ack"}')

    def flush(self) -> None:
        if not self.transport.is_closing():
            super().flush()


class ModelSocket(asyncio.Protocol):
    """One request to the model server: its list of models, or the stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.transport: asyncio.Transport
        self.received = b""
        self.begun_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, without the base class

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.received.startswith(b"GET") and self.received.endswith(b"\r\n\r\n"):
            self.transport.write(HEAD % b"application/json" + chunk(b'{"data":[{"id":"m"}]}') + chunk(b""))
            self.transport.close()
        elif b"content" in self.received.partition(b"\r\n\r\n")[2] and not self.begun_at:
            self.transport.write(HEAD % b"text/event-stream")
            self.begun_at = asyncio.get_running_loop().time()
            self.write(0)

    def write(self, number: int) -> None:
        """One token, and the next at its time: what comes late does not put off the rest."""
        stream = self.stream
        if self.transport.is_closing():
            return
        if number == len(stream.tokens):
            end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
            usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": number}}
            self.transport.write(event(end) + event(usage) + chunk(b"data: [DONE]\n\n") + chunk(b""))
            return
        data = event({"id": "chatcmpl-1", "model": "m", "choices": [{"delta": {"content": stream.tokens[number]}}]})
        stream.written[number] = time.perf_counter()
        self.transport.write(data)
        at = self.begun_at + (number + 1) * stream.interval
        asyncio.get_running_loop().call_at(at, self.write, number + 1)


def event(value: Any) -> bytes:
    return chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve one stream and print its figures."""
    stream = Stream(arguments.tokens, arguments.interval, acknowledge=arguments.acknowledge)
    loop = asyncio.get_running_loop()
    for protocol in (WorkerSocket, ModelSocket):
        server = await loop.create_server(lambda protocol=protocol: protocol(stream), "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
    async with asyncio.timeout(arguments.limit):
        await stream.finished
    print(json.dumps(stream.figures()), flush=True)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--interval", type=float, default=0.001)
    parser.add_argument("--acknowledge", action="store_true")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds until it gives up")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
