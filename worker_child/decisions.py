"""What the session decides: the things it asks its shell to do, in order. Plain data."""

from typing import Any, Literal

from msgspec import Struct

from wire import frames


class Outcome(Struct, frozen=True, kw_only=True):
    """How one job ended. `result` is a JSON object, often a msgspec.Raw of one."""

    status: frames.ReportStatus
    result: Any = None
    error_type: str | None = None
    error_message: str | None = None


class Decision(Struct, frozen=True):
    """Base of every decision."""


class Connect(Decision, frozen=True):
    """Open a connection; the answer is `connected`, `connection_lost` or `upgrade_refused`."""


class DropConnection(Decision, frozen=True):
    """Abort the connection. No event of it may reach the session afterwards."""

    reason: str


class Send(Decision, frozen=True, gc=False):
    """Send a frame. `repeated`: it was sent before, and is of no use behind unsent bytes of the same connection."""

    frame: frames.FromWorker
    repeated: bool = False


class Ping(Decision, frozen=True):
    """Send a WebSocket ping: nothing was read for a while."""


class StartJob(Decision, frozen=True, gc=False):
    """Run a job. `execution` names this run of it in every later decision and event."""

    execution: int
    job: frames.ClaimedJob


class CancelJob(Decision, frozen=True):
    """Tell the running code to stop."""

    execution: int
    reason: str


class LoseLease(Decision, frozen=True):
    """Tell the running code that its lease is gone."""

    execution: int


class JournalClaimed(Decision, frozen=True, gc=False, array_like=True, tag="c"):
    """Write down that this job is in hand. It is the journal's record itself."""

    job_id: str
    lease_token: str
    action: str


class JournalReported(Decision, frozen=True, gc=False):
    """Write the report down, before it is sent."""

    report: frames.Report


class Reported(Struct, frozen=True, array_like=True, gc=False, tag="r"):
    """What the journal has of JournalReported: `frame` is the report as it is sent."""

    lease_token: str
    frame: bytes


class JournalSettled(Decision, frozen=True, gc=False, array_like=True, tag="s"):
    """The lease's report was acknowledged, or the lease superseded: forget it. It is the journal's record itself."""

    lease_token: str


class DeadLetter(Decision, frozen=True):
    """The server refused the report for good: keep it where people can find it, then forget it."""

    report: frames.Report
    code: str
    message: str


class ClearSuspect(Decision, frozen=True):
    """The suspect has ended, having run alone: it does not end its process."""

    job_id: str


class Announce(Decision, frozen=True):
    """A fact for the supervisor."""

    fact: Literal["registered", "ready"]


class Note(Decision, frozen=True):
    """A fact for the log."""

    level: Literal["debug", "info", "warning", "error"]
    event: str
    fields: dict[str, Any] = {}


class End(Decision, frozen=True):
    """The worker is finished. `refused`: the control plane ended it for good."""

    reason: str
    refused: bool = False
