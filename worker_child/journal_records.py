"""What a journal's file holds: a header, then groups of `<length><crc32><MessagePack array of records>`.

One group is what was written at once; it is there as a whole or not at all. Pure: bytes <-> records.
"""

import struct
from zlib import crc32

import msgspec
from msgspec import Struct

from wire import frames
from worker_child.decisions import JournalClaimed, JournalSettled, Reported

HEADER = b"mobius-journal 2\n"
_GROUP = struct.Struct("<II")
_MOST_RECORDS = 128
"""Records of one group: its length fits into four bytes even if every result is as large as a frame may be."""


class Recovered(Struct, frozen=True, kw_only=True):
    """What an earlier process left: jobs in hand, reports that were not settled, and how many bytes make no record."""

    claimed: list[JournalClaimed]
    reported: list[frames.Report]
    damaged_bytes: int = 0


Record = JournalClaimed | Reported | JournalSettled

_encode = msgspec.msgpack.Encoder().encode
_pack = _GROUP.pack
_decoder = msgspec.msgpack.Decoder(list[Record])
_json = msgspec.json.Encoder()
_report = msgspec.json.Decoder(frames.Report)


def encode(records: list[Record]) -> bytes:
    """The records as the file has them. One checksum for many records costs a seventh of one for each."""
    if not 0 < len(records) <= _MOST_RECORDS:
        starts = range(0, len(records), _MOST_RECORDS)
        return b"".join(encode(records[start : start + _MOST_RECORDS]) for start in starts)
    payload = _encode(records)
    return _pack(len(payload), crc32(payload)) + payload


def frame_of(report: frames.Report) -> bytes:
    """A report as it is sent."""
    return _json.encode(report)


def is_journal(data: bytes) -> bool:
    """Whether a file's bytes are a journal, or the beginning of one."""
    return data.startswith(HEADER) or HEADER.startswith(data)


def decode(data: bytes) -> Recovered:
    """What a journal's bytes say. A group that is damaged, or torn at the end, is passed over."""
    if not data.startswith(HEADER):
        return Recovered(claimed=[], reported=[], damaged_bytes=len(data))
    in_hand: dict[str, JournalClaimed] = {}
    owed: dict[str, frames.Report] = {}
    position, damaged = len(HEADER), 0
    while position < len(data):
        end, records = _group_at(data, position)
        if records is None:
            damaged += end - position
        for record in records or ():
            in_hand.pop(record.lease_token, None)
            if isinstance(record, JournalClaimed):
                in_hand[record.lease_token] = record
            elif isinstance(record, Reported):
                owed[record.lease_token] = _report.decode(record.frame)
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
    if crc32(payload) != checksum:
        return end, None
    try:
        return end, _decoder.decode(payload)
    except ValueError:
        return end, None
