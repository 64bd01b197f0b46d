"""From when to when a certificate is valid: PEM text -> two moments.

The `ssl` module tells it of authorities and of peers that are valid now, so this one reads the two dates itself: they
stand at one place of what RFC 5280 (4.1) makes of a certificate.
"""

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from msgspec import Struct

from control_plane.domain.times import rfc3339, to_microseconds

_CERTIFICATE = re.compile(r"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----(.*?)-----END \1-----", re.DOTALL)
_VERSION = 0xA0
_UTC_TIME = 0x17
_FIELDS_BEFORE_THE_DATES = 3  # serial number, algorithm, issuer


class Validity(Struct, frozen=True):
    """Microseconds since the epoch, both included."""

    not_before: int
    not_after: int

    def fault(self, now: int) -> str:
        """What is wrong with the certificate now, as the end of a sentence; empty: nothing."""
        if now > self.not_after:
            return f"expired at {rfc3339(self.not_after)}"
        return f"is not valid before {rfc3339(self.not_before)}" if now < self.not_before else ""


def validity(pem: str) -> Validity:
    """Of the first certificate, which is the one that a server shows. Raises ValueError."""
    found = _CERTIFICATE.search(pem)
    if found is None:
        raise ValueError("no certificate")
    try:
        _, certificate = next(_elements(base64.b64decode(found[2])))
        _, signed = next(_elements(certificate))
        fields = [content for tag, content in _elements(signed) if tag != _VERSION]
        first, last = (_moment(tag, content) for tag, content in _elements(fields[_FIELDS_BEFORE_THE_DATES]))
    except (IndexError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError("no certificate that can be read") from error
    return Validity(first, last)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and contents. A length of 128 or more is preceded by how many bytes it has."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length > 0x7F:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        yield tag, der[at : at + length]
        at += length


def _moment(tag: int, content: bytes) -> int:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        # RFC 5280 4.1.2.5.1: years from 50 on are of the last century.
        text = ("19" if text >= "50" else "20") + text
    return to_microseconds(datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp())
