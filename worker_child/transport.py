"""One WebSocket connection to the control plane, and where it leads to. What the messages say is others' work."""

import asyncio
import ssl
import time
from pathlib import Path
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidMessage, InvalidProxyStatus, InvalidStatus, ProxyError, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Event

from wire.build import package_version
from wire.codec import MAX_FRAME_TO_WORKER
from worker_child.endpoint import Endpoint, Proxy
from worker_child.errors import ConfigurationError, CredentialError
from worker_child.text_frames import cut, masked

OPEN_TIMEOUT = 15.0
CLOSE_TIMEOUT = 1.0
WRITE_DEADLINE = 10.0
"""Seconds in which some of the bytes that wait to be sent must have been taken by the kernel."""
MAX_KEY_FILE = 4096

_GOING_AWAY = frozenset({1001, 1012})
"""Close codes "going away" and "service restart" (RFC 6455, section 7.4, and its registry)."""

_REFUSALS = {
    401: "the API key is not valid (401)",
    403: "the API key does not allow a worker in this project (403)",
    404: "there is no such project, or no worker socket at this address (404)",
}


class UpgradeRefused(Exception):  # noqa: N818 - an answer, which ends the worker or has its key read again
    """401, 403 or 404 on the upgrade."""


class Receiver(Protocol):
    """Who is told what happens on a connection."""

    last_read: float

    def messages_received(self, messages: list[bytes]) -> None:
        """Whole text messages that arrived together."""

    def binary_received(self) -> None:
        """A binary message: no frame of the contract is one."""

    def writable(self) -> None:
        """Bytes that had to wait have all been taken by the kernel."""

    def connection_closed(self, reason: str, *, going_away: bool) -> None:
        """The connection is gone, `going_away` if the server closed it to restart. Nothing else of it follows."""


class ApiKey:
    """The worker's credential. Its text appears in no log line and no error."""

    def __init__(self, text: str | None, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._text = self._read() if self._path is not None else _checked(text or "", "MOBIUS_API_KEY")

    def read_again(self) -> bool:
        """Reads the key file once more; true when it has another key than before. Raises CredentialError."""
        if self._path is None:
            return False
        before, self._text = self._text, self._read()
        return self._text != before

    @property
    def project(self) -> str:
        """The project that the key's own suffix names, or an empty string."""
        return self._text.partition(".")[2]

    def header(self) -> dict[str, str]:
        """The upgrade's `Authorization` header."""
        return {"Authorization": f"Bearer {self._text}"}

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:  # type: ignore[union-attr]
                data = file.read(MAX_KEY_FILE + 1)
        except OSError as error:
            raise CredentialError(f"api_key_file {self._path}: {error.strerror}") from error
        return _checked(data.decode("utf-8", "replace").strip(), f"api_key_file {self._path}")


def _checked(key: str, source: str) -> str:
    if not key:
        raise CredentialError(f"{source}: there is no API key; create one and put it there")
    if len(key) > MAX_KEY_FILE or not key.isascii() or not key.isprintable() or " " in key:
        raise CredentialError(f"{source}: this is not an API key (one line of at most {MAX_KEY_FILE} ASCII characters)")
    return key


class Connection(ClientConnection):
    """A connection that hands whole messages to its receiver, without a queue or a task between.

    Whole text messages, which are all but a few of the frames, are cut from the stream and put into it here: that costs
    a microsecond a message, through the library's core eight. The core has the handshake and every frame that is
    anything else, and from there on the stream until it holds no part of a frame or message any more.
    """

    receiver: Receiver | None = None
    _messages: list[bytes]
    """Whole messages of the chunk that is read, not delivered yet."""
    _fragments: list[bytes] | None = None
    _in_pieces = True
    """Whether the core may have a part of the stream; at first it has what came with the handshake."""
    _opcode = Opcode.TEXT
    _written = 0
    _taken = 0
    _taken_at = 0.0

    def transmit(self, messages: list[bytes]) -> None:
        """Sends text messages with one write. Does nothing once the connection is closing."""
        if self.protocol.state is not OPEN:
            return
        data = masked(messages)
        self._written += len(data)
        self.transport.write(data)

    def ping(self) -> None:  # type: ignore[override]
        """Sends a ping; any byte that comes back is the answer."""
        if self.protocol.state is OPEN:
            self.protocol.send_ping(b"")
            self._write(b"".join(self.protocol.data_to_send()))

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return int(self.transport.get_write_buffer_size())

    def is_stalled(self, now: float) -> bool:
        """Whether bytes wait to be sent and none was taken for WRITE_DEADLINE. To be asked about once a second."""
        taken = self._written - self.unsent
        if taken != self._taken or not self.unsent:
            self._taken, self._taken_at = taken, now
        return now - self._taken_at >= WRITE_DEADLINE

    def abandon(self) -> None:
        """Ends the connection at once; its receiver hears no more of it."""
        self.receiver = None
        self.transport.abort()

    async def say_goodbye(self) -> None:
        """Closes with code 1000, within CLOSE_TIMEOUT."""
        self.receiver = None
        if self.protocol.state is OPEN:
            self.protocol.send_close(1000)
            self._write(b"".join(self.protocol.data_to_send()))
        self.transport.close()
        await asyncio.wait([self.connection_lost_waiter], timeout=CLOSE_TIMEOUT)
        self.transport.abort()

    def _write(self, data: bytes) -> None:
        self._written += len(data)
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes arrived."""
        receiver = self.receiver
        if receiver is None:
            super().data_received(data)
            return
        receiver.last_read = time.monotonic()
        messages: list[bytes] = []
        if not self._in_pieces:
            end = cut(data, messages)
            if end == len(data):
                receiver.messages_received(messages)
                return
            data = data[end:]
        self._messages = messages
        super().data_received(data)
        self._in_pieces = bool(self.protocol.reader.buffer) or self.protocol.current_size is not None
        self._deliver()
        if self.receiver is not None and self.protocol.state is not OPEN:
            # The peer said goodbye, or broke the protocol: the answer is written, and nothing is waited for.
            self.transport.close()
            self._closed()

    def _deliver(self) -> None:
        messages, self._messages = self._messages, []
        if messages and self.receiver is not None:
            self.receiver.messages_received(messages)

    def process_event(self, event: Event) -> None:
        """websockets: a handshake response or a frame arrived."""
        if self.response is None or not isinstance(event, Frame):
            super().process_event(event)
        elif event.opcode is Opcode.TEXT and event.fin:
            self._message(bytes(event.data))
        elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._assemble(event)

    def _message(self, message: bytes, opcode: Opcode = Opcode.TEXT) -> None:
        if self.receiver is None:
            return
        if opcode is Opcode.TEXT:
            self._messages.append(message)
        else:
            self._deliver()
            self.receiver.binary_received()

    def _assemble(self, frame: Frame) -> None:
        """Fragments; their sum is bounded by the connection's `max_size`."""
        if frame.opcode is not Opcode.CONT:
            self._opcode, self._fragments = frame.opcode, []
        if self._fragments is None:
            return
        self._fragments.append(bytes(frame.data))
        if frame.fin:
            message, self._fragments = b"".join(self._fragments), None
            self._message(message, self._opcode)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is there. From now on `resume_writing` means that no byte waits."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=0)

    def resume_writing(self) -> None:
        """asyncio: the write buffer is empty again."""
        super().resume_writing()
        if self.receiver is not None:
            self.receiver.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        super().connection_lost(exc)
        self._closed(exc)

    def _closed(self, error: Exception | None = None) -> None:
        receiver, self.receiver = self.receiver, None
        if receiver is None:
            return
        close = self.protocol.close_rcvd or self.protocol.close_sent
        if close is not None:
            reason = (
                f"closed with code {close.code}: {close.reason}" if close.reason else f"closed with code {close.code}"
            )
        else:
            reason = f"cut off: {error}" if error else "cut off"
        said = self.protocol.close_rcvd
        receiver.connection_closed(reason, going_away=said is not None and said.code in _GOING_AWAY)


class _Connect(connect):
    """Follows no redirect: the address that was configured is the one that gets the API key."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def open_connection(where: Endpoint, key: ApiKey, receiver: Receiver) -> Connection:
    """Connects and upgrades, within OPEN_TIMEOUT. Raises UpgradeRefused, or ConnectionError with a sentence.

    The receiver hears of nothing before this returns, and of everything afterwards.
    """
    proxy: Proxy | None = None
    try:
        proxy = where.proxy()
        opened = await _Connect(
            where.url,
            additional_headers=key.header(),
            user_agent_header=f"mobius-worker/{package_version()}",
            compression=None,
            proxy=proxy.url if proxy is not None else None,
            open_timeout=OPEN_TIMEOUT,
            ping_interval=None,
            max_size=MAX_FRAME_TO_WORKER,
            create_connection=Connection,
            **await _tls(where, proxy),
        )
    except InvalidStatus as error:
        status = error.response.status_code
        if status in _REFUSALS:
            raise UpgradeRefused(_REFUSALS[status]) from None
        raise ConnectionError(f"the control plane answered {status}") from None
    except (OSError, EOFError, ValueError, ConfigurationError, WebSocketException) as error:
        raise ConnectionError(_sentence(error, where, proxy)) from None
    if not isinstance(opened, Connection) or opened.protocol.state is not OPEN:
        raise ConnectionError("closed as soon as it was open")
    opened.receiver = receiver
    return opened


async def _tls(where: Endpoint, proxy: Proxy | None) -> dict[str, Any]:
    """Contexts for the control plane, and for a proxy that is spoken to over TLS. Read anew: files are renewed."""
    if not where.is_encrypted:
        return {}
    context = await asyncio.to_thread(where.context)
    return {"ssl": context} | ({"proxy_ssl": context} if proxy is not None and proxy.url.startswith("https:") else {})


def _sentence(error: Exception, where: Endpoint, proxy: Proxy | None) -> str:
    """What went wrong, for people, without what the proxy's address may hold."""
    if isinstance(error, InvalidProxyStatus):
        return f"the proxy {proxy and proxy.shown} answered {error.response.status_code}"
    if isinstance(error, ProxyError):
        return f"the proxy {proxy and proxy.shown} gave no answer that makes sense"
    through = f" through the proxy {proxy.shown}" if proxy is not None else ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of the control plane is not trusted{through}: {error.verify_message or error}; if its "
            "authority is your own, name it in control_plane.ca_file or SSL_CERT_FILE"
        )
    if isinstance(error, InvalidMessage | ConnectionResetError):
        remedy = (
            "it may ask for a client certificate (control_plane.client_certificate_file)"
            if where.is_encrypted
            else "if TLS is spoken there, api_url begins with https://"
        )
        return f"the control plane gave no HTTP answer{through}; {remedy}"
    return (str(error) or type(error).__name__) + through
