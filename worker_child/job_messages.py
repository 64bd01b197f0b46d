"""What a worker and the process of one of its jobs say to each other: MessagePack, each message after its length.

A socket pair carries it, which nobody else has an end of. The process is not trusted to be in its right mind: whatever
it says is bounded and checked.
"""

import struct
from typing import Any

import msgspec
from msgspec import Struct

from wire.frames import ClaimedJob, ReportStatus

_LENGTH = struct.Struct("<I")
HEAD = _LENGTH.size
"""Bytes in front of each message."""


class Start(Struct, frozen=True, kw_only=True, tag="start"):
    """First words to the process: what to run. `times_out_at` is seconds since the epoch; the lines of its log end with
    `log_mark`, so that nothing that its handler prints passes for one."""

    job: ClaimedJob
    worker_instance_id: str
    times_out_at: float | None
    log_mark: str


class LeaseLost(Struct, frozen=True, kw_only=True, tag="lease_lost"):
    """The job's lease is gone."""


class Finished(Struct, frozen=True, kw_only=True, tag="finished"):
    """Last words of the process: the outcome. `result` is a JSON object as bytes."""

    status: ReportStatus
    result: bytes | None = None
    error_type: str | None = None
    error_message: str | None = None


ToProcess = Start | LeaseLost
_encoder = msgspec.msgpack.Encoder()
_to_process: "msgspec.msgpack.Decoder[ToProcess]" = msgspec.msgpack.Decoder(ToProcess)
_from_process: "msgspec.msgpack.Decoder[Finished]" = msgspec.msgpack.Decoder(Finished)


def framed(message: ToProcess | Finished) -> bytes:
    """The message after its length."""
    data = _encoder.encode(message)
    return _LENGTH.pack(len(data)) + data


def length(head: bytes) -> int:
    """Of the message that follows these HEAD bytes."""
    size: int = _LENGTH.unpack(head)[0]
    return size


def to_process(data: bytes) -> Any:
    """A Start or a LeaseLost. Raises msgspec.MsgspecError."""
    return _to_process.decode(data)


def from_process(data: bytes) -> Finished:
    """Raises msgspec.MsgspecError."""
    return _from_process.decode(data)
