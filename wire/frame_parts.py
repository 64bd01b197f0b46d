"""What is read of a frame when it is not read as one: what it answers, what a job in it is named, what was read before.

Apart from the codec, which is native code in a compiled wheel: there the types of a Struct's fields would be lost.
"""

from typing import Literal

import msgspec

from wire.frames import Identifier, MessageId, Report


class Correlation(msgspec.Struct):
    """What an error that answers a frame names. An id that is too long for a frame cannot be echoed in one either."""

    message_id: MessageId | None = None


class ReportAsWritten(Report, frozen=True, tag="job.report"):
    """A report whose result was read by whoever made it: it need not become objects a second time."""

    result: msgspec.Raw = msgspec.Raw(b"null")  # type: ignore[assignment]


class ClaimedInParts(msgspec.Struct):
    """`jobs.claimed` of which one job may be none."""

    type: Literal["jobs.claimed"]
    jobs: list[msgspec.Raw]
    message_id: MessageId | None = None


class Lease(msgspec.Struct):
    """What names the claim of a job that cannot be read."""

    id: Identifier
    lease_token: str
