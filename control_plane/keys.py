"""Secrets and identifiers: how they are made, and what is stored of a secret (its hash alone)."""

import hashlib
import hmac
import os
from collections.abc import Callable

Random = Callable[[int], bytes]
"""`random(n)` gives n unpredictable bytes (os.urandom, or a seeded source in tests)."""

KEY_PREFIX = "mbx_"
DEFAULT_PROJECT = "default"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_RANDOM_BITS = 80
_COUNTED_BITS = 20
"""Two look-ups' worth."""
_RANDOM_LIMIT = 1 << _RANDOM_BITS
_TOKEN_BYTES = 20


def new_api_key(project: str | None = None, random: Random = os.urandom) -> str:
    """`mbx_` and 32 random characters (160 bits), then `.<project handle>` if one is given."""
    key = KEY_PREFIX + _random_text(random)
    return f"{key}.{project}" if project else key


def key_for_project(handle: str) -> str:
    """A new key; it names its project, but for the one that clients take without being told."""
    return new_api_key(None if handle == DEFAULT_PROJECT else handle)


def project_of_key(key: str) -> str | None:
    """The project handle that a key ends in, if it does."""
    _, dot, handle = key.partition(".")
    return handle if dot and handle else None


def new_session_token(random: Random = os.urandom) -> str:
    """A fresh worker session token."""
    return "wst_" + _random_text(random)


def new_lease_tokens(number: int, random: Random = os.urandom) -> list[str]:
    """So many fresh lease tokens, each of 160 random bits."""
    # A claim makes one for every job: in hexadecimal, of one call to the system for all, they are made in no time.
    text = random(_TOKEN_BYTES * number).hex()
    size = 2 * _TOKEN_BYTES
    return ["lease_" + text[start : start + size] for start in range(0, size * number, size)]


def hash_secret(secret: str) -> bytes:
    """What is stored of a key or token: SHA-256, 32 bytes. Plain is enough, since the secrets are 160 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def same_hash(one: bytes | None, other: bytes) -> bool:
    """Constant-time comparison; None equals nothing."""
    return one is not None and hmac.compare_digest(one, other)


class Identifiers:
    """Makes `<prefix>_` + 26 characters that sort by time: 48 bits of milliseconds, 80 random bits, base 32.

    Ids made by one instance increase strictly, also within a millisecond. Not safe for several threads at once.
    """

    def __init__(self, random: Random = os.urandom) -> None:
        self._random = random
        self._milliseconds = -1
        self._tail = 0
        self._head = -1
        self._head_text = ""

    def new(self, prefix: str, now: int) -> str:
        """`prefix` without the underscore; `now` in microseconds since the epoch."""
        milliseconds = max(now // 1000, self._milliseconds)
        if milliseconds == self._milliseconds and self._tail + 1 < _RANDOM_LIMIT:
            self._tail += 1
        else:
            self._milliseconds = milliseconds if milliseconds > self._milliseconds else milliseconds + 1
            # The highest bit stays free, so that counting up within a millisecond has room.
            self._tail = int.from_bytes(self._random(_RANDOM_BITS // 8), "big") >> 1
        tail = self._tail
        head = self._milliseconds << _RANDOM_BITS - _COUNTED_BITS | tail >> _COUNTED_BITS
        if head != self._head:
            # The characters that ids of the same millisecond share: writing them out is most of the work.
            self._head, self._head_text = head, _base32(head, 26 - _COUNTED_BITS // 5)
        return f"{prefix}_{self._head_text}{_PAIRS[tail >> 10 & 1023]}{_PAIRS[tail & 1023]}"


def _base32(value: int, length: int) -> str:
    """An even number of characters, ten bits a table look-up."""
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(5 * length - 10, -1, -10)])


def _random_text(random: Random) -> str:
    value = int.from_bytes(random(20), "big")
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(150, -1, -10)])
