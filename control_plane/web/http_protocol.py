"""One HTTP connection: uvicorn's protocol with the limits that a listening socket needs.

A peer that sends no request, sends endless headers, or does not read its answer is cut off; nobody else notices.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Protocol, runtime_checkable

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from control_plane.rate_limits import Arrival, Limits
from control_plane.web.shapes import ErrorBody, ErrorResponse

MAX_HEADER_BYTES = 64 * 1024
"""Request line and headers of one request."""

REQUEST_HEAD_TIMEOUT = 15.0
"""Seconds from the first sign of a connection to the end of its first request's headers."""

WRITE_TIMEOUT = 30.0
"""Seconds that a full send buffer may take to drain."""


ADMITTED = "mobius.admitted"
"""Key of a request's scope: to be called when its credential was found valid."""


@runtime_checkable
class Upgraded(Protocol):
    """What takes a connection over, and with it its place among those without a key."""

    arrival: Arrival | None


class HttpProtocol(HttpToolsProtocol):
    """See the module's docstring. Idle keep-alive connections are closed by uvicorn itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self.limits: Limits | None = None
        """Set before the connection is made."""
        self._arrival: Arrival | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Arm the deadline of the first request, unless there are too many already."""
        super().connection_made(transport)
        self._await_head()
        limits = self.limits
        peer = self.client[0] if self.client else ""
        if limits is None or peer in limits.trusted_proxies:
            return
        if limits.most_connections is not None and len(self.connections) > limits.most_connections:
            self._refuse(503, "too_many_connections", "this server has as many connections as it can have")
            return
        self._arrival = limits.arrivals.arrive(limits.address_of(peer, None))
        if self._arrival is None:
            self._refuse(429, "too_many_connections", "too many connections of this address have shown no valid key")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget every deadline."""
        self._head_complete()
        self._admitted()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives before the headers are complete."""
        if self.transport.is_closing():
            return
        if self._head_timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_timer is not None and self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(431, "headers_too_large", f"request line and headers exceed {MAX_HEADER_BYTES} bytes")

    def on_message_begin(self) -> None:
        """A request begins: its headers have a deadline, also on a connection that is kept alive."""
        super().on_message_begin()
        self.scope[ADMITTED] = self._admitted  # type: ignore[literal-required]
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is whole; what follows is bounded by the application."""
        self._head_complete()
        super().on_headers_complete()

    def handle_websocket_upgrade(self) -> None:
        """From here on the socket's own protocol keeps the deadlines."""
        self._head_complete()
        if self.cycle is not None and not self.cycle.response_complete:
            self._refuse(400, "invalid_request", "an upgrade cannot come before the answer to the request before it")
            return
        arrival, self._arrival = self._arrival, None
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if isinstance(protocol, Upgraded):
            protocol.arrival = arrival
        elif arrival is not None:
            arrival.leave()

    def pause_writing(self) -> None:
        """The peer does not read: it has WRITE_TIMEOUT to begin."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        """The peer reads again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP request is refused in the envelope too."""
        self._refuse(400, "invalid_request", msg)

    def _admitted(self) -> None:
        """It has shown a valid key, or is gone."""
        if self._arrival is not None:
            self._arrival.leave()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(REQUEST_HEAD_TIMEOUT, self._head_late)

    def _head_complete(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._refuse(408, "request_timeout", f"no complete request within {REQUEST_HEAD_TIMEOUT:g} seconds")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._head_complete()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.write(error_response(status, code, message))
            self.transport.close()
        elif cycle.more_body or cycle.response_started:
            # It would stand in the middle of the answer to the request before: a stream that is cut off says enough.
            self.transport.close()
        else:
            # Requests before it came whole, and are answered: then it ends.
            cycle.keep_alive = False
            self.flow.pause_reading()


def error_response(status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """A whole HTTP/1.1 response in the error envelope, for a connection that ends with it."""
    body = msgspec.json.encode(ErrorResponse(error=ErrorBody(code=code, message=message)))
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode("ascii") + body
