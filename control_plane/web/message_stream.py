"""Bytes of a worker's WebSocket <-> messages: whole text messages here, everything else by websockets' core.

A worker's frames are nearly all whole text messages, each a few hundred bytes. To cut one from the stream or to put one
into it costs a microsecond here and eight through the core, which is half of what a job costs the event loop. The core
has the handshake, and every frame that is anything else: control frames, fragments, and whatever breaks the protocol,
so that it is refused as the protocol wants it. It only ever gets whole frames, so that it is never in the middle of one
when the stream is looked at here; what is not whole yet waits in a buffer.
"""

import struct

from websockets.frames import Frame, Opcode, apply_mask  # type: ignore[attr-defined] # the C one where there is one
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, SEND_EOF
from websockets.server import ServerProtocol

from wire.codec import MAX_FRAME_TO_SERVER

_WHOLE_TEXT = 0x80 | Opcode.TEXT
"""First byte of a frame that is a whole text message: the final one of its message, without extensions."""
_MASKED = 0x80
_MASK_SIZE = 4
_MEDIUM = struct.Struct("!BBH")
_LARGE = struct.Struct("!BBQ")
_END_OF_HEAD = b"\r\n\r\n"

Event = bytes | Frame | Request
"""A whole text message as bytes (unmasked, of no checked encoding); a frame that is anything else; the handshake."""


class MessageStream:
    """One connection's two directions. `receive` takes what was read, `take_output` gives what is to be written."""

    def __init__(self) -> None:
        self.core = ServerProtocol(max_size=MAX_FRAME_TO_SERVER)
        self._buffer = bytearray()
        self._enough = 0
        """So many bytes in the buffer are worth a look: else a large message would be copied at every read."""
        self._core_alone = False
        """The core has begun to read frames before the handshake was over, and may be in the middle of one."""
        self._output: list[bytes] = []

    @property
    def is_open(self) -> bool:
        """Whether messages go both ways."""
        return self.core.state is OPEN

    @property
    def ended(self) -> bool:
        """Whether nothing will ever be written again."""
        return self.core.eof_sent

    @property
    def unfinished(self) -> int:
        """Bytes of a frame that has not come whole."""
        return len(self._buffer)

    def accept(self, request: Request) -> Response:
        """The answer to the handshake."""
        return self.core.accept(request)

    def receive(self, data: bytes) -> list[Event]:
        """What arrived, in order."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._enough:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        if self._core_alone or not self.is_open:
            return self._by_core(data)
        events: list[Event] = []
        end = self._cut(data, events)
        if end < len(data):
            self._buffer += memoryview(data)[end:]
        return events

    def send(self, message: bytes) -> None:
        """One text message."""
        size = len(message)
        if size < 126:
            self._output.append(bytes((_WHOLE_TEXT, size)))
        elif size < 1 << 16:
            self._output.append(_MEDIUM.pack(_WHOLE_TEXT, 126, size))
        else:
            self._output.append(_LARGE.pack(_WHOLE_TEXT, 127, size))
        self._output.append(message)

    def send_response(self, response: Response) -> None:
        """The handshake's end."""
        self.core.send_response(response)
        self._take_from_core()

    def send_ping(self, data: bytes) -> None:
        """A ping."""
        self.core.send_ping(data)
        self._take_from_core()

    def send_close(self, code: int, reason: str) -> None:
        """The beginning of the end."""
        self.core.send_close(code, reason)
        self._take_from_core()

    def take_output(self) -> list[bytes]:
        """What is to be written, in order."""
        output, self._output = self._output, []
        return output

    def _cut(self, data: bytes, events: list[Event]) -> int:
        """Moves the whole frames that `data` begins with into `events`; returns where one begins that is not whole."""
        position, end = 0, len(data)
        self._enough = 0
        while position + 2 <= end:
            second = data[position + 1]
            size, start = second & 127, position + 2
            if size >= 126:
                start += 2 if size == 126 else 8
                if start > end:
                    break
                size = int.from_bytes(data[position + 2 : start])
            refused = size > MAX_FRAME_TO_SERVER or not second & _MASKED
            stop = start + _MASK_SIZE + size
            if stop > end and not refused:
                self._enough = stop - position
                break
            if data[position] == _WHOLE_TEXT and not refused and self.core.current_size is None:
                masked = start + _MASK_SIZE
                events.append(apply_mask(data[masked:stop], data[start:masked]))
                position = stop
                continue
            events += self._by_core(data[position : end if refused else stop])
            position = end if refused else stop
            if not self.is_open:
                events += self._by_core(data[position:])
                return end
        return position

    def _by_core(self, data: bytes) -> list[Event]:
        self.core.receive_data(data)
        events: list[Event] = []
        for event in self.core.events_received():
            if isinstance(event, Request):
                self._core_alone = not data.endswith(_END_OF_HEAD)
                events.append(event)
            elif isinstance(event, Frame):
                whole_text = event.opcode is Opcode.TEXT and event.fin
                events.append(bytes(event.data) if whole_text else event)
        self._take_from_core()
        return events

    def _take_from_core(self) -> None:
        self._output += [data for data in self.core.data_to_send() if data is not SEND_EOF]
