"""What can go wrong in the control plane, said once.

ControlPlaneError
 +- DomainError             the request cannot be done; it changed nothing
 |   +- NotFound            the named thing does not exist (in this project)
 |   +- Conflict            it exists, in a state that forbids the request
 |   +- Invalid             the request itself is wrong
 +- CannotCreate            a file that was asked for exists, or cannot be written
 +- StoreUnavailable        the store cannot write or read now; nothing was acknowledged
 +- StoreRefused            the store will never open like this (wrong SQLite, newer schema, no such directory)
     +- StoreInUse          another control plane owns it
     +- StoreDamaged        its file is not what was written
"""

from typing import Any


class ControlPlaneError(Exception):
    """Base of all errors of the control plane. Its text is one sentence without secrets."""


class DomainError(ControlPlaneError):
    """`code` is stable and for programs, `message` one sentence for people, `details` JSON for both."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details or {}


class NotFound(DomainError):  # noqa: N818 - named as the domain says it
    """Codes: not_found, unknown_step."""

    def __init__(self, message: str, details: dict[str, Any] | None = None, *, code: str = "not_found") -> None:
        super().__init__(code, message, details)


class Conflict(DomainError):  # noqa: N818 - named as the domain says it
    """Codes: handle_taken, not_published, automation_paused, automation_archived, external_id_conflict,
    invalid_version, job_not_failed, job_of_a_run, name_taken, run_skipped, run_ended, already_signalled."""


class Invalid(DomainError):  # noqa: N818 - named as the domain says it
    """Codes: invalid_inputs, invalid_cursor, invalid_field, not_a_wait_step, signal_refused."""


class CannotCreate(ControlPlaneError):  # noqa: N818 - what it says is what it is
    """A file that an operator asked for cannot be made."""


class StoreUnavailable(ControlPlaneError):  # noqa: N818 - named as callers say it
    """Nothing was changed, or nothing that anybody was told of. Asking again later may succeed."""


class StoreRefused(StoreUnavailable):
    """Asking again changes nothing until somebody repairs what the sentence names."""


class StoreInUse(StoreRefused):
    """Another control plane serves this store."""


class StoreDamaged(StoreRefused):
    """A SQLite file that cannot be read to its end."""


class FenceBrokenError(RuntimeError):
    """A row is not as the decision found it, and nothing was written. On PostgreSQL somebody without our locks has
    changed it; with the one writer of SQLite it is a bug. No ControlPlaneError: it is no answer to a caller."""
