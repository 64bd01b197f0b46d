"""TLS handshakes of the listening socket, one for each connection; what fails is logged, with whom and why.

The event loop's own way (`create_server(ssl=...)`) tells nobody of a handshake that failed.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable

import structlog

HANDSHAKE_TIMEOUT = 10.0
"""Seconds from the connection to the end of its TLS handshake."""

SHUTDOWN_TIMEOUT = 3.0
"""Seconds that a peer has to take part in the end of TLS."""

QUIET = 1.0
"""Seconds from one line about a failed handshake to the next."""

ACCEPTED_AT_ONCE = 128
"""Connections that are accepted before anybody else has a turn."""

ACCEPT_AGAIN = 1.0
"""Seconds without accepting when that failed."""

_log = structlog.get_logger(__name__)


class FailedHandshakes:
    """Logs them, and counts those that come too fast for a line of their own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._quiet_until = 0.0
        self._left_out = 0

    def failed(self, peer: str, error: ssl.SSLError) -> None:
        """One more."""
        now = self._clock()
        if now < self._quiet_until:
            self._left_out += 1
            return
        _log.info("TLS handshake failed", peer=peer, reason=reason(error), left_out=self._left_out)
        self._quiet_until = now + QUIET
        self._left_out = 0


class TlsListener:
    """Connections of a listening socket, each taken over by a protocol of `serve` once its handshake is done. What
    uvicorn needs of an asyncio.Server."""

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        serve: Callable[[], asyncio.Protocol],
        failures: FailedHandshakes,
    ) -> None:
        self._listening = listening
        self._context = context
        self._serve = serve
        self._failures = failures
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        listening.settimeout(0)
        self._listen()

    def close(self) -> None:
        """Nobody comes in any more; who is in stays."""
        self._loop.remove_reader(self._listening)
        if self._pause is not None:
            self._pause.cancel()
        for handshake in self._handshakes:
            handshake.cancel()

    async def wait_closed(self) -> None:
        """After `close`."""
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No more files: whoever waits goes on waiting.
                _log.warning("connections cannot be accepted", reason=error.strerror)
                self._loop.remove_reader(self._listening)
                self._pause = self._loop.call_later(ACCEPT_AGAIN, self._listen)
                return
            handshake = self._loop.create_task(self._shake_hands(connection, f"{address[0]}:{address[1]}"))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, peer: str) -> None:
        connection.settimeout(0)
        try:
            await self._loop.connect_accepted_socket(
                self._serve,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
            )
        except ssl.SSLError as error:
            self._failures.failed(peer, error)
        except OSError:
            # It left, or said nothing: so do those that only look whether the port is open.
            return


def reason(error: Exception) -> str:
    """OpenSSL's, in words."""
    words = str(getattr(error, "reason", "") or error).replace("_", " ").lower()
    why = getattr(error, "verify_message", "")
    return f"{words}: {why}" if why else words
