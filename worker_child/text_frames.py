"""Whole text messages in and out of the bytes of a WebSocket connection (RFC 6455, section 5.2)."""

import os
import struct

from websockets.frames import Opcode, apply_mask  # type: ignore[attr-defined] # the C one where there is one

from wire.codec import MAX_FRAME_TO_WORKER

_WHOLE_TEXT = 0x80 | Opcode.TEXT
"""First byte of a frame that is a whole text message: the final one of its message, without extensions."""
_MASKED = 0x80
_SMALL = [bytes((_WHOLE_TEXT, _MASKED | size)) for size in range(126)]
"""Headers of short messages from a client, by their sizes."""
_MEDIUM = struct.Struct("!BBH")
_LARGE = struct.Struct("!BBQ")
_MASK_SIZE = 4


def _header(size: int) -> bytes:
    """The header of a whole text message from a client, up to its mask (RFC 6455, section 5.2)."""
    if size < 126:
        return _SMALL[size]
    if size < 1 << 16:
        return _MEDIUM.pack(_WHOLE_TEXT, _MASKED | 126, size)
    return _LARGE.pack(_WHOLE_TEXT, _MASKED | 127, size)


def masked(messages: list[bytes]) -> bytes:
    """Whole text messages as a client sends them."""
    if len(messages) == 1:
        # Somebody waits for it: what a loop over many needs takes longer than all that is done to one.
        message = messages[0]
        mask = os.urandom(_MASK_SIZE)
        return _header(len(message)) + mask + apply_mask(message, mask)
    masks = os.urandom(_MASK_SIZE * len(messages))
    parts: list[bytes] = []
    at = 0
    for message in messages:
        mask = masks[at : at + _MASK_SIZE]
        at += _MASK_SIZE
        parts += (_header(len(message)), mask, apply_mask(message, mask))
    return b"".join(parts)


def cut(data: bytes, messages: list[bytes]) -> int:
    """Moves the whole text messages that `data` begins with into `messages`; returns where the first other frame is.

    A message that is too large stays, so that the core refuses it as the protocol wants it refused.
    """
    position, end = 0, len(data)
    while position + 2 <= end and data[position] == _WHOLE_TEXT:
        size, start = data[position + 1], position + 2
        if size == 126:
            start += 2
            size = int.from_bytes(data[position + 2 : start])
        elif size == 127:
            start += 8
            size = int.from_bytes(data[position + 2 : start])
        elif size > 127:
            # Masked, which no server may do.
            break
        if size > MAX_FRAME_TO_WORKER:
            break
        stop = start + size
        if stop > end:
            break
        messages.append(data[start:stop])
        position = stop
    return position
