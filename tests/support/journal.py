"""Reads entries of the journal's own protocol, as the journal does."""

import struct


def fields_of(entry: bytes) -> dict[str, str]:
    """Every field; raises ValueError for one that is there twice, or for what is no entry."""
    fields: dict[str, str] = {}
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", rest[:8])
            value, end, rest = rest[8 : 8 + size], rest[8 + size : 9 + size], rest[9 + size :]
            if end != b"\n":
                raise ValueError(f"{name!r} does not end where it says")
        if name.decode() in fields:
            raise ValueError(f"{name!r} is there twice")
        fields[name.decode()] = value.decode()
        entry = rest
    return fields
