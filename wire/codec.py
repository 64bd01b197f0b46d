"""Bytes <-> frames, with the fault told apart: ours (`LocalFrameError`) or the peer's (`RemoteFrameError`)."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from wire.depth import MAX_DEPTH, MAX_ELEMENTS, has_more_elements, is_deeper
from wire.frame_parts import ClaimedInParts, Correlation, Lease, ReportAsWritten
from wire.frames import (
    FROM_SERVER,
    FROM_WORKER,
    Claimed,
    ClaimedJob,
    FromServer,
    FromWorker,
    Report,
    ReportAck,
)
from wire.verdicts import RESULT_TOO_LARGE

MAX_FRAME_TO_WORKER = 1024 * 1024
"""Bytes. The public clients close the connection above it (contract, "Frames")."""

MAX_FRAME_TO_SERVER = 16 * 1024 * 1024
"""Bytes. A larger result is reported failed as ResultTooLarge."""


MAX_DEPTH_TO_SERVER = MAX_DEPTH + 1
"""Levels of JSON: those of a value, inside the frame's own. A deeper result is reported failed."""


_LARGE = 64 * 1024


class LocalFrameError(ValueError):
    """We tried to send a frame that the contract forbids: our bug."""


class RemoteFrameError(ValueError):
    """The peer sent what is no frame of its side. `message_id` is the peer's, where one could be read."""

    def __init__(self, message: str, message_id: str | None = None) -> None:
        super().__init__(message)
        self.message_id = message_id


class UnreadableJob(msgspec.Struct, frozen=True):
    """A job of `jobs.claimed` that is none, and why; what names its claim, where that could be read."""

    reason: str
    job_id: str | None = None
    lease_token: str | None = None


_encoder = msgspec.json.Encoder()
_claimed_in_parts = msgspec.json.Decoder(ClaimedInParts)
_claimed_job = msgspec.json.Decoder(ClaimedJob)
_lease = msgspec.json.Decoder(Lease)
_from_worker: "msgspec.json.Decoder[FromWorker]" = msgspec.json.Decoder(FromWorker)
_from_server: "msgspec.json.Decoder[FromServer]" = msgspec.json.Decoder(FromServer)
_correlation = msgspec.json.Decoder(Correlation)

_read_back_to_server: dict[type, Any] = dict.fromkeys(FROM_WORKER, _from_worker)
_read_back_to_server[Report] = msgspec.json.Decoder(ReportAsWritten)
_read_back_to_worker: dict[type, Any] = dict.fromkeys(FROM_SERVER, _from_server)
# Two of every job, which are not read back: they are made of what a frame, a request or the store was checked for.
_read_back_to_worker |= dict.fromkeys((Claimed, ReportAck))


def decode_from_worker(data: bytes | str) -> FromWorker:
    """One frame that a worker sent. Raises RemoteFrameError, and nothing else, on anything that is not one."""
    if len(data) > MAX_FRAME_TO_SERVER:
        raise _too_large(data, MAX_FRAME_TO_SERVER)
    if has_more_elements(data, MAX_ELEMENTS):
        return _report_of_too_much(data)
    try:
        if len(data) < _LARGE:
            frame = _from_worker.decode(data)
        else:
            with _no_collection():
                frame = _from_worker.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _remote_fault(error, data) from error
    if is_deeper(data, MAX_DEPTH_TO_SERVER):
        raise RemoteFrameError(f"frame is nested too deeply, more than {MAX_DEPTH_TO_SERVER} levels", _message_id(data))
    return frame


def decode_from_server(data: bytes | str) -> FromServer:
    """One frame that a server sent. Raises RemoteFrameError, and nothing else, on anything that is not one."""
    if len(data) > MAX_FRAME_TO_WORKER:
        raise _too_large(data, MAX_FRAME_TO_WORKER)
    try:
        return _from_server.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _remote_fault(error, data) from error


def claimed_in_part(data: bytes | str) -> tuple[Claimed, list[UnreadableJob]] | None:
    """What can be read of a `jobs.claimed` that `decode_from_server` refused, job by job; None if it is no such frame.

    One job that a newer server writes otherwise must not cost the others of its frame.
    """
    try:
        written = _claimed_in_parts.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    jobs: list[ClaimedJob] = []
    unreadable: list[UnreadableJob] = []
    for one in written.jobs:
        try:
            jobs.append(_claimed_job.decode(one))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            unreadable.append(_unreadable(one, reason))
    return Claimed(message_id=written.message_id, jobs=jobs), unreadable


def _unreadable(job: msgspec.Raw, reason: str) -> UnreadableJob:
    try:
        lease = _lease.decode(job)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return UnreadableJob(reason)
    return UnreadableJob(reason, lease.id, lease.lease_token)


def encode_to_server(frame: FromWorker) -> bytes:
    """A worker's frame as bytes of at most MAX_FRAME_TO_SERVER. Raises LocalFrameError."""
    return _encode(frame, _read_back_to_server, MAX_FRAME_TO_SERVER)


def encode_to_worker(frame: FromServer) -> bytes:
    """A server's frame as bytes of at most MAX_FRAME_TO_WORKER. Raises LocalFrameError."""
    return _encode(frame, _read_back_to_worker, MAX_FRAME_TO_WORKER)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A million new objects, none of which is garbage, would be looked through again and again while they are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _report_of_too_much(data: bytes | str) -> Report:
    """A report is taken, or its worker would send it for ever, and its result is not (contract, "Frames")."""
    try:
        report = _read_back_to_server[Report].decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        message = f"frame has more than {MAX_ELEMENTS} values and keys"
        raise RemoteFrameError(message, _message_id(data)) from error
    return Report(
        message_id=report.message_id,
        job_id=report.job_id,
        lease_token=report.lease_token,
        status="failed",
        error_type=RESULT_TOO_LARGE,
        error_message=f"the result has more than {MAX_ELEMENTS} values and keys, which is the limit",
    )


def _too_large(data: bytes | str, limit: int) -> RemoteFrameError:
    return RemoteFrameError(f"frame of {len(data)} bytes is larger than the limit of {limit}")


def _remote_fault(error: Exception, data: bytes | str) -> RemoteFrameError:
    if isinstance(error, RecursionError):
        return RemoteFrameError("frame is nested too deeply")
    return RemoteFrameError(str(error), _message_id(data))


def _message_id(data: bytes | str) -> str | None:
    try:
        return _correlation.decode(data).message_id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _encode(frame: Any, read_back: dict[type, Any], limit: int) -> bytes:
    if type(frame) not in read_back:
        raise LocalFrameError(f"{type(frame).__name__} is not a frame of this direction")
    decoder = read_back[type(frame)]
    try:
        data = _encoder.encode(frame)
        if decoder is not None:
            # msgspec checks types when it reads, not when it writes; reading our own bytes back costs half a
            # microsecond for a usual frame and keeps a wrong one from ever leaving.
            decoder.decode(data)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise LocalFrameError(f"{type(frame).__name__}: {error}") from error
    if len(data) > limit:
        raise LocalFrameError(f"{type(frame).__name__} of {len(data)} bytes is larger than the limit of {limit}")
    return data
