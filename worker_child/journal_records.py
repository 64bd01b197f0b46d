"""What a journal's file holds: a header, then groups of `<length><crc32><MessagePack array of records>`.

One group is what was written at once; it is there as a whole or not at all. Pure: bytes <-> records.
"""

import struct
import zlib

import msgspec
from msgspec import Struct

from wire import frames

HEADER = b"mobius-journal 2\n"
_GROUP = struct.Struct("<II")
_MOST_RECORDS = 128
"""Records of one group: its length fits into four bytes even if every result is as large as a frame may be."""


class Claimed(Struct, frozen=True, array_like=True, gc=False, tag="c"):
    """A job is in hand."""

    job_id: str
    lease_token: str
    action: str


class Reported(Struct, frozen=True, array_like=True, gc=False, tag="r"):
    """A job has its outcome; `result` is a JSON object as bytes."""

    job_id: str
    lease_token: str
    status: frames.ReportStatus
    result: bytes | None
    error_type: str | None
    error_message: str | None


class Settled(Struct, frozen=True, array_like=True, gc=False, tag="s"):
    """Nothing is owed for this lease any more."""

    lease_token: str


class Recovered(Struct, frozen=True, kw_only=True):
    """What an earlier process left: jobs in hand, reports that were not settled, and how many bytes make no record."""

    claimed: list[Claimed]
    reported: list[frames.Report]
    damaged_bytes: int = 0


Record = Claimed | Reported | Settled

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])
_json = msgspec.json.Encoder()


def encode(records: list[Record]) -> bytes:
    """The records as the file has them. One checksum for many records costs a seventh of one for each."""
    if len(records) > _MOST_RECORDS:
        starts = range(0, len(records), _MOST_RECORDS)
        return b"".join(encode(records[start : start + _MOST_RECORDS]) for start in starts)
    if not records:
        return b""
    payload = _encoder.encode(records)
    return _GROUP.pack(len(payload), zlib.crc32(payload)) + payload


def reported(report: frames.Report) -> Reported:
    """The record of a report."""
    return Reported(
        report.job_id,
        report.lease_token,
        report.status,
        result_of(report),
        report.error_type,
        report.error_message,
    )


def result_of(report: frames.Report) -> bytes | None:
    """A report's result as JSON bytes; a Raw has them already."""
    return None if report.result is None else _json.encode(report.result)


def is_journal(data: bytes) -> bool:
    """Whether a file's bytes are a journal, or the beginning of one."""
    return data.startswith(HEADER) or HEADER.startswith(data)


def decode(data: bytes) -> Recovered:
    """What a journal's bytes say. A group that is damaged, or torn at the end, is passed over."""
    if not data.startswith(HEADER):
        return Recovered(claimed=[], reported=[], damaged_bytes=len(data))
    in_hand: dict[str, Claimed] = {}
    owed: dict[str, frames.Report] = {}
    position, damaged = len(HEADER), 0
    while position < len(data):
        end, records = _group_at(data, position)
        if records is None:
            damaged += end - position
        for record in records or ():
            in_hand.pop(record.lease_token, None)
            if isinstance(record, Claimed):
                in_hand[record.lease_token] = record
            elif isinstance(record, Reported):
                owed[record.lease_token] = _report(record)
            else:
                owed.pop(record.lease_token, None)
        position = end
    return Recovered(claimed=list(in_hand.values()), reported=list(owed.values()), damaged_bytes=damaged)


def _group_at(data: bytes, position: int) -> tuple[int, list[Record] | None]:
    """Where the group ends, and its records; None if they are damaged."""
    start = position + _GROUP.size
    if start > len(data):
        return len(data), None
    length, checksum = _GROUP.unpack_from(data, position)
    end = start + length
    payload = data[start:end]
    if len(payload) != length:
        return len(data), None
    if zlib.crc32(payload) != checksum:
        return end, None
    try:
        return end, _decoder.decode(payload)
    except ValueError:
        return end, None


def _report(record: Reported) -> frames.Report:
    return frames.Report(
        job_id=record.job_id,
        lease_token=record.lease_token,
        status=record.status,
        result=None if record.result is None else msgspec.json.decode(record.result),
        error_type=record.error_type,
        error_message=record.error_message,
    )
